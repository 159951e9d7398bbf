import abc

import equinox as eqx
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._typing import typed


@typed
class BufferState(eqx.Module):
    """What a buffer holds."""

    rows: PyTree
    """`[capacity ...]`"""
    num_added: Int[Array, ""]
    """Rows added so far, up to twice the capacity; the next one is written at `num_added % capacity`."""
    capacity: int = eqx.field(static=True)

    @property
    def size(self) -> Int[Array, ""]:
        """How many rows can be drawn."""
        return self.num_added.clip(max=self.capacity)


class AbstractBuffer(eqx.Module):
    """Keeps rows of any pytree of arrays. `UniformBuffer` is a whole one."""

    @abc.abstractmethod
    def init(self, example: PyTree) -> BufferState:
        """An empty buffer for rows like `example`: one row, or the shapes and dtypes of one."""

    @abc.abstractmethod
    def add(self, state: BufferState, rows: PyTree) -> BufferState:
        """The buffer with `rows`, `[steps envs ...]`, in the place of the oldest."""

    @abc.abstractmethod
    def sample(self, state: BufferState, key: Key[Array, ""]) -> PyTree:
        """Rows `[batch ...]`. Nothing may be drawn from an empty buffer: ask `state.size` first."""
