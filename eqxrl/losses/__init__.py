"""What a learner minimises: pure functions of a policy and a minibatch."""

from eqxrl.losses._actor_critic import ActorCriticLoss as ActorCriticLoss
from eqxrl.losses._base import AbstractLoss as AbstractLoss
from eqxrl.losses._ppo import PPOLoss as PPOLoss
