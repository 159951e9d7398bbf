"""Environments: those of gymnax by name, a user's own, wrappers, reset strategies, and a check of the contract."""

from eqxrl.envs._check import check_env as check_env
from eqxrl.envs._cond import cond_any as cond_any
from eqxrl.envs._contract import adapt as adapt
from eqxrl.envs._contract import check_spaces as check_spaces
from eqxrl.envs._make import make as make
from eqxrl.envs._protocol import (
    AbstractWrapper as AbstractWrapper,
)
from eqxrl.envs._protocol import (
    EnvError as EnvError,
)
from eqxrl.envs._protocol import (
    Step as Step,
)
from eqxrl.envs._protocol import (
    separable as separable,
)
from eqxrl.envs._protocol import (
    step as step,
)
from eqxrl.envs._reset import (
    AbstractReset as AbstractReset,
)
from eqxrl.envs._reset import (
    ResetEveryStep as ResetEveryStep,
)
from eqxrl.envs._reset import (
    ResetFromPool as ResetFromPool,
)
from eqxrl.envs._reset import (
    ResetWhenDone as ResetWhenDone,
)
from eqxrl.envs._reset import (
    VecStep as VecStep,
)
from eqxrl.envs._reset import (
    default_reset as default_reset,
)
from eqxrl.envs._spaces import (
    episode_limit as episode_limit,
)
from eqxrl.envs._spaces import (
    is_box as is_box,
)
from eqxrl.envs._spaces import (
    is_discrete as is_discrete,
)
from eqxrl.envs._spaces import (
    to_env_action as to_env_action,
)
from eqxrl.envs._wrappers import (
    AutoReset as AutoReset,
)
from eqxrl.envs._wrappers import (
    FiveValueStep as FiveValueStep,
)
from eqxrl.envs._wrappers import (
    TimeLimit as TimeLimit,
)
from eqxrl.envs._wrappers import (
    TimeLimitIsTerminal as TimeLimitIsTerminal,
)
