import optax

from eqxrl._typing import Scalar, Schedule, as_schedule, field, within
from eqxrl.advantages import AbstractAdvantage, VTrace
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._on_policy import AbstractOnPolicy
from eqxrl.algorithms._parts import name_of, part
from eqxrl.collectors import AbstractCollector, RolloutCollector
from eqxrl.envs import default_stepper
from eqxrl.learners import AbstractLearner, MinibatchLearner, clipped
from eqxrl.losses import AbstractLoss, VTraceLoss


class IMPALAHParams(AbstractHParams):
    """How an IMPALA is configured; see `PPOHParams`."""

    num_epochs: int = field(default=2)
    """Passes over each rollout."""
    num_envs: int = field(default=32)
    """Environments that are stepped at once."""
    num_steps: int = field(default=20)
    """Steps of each environment in a rollout."""
    num_minibatches: int = field(default=4)
    """Parts that a rollout's environments are put into for each pass."""
    normalize_observations: bool = field(default=False)
    """Standardise observations by their running statistics."""
    learning_rate: Schedule = field(default=1e-3, converter=as_schedule, metadata=within(0.0))
    """RMSProp's step size."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""
    gae_lambda: Scalar = field(default=1.0, metadata=within(0.0, 1.0))
    """How far targets trust rewards over values; 1: as in the paper."""
    rho_clip: Scalar = field(default=1.0, metadata=within(0.0, open_low=True))
    """What a probability ratio counts for at most in a step's own error."""
    c_clip: Scalar = field(default=1.0, metadata=within(0.0))
    """What a probability ratio counts for at most in passing on later errors."""
    max_grad_norm: Scalar = field(default=0.5, metadata=within(0.0))
    """Global norm that gradients are clipped to."""
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    """Weight of the value loss."""
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))
    """Weight of the entropy bonus."""

    def __check_init__(self):
        super().__check_init__()  # the sizes themselves, before they are computed with
        if rest := self.num_envs % self.num_minibatches:
            raise ValueError(
                f"num_envs ({self.num_envs}) must be divisible by num_minibatches ({self.num_minibatches}), since environments stay whole; "
                f"remainder {rest}"
            )

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: the horizon for a schedule that spans it."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps)) * self.num_epochs * self.num_minibatches


class IMPALA(AbstractOnPolicy):
    """V-trace actor-critic: several gradient steps on each rollout, with targets that correct for the policy's moving away from the one
    that acted. Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, with its RMSProp, but synchronous: actors and learner take turns, so
    that ratios are off 1 by the learner's own steps only. Losses are means where the paper's are sums."""

    HParams = IMPALAHParams

    @part(AbstractCollector)
    def collector(self):
        return RolloutCollector(self.hp.num_envs, self.hp.num_steps, default_stepper(self.env))

    @part(AbstractAdvantage)
    def advantage(self):
        hp = self.hp
        return VTrace(gamma=hp.gamma, gae_lambda=hp.gae_lambda, rho_clip=hp.rho_clip, c_clip=hp.c_clip)

    @part(AbstractLoss)
    def loss(self):
        """Its targets are those of the part `advantage`, under the policy as it moves."""
        vtrace = self.advantage
        if not isinstance(vtrace, VTrace):
            raise TypeError(f"IMPALA's loss needs a VTrace as its advantage, got {name_of(vtrace)}; pass loss= or learner= as well")
        return VTraceLoss(vtrace, vf_coef=self.hp.vf_coef, ent_coef=self.hp.ent_coef)

    @part(optax.GradientTransformation)
    def optimizer(self):
        hp = self.hp
        return clipped(hp.max_grad_norm, optax.rmsprop(hp.learning_rate, decay=0.99, eps=1e-5))

    @part(AbstractLearner)
    def learner(self):
        hp = self.hp
        return MinibatchLearner(self.loss, self.optimizer, num_epochs=hp.num_epochs, num_minibatches=hp.num_minibatches, sequences=True)
