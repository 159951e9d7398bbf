"""Does an assembled algorithm do what it should?"""

from eqxrl.verification._report import Check as Check
from eqxrl.verification._report import Report as Report
from eqxrl.verification._verify import verify as verify
from eqxrl.verification._verify import verify_env as verify_env
