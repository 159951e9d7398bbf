import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, Schedule, as_number, as_scalar, as_schedule, at_step, field, optional, typed, within
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

    What is None by default costs nothing: no operation is compiled for it. Such as

        PPO.create("CartPole-v1", loss=lambda hp: PPOLoss(clip_eps=hp.clip_eps, ent_coef=hp.ent_coef, dual_clip=3.0, clip_value_eps=10.0))
    """

    clip_eps: Schedule = field(default=0.2, converter=as_schedule, metadata=within(0.0))
    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))
    clip_value: bool = field(default=True)
    """Without it the value loss is $\\tfrac12 (v - R)^2$; Andrychowicz et al. 2021 (https://arxiv.org/abs/2006.05990) found
    clipping to help nowhere."""
    normalize_advantages: bool = field(default=True)
    """Standardise advantages over the minibatch; without it they stay in reward units."""
    dual_clip: Scalar | None = field(default=None, converter=optional(as_scalar), metadata=within(1.0, open_low=True))
    """$c > 1$: where the advantage is negative, the objective is at least $c \\hat A_t$, so that an action which has become much likelier
    isn't pushed away without bound. Ye et al. 2020, https://arxiv.org/abs/1912.09729, eq. 3; they take 3."""
    clip_value_eps: Schedule | None = field(default=None, converter=optional(as_schedule), metadata=within(0.0))
    """How far the value may move from the old one, in units of the training reward; `None`: `clip_eps`."""
    kl_coef: Schedule | None = field(default=None, converter=optional(as_schedule), metadata=within(0.0))
    """Weight of a penalty on the divergence from the policy that acted, $\\mathrm{KL}(\\pi_{old} \\| \\pi)$, which is estimated from the
    samples as the mean of $(r_t - 1) - \\log r_t$: Schulman et al. 2017, eq. 8; Schulman 2020, http://joschu.net/blog/kl-approx.html.
    `learners.AdaptiveKL` finds it by itself."""

    def __check_init__(self):
        if self.clip_value_eps is not None and not self.clip_value:
            raise ValueError("PPOLoss.clip_value_eps was set, but clip_value is False, so that no value is clipped; leave one of them out")

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        t = minibatch.trajectories
        clip_eps, ent_coef = as_number(self.clip_eps), as_number(self.ent_coef)
        distribution, value = evaluate(agent, minibatch)

        advantages = _standardised(minibatch.advantages) if self.normalize_advantages else minibatch.advantages
        log_ratio = distribution.log_prob(t.action) - t.log_prob
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
        objective = jnp.minimum(ratio * advantages, clipped * advantages)
        if self.dual_clip is not None:
            objective = jnp.where(advantages < 0, jnp.maximum(objective, self.dual_clip * advantages), objective)
        policy_loss = -jnp.mean(objective)

        error = jnp.square(value - minibatch.targets)
        if self.clip_value:
            eps = clip_eps if self.clip_value_eps is None else as_number(self.clip_value_eps)
            near = t.value + jnp.clip(value - t.value, -eps, eps)
            error = jnp.maximum(error, jnp.square(near - minibatch.targets))
        value_loss = 0.5 * jnp.mean(error)

        entropy = jnp.mean(distribution.entropy())
        loss = policy_loss + self.vf_coef * value_loss - ent_coef * entropy
        approx_kl = jnp.mean((ratio - 1) - log_ratio)
        if self.kl_coef is not None:
            loss = loss + as_number(self.kl_coef) * approx_kl
        return loss, dict(
            policy_loss=policy_loss, value_loss=value_loss, entropy=entropy,
            approx_kl=approx_kl, clip_fraction=jnp.mean(jnp.abs(ratio - 1) > clip_eps),
        )

    def at_step(self, num_updates: Int[Array, ""]) -> "PPOLoss":
        clip_eps, ent_coef = at_step(self.clip_eps, num_updates), at_step(self.ent_coef, num_updates)
        clip_value_eps, kl_coef = at_step(self.clip_value_eps, num_updates), at_step(self.kl_coef, num_updates)
        return dataclasses.replace(self, clip_eps=clip_eps, ent_coef=ent_coef, clip_value_eps=clip_value_eps, kl_coef=kl_coef)


def _standardised(advantages: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    if advantages.size < 2:
        raise ValueError(
            "PPOLoss standardises advantages over the minibatch, and of a single sample nothing is left: its gradient is 0; use fewer "
            "minibatches, or more environments or steps"
        )
    # From the first one, so that what is left of equal advantages is exactly 0 and not a rounding error over 1e-8.
    advantages = advantages - advantages.ravel()[0]
    return (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
