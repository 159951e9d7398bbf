"""Parts, assembled."""

from eqxrl.algorithms._on_policy import AbstractOnPolicy as AbstractOnPolicy
from eqxrl.algorithms._on_policy import PPOState as PPOState
from eqxrl.algorithms._ppo import PPO as PPO
from eqxrl.algorithms._ppo import Parts as Parts
from eqxrl.algorithms._ppo import PPOHParams as PPOHParams
from eqxrl.algorithms._presets import PRESETS as PRESETS
from eqxrl.algorithms._presets import MakeMLP as MakeMLP
from eqxrl.algorithms._presets import Preset as Preset
from eqxrl.algorithms._presets import preset as preset
