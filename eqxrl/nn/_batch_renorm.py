from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eqxrl._typing import T
from eqxrl.nn._normalize import RunningMoments, trainable


class BatchRenorm(eqx.Module):
    """Standardises each number of a vector. Called, by running statistics, as acting needs it; `on_batch` by those of the batch that is
    learned from, corrected to what the running ones would give as far as `max_scale` and `max_shift` allow, and through the correction
    goes no gradient. The first `warmup` batches aren't corrected: that is batch normalisation. Ioffe 2017, https://arxiv.org/abs/1702.03275,
    algorithm 1 (r and d), with a running variance in the place of its running deviation.
    """

    deviates: ClassVar[dict[str, str]] = {"nothing follows a termination": "statistics are of all that a batch led to, ends included"}

    statistics: RunningMoments
    """Running means of the batches' means and population variances, and how many batches there were. No optimiser changes them, see
    `trainable`."""
    weight: Float[Array, " size"]
    bias: Float[Array, " size"]
    momentum: float = eqx.field(static=True)
    """Part of the statistics that a batch leaves as it is."""
    max_scale: float = eqx.field(static=True)
    max_shift: float = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    """Added to a variance."""

    def __init__(
        self, size: int, *, momentum: float = 0.99, max_scale: float = 3.0, max_shift: float = 5.0, warmup: int = 5_000,
        epsilon: float = 1e-3,
    ):
        """**Arguments:** how many numbers; the others as above. `max_scale` 1 and `max_shift` 0 are batch normalisation for good."""
        if not (0 <= momentum < 1 and max_scale >= 1 and max_shift >= 0 and warmup >= 0 and epsilon > 0):
            bounds = "momentum in [0, 1), max_scale of at least 1, max_shift and warmup of at least 0, epsilon above 0"
            raise ValueError(f"BatchRenorm got {momentum=}, {max_scale=}, {max_shift=}, {warmup=}, {epsilon=}; it takes {bounds}")
        zeros, ones = jnp.zeros(size, jnp.float32), jnp.ones(size, jnp.float32)
        self.statistics, self.weight, self.bias = RunningMoments(zeros, ones, jnp.zeros((), jnp.float32)), ones, zeros
        self.momentum, self.max_scale, self.max_shift, self.warmup, self.epsilon = momentum, max_scale, max_shift, warmup, epsilon

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        running = jax.lax.stop_gradient(self.statistics)
        return (x - running.mean) * jax.lax.rsqrt(running.var + self.epsilon) * self.weight + self.bias

    def on_batch(self, x: Float[Array, "batch size"]) -> tuple[Float[Array, "batch size"], "BatchRenorm"]:
        """The batch standardised, and the layer with its statistics moved by it."""
        running = jax.lax.stop_gradient(self.statistics)
        mean, var = jnp.mean(x, axis=0), jnp.var(x, axis=0)
        std, running_std = jnp.sqrt(var + self.epsilon), jnp.sqrt(running.var + self.epsilon)
        corrected = running.count >= self.warmup
        scale = jnp.where(corrected, jnp.clip(std / running_std, 1 / self.max_scale, self.max_scale), 1.0)
        shift = jnp.where(corrected, jnp.clip((mean - running.mean) / running_std, -self.max_shift, self.max_shift), 0.0)
        scale, shift = jax.lax.stop_gradient((scale, shift))
        standardised = jax.vmap(lambda x: ((x - mean) / std * scale + shift) * self.weight + self.bias)(x)
        kept, new = self.momentum, 1 - self.momentum
        moved = RunningMoments(kept * running.mean + new * mean, kept * running.var + new * var, running.count + 1)
        after = eqx.tree_at(lambda layer: layer.statistics, self, jax.lax.stop_gradient(moved))
        return standardised, after


def has_batch_renorm(network: PyTree) -> bool:
    """Whether there is a `BatchRenorm` in it."""

    def is_one(x: Any) -> bool:
        return isinstance(x, BatchRenorm)

    return any(map(is_one, jax.tree.leaves(network, is_leaf=is_one)))


def check_no_batch_renorm(network: PyTree, user: str) -> None:
    """**Raises:** `ValueError` where there is a `BatchRenorm` in the network, whose running statistics its user doesn't move."""
    if has_batch_renorm(network):
        where = "only SAC with target_update=NoTarget() does, those of its critics"
        raise ValueError(f"{user} got a network with a BatchRenorm, whose running statistics it would never move; {where}")


def with_statistics(network: T, moved: T) -> T:
    """The network with the running statistics of another one of its structure."""
    return eqx.combine(eqx.filter(network, trainable(network)), moved)
