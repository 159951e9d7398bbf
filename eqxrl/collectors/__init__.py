"""Where data comes from: a policy acting in environments."""

from eqxrl.collectors._base import AbstractCollector as AbstractCollector
from eqxrl.collectors._base import acted_until as acted_until
from eqxrl.collectors._base import acting as acting
from eqxrl.collectors._base import init_collection as init_collection
from eqxrl.collectors._curriculum import Curriculum as Curriculum
from eqxrl.collectors._data_parallel import DataParallelCollector as DataParallelCollector
from eqxrl.collectors._reward_scaling import RewardScaling as RewardScaling
from eqxrl.collectors._reward_scaling import RewardScalingState as RewardScalingState
from eqxrl.collectors._rollout import RolloutCollector as RolloutCollector
from eqxrl.collectors._transitions import TransitionCollector as TransitionCollector
