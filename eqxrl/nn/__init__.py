"""Policies and critics: actor-critics, action values, what acts, action distributions, initialisers, and running statistics."""

from eqxrl.nn._actor_critic import AbstractActorCritic as AbstractActorCritic
from eqxrl.nn._actor_critic import check_actor_critic as check_actor_critic
from eqxrl.nn._actor_critic import episode_starts as episode_starts
from eqxrl.nn._actor_critic import evaluate as evaluate
from eqxrl.nn._actor_critic import has_memory as has_memory
from eqxrl.nn._distributions import AbstractDistribution as AbstractDistribution
from eqxrl.nn._distributions import Categorical as Categorical
from eqxrl.nn._distributions import DiagGaussian as DiagGaussian
from eqxrl.nn._memory import LRU as LRU
from eqxrl.nn._memory import AbstractMemory as AbstractMemory
from eqxrl.nn._memory import Cell as Cell
from eqxrl.nn._mlp import MLPActorCritic as MLPActorCritic
from eqxrl.nn._mlp import MLPQNetwork as MLPQNetwork
from eqxrl.nn._mlp import orthogonal_linear as orthogonal_linear
from eqxrl.nn._normalize import NormalizedActorCritic as NormalizedActorCritic
from eqxrl.nn._normalize import RunningMoments as RunningMoments
from eqxrl.nn._normalize import observe as observe
from eqxrl.nn._normalize import trainable as trainable
from eqxrl.nn._policy import AbstractPolicy as AbstractPolicy
from eqxrl.nn._policy import ActorCriticPolicy as ActorCriticPolicy
from eqxrl.nn._policy import EpsilonGreedy as EpsilonGreedy
from eqxrl.nn._recurrent import GRUActorCritic as GRUActorCritic
from eqxrl.nn._recurrent import LRUActorCritic as LRUActorCritic
from eqxrl.nn._recurrent import LSTMActorCritic as LSTMActorCritic
from eqxrl.nn._recurrent import RecurrentActorCritic as RecurrentActorCritic
