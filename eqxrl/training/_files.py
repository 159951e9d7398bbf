r"""One pytree in one file: `save` and `load`.

A file is a valid [safetensors](https://github.com/huggingface/safetensors) file, so any safetensors reader can open its
arrays, and its header's `__metadata__` holds a single entry that starts with a seal:

```
8 bytes                     length of the header
{"__metadata__":{"eqxrl":"  the first bytes of every header, which serve as the magic number
<64 hex digits>             SHA-256 of everything up to the payload, but for these 64 digits
<64 hex digits>             SHA-256 of the payload
<20 decimal digits>         size of the whole file in bytes
manifest"},...}             JSON: format, versions, tree, metadata; then safetensors' own table of the arrays
payload                     the arrays
```

Every bit is either under one of the two digests or part of the first, so any flipped bit, cut or appended byte is found, and
found before anything is parsed. Lengths are compared with the real size of the file before that much is read. The seal stays
as it is in every later format, so that an old eqxrl can tell a newer file from a damaged one. Nothing in a file is code, or
names something to import: what is read is JSON and numbers. The same tree and metadata give the same bytes.

The manifest's `tree` maps each path of the pytree to a line of text: `float32[64 4]` for an array, `key<threefry2x32>[8]` for
typed keys, `0.5` for a Python scalar, `function tanh` for a function, the class's name for a node, and the value of each
static field. `load` describes `like` by the same lines and compares. Classes and functions are described by their qualified
name without the module, since modules are reorganised (`jax.nn.relu` lives in `jax._src.nn.functions` today) and a script's
classes are in `__main__` at one time only; what a function closes over isn't compared.
"""

import contextlib
import dataclasses
import enum
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

T = TypeVar("T")

FORMAT = 1
"""The newest file format that this version reads, and the one that it writes."""

