import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, Schedule, as_number, as_schedule, at_step, field, typed, within
from eqxrl.advantages import VTrace
from eqxrl.losses._base import AbstractLoss
from eqxrl.nn import AbstractActorCritic, evaluate


@typed
class VTraceLoss(AbstractLoss):
    r"""Policy gradient, $-\log \pi(a_t|s_t) \hat A_t + c_v (v - v_t)^2 - c_e S$, as a mean over the minibatch, where advantages $\hat A_t$
    and targets $v_t$ are V-trace's under the policy as it stands now: they correct for its having moved away from the one that acted, so
    that a rollout can be learned from several times. No gradient flows through them. The minibatch's own aren't looked at.

    It needs whole sequences `[steps envs]` and the value of what follows them, from `MinibatchLearner(sequences=True)`. That value, and
    those of the final observations of episodes that were cut off, are the old critic's.

    Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, section 4.2.
    """

    vtrace: VTrace
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        if isinstance(minibatch.last_value, tuple):
            raise ValueError(
                f"VTraceLoss got samples {list(minibatch.advantages.shape)} without last_value, the value of what follows them, but needs "
                "sequences [steps envs] with it; use MinibatchLearner(..., sequences=True)"
            )
        t = minibatch.trajectories
        distribution, value = evaluate(agent, minibatch)
        log_prob = distribution.log_prob(t.action)
        log_ratio = log_prob - t.log_prob
        estimate = self.vtrace.corrected(t, minibatch.last_value, value, log_ratio)
        advantages, targets = jax.lax.stop_gradient(estimate)
        policy_loss = -jnp.mean(log_prob * advantages)
        value_loss = jnp.mean(jnp.square(value - targets))
        entropy = jnp.mean(distribution.entropy())
        loss = policy_loss + self.vf_coef * value_loss - as_number(self.ent_coef) * entropy
        approx_kl = jnp.mean(jnp.expm1(log_ratio) - log_ratio)
        return loss, dict(policy_loss=policy_loss, value_loss=value_loss, entropy=entropy, approx_kl=approx_kl)

    def at_step(self, num_updates: Int[Array, ""]) -> "VTraceLoss":
        return dataclasses.replace(self, ent_coef=at_step(self.ent_coef, num_updates))
