import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, Schedule, as_number, as_schedule, at_step, field, typed, within
from eqxrl.losses._base import AbstractLoss
from eqxrl.nn import AbstractActorCritic, evaluate


@typed
class PPOLoss(AbstractLoss):
    r"""The clipped surrogate with value loss and entropy bonus,
    $-\min(r_t \hat A_t, \mathrm{clip}(r_t, 1-\epsilon, 1+\epsilon) \hat A_t) + c_v L^V - c_e S$, where advantages are
    standardised over the minibatch and $L^V = \tfrac12 \max((v - R)^2, (v_{clip} - R)^2)$ keeps the new value within
    $\epsilon$ of the old one.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 9; details after Huang et al. 2022,
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/.
    """

    clip_eps: Schedule = field(default=0.2, converter=as_schedule, metadata=within(0.0))
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))
    clip_value: bool = field(default=True)
    """Without it the value loss is $\\tfrac12 (v - R)^2$; Andrychowicz et al. 2021 (https://arxiv.org/abs/2006.05990) found
    clipping to help nowhere."""

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        t = minibatch.trajectories
        clip_eps, ent_coef = as_number(self.clip_eps), as_number(self.ent_coef)
        distribution, value = evaluate(agent, minibatch)

        if minibatch.advantages.size < 2:
            raise ValueError(
                "PPOLoss standardises advantages over the minibatch, and of a single sample nothing is left: its gradient is 0; use fewer "
                "minibatches, or more environments or steps"
            )
        # From the first one, so that what is left of equal advantages is exactly 0 and not a rounding error over 1e-8.
        advantages = minibatch.advantages - minibatch.advantages.ravel()[0]
        advantages = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
        log_ratio = distribution.log_prob(t.action) - t.log_prob
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
        policy_loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))

        error = jnp.square(value - minibatch.targets)
        if self.clip_value:
            near = t.value + jnp.clip(value - t.value, -clip_eps, clip_eps)
            error = jnp.maximum(error, jnp.square(near - minibatch.targets))
        value_loss = 0.5 * jnp.mean(error)

        entropy = jnp.mean(distribution.entropy())
        loss = policy_loss + self.vf_coef * value_loss - ent_coef * entropy
        return loss, dict(
            policy_loss=policy_loss, value_loss=value_loss, entropy=entropy,
            approx_kl=jnp.mean((ratio - 1) - log_ratio), clip_fraction=jnp.mean(jnp.abs(ratio - 1) > clip_eps),
        )

    def at_step(self, num_updates: Int[Array, ""]) -> "PPOLoss":
        clip_eps, ent_coef = at_step(self.clip_eps, num_updates), at_step(self.ent_coef, num_updates)
        return dataclasses.replace(self, clip_eps=clip_eps, ent_coef=ent_coef)
