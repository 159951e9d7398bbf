from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree


class Ensemble(eqx.Module):
    """Several networks that differ by their initialisation alone, as one whose arrays are `[members ...]`."""

    members: PyTree
    size: int = eqx.field(static=True)

    def __init__(self, make: Callable[..., Any], size: int, *, key: Key[Array, ""]):
        """**Arguments:** `make(key=key)`, a network."""
        self.members, self.size = eqx.filter_vmap(lambda key: make(key=key))(jax.random.split(key, size)), size

    def __call__(self, *args: Any) -> PyTree:
        """What each of them makes of the same arguments, `[members ...]`."""
        each = eqx.filter_vmap(lambda member, args: member(*args), in_axes=(eqx.if_array(0), None), axis_size=self.size)
        return each(self.members, args)
