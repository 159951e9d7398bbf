from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from eqxrl._typing import check_positive, typed
from eqxrl.buffers._base import AbstractBuffer, BufferState


@typed
class UniformBuffer(AbstractBuffer):
    """A ring of the newest `capacity` rows, from which `batch_size` are drawn uniformly, with replacement. Lin 1992,
    https://doi.org/10.1007/BF00992699.

    A write costs what it writes, whatever the capacity, where the state is donated or carried through a loop.
    """

    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(self, "capacity", "batch_size")

    def init(self, example: PyTree) -> BufferState:
        rows = jax.tree.map(lambda x: jnp.zeros((self.capacity, *x.shape), x.dtype), example)
        return BufferState(rows=rows, num_added=jnp.zeros((), jnp.int32), capacity=self.capacity)

    def add(self, state: BufferState, rows: PyTree) -> BufferState:
        """**Raises:** `ValueError` for more rows at once than the buffer holds."""
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        n = jax.tree.leaves(rows)[0].shape[0]
        if n > self.capacity:
            raise ValueError(f"{n} rows were added at once, but the buffer's capacity is {self.capacity}; pass a larger one")
        where = (state.num_added + jnp.arange(n, dtype=jnp.int32)) % self.capacity

        def write(kept: Any, new: Any) -> Any:
            return kept.at[where].set(new, unique_indices=True, mode="promise_in_bounds")

        # Counted modulo the capacity once it is full, so that the count can't overflow.
        num_added = state.num_added + n
        num_added = jnp.where(num_added >= 2 * self.capacity, num_added - self.capacity, num_added)
        return BufferState(rows=jax.tree.map(write, state.rows, rows), num_added=num_added, capacity=self.capacity)

    def sample(self, state: BufferState, key: Key[Array, ""]) -> PyTree:
        index = jax.random.randint(key, (self.batch_size,), 0, state.size)
        return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), state.rows)
