"""What observations and actions look like: `Box`, `Discrete`, `MultiDiscrete`, `Dict`, `Tuple`.

They take the arguments that the spaces of gymnax and of gymnasium take, and an environment may use those instead, or
objects of its own with the same attributes: `as_space` turns all of them into one of these five. They can be compared
and hashed, but aren't pytrees.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key, Num, PyTree, Shaped


def _set(space: Any, **values: Any) -> None:
    """In a frozen space. A dtype becomes what JAX will have: without x64, int64 is int32."""
    for name, value in values.items():
        object.__setattr__(space, name, jax.dtypes.canonicalize_dtype(value) if name == "dtype" else value)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of `shape`, each element between `low` and `high` (which may be infinite).

    - `low`, `high`: numbers, or arrays that broadcast to `shape`. They may be traced.
    - `shape`: by default that of `low` and `high`.
    """

    low: Any
    high: Any
    shape: Any = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        low, high = (x if isinstance(x, Array) else np.asarray(x) for x in (self.low, self.high))
        wanted = np.broadcast_shapes(low.shape, high.shape) if self.shape is None else tuple(map(int, self.shape))
        try:
            fits = np.broadcast_shapes(low.shape, high.shape, wanted) == wanted
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"Box got low {list(low.shape)} and high {list(high.shape)}, which don't broadcast to {list(wanted)}")
        _set(self, low=low, high=high, shape=wanted, dtype=self.dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Box) or (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        if any(isinstance(x, Tracer) for x in (self.low, self.high, other.low, other.high)):
            return self.low is other.low and self.high is other.high
        mine, others = (np.broadcast_arrays(x.low, x.high, np.empty(x.shape))[:2] for x in (self, other))
        return np.array_equal(mine, others)

    def __hash__(self) -> int:
        return hash((Box, self.shape, self.dtype))

    def __repr__(self) -> str:
        return f"Box({_short(self.low)}, {_short(self.high)}, {self.shape}, {self.dtype})"


@dataclasses.dataclass(frozen=True)
class Discrete:
    """A choice among the integers `0, ..., n - 1`."""

    n: Any
    dtype: Any = jnp.int32
    shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        if int(self.n) != self.n or self.n < 1:
            raise ValueError(f"Discrete got n={self.n}; it must be a whole number of at least 1")
        _set(self, n=int(self.n), dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of choices, the i-th among the integers `0, ..., nvec[i] - 1`."""

    nvec: Any
    dtype: Any = jnp.int32

    def __post_init__(self):
        nvec = np.asarray(self.nvec)
        if nvec.ndim != 1 or not np.issubdtype(nvec.dtype, np.integer) or (nvec < 1).any():
            raise ValueError(f"MultiDiscrete got nvec={self.nvec}; it must be a vector of integers of at least 1")
        _set(self, nvec=tuple(nvec.tolist()), dtype=self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)


@dataclasses.dataclass(frozen=True)
class Dict:
    """A dict of arrays, one for each of the named `spaces`."""

    spaces: Any

    def __post_init__(self):
        _set(self, spaces={name: as_space(space) for name, space in self.spaces.items()})

    def __hash__(self) -> int:
        return hash((Dict, frozenset(self.spaces.items())))


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A tuple of arrays, one for each of `spaces`."""

    spaces: Any

    def __post_init__(self):
        _set(self, spaces=tuple(map(as_space, self.spaces)))


Space = Box | Discrete | MultiDiscrete | Dict | Tuple


def as_space(space: Any) -> Space:
    """`space` as one of this module's. Known by their attributes are those of gymnax and gymnasium and a user's own: `spaces`
    (a mapping, or a sequence); `low`, `high` and `shape`; `nvec`; `n`. A `dtype` is optional.

    **Raises:** `TypeError` for anything else, such as gymnasium's `MultiBinary`, or a discrete space that doesn't start at 0.
    """
    if isinstance(space, Space):
        return space
    dtype = {"dtype": space.dtype} if getattr(space, "dtype", None) is not None else {}
    if np.any(getattr(space, "start", 0)):
        raise TypeError(f"{space!r} starts at {space.start}, but choices are counted from 0; shift them in the environment")
    if hasattr(space, "spaces"):
        return Dict(space.spaces) if isinstance(space.spaces, Mapping) else Tuple(space.spaces)
    if all(hasattr(space, name) for name in ("low", "high", "shape")):
        return Box(space.low, space.high, space.shape, **dtype)
    if hasattr(space, "nvec"):
        return MultiDiscrete(space.nvec, **dtype)
    if hasattr(space, "n") and tuple(getattr(space, "shape", None) or ()) == ():
        return Discrete(space.n, **dtype)
    raise TypeError(
        f"{space!r} is no space that is known here; known are Box (low, high, shape), Discrete (n), MultiDiscrete (nvec), "
        "Dict and Tuple (spaces). Use those of eqxrl.spaces; a vector of n bits is Box(0, 1, (n,), dtype) or MultiDiscrete([2] * n)"
    )


def check_action_space(space: Any) -> Space:
    """The space, as one of this module's. **Raises:** `TypeError` for one with a box of integers in it: policies don't act in these."""
    known = as_space(space)
    for part in jax.tree.leaves(parts(known)):
        if isinstance(part, Box) and not jnp.issubdtype(part.dtype, jnp.floating):
            how = "policies act in Discrete and MultiDiscrete spaces and in a Box of floats; wrap the environment so that it takes these"
            raise TypeError(f"the action space is {known!r}, but {how}")
    return known


def bounds(space: Any) -> tuple[Shaped[Array, "..."], Shaped[Array, "..."]]:
    """`low` and `high` of a box, each of its own shape and dtype."""
    low, high = (jnp.broadcast_to(jnp.asarray(x, space.dtype), space.shape) for x in (space.low, space.high))
    return low, high


def known_bounds(space: Any, who: str) -> tuple[np.ndarray, np.ndarray]:
    """`low` and `high` of a box, each of its own shape, in NumPy, also within a program.

    **Raises:** `TypeError`, which names `who` needs them, where they are traced.
    """
    if isinstance(space.low, Tracer) or isinstance(space.high, Tracer):
        raise TypeError(f"{who} needs bounds that are known when it is made, but those of {space} are traced")
    low, high = (np.broadcast_to(np.asarray(x, space.dtype), space.shape) for x in (space.low, space.high))
    return low, high


def log_volume(box: Any) -> Float[Array, ""]:
    """How much higher, in nats, the entropy of an action is between these bounds than with its numbers scaled to [-1, 1]."""
    low, high = bounds(as_space(box))
    return jnp.sum(jnp.log(0.5 * (high - low)))


def to_env_action(action_space: Any, action: PyTree[Num[Array, "..."]]) -> PyTree[Num[Array, "..."]]:
    """What the environment is given for a policy's `action`: a box action is clipped to `[low, high]`, a discrete one is
    left as it is; both get the space's dtype. Leading axes are free. Store and score the policy's own action, not this one.

    **Raises:** `ValueError` where the structure or the trailing axes are not those of the space, `TypeError` for an unsupported space.
    """

    def fit(space: Any, action: Any) -> Any:
        if not isinstance(space, Box):
            return action.astype(space.dtype)
        if action.shape[action.ndim - len(space.shape) :] != space.shape:
            raise ValueError(f"actions are {list(action.shape)}, but must end in the action space's shape, {list(space.shape)}")
        low, high = (jnp.broadcast_to(x, action.shape) for x in bounds(space))
        return jnp.clip(action.astype(low.dtype), low, high)

    spaces = parts(check_action_space(action_space))
    if jax.tree.structure(spaces) != jax.tree.structure(action):
        raise ValueError(f"actions are {jax.tree.structure(action)}, but the action space is {as_space(action_space)}")
    return jax.tree.map(fit, spaces, action)


def parts(space: Any) -> PyTree[Any]:
    """A pytree whose leaves are the spaces of single arrays: a dict for a `Dict`, a tuple for a `Tuple`."""
    space = as_space(space)
    if isinstance(space, Dict):
        return {name: parts(part) for name, part in space.spaces.items()}
    return tuple(map(parts, space.spaces)) if isinstance(space, Tuple) else space


def map_parts(change: Callable[[Any], Any], space: Any) -> Space:
    """The space with `change` applied to the space of each single array in it."""
    space = as_space(space)
    if isinstance(space, Dict):
        return Dict({name: map_parts(change, part) for name, part in space.spaces.items()})
    return Tuple([map_parts(change, part) for part in space.spaces]) if isinstance(space, Tuple) else change(space)


def zeros(space: Any) -> PyTree[Shaped[Array, "..."]]:
    """Arrays of the space's structure, shapes and dtypes, for tracing: their values may lie outside."""
    return jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), parts(space))


