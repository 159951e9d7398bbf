"""Environments: those of gymnax by name, a user's own, wrappers, steppers, and a check of the contract (`Environment`)."""

from eqxrl.envs._check import check_env as check_env
from eqxrl.envs._cond import cond_any as cond_any
from eqxrl.envs._contract import as_environment as as_environment
from eqxrl.envs._contract import check_spaces as check_spaces
from eqxrl.envs._make import make as make
from eqxrl.envs._protocol import AbstractWrapper as AbstractWrapper
from eqxrl.envs._protocol import EnvError as EnvError
from eqxrl.envs._protocol import Environment as Environment
from eqxrl.envs._protocol import env_name as env_name
from eqxrl.envs._protocol import episode_limit as episode_limit
from eqxrl.envs._stepper import AbstractStepper as AbstractStepper
from eqxrl.envs._stepper import NeverReset as NeverReset
from eqxrl.envs._stepper import ResetFromPool as ResetFromPool
from eqxrl.envs._stepper import ResetWhenDone as ResetWhenDone
from eqxrl.envs._stepper import VecStep as VecStep
from eqxrl.envs._stepper import vec_step as vec_step
from eqxrl.envs._wrappers import SelectObservation as SelectObservation
from eqxrl.envs._wrappers import ShowLastStep as ShowLastStep
from eqxrl.envs._wrappers import TimeLimit as TimeLimit
from eqxrl.envs._wrappers import TimeLimitIsTerminal as TimeLimitIsTerminal
from eqxrl.envs.suites._gymnax import Gymnax as Gymnax
