"""How many bytes training states take, and how many are free."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class StateSize:
    """Of the training state of one agent, in bytes, and how many agents are trained at once."""

    buffer: int
    """The replay buffer; 0 where there is none."""
    rest: int
    agents: int = 1

    @property
    def total(self) -> int:
        """Of all agents."""
        return self.agents * (self.buffer + self.rest)

    def __str__(self) -> str:
        buffers = f" (buffer {in_units(self.agents * self.buffer)})" if self.buffer else ""
        return f"{in_units(self.total)}{buffers} for {self.agents} seed{'s' * (self.agents > 1)}"


def in_units(num_bytes: int) -> str:
    """For people, with decimal prefixes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def bytes_in(tree: Any) -> int:
    """Of all arrays, or shapes of arrays, in it."""
    return sum(math.prod(x.shape) * _item_bytes(x) for x in jax.tree.leaves(tree) if hasattr(x, "shape") and hasattr(x, "dtype"))


def _item_bytes(x: Any) -> int:
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return np.dtype(x.dtype).itemsize
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), x.dtype))
    return math.prod(words.shape) * words.dtype.itemsize


def size_of(state: Any, agents: int = 1) -> StateSize:
    """Of one agent's state, or its shapes, of which there are to be so many."""
    buffer = bytes_in(getattr(state, "buffer_state", ()))
    return StateSize(buffer, bytes_in(state) - buffer, agents)


def state_size(algo: Any, agents: int = 1) -> StateSize:
    """Exact, from the shapes of the state that training starts from. Nothing is compiled or allocated."""
    from eqxrl.algorithms._base import started  # which was traced before, in `create`

    return size_of(eqx.filter_eval_shape(started, algo, jax.random.key(0))[0], agents)


def free_bytes(num_devices: int | None = None) -> int:
    """That so many devices, or all, have left; of CPUs, which share it, that the system has, or the process's control group.

    **Raises:** `NotImplementedError` where neither tells.
    """
    devices = jax.devices()
    stats = [d.memory_stats() for d in devices]
    if all(s is not None and "bytes_limit" in s for s in stats):
        return (num_devices or len(devices)) * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s is not None)
    if not _MEMINFO.is_file():
        raise NotImplementedError("this system doesn't tell how much memory is free; pass chunk=, how many agents to train at once")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def check_fits(algo: Any, size: StateSize, num_devices: int = 1, agents: str = "the number of seeds") -> None:
    """Whether the states fit into the free memory of these devices. Where that isn't known, nothing is refused.

    **Arguments:** `agents`: what sets how many are trained at once.

    **Raises:** `ValueError` where they don't.
    """
    try:
        free = free_bytes(num_devices)
    except NotImplementedError:
        return
    if size.total <= free:
        return
    each, rows = free // size.agents, getattr(algo.hp, "buffer_size", None)
    lower = [f"{agents} (at most {free // (size.buffer + size.rest)})"] if size.agents > 1 and free >= size.buffer + size.rest else []
    if size.buffer and rows and each > size.rest:
        lower = [f"buffer_size (at most {rows * (each - size.rest) // size.buffer})", *lower]
    parts = [f"the rest {in_units(size.agents * size.rest)}"]
    parts = [f"the buffer, of {rows} transitions, {in_units(size.agents * size.buffer)}", *parts] if size.buffer and rows else parts
    how = " or ".join(lower) or "num_envs, or the sizes of the networks"
    seeds = f"{size.agents} seed{'s' * (size.agents > 1)}"
    takes = f"the training state of {seeds} takes {in_units(size.total)}: {', '.join(parts)}"
    raise ValueError(f"{takes}; but {in_units(max(free, 0))} of memory are free. Lower {how}")


def check_train_fits(algo: Any, train_state: Any) -> None:
    """`check_fits` for one agent, from this state or a new one; within another program it isn't known how many there are."""
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves((algo, train_state))):
        check_fits(algo, state_size(algo) if train_state is None else size_of(train_state))
