"""What an ensemble of critics says as one, and how its members are judged."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._typing import check_positive, typed
from eqxrl.losses._td import quantile_huber
from eqxrl.nn import HLGauss


class AbstractReduction(eqx.Module):
    """Makes one value of those of several critics, `[members batch outputs]`, and judges them by targets. The mean of critics with one
    output each, in full:

        class Mean(AbstractReduction):
            @property
            def outputs(self):
                return 1

            def value(self, values):
                return jnp.mean(values, axis=(0, -1))

            def following(self, values):
                return self.value(values)[..., None]

            def loss(self, values, targets):
                return jnp.sum(jnp.square(values - targets[None]), axis=(0, -1))
    """

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Numbers that each critic gives."""

    @abc.abstractmethod
    def value(self, values: Float[Array, "members batch outputs"]) -> Float[Array, " batch"]:
        """What an actor aims for."""

    def check(self, values: jax.ShapeDtypeStruct | Array) -> None:
        """**Raises:** `ValueError` where the critics' values, or their shape, aren't `[members batch outputs]`."""
        if values.shape[-1] != self.outputs:
            how = f"pass critics with out_size={self.outputs}; those of Discrete actions give one number, and need another reduction"
            raise ValueError(f"{type(self).__name__} needs {self.outputs} numbers of each critic, got {values.shape[-1]}; {how}")

    @abc.abstractmethod
    def following(self, values: Float[Array, "members batch outputs"]) -> Float[Array, "batch targets"]:
        """What targets are made of, given the target networks' values of what follows: one number, or several that stand for the
        distribution of the return."""

    @abc.abstractmethod
    def loss(self, values: Float[Array, "members batch outputs"], targets: Float[Array, "batch targets"]) -> Float[Array, " batch"]:
        """How far the critics are off, summed over them."""


class AbstractScalarReduction(AbstractReduction):
    """Of critics that give one value, and are judged by their squared error."""

    @property
    def outputs(self) -> int:
        return 1

    def following(self, values: Float[Array, "members batch 1"]) -> Float[Array, "batch 1"]:
        return self.value(values)[..., None]

    def loss(self, values: Float[Array, "members batch 1"], targets: Float[Array, "batch 1"]) -> Float[Array, " batch"]:
        return jnp.sum(jnp.square(values - targets[None]), axis=(0, -1))


class Minimum(AbstractScalarReduction):
    """The smallest value, which doesn't overestimate. Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477"""

    def value(self, values: Float[Array, "members batch 1"]) -> Float[Array, " batch"]:
        return jnp.min(values, axis=(0, -1))


class Mean(AbstractScalarReduction):
    """The mean value."""

    def value(self, values: Float[Array, "members batch 1"]) -> Float[Array, " batch"]:
        return jnp.mean(values, axis=(0, -1))


@typed
class HistogramMinimum(AbstractReduction):
    """Each critic gives the logits of the return's distribution over `bins`, and is judged by its cross-entropy with a normal around the
    target; the value is the smallest mean, as of `Minimum`. Farebrother et al. 2024, https://arxiv.org/abs/2403.03950"""

    bins: HLGauss = eqx.field(default_factory=HLGauss)

    @property
    def outputs(self) -> int:
        return self.bins.num_bins

    def value(self, values: Float[Array, "members batch bins"]) -> Float[Array, " batch"]:
        return jnp.min(self.bins.to_value(values), axis=0)

    def following(self, values: Float[Array, "members batch bins"]) -> Float[Array, "batch 1"]:
        return self.value(values)[..., None]

    def loss(self, values: Float[Array, "members batch bins"], targets: Float[Array, "batch 1"]) -> Float[Array, " batch"]:
        return jnp.sum(jax.vmap(self.bins.loss, in_axes=(0, None))(values, targets[:, 0]), axis=0)


@typed
class TruncatedQuantiles(AbstractReduction):
    """Each critic gives `quantiles` of the return's distribution. Targets are all of theirs together but for the `dropped` highest of each
    on average, and critics are judged by the quantile Huber loss; an actor aims for the mean. Kuznetsov et al. 2020,
    https://arxiv.org/abs/2005.04269"""

    quantiles: int = eqx.field(static=True, default=25)
    dropped: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        check_positive(self, "quantiles")
        if not 0 <= self.dropped < self.quantiles:
            raise ValueError(f"TruncatedQuantiles.dropped must be from 0 to quantiles - 1 = {self.quantiles - 1}, got {self.dropped}")

    @property
    def outputs(self) -> int:
        return self.quantiles

    def value(self, values: Float[Array, "members batch quantiles"]) -> Float[Array, " batch"]:
        return jnp.mean(values, axis=(0, -1))

    def following(self, values: Float[Array, "members batch quantiles"]) -> Float[Array, "batch targets"]:
        together = jnp.sort(jnp.moveaxis(values, 0, -1).reshape(values.shape[1], -1), axis=-1)
        return together[:, : together.shape[-1] - self.dropped * values.shape[0]]

    def loss(self, values: Float[Array, "members batch quantiles"], targets: Float[Array, "batch targets"]) -> Float[Array, " batch"]:
        each = jax.vmap(jax.vmap(quantile_huber), in_axes=(0, None))
        return jnp.sum(each(values, targets), axis=0)
