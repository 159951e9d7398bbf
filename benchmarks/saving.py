"""What a checkpoint costs: `eqxrl.save` of a state of one GiB beside `np.save` of the same bytes and one `fsync`.

python benchmarks/saving.py [MiB]
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from eqxrl.training import load, save

ROUNDS = 9
MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 1024


def np_save(folder: Path, state: dict) -> None:
    """As many files as there are arrays, and one `fsync`, of the largest."""
    folder.mkdir()
    for name, x in state.items():
        np.save(folder / f"{name}.npy", x)
    fd = os.open(folder / "buffer.npy", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def seconds(f, *args) -> float:
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start


def main() -> None:
    """As off-policy training has it: one large buffer, and a few small networks; random, since zeros are written faster."""
    rng = np.random.default_rng(0)
    state = {f"layer{i}": jnp.asarray(rng.normal(size=(256, 256)), jnp.float32) for i in range(32)}
    state["buffer"] = jnp.asarray(np.frombuffer(rng.bytes((MIB << 20) - 32 * 4 * 256**2), np.uint8))
    took = {"np.save, fsync": [], "eqxrl.save": [], "eqxrl.load": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ours, theirs = Path(folder) / "state.eqx", Path(folder) / "state"
        for _ in range(ROUNDS):  # each writes to files that aren't there, in the page cache that was just freed
            took["np.save, fsync"].append(seconds(np_save, theirs, state))
            shutil.rmtree(theirs)
            took["eqxrl.save"].append(seconds(save, ours, state))
            took["eqxrl.load"].append(seconds(load, ours, state))
            ours.unlink()
    for name, times in took.items():
        print(f"{name:16} {statistics.median(times):6.2f} s   ({min(times):.2f} to {max(times):.2f})")
    ratio = statistics.median(a / b for a, b in zip(took["eqxrl.save"], took["np.save, fsync"], strict=True))
    print(f"{MIB} MiB: a save takes {ratio:.2f} of np.save and one fsync (median of {ROUNDS} interleaved rounds)")


if __name__ == "__main__":
    main()
