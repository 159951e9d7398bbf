import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

_MAPS, _MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_FLAGS = {
    # Dots and reductions that jaxlib 0.10.2 and 0.11.0 hand to YNNPACK can hang for good, with every thread asleep
    # (https://github.com/jax-ml/jax/issues/39257), and are slower for networks as small as a policy's.
    "--xla_cpu_experimental_ynn_fusion_type": "",
    # The runtime's own thread pool has been seen to do the same on vmapped programs
    # (https://github.com/PyAutoLabs/PyAutoFit/issues/1530).
    "--xla_cpu_multi_thread_eigen": "false",
}


def set_cpu_flags(num_devices: int | None = None) -> None:
    """Adds to `XLA_FLAGS` what keeps XLA's CPU runtime from hanging, except flags that are set there already; other backends ignore
    it. The `eqxrl` command, the tests and the benchmarks call it; so should a script that trains on CPU, first of all: it warns
    where a JAX computation has run already, since the flags are then without effect.

    CPU cores become devices, which the seeds of a run are spread over, or one agent with `PPOHParams(num_devices=...)`: `num_devices`,
    by default as many as this process may run on; where `JAX_NUM_CPU_DEVICES` or `--xla_force_host_platform_device_count` says how many,
    so many.

    **Raises:** `ValueError` if `num_devices` is below 1.
    """
    if num_devices is not None and num_devices < 1:
        raise ValueError(f"num_devices must be at least 1, got {num_devices}")
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _FLAGS.items() if name not in flags]
    started = getattr(sys.modules.get("jax._src.xla_bridge"), "backends_are_initialized", lambda: False)
    if missing and started():
        warnings.warn("set_cpu_flags() came too late: JAX has started already; call it before the first computation", stacklevel=2)
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
    said: Any = jax.config
    if not started() and said.jax_num_cpu_devices < 0 and "--xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", num_devices or cores)


def forget_programs_if_many() -> None:
    """Lets JAX forget all its compiled programs where they hold more than half of the memory maps that Linux grants a process: each
    configuration that is new takes about a thousand of 65,530, and without a free one LLVM ends the process."""
    try:
        used, most = _MAPS.read_bytes().count(b"\n"), int(_MOST_MAPS.read_text())
    except (OSError, ValueError):  # another system, without such a limit
        return
    if used > most // 2:
        jax.clear_caches()
        gc.collect()
