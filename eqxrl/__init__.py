"""Reinforcement learning in JAX and Equinox: every array's shape checked, every part replaceable."""

from eqxrl import _command as _command  # isort: skip  (answers Ctrl-C during the imports below)
from eqxrl import _typing as _typing  # isort: skip  (installs the check of functions, so it comes before them)
from eqxrl import advantages as advantages
from eqxrl import algorithms as algorithms
from eqxrl import buffers as buffers
from eqxrl import collectors as collectors
from eqxrl import envs as envs
from eqxrl import evaluators as evaluators
from eqxrl import learners as learners
from eqxrl import losses as losses
from eqxrl import nn as nn
from eqxrl import spaces as spaces
from eqxrl import sweeps as sweeps
from eqxrl import training as training
from eqxrl import viz as viz
from eqxrl._schedules import LinearSchedule as LinearSchedule
from eqxrl._structs import AdvantageMinibatch as AdvantageMinibatch
from eqxrl._structs import EpisodeStats as EpisodeStats
from eqxrl._structs import EvalMetrics as EvalMetrics
from eqxrl._structs import Replayed as Replayed
from eqxrl._structs import TrainStepMetrics as TrainStepMetrics
from eqxrl._structs import Trajectory as Trajectory
from eqxrl._structs import TrajectoryCollectionState as TrajectoryCollectionState
from eqxrl._structs import TrajectoryWithLastObs as TrajectoryWithLastObs
from eqxrl._structs import Transition as Transition
from eqxrl._structs import Transitions as Transitions
from eqxrl._typing import Scalar as Scalar
from eqxrl._typing import Schedule as Schedule
from eqxrl._typing import ShapeError as ShapeError
from eqxrl._typing import TEnvParams as TEnvParams
from eqxrl._typing import TEnvState as TEnvState
from eqxrl._typing import as_schedule as as_schedule
from eqxrl._typing import field as field
from eqxrl._typing import typed as typed
from eqxrl._typing import within as within
from eqxrl._xla import set_cpu_flags as set_cpu_flags
from eqxrl.advantages import GAE as GAE
from eqxrl.advantages import AbstractAdvantage as AbstractAdvantage
from eqxrl.algorithms import *  # noqa: F403  (an algorithm is exported in one place)
from eqxrl.buffers import AbstractBuffer as AbstractBuffer
from eqxrl.buffers import PrioritizedBuffer as PrioritizedBuffer
from eqxrl.buffers import UniformBuffer as UniformBuffer
from eqxrl.collectors import AbstractCollector as AbstractCollector
from eqxrl.collectors import RolloutCollector as RolloutCollector
from eqxrl.collectors import TransitionCollector as TransitionCollector
from eqxrl.envs import Environment as Environment
from eqxrl.envs import check_env as check_env
from eqxrl.envs import make as make
from eqxrl.evaluators import AbstractEvaluator as AbstractEvaluator
from eqxrl.evaluators import EpisodeEvaluator as EpisodeEvaluator
from eqxrl.learners import AbstractLearner as AbstractLearner
from eqxrl.learners import MinibatchLearner as MinibatchLearner
from eqxrl.losses import AbstractLoss as AbstractLoss
from eqxrl.losses import PPOLoss as PPOLoss
from eqxrl.nn import AbstractActorCritic as AbstractActorCritic
from eqxrl.nn import AbstractPolicy as AbstractPolicy
from eqxrl.nn import MLPActorCritic as MLPActorCritic
from eqxrl.sweeps import log_uniform as log_uniform
from eqxrl.sweeps import sweep as sweep
from eqxrl.sweeps import uniform as uniform
from eqxrl.training import Callback as Callback
from eqxrl.training import Trainer as Trainer
from eqxrl.training import get_error_from_metrics as get_error_from_metrics
from eqxrl.training import load as load
from eqxrl.training import save as save
from eqxrl.verification import verify as verify

__version__ = "0.1.0"
