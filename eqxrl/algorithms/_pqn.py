from typing import Any

import optax
from jaxtyping import Array, Key

from eqxrl._typing import Scalar, Schedule, as_schedule, field, within
from eqxrl.advantages import GAE, AbstractAdvantage
from eqxrl.algorithms._hparams import AbstractDataParallelHParams, AbstractEpsilonGreedyHParams
from eqxrl.algorithms._on_policy import AbstractOnPolicy, OnPolicyState
from eqxrl.algorithms._parts import part
from eqxrl.collectors import AbstractCollector, DataParallelCollector, RewardScaling, RolloutCollector
from eqxrl.envs import default_stepper
from eqxrl.learners import AbstractLearner, DataParallelLearner, MinibatchLearner, clipped
from eqxrl.losses import AbstractLoss, QLoss
from eqxrl.nn import AbstractActorCritic, Exploring, QActorCritic, QNetwork


class PQNHParams(AbstractDataParallelHParams, AbstractEpsilonGreedyHParams):
    """How a PQN is configured; see `PPOHParams`."""

    num_epochs: int = field(default=4)
    num_envs: int = field(default=32)
    normalize_observations: bool = field(default=False)
    """Standardise observations by their running statistics."""
    normalize_rewards: bool = field(default=False)
    """Divide rewards by the deviation of the running return."""
    learning_rate: Schedule = field(default=2.5e-4, converter=as_schedule, metadata=within(0.0))
    """RAdam's step size."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""
    q_lambda: Scalar = field(default=0.95, metadata=within(0.0, 1.0))
    """How far targets trust rewards over values: 0 one step, 1 the whole rollout."""
    max_grad_norm: Scalar = field(default=10.0, metadata=within(0.0))
    """Global norm that gradients are clipped to."""


class PQN(AbstractOnPolicy):
    """Parallelised Q-network: Q-learning on rollouts, with Q(λ) targets and layer normalisation in the place of a replay buffer and a
    target network. Gallici et al. 2024, https://arxiv.org/abs/2407.04811

    The targets are `GAE`'s: with the highest action value as an observation's value, its λ-returns are those of Q(λ).
    """

    HParams = PQNHParams

    @part(AbstractActorCritic, made_later=True)
    def actor_critic(self):
        return _network

    @part(AbstractCollector)
    def collector(self):
        hp = self.hp
        scaling = RewardScaling(gamma=hp.gamma) if hp.normalize_rewards else None
        of_one = RolloutCollector(hp.num_envs // hp.num_devices, hp.num_steps, default_stepper(self.env), reward_scaling=scaling)
        return of_one if hp.num_devices == 1 else DataParallelCollector(of_one, hp.num_devices)  # pyright: ignore[reportCallIssue]

    @part(AbstractAdvantage)
    def advantage(self):
        return GAE(gamma=self.hp.gamma, gae_lambda=self.hp.q_lambda)

    @part(AbstractLoss)
    def loss(self):
        return QLoss()

    @part(optax.GradientTransformation)
    def optimizer(self):
        return clipped(self.hp.max_grad_norm, optax.radam(self.hp.learning_rate))

    @part(AbstractLearner)
    def learner(self):
        hp = self.hp
        learner = MinibatchLearner(self.loss, self.optimizer, num_epochs=hp.num_epochs, num_minibatches=hp.num_minibatches)
        return learner if hp.num_devices == 1 else DataParallelLearner(learner, hp.num_devices)

    def behaviour(self, ts: OnPolicyState) -> AbstractActorCritic:
        return Exploring(ts.agent, self.hp.epsilon(self.env_steps_after(ts.num_iterations)))


def _network(observation_space: Any, action_space: Any, *, key: Key[Array, ""]) -> QActorCritic:
    return QActorCritic(QNetwork(observation_space, action_space, hidden_sizes=(128, 128), layer_norm=True, key=key))
