"""One pytree in one file: `save` and `load`.

A file is a [safetensors](https://github.com/huggingface/safetensors) file, so any reader of those opens its arrays:

```
8 bytes    length of the header
header     {"__metadata__":{"header_sha256":"...","payload_crc32":"...","eqxrl":"<manifest>"},<table of the arrays>}
payload    the arrays, one after the other
```

`header_sha256` is the digest of everything before the payload except for its own 64 digits, `payload_crc32` that of the payload. So every
flipped bit, cut or appended byte is found: in the header before it is parsed, in the payload before an array is returned. Nothing in a
file is code, or names something to import: it is JSON and numbers. The same tree and metadata give the same bytes.

The manifest is JSON: format, versions, tree (see `_describe.py`), metadata.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from eqxrl.training._describe import describe_tree, is_array, is_key, is_numpy, key_impl, numbers, to_bytes

T = TypeVar("T")

FORMAT = 2  # the newest one that this version reads, and the one that it writes
_START, _MIDDLE = b'{"__metadata__":{"header_sha256":"', b'","payload_crc32":"'
_DIGEST = slice(8 + len(_START), 8 + len(_START) + 64)
_PAYLOAD_DIGEST = slice(_DIGEST.stop + len(_MIDDLE), _DIGEST.stop + len(_MIDDLE) + 8)
_KINDS = {"float": "F", "int": "I", "uint": "U"}
_DTYPES = {"bool": "BOOL", "bfloat16": "BF16"} | {f"{k}{n}": f"{v}{n}" for k, v in _KINDS.items() for n in (8, 16, 32, 64)}
"""safetensors' names of NumPy's dtypes; arrays of any other are stored as bytes."""


class CheckpointDamaged(ValueError):
    """The file isn't, bit for bit, what was once written."""


class CheckpointMismatch(ValueError):
    """The file is whole, but holds something else than what was asked for."""


