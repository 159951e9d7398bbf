"""How the older copy of a network follows it, which targets are computed with."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from eqxrl._typing import Scalar, T, as_scalar, check_positive, typed


class AbstractTargetUpdate(eqx.Module):
    """Moves target networks. One that never does, in full:

        class Frozen(AbstractTargetUpdate):
            def __call__(self, target, online, num_updates):
                return target
    """

    @abc.abstractmethod
    def __call__(self, target: T, online: T, num_updates: Int[Array, ""]) -> T:
        """**Arguments:** the copy, the network, and how many gradient updates there were before the one under way. **Returns:** the copy
        from now on."""


@typed
class Periodic(AbstractTargetUpdate):
    """A copy of the network at the first of every `period` updates. Mnih et al. 2015, https://doi.org/10.1038/nature14236"""

    period: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(self, "period")

    def __call__(self, target: T, online: T, num_updates: Int[Array, ""]) -> T:
        now = num_updates % self.period == 0
        return _mapped(lambda t, x: jnp.where(now, x, t), target, online)


@typed
class Polyak(AbstractTargetUpdate):
    """A running mean of the network: `tau` of it and the rest of the copy, at every update. Lillicrap et al. 2016,
    https://arxiv.org/abs/1509.02971"""

    tau: Scalar = eqx.field(converter=as_scalar)

    def __call__(self, target: T, online: T, num_updates: Int[Array, ""]) -> T:
        return _mapped(lambda t, x: t + self.tau * (x - t) if eqx.is_inexact_array(x) else x, target, online)


class NoTarget(AbstractTargetUpdate):
    """Targets are computed with the network as it stands. `SAC` then keeps no copy, and values a batch and what it led to in one pass."""

    def __call__(self, target: T, online: T, num_updates: Int[Array, ""]) -> T:
        return online


def _mapped(leaf: object, target: PyTree, online: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: leaf(t, x) if eqx.is_array(x) else t, target, online)  # pyright: ignore[reportCallIssue]
