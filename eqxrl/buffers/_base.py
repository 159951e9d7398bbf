import abc

import equinox as eqx
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._typing import typed


@typed
class BufferState(eqx.Module):
    """What a buffer holds."""

    rows: PyTree
    """`[capacity ...]`, a ring."""
    num_added: Int[Array, ""]
    """Rows added so far, up to twice the capacity; the next one is written at `num_added % capacity`."""
    stride: Int[Array, ""]
    """How many rows later the next step of the same environment lies: the number of environments of the last `add`."""
    capacity: int = eqx.field(static=True)
    priorities: PyTree = ()
    """What else it draws by, which learning changes; `()` where all rows are equal."""

    @property
    def size(self) -> Int[Array, ""]:
        """How many rows can be drawn."""
        return self.num_added.clip(max=self.capacity)


@typed
class Drawn(eqx.Module):
    """What was sampled from a buffer."""

    rows: PyTree
    """`[batch ...]`"""
    index: Int[Array, " batch"]
    """Where they lie in the ring."""
    weight: Float[Array, " batch"]
    """What each counts for in a mean over the batch: 1, unless some are drawn more often than others."""


class AbstractBuffer(eqx.Module):
    """Keeps rows of any pytree of arrays. `UniformBuffer` is a whole one."""

    @abc.abstractmethod
    def init(self, example: PyTree) -> BufferState:
        """An empty buffer for rows like `example`: one row, or the shapes and dtypes of one."""

    @abc.abstractmethod
    def add(self, state: BufferState, rows: PyTree) -> BufferState:
        """The buffer with `rows`, `[steps envs ...]`, in the place of the oldest."""

    @abc.abstractmethod
    def sample(self, state: BufferState, key: Key[Array, ""]) -> Drawn:
        """Rows `[batch ...]`. Nothing may be drawn from an empty buffer: ask `state.size` first."""

    def reweigh(self, state: BufferState, index: Int[Array, " batch"], errors: Float[Array, " batch"]) -> BufferState:
        """The buffer after the rows at `index` were learned from, which were `errors` off their targets: other `priorities`, if it draws
        by any."""
        return state
