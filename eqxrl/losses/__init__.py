"""What a learner minimises: pure functions of a policy and a minibatch."""

from eqxrl.losses._actor_critic import ActorCriticLoss as ActorCriticLoss
from eqxrl.losses._base import AbstractLoss as AbstractLoss
from eqxrl.losses._pathwise import PathwiseLoss as PathwiseLoss
from eqxrl.losses._pathwise import TemperedActor as TemperedActor
from eqxrl.losses._ppo import PPOLoss as PPOLoss
from eqxrl.losses._q import QLoss as QLoss
from eqxrl.losses._vtrace import VTraceLoss as VTraceLoss
