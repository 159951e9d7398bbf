from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from eqxrl._devices import mean_over_devices, num_shares, of_the_first
from eqxrl._typing import Carry, Observation, Scalar, typed
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import AbstractDistribution


@typed
class RunningMoments(eqx.Module):
    """Mean and variance of everything counted so far, merged batch by batch. Chan et al. 1983,
    https://doi.org/10.1080/00031305.1983.10483115, the parallel algorithm.

    Sums are taken of differences from the mean so far: float32 is then enough for any number of samples with any mean.
    """

    mean: Float[Array, "*shape"]
    var: Float[Array, "*shape"]
    """Population variance; 1 before anything was counted."""
    count: Scalar

    def update(self, x: Shaped[Array, "..."]) -> "RunningMoments":
        """Counts `x`, whose trailing axes are those of the mean and whose leading axes are samples;
        where devices share an agent, those of all of them."""
        axes = tuple(range(x.ndim - self.mean.ndim))
        n = jnp.asarray(x.size // max(self.mean.size, 1) * num_shares(), self.count.dtype)
        # The first batch's from its first sample, so that a feature that never changes has a variance of exactly 0.
        first = of_the_first(x.reshape(-1, *self.mean.shape)[0].astype(self.mean.dtype))
        center = jnp.where(self.count == 0, first, self.mean)
        delta = x.astype(self.mean.dtype) - jnp.expand_dims(center, axes)
        batch_delta, batch_var = jnp.mean(delta, axis=axes), jnp.var(delta, axis=axes)
        if num_shares() > 1:
            of_share, batch_delta = batch_delta, mean_over_devices(batch_delta)
            batch_var = mean_over_devices(batch_var + jnp.square(of_share - batch_delta))
        weight = n / (self.count + n)
        mean = center + batch_delta * weight
        var = self.var * (1 - weight) + batch_var * weight + batch_delta**2 * weight * (1 - weight)
        return RunningMoments(mean=mean, var=var, count=self.count + n)


def zero_moments(shape: tuple[int, ...] = ()) -> RunningMoments:
    """Nothing counted: normalising with it changes nothing but clips."""
    return RunningMoments(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.zeros((), jnp.float32))


class NormalizedActorCritic(AbstractActorCritic):
    """A policy that sees its observations standardised by running statistics and clipped to ±`clip`. The statistics are part of
    it, so they are saved, evaluated and deployed with it; they stay as they are while a rollout is collected and learned from
    (so the first ratio is 1), and `observe` counts the rollout's observations afterwards."""

    actor_critic: AbstractActorCritic
    """The policy inside; it takes `normalize(obs)`."""
    statistics: PyTree[RunningMoments | None]
    """One for each leaf of floats in the observation; `None` for the others (choices, masks), which stay as they are."""
    clip: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, actor_critic: AbstractActorCritic, obs: PyTree, *, clip: float = 10.0, epsilon: float = 1e-8):
        """**Arguments:** the policy; `obs`, one observation or its shapes; the bounds in standard deviations; what is added to
        the variance."""
        for name, x in (("clip", clip), ("epsilon", epsilon)):
            if not x > 0:
                raise ValueError(f"NormalizedActorCritic.{name} must be above 0, got {x}")
        self.actor_critic, self.clip, self.epsilon = actor_critic, clip, epsilon
        self.statistics = jax.tree.map(lambda x: zero_moments(x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else None, obs)

    def __call__(self, obs: Observation, carry: Carry) -> tuple[AbstractDistribution, Scalar, Carry]:
        return self.actor_critic(self.normalize(obs), carry)

    def initial_carry(self) -> Carry:
        return self.actor_critic.initial_carry()

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[AbstractDistribution, Float[Array, " steps"], Carry]:
        return self.actor_critic.sequence(jax.vmap(self.normalize)(obs), starts, carry)

    def normalize(self, obs: Observation) -> Observation:
        """`obs` with its floats standardised and clipped."""

        def leaf(moments: RunningMoments | None, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
            if moments is None:
                return x
            scaled = (x.astype(moments.mean.dtype) - moments.mean) * jax.lax.rsqrt(moments.var + self.epsilon)
            return jnp.clip(scaled, -self.clip, self.clip)

        return jax.tree.map(leaf, self.statistics, obs, is_leaf=_is_statistic)

    def observe(self, obs: Observation) -> "NormalizedActorCritic":
        """Counts observations with any leading axes."""
        statistics = jax.tree.map(lambda m, x: None if m is None else m.update(x), self.statistics, obs, is_leaf=_is_statistic)
        return eqx.tree_at(lambda agent: agent.statistics, self, statistics, is_leaf=lambda x: x is None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in dir(self.__dict__.get("actor_critic")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        inner = type(self.actor_critic).__name__
        raise AttributeError(
            f"{name!r} belongs to the {inner} inside this NormalizedActorCritic, which sees normalised observations; "
            f"use agent.actor_critic.{name}, and pass it agent.normalize(obs)"
        )


def observe(agent: AbstractActorCritic, obs: Observation) -> AbstractActorCritic:
    """The policy after every `NormalizedActorCritic` in it has counted a rollout's observations `[steps envs ...]`."""

    def is_normalized(x: Any) -> bool:
        return isinstance(x, NormalizedActorCritic)

    return jax.tree.map(lambda x: x.observe(obs) if is_normalized(x) else x, agent, is_leaf=is_normalized)


def trainable(agent: PyTree) -> PyTree[bool]:
    """Which leaves an optimiser may change: float arrays, except running statistics."""

    def leaf(x: Any) -> Any:
        return jax.tree.map(lambda _: False, x) if _is_statistic(x) else eqx.is_inexact_array(x)

    return jax.tree.map(leaf, agent, is_leaf=_is_statistic)


def _is_statistic(x: Any) -> bool:
    return x is None or isinstance(x, RunningMoments)
