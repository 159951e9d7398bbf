"""What the last digits of a run depend on, besides the run itself."""

import functools
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from eqxrl.training._files import versions

_SETTINGS = ("jax_threefry_partitionable", "jax_default_prng_impl", "jax_enable_x64", "jax_default_matmul_precision")
_XLA_FLAG = re.compile(r"--xla\w*(?:fast|max_isa|precision|ynn|eigen|determinis)\w*")
_INSTRUCTIONS = re.compile(r"\b(?:avx|fma|amx|f16c|asimd|sve)\w*")
_CPUINFO = Path("/proc/cpuinfo")


def numerics() -> dict[str, Any]:
    """Versions of JAX, its settings, the device and, of a CPU, the instructions that it has, and XLA's flags, as far as they matter."""
    device, flags = jax.devices()[0], [x.partition("=") for x in os.environ.get("XLA_FLAGS", "").split()]
    found = {name: versions()[name] for name in ("jax", "jaxlib")} | {name: getattr(jax.config, name) for name in _SETTINGS}
    found |= {"backend": device.platform, "device": device.device_kind}
    found |= {"instructions": instructions()} if device.platform == "cpu" else {}
    return found | {name: value for name, _, value in sorted(flags) if _XLA_FLAG.fullmatch(name)}


def changes(recorded: Any) -> str:
    """How this process differs from one whose `numerics` these are."""
    if not isinstance(recorded, Mapping):
        return ""  # of an older version
    now = numerics()
    names = [name for name in {**recorded, **now} if recorded.get(name) != now.get(name)]
    return "; ".join(f"{name}: recorded {recorded.get(name)!r}, now {now.get(name)!r}" for name in names)


@functools.cache
def instructions() -> str:
    text = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return " ".join([platform.machine(), *sorted(set(_INSTRUCTIONS.findall(flags)))])