def save(path: str | os.PathLike, tree: PyTree, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a pytree to one file, whole or not at all: an older file of that name stays until the new one is on the disk.

    **Arguments:**

    - `path`: any name, `.eqx` by convention. Folders that don't exist are made.
    - `tree`: any pytree. Arrays (JAX's, NumPy's, NumPy scalars, typed keys; any numeric dtype) are stored. Everything else (Python
        scalars, strings, functions, static fields) is only recorded, for `load` to compare; so put what changes during a run, such
        as a count kept as an `int`, in `metadata`.
    - `metadata`: JSON, such as scores, settings and notes; NaN and infinities are allowed.

    **Returns:** the path.

    **Raises:** `TypeError` for leaves that hold data which can't be stored (object arrays, abstract values) and metadata that isn't
    JSON; `OSError` when the file can't be written.
    """
    write(Path(path), encode(tree, metadata))
    return Path(path)


def load(path: str | os.PathLike, like: T) -> T:
    """Reads what `save` wrote.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree of the same structure; its arrays' values don't matter, and may be `jax.ShapeDtypeStruct`s, as from
        `eqx.filter_eval_shape(algo.init_train_state, key)`.

    **Returns:** `like`, its arrays replaced by the stored ones bit for bit: NumPy arrays where `like` has them, strongly typed JAX
    arrays on the default device elsewhere.

    **Raises:** `CheckpointDamaged`, `CheckpointMismatch` (which lists every difference by path), `FileNotFoundError`.
    """
    return load_with_metadata(path, like)[0]


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The `metadata` that was given to `save`. Only the header is read and verified, not the arrays."""
    return read_manifest(path)["metadata"]


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """What the file says about itself: `format`, `versions` of the libraries that wrote it, `tree` (a description of each path),
    `metadata`. Only the header is read and verified, not the arrays."""
    with _opened(path) as (_, manifest, _, _):
        return manifest


def load_with_metadata(path: str | os.PathLike, like: T) -> tuple[T, dict[str, Any]]:
    with _opened(path) as (file, manifest, table, recorded):
        expected = _table(_compare(path, manifest, like))
        if table != expected:
            _damaged(path, "payload", "the table of the arrays isn't that of the manifest")
        stored, crc = {}, 0
        for name, entry in expected.items():
            stored[name] = np.empty(_size(entry), np.uint8)
            file.readinto(stored[name])
            crc = zlib.crc32(stored[name], crc)
        if b"%08x" % crc != recorded:
            _damaged(path, "payload checksum", "the payload's CRC-32 isn't the recorded one")

    def restore(keys: tuple, leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        spec = numbers(leaf)  # the manifest fits `like`, so dtype and shape come from there
        array = stored.pop(jax.tree_util.keystr(keys) or ".").view(spec.dtype.newbyteorder("=")).reshape(spec.shape)
        if is_numpy(leaf):
            return array[()] if isinstance(leaf, np.generic) else array
        return jax.random.wrap_key_data(jnp.array(array), impl=key_impl(leaf.dtype)) if is_key(leaf) else jnp.array(array)

    return jax.tree_util.tree_map_with_path(restore, like), manifest["metadata"]


def encode(tree: PyTree, metadata: Mapping[str, Any] | None = None) -> tuple[bytes, list[Any]]:
    """A file's header, in which the digests are missing, and the arrays in their order."""
    lines, arrays = describe_tree(tree)
    for name, leaf in arrays.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"{name} is {leaf}, which has no values to save; pass a tree of arrays")
        if leaf.dtype != bool and not jnp.issubdtype(leaf.dtype, np.number):
            raise TypeError(f"{name} is an array of {leaf.dtype}, but only numbers and bools can be saved")
    table = _table(arrays)
    try:
        text = json.dumps({"format": FORMAT, "versions": versions(), "tree": lines, "metadata": dict(metadata or {})})
    except (TypeError, ValueError) as e:
        raise TypeError(f"metadata must be JSON (dicts with string keys, lists, strings, numbers, bools, None): {e}") from e
    content = {"__metadata__": {"header_sha256": "0" * 64, "payload_crc32": "0" * 8, "eqxrl": text}} | table
    header = json.dumps(content, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the arrays are aligned
    return len(header).to_bytes(8, "little") + header, [arrays[name] for name in table]


def write(path: Path, document: tuple[bytes, list[Any]], *, twin: Path | None = None) -> None:
    """All of it under the name `path`, or none of it, even if the process or the machine stops in the middle. `twin`: a file
    to which the same was just written; where the disk can do so, `path` becomes another name for it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # such as FAT's, which has no links
            if twin is not None:
                os.link(twin, temporary)
        if not temporary.exists():
            _write_new(temporary, *document)
        os.replace(temporary, path)
        sync(path.parent)  # the new name itself is on the disk only when the folder is
    except OSError as e:
        size = len(document[0]) + sum(x.nbytes for x in document[1])
        why = f"{e.strerror}: couldn't write a checkpoint of {size} bytes; a file that was there before is as it was"
        raise OSError(e.errno, why, str(path)) from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Puts a folder, or a file, on the disk; Windows can't open folders."""
    if os.name == "posix":
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """For reading. Whoever opens a pipe waits for somebody to write to it.

    **Raises:** `OSError` for what is neither a file nor a folder.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "this is a pipe, a device or a socket, and should be a file; move it away", str(path))
    return open(path, "rb")


def _write_new(path: Path, header: bytes, arrays: list[Any]) -> None:
    """Copies one array at a time, and only what has to be fetched from a device or put in C order.

    The payload's digest is CRC-32, which finds any change within 32 bits, and all but one in 2^32 of the others. zlib computes
    it at 6 GiB/s, as against 1.7 GiB/s of SHA-256 (with a CPU's instructions for it) and 1.1 of BLAKE2b, while 4 GiB/s are
    written to the page cache: it is the only one that costs less than writing. zlib releases the GIL, hence the thread.
    """
    crc, sealed = 0, bytearray(header)
    with open(path, "xb") as file, ThreadPoolExecutor(1) as thread:
        with contextlib.suppress(AttributeError, OSError):  # spares a third of the writing's time, on systems that have it
            os.posix_fallocate(file.fileno(), 0, len(header) + sum(x.nbytes for x in arrays))
        file.write(header)
        for array in arrays:
            data = to_bytes(array)
            later = thread.submit(zlib.crc32, data, crc)
            file.write(data)
            crc = later.result()
        sealed[_PAYLOAD_DIGEST] = b"%08x" % crc
        sealed[_DIGEST] = _header_digest(sealed)
        file.seek(0)
        file.write(sealed)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any], bytes]]:
    """The file, at its payload; the verified manifest; the table of the arrays; the payload's recorded digest."""
    try:
        with open_regular(path) as file:
            size, header = os.fstat(file.fileno()).st_size, file.read(_PAYLOAD_DIGEST.stop)
            start = 8 + int.from_bytes(header[:8], "little")
            if len(header) == _PAYLOAD_DIGEST.stop and not header.startswith(_START, 8):
                _damaged(path, "header", "it doesn't begin as a file of eqxrl does")
            if not _PAYLOAD_DIGEST.stop < start <= size:
                _damaged(path, "size", f"it has {size} bytes, which don't hold a header that ends at byte {start}")
            header += file.read(start - len(header))
            if header[_DIGEST] != _header_digest(header):
                _damaged(path, "header checksum", "the header's SHA-256 isn't the recorded one")
            manifest, table = _parse(path, header[8:])
            written = start + sum(map(_size, table.values()))
            if size != written:
                _damaged(path, "size", f"it has {size} bytes, and had {written} when it was written")
            if manifest["format"] > FORMAT:
                writer = f"in format {manifest['format']}, written by eqxrl {_printable(str(manifest['versions'].get('eqxrl')))}"
                reader = f"this is eqxrl {_version('eqxrl')}, which reads formats up to {FORMAT}: pip install --upgrade eqxrl"
                raise CheckpointMismatch(f"{path} is {writer}; {reader}")
            yield file, manifest, table, header[_PAYLOAD_DIGEST]
    except (FileNotFoundError, IsADirectoryError) as e:
        folder = "this is a folder; pass a file, or use Checkpoints(folder).latest(like)"
        raise FileNotFoundError(errno.ENOENT, folder if os.path.isdir(path) else "there is no such checkpoint", str(path)) from e
    except OSError as e:
        if e.errno in (errno.EIO, errno.EINVAL):  # what a disk with a bad sector says, and what `open_regular` does
            _damaged(path, "disk", str(e))
        raise


def _parse(path: str | os.PathLike, header: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the table of a header that is whole, but may be an enemy's."""
    try:
        table = json.loads(header)
        manifest = json.loads(table.pop("__metadata__")["eqxrl"])
        if not all(isinstance(x, int) for x in (manifest["format"], *map(_size, table.values()))):
            raise TypeError("format and data_offsets must be integers")
        dicts = [manifest[name] for name in ("versions", "metadata", "tree")[: 3 if manifest["format"] <= FORMAT else 1]]
        if not all(isinstance(x, dict) for x in dicts) or not all(isinstance(x, str) for x in dicts[-1].values()):
            raise TypeError("versions, metadata and tree must be dicts, and the tree's lines strings")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        _damaged(path, "manifest", f"{type(e).__name__}: {e}")
    return manifest, table


def _table(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """How safetensors lists arrays, and where each of them lies: the widest numbers first, so that all are aligned."""
    table, end = {}, 0
    for name, x in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        size, dtype = math.prod(x.shape) * x.dtype.itemsize, _DTYPES.get(x.dtype.name)
        stored = {"dtype": "U8", "shape": [size]} if dtype is None else {"dtype": dtype, "shape": list(x.shape)}
        table[name] = stored | {"data_offsets": [end, end := end + size]}
    return table


def _size(entry: Mapping[str, Any]) -> int:
    return entry["data_offsets"][1] - entry["data_offsets"][0]


def _header_digest(header: bytes | bytearray) -> bytes:
    return hashlib.sha256(header[: _DIGEST.start] + header[_DIGEST.stop :]).hexdigest().encode()


def _compare(path: str | os.PathLike, manifest: dict[str, Any], like: PyTree) -> dict[str, Any]:
    """The arrays of `like`, whose description is the file's."""
    stored, (expected, arrays), lines = manifest["tree"], describe_tree(like), []
    for name in expected | stored:
        if stored.get(name) != expected.get(name):
            has = f"the file has {stored[name]}" if name in stored else "isn't in the file"
            lines.append(f"{name}: {has}; " + (f"expected {expected[name]}" if name in expected else "nothing is expected there"))
    for name, x in arrays.items():
        if not is_numpy(x) and (narrow := jax.dtypes.canonicalize_dtype(x.dtype)) != x.dtype:
            lines.append(f"{name}: JAX would make {narrow} of {x.dtype.name}; set jax.config.jax_enable_x64")
    if lines:
        shown = "".join(f"\n  {_printable(line)}" for line in lines[:20])
        more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
        writers = ", ".join(f"{name} {manifest['versions'].get(name)}" for name in ("eqxrl", "jax", "equinox", "optax"))
        raise CheckpointMismatch(
            f"{path} doesn't fit `like`, in {len(lines)} place{'s' if len(lines) > 1 else ''}:{shown}{more}\nBuild `like` as the saved "
            "tree was built: the same algorithm, sizes and settings. Classes and functions are compared by name, Python scalars by "
            f"value. The file was written with {_printable(writers)}."
        )
    return arrays


def versions() -> dict[str, str]:
    """Of the libraries that a run depends on."""
    packages = ("eqxrl", "jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # a source tree that is merely on the path


def _printable(text: str) -> str:
    """A file's words, fit for a terminal."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 300 else text[:297] + "..."


def _damaged(path: str | os.PathLike, check: str, why: str) -> NoReturn:
    raise CheckpointDamaged(f"{path} is damaged ({check}): {_printable(why)}. Load an older checkpoint, or save it anew.")
