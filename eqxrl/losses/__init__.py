"""What a learner minimises: pure functions of a policy and a minibatch."""

from eqxrl.losses._actor_critic import ActorCriticLoss as ActorCriticLoss
from eqxrl.losses._base import AbstractLoss as AbstractLoss
from eqxrl.losses._ppo import PPOLoss as PPOLoss
from eqxrl.losses._q import QLoss as QLoss
from eqxrl.losses._td import quantile_huber as quantile_huber
from eqxrl.losses._td import td_loss as td_loss
from eqxrl.losses._td import td_target as td_target
from eqxrl.losses._vtrace import VTraceLoss as VTraceLoss
