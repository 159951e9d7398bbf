"""What a pytree is, as text: a line for each path. `float32[64 4]` for an array, `key<threefry2x32>[8]` for typed keys, `0.5` for a Python
scalar, `function tanh` for a function, the class's name for a node, and the value of each static field.

Classes and functions go by their qualified name without the module, since modules are reorganised (`jax.nn.relu` lives in
`jax._src.nn.functions` today) and a script's classes are in `__main__` at one time only; what a function closes over isn't told.
"""

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def describe_tree(tree: PyTree) -> tuple[dict[str, str], dict[str, Any]]:
    """The lines, by path, and the arrays (or their shapes) as `numbers`."""
    lines: dict[str, str] = {}
    arrays: dict[str, Any] = {}

    def add(path: str, line: str) -> None:
        if path in lines:
            raise ValueError(f"two parts of the tree have the path {path}; rename one of them")
        lines[path] = line

    def visit(x: Any, keys: tuple) -> None:
        path, kind = jax.tree_util.keystr(keys) or ".", type(x).__qualname__
        children, treedef = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
        node = treedef.node_data()
        if node is None or x is None:  # JAX has None as a node without children
            add(path, _describe_type(x) if is_array(x) else _describe(x))
            arrays.update({path: numbers(x)} if is_array(x) else {})
            return
        names = {key[-1].name for key, _ in children if isinstance(key[-1], jax.tree_util.GetAttrKey)}
        if dataclasses.is_dataclass(x) and len(names) == len(children):  # an eqx.Module, or another library's struct
            add(path, kind)
            for f in dataclasses.fields(x):
                if f.name not in names:
                    add(f"{path.rstrip('.')}.{f.name}", _describe(getattr(x, f.name, None)))
        else:  # the keys of the first three are in the paths
            add(path, kind if isinstance(x, dict | list | tuple) else f"{kind}({_describe(node[1])})")
        for key, child in children:
            visit(child, keys + key)

    visit(tree, ())
    return lines, arrays


def _describe_type(x: Any) -> str:
    return f"{f'key<{key_impl(x.dtype)}>' if is_key(x) else x.dtype.name}[{' '.join(map(str, x.shape))}]"


def _describe(x: Any) -> str:
    """The same text in every process, where `repr` gives addresses; of an array that is static, the values count too."""
    kind = type(x).__qualname__
    if is_array(x):
        values = "" if isinstance(x, jax.ShapeDtypeStruct) else f" {hashlib.sha256(to_bytes(x)).hexdigest()[:16]}"
        return _describe_type(x) + values
    if isinstance(x, enum.Enum):
        return f"{kind}.{x.name}"
    if x is None or isinstance(x, bool | int | float | complex | str | bytes):
        return repr(x)
    if isinstance(x, np.dtype):
        return f"dtype {x.name}"
    if isinstance(x, type):
        return f"class {x.__qualname__}"
    if isinstance(x, functools.partial):
        kind, items = "partial", map(_describe, (x.func, x.args, x.keywords))
    elif isinstance(x, tuple | list):
        items = map(_describe, x)
    elif isinstance(x, set | frozenset):
        items = sorted(map(_describe, x))
    elif isinstance(x, Mapping):
        items = (f"{_describe(k)}: {_describe(v)}" for k, v in x.items())
    elif dataclasses.is_dataclass(x):
        items = (f"{f.name}={_describe(getattr(x, f.name, None))}" for f in dataclasses.fields(x))
    else:
        name = getattr(x, "__qualname__", None) or getattr(x, "__name__", None)
        return f"function {name}" if callable(x) and name else f"{kind} object"
    return f"{kind}({', '.join(items)})"


def to_bytes(x: Any) -> memoryview:
    """In C order and native byte order."""
    host = jax.device_get(numbers(x))
    return np.asarray(host, host.dtype.newbyteorder("="), order="C").reshape(-1).view(np.uint8).data


def numbers(x: Any) -> Any:
    """Typed keys as numbers; other arrays as they are."""
    if not is_key(x):
        return x
    return jax.eval_shape(jax.random.key_data, x) if isinstance(x, jax.ShapeDtypeStruct) else jax.random.key_data(x)


def is_numpy(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and not isinstance(x, str | bytes)


def is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | jax.ShapeDtypeStruct) or is_numpy(x)


def is_key(x: Any) -> bool:
    return is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@functools.cache
def key_impl(dtype: Any) -> Any:
    return jax.random.key_impl(jnp.empty((), dtype))  # it doesn't take a dtype, or a ShapeDtypeStruct
