import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from eqxrl._devices import mean_over_devices
from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, field, strong, typed, within
from eqxrl.learners._base import AbstractLearner, LearnerState
from eqxrl.learners._minibatch import MinibatchLearner
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, evaluate

BOUNDS = (2.0**-20, 2.0**20)
"""Of the coefficient, so that it finds its way back from however long a time on one side of the target."""


@typed
class AdaptiveKL(AbstractLearner):
    """A `MinibatchLearner` whose loss is given a penalty on the divergence from the policy that acted, with a coefficient that finds
    itself: after a rollout it is doubled where the policy's KL divergence is above 1.5 times the target, and halved where it is below
    the target divided by 1.5. Such as

        PPO.create("CartPole-v1", learner=lambda hp: AdaptiveKL(
            MinibatchLearner(PPOLoss(), optax.adam(hp.learning_rate), num_epochs=hp.num_epochs, num_minibatches=hp.num_minibatches)
        ))

    The loss must report `approx_kl`, with its gradient, as `PPOLoss` does: the penalty is the coefficient times that. The divergence that
    the coefficient follows is measured over the whole rollout after its last update, as the mean of (r - 1) - log r, and reported as
    `rollout_kl`; `kl_coef` is the coefficient that the updates were made with. The coefficient stays within 2⁻²⁰ and 2²⁰.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, section 4.
    """

    learner: MinibatchLearner
    target_kl: Scalar = field(default=0.01, metadata=within(0.0, open_low=True))
    init_coef: Scalar = field(default=1.0, metadata=within(*BOUNDS))
    """The coefficient at first."""

    def __check_init__(self):
        if getattr(self.learner.loss, "kl_coef", None) is not None:
            raise ValueError(f"{type(self.learner.loss).__name__}.kl_coef was set, but AdaptiveKL brings the penalty itself; leave it out")

    @property
    def num_epochs(self) -> int:
        return self.learner.num_epochs

    @property
    def num_minibatches(self) -> int:
        return self.learner.num_minibatches

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        """The coefficient is the second of the two parts of `opt_state`."""
        state = self.learner.init(agent)
        return dataclasses.replace(state, opt_state=(state.opt_state, strong(self.init_coef)))

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        opt_state, coef = state.opt_state
        learner = dataclasses.replace(self.learner, loss=_Penalised(self.learner.loss, coef))
        agent, state, metrics = learner(agent, dataclasses.replace(state, opt_state=opt_state), rollout, key)
        t = rollout.trajectories
        log_ratio = evaluate(agent, rollout)[0].log_prob(t.action) - t.log_prob
        kl = mean_over_devices(jnp.mean(jnp.expm1(log_ratio) - log_ratio))
        factor = jnp.where(kl > 1.5 * self.target_kl, 2.0, jnp.where(kl < self.target_kl / 1.5, 0.5, 1.0))
        after = dataclasses.replace(state, opt_state=(state.opt_state, jnp.clip(factor * coef, *BOUNDS)))
        return agent, after, metrics | {"kl_coef": coef, "rollout_kl": kl}


class _Penalised(AbstractLoss):
    loss: AbstractLoss
    coef: Scalar

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> Any:
        loss, metrics = self.loss(agent, minibatch)
        if "approx_kl" not in metrics:
            name, names = type(self.loss).__name__, ", ".join(metrics)
            raise ValueError(f"AdaptiveKL needs a loss that reports approx_kl, and {name} reports {names}; add approx_kl to its metrics")
        return loss + self.coef * metrics["approx_kl"], metrics

    def at_step(self, num_updates: Int[Array, ""]) -> "_Penalised":
        return _Penalised(self.loss.at_step(num_updates), self.coef)