_MAGIC = b'{"__metadata__":{"eqxrl":"'
_SEAL = "{:64} {:64} {:020d} "
_DIGEST = slice(8 + len(_MAGIC), 8 + len(_MAGIC) + 64)
_PAYLOAD_DIGEST = slice(_DIGEST.stop + 1, _DIGEST.stop + 65)
_SIZE = slice(_PAYLOAD_DIGEST.stop + 1, _PAYLOAD_DIGEST.stop + 21)
_MANIFEST = _SIZE.stop + 1
_PACKAGES = ("eqxrl", "jax", "jaxlib", "equinox", "optax", "numpy", "safetensors")
_NATIVE = {"bool", "float16", "bfloat16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
"""What safetensors stores under its own dtype; anything else is stored as bytes."""
_LINES = 20


class CheckpointDamaged(ValueError):
    """The file isn't, bit for bit, what was once written."""


class CheckpointMismatch(ValueError):
    """The file is whole, but holds something else than what was asked for."""


def save(path: str | os.PathLike, tree: PyTree, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a pytree to one file, whole or not at all: an older file of that name stays as it was until the new one is on
    the disk.

    **Arguments:**

    - `path`: any name, `.eqx` by convention. Folders that don't exist are made.
    - `tree`: any pytree. Arrays (JAX's, NumPy's, NumPy scalars, typed keys; any numeric dtype) are stored. Everything else
        (Python scalars, strings, functions, static fields) is only recorded, for `load` to compare; so put what changes
        during a run, such as a count kept as an `int`, in `metadata`.
    - `metadata`: JSON, such as scores, settings and notes; NaN and infinities are allowed.

    **Returns:** the path.

    **Raises:** `TypeError` for leaves that hold data which can't be stored (object arrays, abstract values) and metadata
    that isn't JSON; `OSError` when the file can't be written.
    """
    path = Path(path)
    write(path, encode(tree, metadata))
    return path


def load(path: str | os.PathLike, like: T) -> T:
    """Reads what `save` wrote.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree of the same structure; its arrays' values don't matter, and may be `jax.ShapeDtypeStruct`s, as from
        `eqx.filter_eval_shape(algo.init_train_state, key)`.

    **Returns:** `like`, its arrays replaced by the stored ones bit for bit: NumPy arrays where `like` has them, and strongly
    typed JAX arrays on the default device elsewhere.

    **Raises:** `CheckpointDamaged`, `CheckpointMismatch` (which lists every difference by path), `FileNotFoundError`.
    """
    return load_with_metadata(path, like)[0]


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The `metadata` that was given to `save`. Only the header is read and verified, not the arrays."""
    return read_manifest(path)["metadata"]


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """What the file says about itself: `format`, `versions` of the libraries that wrote it, `tree` (a description of each
    path), `metadata`. Only the header is read and verified, not the arrays."""
    return read(path, payload=False)[0]


def load_with_metadata(path: str | os.PathLike, like: T) -> tuple[T, dict[str, Any]]:
    import safetensors

    manifest, blob = read(path)
    _compare(path, manifest, like)
    try:
        stored = {name: entry["data"] for name, entry in safetensors.deserialize(blob)}
    except safetensors.SafetensorError as e:
        _damaged(path, "payload", str(e))

    def restore(keys: tuple, leaf: Any) -> Any:
        return _restore(path, stored, _path(keys), leaf) if _is_array(leaf) else leaf

    return jax.tree_util.tree_map_with_path(restore, like), manifest["metadata"]


def encode(tree: PyTree, metadata: Mapping[str, Any] | None = None) -> tuple[bytes, memoryview]:
    """A file's header and payload."""
    from safetensors.numpy import save as to_bytes

    lines, arrays = describe_tree(tree)
    for name, leaf in arrays.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"{name} is {leaf}, which has no values to save; pass a tree of arrays")
        if not _is_key(leaf) and not (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)):
            raise TypeError(f"{name} is an array of {leaf.dtype}, but only numbers and bools can be saved")
    manifest = {
        "format": FORMAT,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "tree": lines,
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(manifest)
    except (TypeError, ValueError) as e:
        raise TypeError(f"metadata must be JSON (dicts with string keys, lists, strings, numbers, bools, None): {e}") from e
    host = jax.device_get({name: jax.random.key_data(x) if _is_key(x) else x for name, x in arrays.items()})
    blob = to_bytes({k: _contiguous(x) for k, x in host.items()}, {"eqxrl": _SEAL.format("", "", 0) + text})
    if not blob.startswith(_MAGIC, 8):
        raise RuntimeError(
            f"safetensors {_version('safetensors')} begins a file with {blob[8:40]!r} where eqxrl's format needs "
            f"{_MAGIC!r}; pip install 'safetensors<=0.8.0'"
        )
    start = 8 + int.from_bytes(blob[:8], "little")
    payload = memoryview(blob)[start:]
    seal = _SEAL.format("", hashlib.sha256(payload).hexdigest(), len(blob)).encode()
    header = blob[: _DIGEST.start] + seal + blob[_MANIFEST:start]
    return header[: _DIGEST.start] + _digest(header) + header[_DIGEST.stop :], payload


def write(path: Path, parts: tuple[bytes, memoryview]) -> None:
    """All of it under the name `path`, or none of it, even if the process or the machine stops in the middle."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name itself is on the disk only when the folder is; Windows can't open one
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(e, OSError):
            size = sum(map(len, parts))
            raise OSError(
                e.errno,
                f"{e.strerror}: couldn't write a checkpoint of {size} bytes; a file that was there before is as it was",
                str(path),
            ) from e
        raise


def read(path: str | os.PathLike, *, payload: bool = True) -> tuple[dict[str, Any], bytes]:
    """The verified manifest and the verified bytes of the file, or only those of the header."""
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    if os.path.isdir(path):
        raise FileNotFoundError(
            errno.ENOENT, "this is a folder; pass a file, or use eqxrl.training.Checkpoints(folder).latest(like)", str(path)
        )
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_MANIFEST)
            if len(header) < _MANIFEST:
                _damaged(path, "size", f"it has {size} bytes, fewer than the shortest of eqxrl's files")
            if not header.startswith(_MAGIC, 8):
                _damaged(path, "header", "it doesn't begin as a file of eqxrl does")
            start = 8 + int.from_bytes(header[:8], "little")
            if not _MANIFEST < start <= size:
                _damaged(path, "size", f"its header says that it ends at byte {start}, the file has {size}")
            header += file.read(start - _MANIFEST)
            if header[_DIGEST] != _digest(header):
                _damaged(path, "header checksum", "the header's SHA-256 isn't the recorded one")
            if header[_SIZE] != b"%020d" % size:
                written = header[_SIZE].decode(errors="replace").lstrip("0")
                _damaged(path, "size", f"it has {size} bytes, and had {written} when it was written")
            blob = header + file.read(size - start) if payload else header
    except OSError as e:
        if e.errno == errno.EIO:  # what a disk with a bad sector says
            _damaged(path, "disk", str(e))
        raise
    if payload and hashlib.sha256(memoryview(blob)[start:]).hexdigest().encode() != header[_PAYLOAD_DIGEST]:
        _damaged(path, "payload checksum", "the payload's SHA-256 isn't the recorded one")
    try:
        manifest = json.loads(json.loads(header[8:])["__metadata__"]["eqxrl"][_MANIFEST - _DIGEST.start :])
        form, versions = manifest["format"], dict(manifest["versions"])
        if not isinstance(form, int):
            raise TypeError(f"the format must be an int, got {form!r}")
        if form <= FORMAT and not (
            isinstance(manifest["metadata"], dict) and all(isinstance(line, str) for line in manifest["tree"].values())
        ):
            raise TypeError("tree must be a dict of strings, and metadata a dict")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        _damaged(path, "manifest", f"{type(e).__name__}: {e}")
    if form > FORMAT:
        raise CheckpointMismatch(
            f"{path} is in format {form}, written by eqxrl {_printable(str(versions.get('eqxrl')))}; this is eqxrl "
            f"{_version('eqxrl')}, which reads formats up to {FORMAT}: pip install --upgrade eqxrl"
        )
    return manifest, blob


def describe_tree(tree: PyTree) -> tuple[dict[str, str], dict[str, Any]]:
    """A line of text for each path of the tree (arrays, static leaves, nodes and their static fields), and the arrays."""
    lines: dict[str, str] = {}
    arrays: dict[str, Any] = {}

    def add(path: str, line: str) -> None:
        if path in lines:
            raise ValueError(f"two parts of the tree have the path {path}; rename one of them")
        lines[path] = line

    def visit(x: Any, keys: tuple) -> None:
        path = _path(keys)
        children, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
        node = treedef.node_data()
        if node is None and _is_array(x):
            arrays[path] = x
        if node is None or x is None:  # JAX has None as a node without children
            add(path, _describe(x))
            return
        fields = {key[-1].name for key, _ in children if isinstance(key[-1], jax.tree_util.GetAttrKey)}
        if dataclasses.is_dataclass(x) and len(fields) == len(children):  # an eqx.Module, or another library's struct
            add(path, type(x).__qualname__)
            for f in dataclasses.fields(x):
                if f.name not in fields:
                    add(f"{path.rstrip('.')}.{f.name}", _describe_static(getattr(x, f.name, None)))
        elif isinstance(x, dict | list | tuple):  # their keys are in the paths
            add(path, type(x).__qualname__)
        else:
            add(path, f"{type(x).__qualname__}({_describe_static(node[1])})")
        for key, child in children:
            visit(child, keys + key)

    visit(tree, ())
    return lines, arrays


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys) or "."


def _describe(x: Any) -> str:
    """The same text in every process; `repr` gives addresses for most objects."""
    if _is_key(x):
        return f"key<{_key_impl(x.dtype)}>[{' '.join(map(str, x.shape))}]"
    if _is_array(x):
        return f"{x.dtype.name}[{' '.join(map(str, x.shape))}]"
    if isinstance(x, enum.Enum):
        return f"{type(x).__qualname__}.{x.name}"
    if x is None or isinstance(x, bool | int | float | complex | str | bytes):
        return repr(x)
    if isinstance(x, tuple | list | set | frozenset):
        items = [_describe_static(y) for y in x]
        items = sorted(items) if isinstance(x, set | frozenset) else items
        return f"{type(x).__qualname__}({', '.join(items)})"
    if isinstance(x, Mapping):
        return f"{type(x).__qualname__}({', '.join(f'{_describe_static(k)}: {_describe_static(v)}' for k, v in x.items())})"
    if isinstance(x, functools.partial):
        return f"partial({', '.join(map(_describe_static, (x.func, x.args, x.keywords)))})"
    if isinstance(x, np.dtype):
        return f"dtype {x.name}"
    if isinstance(x, type):
        return f"class {x.__qualname__}"
    if dataclasses.is_dataclass(x):
        fields = (f"{f.name}={_describe_static(getattr(x, f.name, None))}" for f in dataclasses.fields(x))
        return f"{type(x).__qualname__}({', '.join(fields)})"
    if callable(x):
        name = getattr(x, "__qualname__", None) or getattr(x, "__name__", None)
        if name is not None:
            return f"function {name}"
    return f"{type(x).__qualname__} object"


def _describe_static(x: Any) -> str:
    """Of an array in a static field the values count too."""
    if _is_array(x) and not isinstance(x, jax.ShapeDtypeStruct):
        data = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        return f"{_describe(x)} {hashlib.sha256(data.tobytes()).hexdigest()[:16]}"
    return _describe(x)


def _compare(path: str | os.PathLike, manifest: dict[str, Any], like: PyTree) -> None:
    stored, (expected, arrays) = manifest["tree"], describe_tree(like)
    lines = []
    for name, line in expected.items():
        if name not in stored:
            lines.append(f"{name}: isn't in the file; expected {line}")
        elif stored[name] != line:
            lines.append(f"{name}: the file has {stored[name]}; expected {line}")
    for name in (name for name in stored if name not in expected):
        lines.append(f"{name}: the file has {stored[name]}; nothing is expected there")
    for name, leaf in arrays.items():
        if not _is_key(leaf) and not _is_numpy(leaf):
            narrow = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if narrow != leaf.dtype:
                lines.append(f"{name}: JAX would make {narrow} of {leaf.dtype.name}; set jax.config.jax_enable_x64")
    if lines:
        shown = "".join(f"\n  {_printable(line)}" for line in lines[:_LINES])
        more = f"\n  ... and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
        versions = ", ".join(f"{name} {manifest['versions'].get(name)}" for name in ("eqxrl", "jax", "equinox", "optax"))
        raise CheckpointMismatch(
            f"{path} doesn't fit `like`, in {len(lines)} place{'s' if len(lines) > 1 else ''}:{shown}{more}\n"
            "Build `like` as the saved tree was built: the same algorithm, sizes and settings. Classes and functions are "
            f"compared by name, Python scalars by value. The file was written with {_printable(versions)}."
        )


def _restore(path: str | os.PathLike, stored: Mapping[str, Any], name: str, like: Any) -> Any:
    """One array. `_compare` has seen that the manifest fits `like`, so dtype and shape come from there."""
    spec = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    try:
        array = np.frombuffer(stored[name], spec.dtype.newbyteorder("=")).reshape(spec.shape)
    except (KeyError, ValueError) as e:
        _damaged(path, "payload", f"{name} isn't what the manifest says: {e}")
    if _is_numpy(like):
        return array[()] if isinstance(like, np.generic) else array.copy()
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_key_impl(like.dtype))
    return jnp.asarray(array)


def _contiguous(x: Any) -> np.ndarray:
    """In C order and native byte order, since safetensors stores the memory as it lies; `ascontiguousarray` would make 0-d
    arrays 1-d."""
    array = np.asarray(x, x.dtype.newbyteorder("="), order="C")
    return array if array.dtype.name in _NATIVE else np.frombuffer(array.tobytes(), np.uint8)


def _is_numpy(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and not isinstance(x, str | bytes)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | jax.ShapeDtypeStruct) or _is_numpy(x)


def _is_key(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@functools.cache
def _key_impl(dtype: Any) -> Any:
    return jax.random.key_impl(jnp.empty((), dtype))  # it doesn't take a dtype, or a ShapeDtypeStruct


def _digest(header: bytes) -> bytes:
    return hashlib.sha256(header[: _DIGEST.start] + header[_DIGEST.stop :]).hexdigest().encode()


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
