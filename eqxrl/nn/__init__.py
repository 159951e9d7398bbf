"""Policies and critics: actor-critics, action distributions, initialisers, and the statistics that travel with them."""

from eqxrl.nn._actor_critic import AbstractActorCritic as AbstractActorCritic
from eqxrl.nn._actor_critic import check_actor_critic as check_actor_critic
from eqxrl.nn._distributions import AbstractDistribution as AbstractDistribution
from eqxrl.nn._distributions import Categorical as Categorical
from eqxrl.nn._distributions import DiagGaussian as DiagGaussian
from eqxrl.nn._mlp import MLPActorCritic as MLPActorCritic
from eqxrl.nn._mlp import orthogonal_linear as orthogonal_linear
from eqxrl.nn._normalize import NormalizedActorCritic as NormalizedActorCritic
from eqxrl.nn._normalize import RunningMoments as RunningMoments
from eqxrl.nn._normalize import observe as observe
from eqxrl.nn._normalize import trainable as trainable
