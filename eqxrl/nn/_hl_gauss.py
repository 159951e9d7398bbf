import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._typing import Scalar, check_below, field, typed, within


@typed
class HLGauss(eqx.Module):
    """Learns a number as a distribution over `num_bins` bins, by cross-entropy: the target is a normal around the number, cut to the bins
    ("histogram loss, Gaussian"). Imani and White 2018, https://arxiv.org/abs/1806.04613; Farebrother et al. 2024,
    https://arxiv.org/abs/2403.03950.

    The bins' middles go from `low` to `high` in equal steps. Numbers beyond count as these. Within two bins of either end the normal is cut
    off, which moves its mean inwards, by a third of a bin at the end itself.

    **Raises:** `ValueError` for fewer than two bins, for a `low` that isn't below `high`, or for logits of another number of bins.
    """

    low: Scalar = field(default=-20.0)
    high: Scalar = field(default=20.0)
    """Above `low`."""
    num_bins: int = eqx.field(static=True, default=151)
    deviation: Scalar = field(default=0.75, metadata=within(0.0, open_low=True))
    """Of the normal, in widths of a bin. Small ones make the target a single bin, large ones blur it."""

    def __check_init__(self):
        if self.num_bins < 2:
            raise ValueError(f"HLGauss.num_bins must be at least 2, got {self.num_bins}")
        check_below(self, "low", "high")

    def to_probabilities(self, target: Float[Array, "*batch"]) -> Float[Array, "*batch bins"]:
        """The distribution that is to be learned, `[*batch num_bins]`."""
        width = (self.high - self.low) / (self.num_bins - 1)
        edges = self.low + width * (jnp.arange(self.num_bins + 1) - 0.5)
        edges = edges.reshape(*[1] * target.ndim, -1)
        z = (edges - jnp.clip(target, self.low, self.high)[..., None]) / (math.sqrt(2) * self.deviation * width)
        below = jax.lax.erf(z)
        # XLA's erf isn't monotone in its last bit.
        return jnp.maximum(below[..., 1:] - below[..., :-1], 0.0) / (below[..., -1:] - below[..., :1])

    def to_value(self, logits: Float[Array, "*batch bins"]) -> Float[Array, "*batch"]:
        """The mean of the distribution."""
        return jax.nn.softmax(self._checked(logits), axis=-1) @ jnp.linspace(self.low, self.high, self.num_bins, dtype=logits.dtype)

    def loss(self, logits: Float[Array, "*batch bins"], target: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Cross-entropy, nats. At its lowest it is the entropy of the target's distribution, not 0."""
        return -jnp.sum(self.to_probabilities(target) * jax.nn.log_softmax(self._checked(logits), axis=-1), axis=-1)

    def _checked(self, logits: Float[Array, "*batch bins"]) -> Float[Array, "*batch bins"]:
        if logits.shape[-1] != self.num_bins:
            raise ValueError(f"HLGauss has {self.num_bins} bins, but the logits are {list(logits.shape)}; the bins are the last axis")
        return logits
