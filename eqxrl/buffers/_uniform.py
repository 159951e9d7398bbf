import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._typing import check_positive, typed
from eqxrl.buffers._base import AbstractBuffer, BufferState, Drawn


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
        return empty(self.capacity, example)

    def add(self, state: BufferState, rows: PyTree) -> BufferState:
        """**Raises:** `ValueError` for more rows at once than the buffer holds."""
        return written(state, rows)[0]

    def sample(self, state: BufferState, key: Key[Array, ""]) -> Drawn:
        index = jax.random.randint(key, (self.batch_size,), 0, state.size)
        return Drawn(rows=rows_at(state, index), index=index, weight=jnp.ones(self.batch_size, jnp.float32))


def empty(capacity: int, example: PyTree) -> BufferState:
    """A ring that nothing was written to."""
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return BufferState(rows=rows, num_added=jnp.zeros((), jnp.int32), stride=jnp.ones((), jnp.int32), capacity=capacity)


def written(state: BufferState, rows: PyTree) -> tuple[BufferState, Int[Array, " rows"]]:
    """The ring with `rows`, `[steps envs ...]`, in the place of the oldest, and where they lie in it.

    **Raises:** `ValueError` for more rows at once than it holds.
    """
    steps, envs = jax.tree.leaves(rows)[0].shape[:2]
    if steps * envs > state.capacity:
        raise ValueError(f"{steps * envs} rows were added at once, but the buffer's capacity is {state.capacity}; pass a larger one")
    where = (state.num_added + jnp.arange(steps * envs, dtype=jnp.int32)) % state.capacity

    def write(kept: Any, new: Any) -> Any:
        return kept.at[where].set(new.reshape(-1, *new.shape[2:]), unique_indices=True, mode="promise_in_bounds")

    # Counted modulo the capacity once it is full, so that the count can't overflow.
    num_added = state.num_added + steps * envs
    num_added = jnp.where(num_added >= 2 * state.capacity, num_added - state.capacity, num_added)
    rows, stride = jax.tree.map(write, state.rows, rows), jnp.int32(envs)
    return dataclasses.replace(state, rows=rows, num_added=num_added, stride=stride), where


def rows_at(state: BufferState, index: Int[Array, "..."]) -> PyTree:
    """The rows at these places of the ring."""
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), state.rows)
