import optax

from eqxrl._typing import Scalar, Schedule, as_scalar, as_schedule, field, optional, within
from eqxrl.advantages import GAE, AbstractAdvantage
from eqxrl.algorithms._hparams import AbstractDataParallelHParams
from eqxrl.algorithms._on_policy import AbstractOnPolicy
from eqxrl.algorithms._parts import part
from eqxrl.collectors import AbstractCollector, DataParallelCollector, RewardScaling, RolloutCollector
from eqxrl.envs import default_stepper
from eqxrl.learners import AbstractLearner, DataParallelLearner, MinibatchLearner, clipped
from eqxrl.losses import AbstractLoss, PPOLoss


class PPOHParams(AbstractDataParallelHParams):
    """How a PPO is configured. Integers and flags are static: they set shapes, or pick a branch. The others are leaves, to be
    swept by `vmap` without a recompile; those of type `Schedule` may also be a function of the number of gradient updates,
    such as `optax.linear_schedule(1e-3, 0.0, hp.num_updates)`."""

    normalize_observations: bool = field(default=False)
    """Standardise observations by their running statistics."""
    normalize_rewards: bool = field(default=False)
    """Divide rewards by the deviation of the running return."""
    clip_value: bool = field(default=True)
    """Keep the new value within `clip_eps` of the old one in the value loss, as the original did; turn it off where returns
    are much larger than `clip_eps` and rewards aren't normalised."""
    learning_rate: Schedule = field(default=3e-4, converter=as_schedule, metadata=within(0.0))
    """Adam's step size."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""
    max_grad_norm: Scalar = field(default=float("inf"), metadata=within(0.0))
    """Global norm that gradients are clipped to."""
    gae_lambda: Scalar = field(default=0.95, metadata=within(0.0, 1.0))
    """How far advantages trust rewards over values: 0 one step, 1 the whole episode."""
    clip_eps: Schedule = field(default=0.2, converter=as_schedule, metadata=within(0.0))
    """How far the probability ratio may move from 1 before its gradient is cut."""
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    """Weight of the value loss."""
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))
    """Weight of the entropy bonus."""
    normalize_advantages: bool = field(default=True)
    """Standardise advantages over each minibatch."""
    target_kl: Scalar | None = field(default=None, converter=optional(as_scalar), metadata=within(0.0, open_low=True))
    """Leave out the rest of a rollout's updates once the KL divergence of a minibatch is above 1.5 times this."""
    kl_coef: Schedule | None = field(default=None, converter=optional(as_schedule), metadata=within(0.0))
    """Weight of a penalty on the KL divergence from the policy that acted."""


class PPO(AbstractOnPolicy):
    """Proximal policy optimisation. Schulman et al. 2017, https://arxiv.org/abs/1707.06347"""

    HParams = PPOHParams

    @part(AbstractCollector)
    def collector(self):
        hp = self.hp
        scaling = RewardScaling(gamma=hp.gamma) if hp.normalize_rewards else None
        of_one = RolloutCollector(hp.num_envs // hp.num_devices, hp.num_steps, default_stepper(self.env), reward_scaling=scaling)
        return of_one if hp.num_devices == 1 else DataParallelCollector(of_one, hp.num_devices)  # pyright: ignore[reportCallIssue]

    @part(AbstractAdvantage)
    def advantage(self):
        return GAE(gamma=self.hp.gamma, gae_lambda=self.hp.gae_lambda)

    @part(AbstractLoss)
    def loss(self):
        hp = self.hp
        return PPOLoss(
            clip_eps=hp.clip_eps, vf_coef=hp.vf_coef, ent_coef=hp.ent_coef, clip_value=hp.clip_value,
            normalize_advantages=hp.normalize_advantages, kl_coef=hp.kl_coef,
        )

    @part(optax.GradientTransformation)
    def optimizer(self):
        return clipped(self.hp.max_grad_norm, optax.adam(self.hp.learning_rate, eps=1e-5))

    @part(AbstractLearner)
    def learner(self):
        hp = self.hp
        learner = MinibatchLearner(
            self.loss, self.optimizer, num_epochs=hp.num_epochs, num_minibatches=hp.num_minibatches, target_kl=hp.target_kl
        )
        return learner if hp.num_devices == 1 else DataParallelLearner(learner, hp.num_devices)
