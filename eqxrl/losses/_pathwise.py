from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from eqxrl._typing import Observation, Scalar, field, typed, within
from eqxrl.losses._soft_values import fixed
from eqxrl.nn import AbstractDistribution, HLGauss


@typed
class TemperedActor(eqx.Module):
    """An actor and the two multipliers that its loss learns with it."""

    actor: PyTree
    """`actor(obs) -> AbstractDistribution`"""
    log_temperature: Scalar
    """Logarithm of what a nat of entropy is worth."""
    log_kl_coef: Scalar
    """Logarithm of what a nat of KL divergence from the policy that acted costs."""


@typed
class PathwiseLoss(eqx.Module):
    """An actor's, which goes through the action that it draws, up the slope of a categorical critic of observation and action; two
    multipliers', which hold the actor's entropy and its KL divergence from the policy that acted; and the critic's. No gradient of the
    actor's reaches the critic. Voelcker et al. 2025, https://arxiv.org/abs/2507.11019.
    """

    histogram: HLGauss
    """Between the critic's logits and values."""
    target_entropy: Scalar = field(default=0.0)
    """Nats, of a whole action."""
    kl_bound: Scalar = field(default=0.1, metadata=within(0.0, open_low=True))
    """Nats."""

    def __call__(
        self, learned: tuple[TemperedActor, Any], obs: Observation, action: Float[Array, "batch ..."], targets: Float[Array, " batch"],
        old: AbstractDistribution, key: Key[Array, ""],
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """**Arguments:** actor and critic; what was seen and done, `[batch ...]`; what it returned; the distributions that acted."""
        policy, critic = learned
        logits = jax.vmap(critic)(obs, action)
        critic_loss, value = jnp.mean(self.histogram.loss(logits, targets)), jnp.mean(self.histogram.to_value(logits))
        policy_loss, metrics = self.of_policy(policy, critic, obs, old, key)
        return critic_loss + policy_loss, dict(critic_loss=critic_loss, value=value) | metrics

    def of_policy(
        self, policy: TemperedActor, critic: Any, obs: Observation, old: AbstractDistribution, key: Key[Array, ""]
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The actor's and the multipliers'. A distribution that is beyond `kl_bound` of its old one is brought back, and nothing else."""
        critic = fixed(critic)
        temperature, kl_coef = jnp.exp(policy.log_temperature), jnp.exp(policy.log_kl_coef)
        distribution: Any = jax.vmap(policy.actor)(obs)
        action, log_prob = distribution.sample_and_log_prob(key)
        kl = old.kl(distribution)
        value = self.histogram.to_value(jax.vmap(critic)(obs, action))
        actor_loss = jnp.mean(jnp.where(kl < self.kl_bound, fixed(temperature) * log_prob - value, fixed(kl_coef) * kl))
        entropy, mean_kl = -jnp.mean(fixed(log_prob)), jnp.mean(fixed(kl))
        multipliers = temperature * (entropy - self.target_entropy) + kl_coef * (self.kl_bound - mean_kl)
        metrics = dict(actor_loss=actor_loss, entropy=entropy, kl=mean_kl, temperature=temperature, kl_coef=kl_coef)
        return actor_loss + multipliers, metrics
