"""Where data comes from: a policy acting in environments."""

from eqxrl.collectors._base import AbstractCollector as AbstractCollector
from eqxrl.collectors._reward_scaling import RewardScaling as RewardScaling
from eqxrl.collectors._reward_scaling import RewardScalingState as RewardScalingState
from eqxrl.collectors._rollout import RolloutCollector as RolloutCollector
