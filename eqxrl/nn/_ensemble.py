from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from eqxrl._typing import T
from eqxrl.nn._batch_renorm import has_batch_renorm


class Ensemble(eqx.Module):
    """Several networks that differ by their initialisation alone, as one whose arrays are `[members ...]`."""

    members: PyTree
    size: int = eqx.field(static=True)

    def __init__(self, make: Callable[..., Any], size: int, *, key: Key[Array, ""]):
        """**Arguments:** `make(key=key)`, a network."""
        self.members, self.size = eqx.filter_vmap(lambda key: make(key=key))(jax.random.split(key, size)), size

    def __call__(self, *args: Any) -> PyTree:
        """What each of them makes of the same arguments, `[members ...]`."""
        return self._each(lambda member, args: member(*args), args)

    def on_batch(self, *args: PyTree) -> tuple[PyTree, "Ensemble"]:
        """What each of them makes of a batch of arguments, `[members batch ...]`, and the ensemble after it. A network with a `BatchRenorm`
        in it uses the batch's statistics and moves its running ones: it has a method `on_batch(*args)`, which returns both."""

        def each(member: Any, args: tuple[PyTree, ...]) -> tuple[PyTree, Any]:
            return member.on_batch(*args) if has_batch_renorm(member) else (jax.vmap(member)(*args), member)

        outputs, members = self._each(each, args)
        return outputs, eqx.tree_at(lambda ensemble: ensemble.members, self, members)

    def _each(self, do: Callable[[Any, tuple[PyTree, ...]], T], args: tuple[PyTree, ...]) -> T:
        """Each has a copy of arguments that are no images: XLA makes one product of several members' first layers of the same numbers, and
        moves its result to and fro, which takes longer on CPU."""
        arrays, others = eqx.partition(args, eqx.is_array)
        axes = jax.tree.map(lambda x: 0 if x.ndim < 3 else None, arrays)
        arrays = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.size, *x.shape)) if x.ndim < 3 else x, arrays)

        def one(member: Any, arrays: PyTree) -> T:
            return do(member, eqx.combine(arrays, others))

        return eqx.filter_vmap(one, in_axes=(eqx.if_array(0), axes), axis_size=self.size)(self.members, arrays)
