"""Does an assembled algorithm do what it should? One table of laws for each kind of part, and one for a whole algorithm."""

from eqxrl.verification._algorithms import verify as verify
from eqxrl.verification._laws import Check as Check
from eqxrl.verification._laws import Report as Report
