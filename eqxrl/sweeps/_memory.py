"""How many agents can be trained at once."""

import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

_MARGIN = 4
"""So many times an agent's state and rollout: gradients, the optimiser's temporaries, minibatches, what a scan and an evaluation keep."""
_SHARE = 0.5
"""Of the free memory."""
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def bytes_of(algo: Any) -> int:
    """An estimate for one agent, from the shapes of its state and of what an iteration collects."""
    key = jax.random.key(0)
    state = eqx.filter_eval_shape(algo.init_train_state, key)
    _, batch = eqx.filter_eval_shape(algo.get_batch, state, 0)
    shapes = [x for x in jax.tree.leaves((state, batch)) if isinstance(x, jax.ShapeDtypeStruct)]
    return _MARGIN * sum(math.prod(x.shape) * _size(x.dtype) for x in shapes)


def _size(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def free_bytes() -> int:
    """That the devices have left; of CPUs, which share it, that the system has, or the process's control group.

    **Raises:** `NotImplementedError` where neither tells.
    """
    devices = jax.devices()
    stats = [d.memory_stats() for d in devices]
    if all(s is not None and "bytes_limit" in s for s in stats):
        return len(devices) * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s is not None)
    if not _MEMINFO.is_file():
        raise NotImplementedError("this system doesn't tell how much memory is free; pass chunk=, how many agents to train at once")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def chunk_size(num_rows: int, most: int, num_devices: int) -> int:
    """Of as few equal chunks as hold so many rows, at most `most` each, a multiple of the devices' number."""
    most = max(most // num_devices, 1) * num_devices
    each = math.ceil(num_rows / math.ceil(num_rows / most))
    return math.ceil(each / num_devices) * num_devices


def fits(algo: Any) -> int:
    """How many agents the free memory is enough for."""
    return max(int(_SHARE * free_bytes() / bytes_of(algo)), 1)
