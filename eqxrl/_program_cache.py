"""Compiled programs on disk: the command compiles what it has compiled before only once."""

import contextlib
import hashlib
import itertools
import os
import stat
import warnings
import zlib
from pathlib import Path

import jax

from eqxrl.training._numerics import instructions

MAX_BYTES = 2**29
_ZSTD = b"\x28\xb5\x2f\xfd"


def keep_programs(max_bytes: int = MAX_BYTES) -> None:
    """Lets JAX keep its larger programs in `~/.cache/eqxrl/programs` (or `$XDG_CACHE_HOME/eqxrl/programs`), those that were used last, up
    to `max_bytes` in all. What `JAX_COMPILATION_CACHE_DIR` says counts instead; with `JAX_ENABLE_COMPILATION_CACHE=0` nothing is kept.

    A program's name is a hash of what it computes, of JAX's version, settings and flags; those of each kind of processor have a folder of
    their own. Processes may use it at once: the worst that can happen is that a program is compiled again. A file that a process was
    killed over is found and removed. Where nothing can be written, nothing is kept.
    """
    config = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqxrl" / "programs"
    folder = root / hashlib.sha256(instructions().encode()).hexdigest()[:8]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(root, max_bytes)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Another process is writing it, or the disk is full: it is compiled.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def tidy(root: Path, max_bytes: int) -> None:
    """Removes files that aren't whole, and those that were used longest ago."""
    found = []
    for path in root.rglob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            if status.st_mode & stat.S_IWUSR:  # not looked at yet
                if not _whole(path.read_bytes()):
                    path.unlink()
                    continue
                path.chmod(stat.S_IRUSR | stat.S_IRGRP)
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    found.sort(reverse=True)
    for (_, _, path), total in zip(found, itertools.accumulate(size for _, size, _ in found), strict=True):
        if total > max_bytes:
            path.unlink(missing_ok=True)


def _whole(data: bytes) -> bool:
    """JAX writes in place, compressed by whichever of these it has."""
    try:
        if not data.startswith(_ZSTD):
            return bool(zlib.decompress(data))
        try:
            from compression import zstd  # pyright: ignore[reportMissingImports]

            return bool(zstd.decompress(data))
        except ImportError:
            import zstandard  # pyright: ignore[reportMissingImports]

            return bool(zstandard.ZstdDecompressor().decompress(data))
    except ImportError:
        return True  # nobody here will read it
    except Exception:  # each has errors of its own
        return False
