"""Parts, assembled. A class that is exported here is an algorithm of the command, by its name in small letters."""

from eqxrl.algorithms._a2c import A2C as A2C
from eqxrl.algorithms._a2c import A2CHParams as A2CHParams
from eqxrl.algorithms._base import AbstractAlgorithm as AbstractAlgorithm
from eqxrl.algorithms._dqn import DQN as DQN
from eqxrl.algorithms._dqn import DQNHParams as DQNHParams
from eqxrl.algorithms._hparams import AbstractDataParallelHParams as AbstractDataParallelHParams
from eqxrl.algorithms._hparams import AbstractEpsilonGreedyHParams as AbstractEpsilonGreedyHParams
from eqxrl.algorithms._hparams import AbstractHParams as AbstractHParams
from eqxrl.algorithms._hparams import AbstractMinibatchHParams as AbstractMinibatchHParams
from eqxrl.algorithms._impala import IMPALA as IMPALA
from eqxrl.algorithms._impala import IMPALAHParams as IMPALAHParams
from eqxrl.algorithms._makers import MakeNetwork as MakeNetwork
from eqxrl.algorithms._makers import MakePart as MakePart
from eqxrl.algorithms._off_policy import AbstractOffPolicy as AbstractOffPolicy
from eqxrl.algorithms._off_policy import AbstractOffPolicyHParams as AbstractOffPolicyHParams
from eqxrl.algorithms._off_policy import bootstrapped as bootstrapped
from eqxrl.algorithms._off_policy import copied as copied
from eqxrl.algorithms._off_policy import descended as descended
from eqxrl.algorithms._off_policy_actor_critic import AbstractOffPolicyActorCritic as AbstractOffPolicyActorCritic
from eqxrl.algorithms._off_policy_actor_critic import AbstractOffPolicyActorCriticHParams as AbstractOffPolicyActorCriticHParams
from eqxrl.algorithms._on_policy import AbstractOnPolicy as AbstractOnPolicy
from eqxrl.algorithms._on_policy import OnPolicyState as OnPolicyState
from eqxrl.algorithms._parts import part as part
from eqxrl.algorithms._ppo import PPO as PPO
from eqxrl.algorithms._ppo import PPOHParams as PPOHParams
from eqxrl.algorithms._pqn import PQN as PQN
from eqxrl.algorithms._pqn import PQNHParams as PQNHParams
from eqxrl.algorithms._presets import PRESETS as PRESETS
from eqxrl.algorithms._presets import Preset as Preset
from eqxrl.algorithms._presets import preset as preset
from eqxrl.algorithms._reppo import REPPO as REPPO
from eqxrl.algorithms._reppo import REPPOHParams as REPPOHParams
from eqxrl.algorithms._sac import SAC as SAC
from eqxrl.algorithms._sac import SACHParams as SACHParams
from eqxrl.algorithms._td3 import TD3 as TD3
from eqxrl.algorithms._td3 import TD3HParams as TD3HParams
from eqxrl.algorithms._transitions import AbstractOnTransitions as AbstractOnTransitions
from eqxrl.algorithms._transitions import TransitionsState as TransitionsState

PPOState = OnPolicyState
"""The training state of a PPO."""

ALGORITHMS: dict[str, type[AbstractAlgorithm]] = {
    name.lower(): x
    for name, x in list(globals().items())
    if isinstance(x, type) and issubclass(x, AbstractAlgorithm) and not name.startswith("Abstract")
}
"""Every algorithm of the package, by its class's name in small letters."""
