import optax

from eqxrl._typing import Scalar, Schedule, as_schedule, field, within
from eqxrl.advantages import GAE, AbstractAdvantage
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._on_policy import AbstractOnPolicy
from eqxrl.algorithms._parts import part
from eqxrl.collectors import AbstractCollector, RolloutCollector
from eqxrl.envs import default_stepper
from eqxrl.learners import AbstractLearner, MinibatchLearner, clipped
from eqxrl.losses import AbstractLoss, ActorCriticLoss


class A2CHParams(AbstractHParams):
    """How an A2C is configured; see `PPOHParams`."""

    num_envs: int = field(default=16)
    """Environments that are stepped at once."""
    num_steps: int = field(default=5)
    """Steps of each environment in a rollout."""
    normalize_observations: bool = field(default=False)
    """Standardise observations by their running statistics."""
    learning_rate: Schedule = field(default=7e-4, converter=as_schedule, metadata=within(0.0))
    """RMSProp's step size."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""
    gae_lambda: Scalar = field(default=1.0, metadata=within(0.0, 1.0))
    """How far advantages trust rewards over values; 1: the returns to the rollout's end, as in the paper."""
    max_grad_norm: Scalar = field(default=0.5, metadata=within(0.0))
    """Global norm that gradients are clipped to."""
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    """Weight of the value loss."""
    ent_coef: Schedule = field(default=0.0, converter=as_schedule, metadata=within(0.0))
    """Weight of the entropy bonus."""

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: one for each rollout."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps))


class A2C(AbstractOnPolicy):
    """Advantage actor-critic, synchronous: one gradient step on each rollout. Mnih et al. 2016, https://arxiv.org/abs/1602.01783;
    defaults as in Stable-Baselines3."""

    HParams = A2CHParams

    @part(AbstractCollector)
    def collector(self):
        return RolloutCollector(self.hp.num_envs, self.hp.num_steps, default_stepper(self.env))

    @part(AbstractAdvantage)
    def advantage(self):
        return GAE(gamma=self.hp.gamma, gae_lambda=self.hp.gae_lambda)

    @part(AbstractLoss)
    def loss(self):
        return ActorCriticLoss(vf_coef=self.hp.vf_coef, ent_coef=self.hp.ent_coef)

    @part(optax.GradientTransformation)
    def optimizer(self):
        hp = self.hp
        return clipped(hp.max_grad_norm, optax.rmsprop(hp.learning_rate, decay=0.99, eps=1e-5))

    @part(AbstractLearner)
    def learner(self):
        return MinibatchLearner(self.loss, self.optimizer, num_epochs=1, num_minibatches=1)