def sample(space: Any, key: Key[Array, ""]) -> PyTree[Shaped[Array, "..."]]:
    """A random element: uniform where there are bounds, standard normal in a dimension without."""
    leaves, treedef = jax.tree.flatten(parts(space))
    keys = [key] if len(leaves) == 1 else jr.split(key, len(leaves))
    return jax.tree.unflatten(treedef, map(_sample, leaves, keys))


def _sample(space: Box | Discrete | MultiDiscrete, key: Key[Array, ""]) -> Shaped[Array, "..."]:
    if not isinstance(space, Box):
        return jr.randint(key, space.shape, 0, space.n if isinstance(space, Discrete) else jnp.array(space.nvec), space.dtype)
    low, high = bounds(space)
    if not jnp.issubdtype(space.dtype, jnp.floating):
        low, high = low.astype(jnp.float32), high.astype(jnp.float32)
        return jnp.floor(low + jr.uniform(key, space.shape) * (high - low + 1)).astype(space.dtype)
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    key_uniform, key_normal = jr.split(key)
    uniform = jr.uniform(key_uniform, space.shape, low.dtype, jnp.where(finite, low, 0), jnp.where(finite, high, 1))
    return jnp.where(finite, uniform, jnp.clip(jr.normal(key_normal, space.shape, low.dtype), low, high))


def _short(x: Any) -> str:
    """A bound for people: one number where all are the same."""
    if isinstance(x, Tracer):
        return "traced"
    x = np.asarray(x)
    return f"{x.flat[0]}" if x.size and (x == x.flat[0]).all() else np.array2string(x, separator=", ", threshold=6)
