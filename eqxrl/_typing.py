"""The shared vocabulary: axis names, type variables, and the checks that make annotations true.

Axis words are the same everywhere: `steps envs batch obs act`, and `seeds` for vmapped runs. A struct whose arrays share
leading axes calls them `*batch`, so that one struct serves a single step `[envs]`, a rollout `[steps envs]` and a
minibatch `[batch]`.

Three switches:

- structs (`@typed`) and seams (`validate`) are always checked; it costs trace time only;
- `EQXRL_TYPECHECK=1` in the environment checks every function of the package as well;
- `JAXTYPING_DISABLE=1` turns all of it off.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped, UInt32, config, install_import_hook, jaxtyped

if os.environ.get("EQXRL_TYPECHECK", "0") not in ("", "0"):
    install_import_hook("eqxrl", "beartype.beartype")

if TYPE_CHECKING:
    from gymnax.environments.environment import EnvParams, EnvState

    TEnvState = TypeVar("TEnvState", bound=EnvState)
    TEnvParams = TypeVar("TEnvParams", bound=EnvParams)
else:  # importing gymnax takes seconds, so the bounds are for readers and type checkers only
    TEnvState = TypeVar("TEnvState")
    TEnvParams = TypeVar("TEnvParams")

T = TypeVar("T")

Scalar = Float[Array, ""]
Schedule = Scalar | Callable
"""A coefficient: a number, or a function of the number of gradient updates made so far (any optax schedule); of env steps, where that is
said."""
_NUMBERS: Any = (Scalar, Schedule, *(cast(Any, x) | None for x in (Scalar, Schedule)))
Observation = PyTree[Shaped[Array, "..."]]
"""Any pytree of arrays; which leading axes it has is checked by the struct that holds it."""
Action = PyTree[Shaped[Array, "..."]]
Carry = PyTree
"""The hidden state of a recurrent policy; `()` for a feed-forward one."""
KeyLike = Key[Array, "..."] | UInt32[Array, "..."] | int
"""A typed key, an old-style one, or a seed."""


def typed(cls: type[T]) -> type[T]:
    """Class decorator: the constructor checks every annotated field with beartype, whatever the switches say. A field annotated
    `Scalar` or `Schedule` must be one number (or a schedule): jaxtyping checks what goes into a converter, not what comes out."""
    own_check = vars(cls).get("__check_init__")

    def __check_init__(self):
        check_numbers(self)
        if own_check is not None:
            own_check(self)

    if any(annotation in _NUMBERS for annotation in vars(cls).get("__annotations__", {}).values()):
        cls.__check_init__ = __check_init__  # pyright: ignore[reportAttributeAccessIssue]
    return jaxtyped(typechecker=beartype)(cls)


def within(low: float, high: float = float("inf"), *, open_low: bool = False) -> dict[str, Any]:
    """The metadata of a number's field: the range that it must lie in. `open_low`: it can't be `low` itself."""
    return {"within": (low, high, open_low)}


def check_numbers(struct: Any) -> None:
    """For `__check_init__`: every field annotated `Scalar` or `Schedule` is one number (or a schedule, or None where it may be), not NaN,
    and in its range."""
    for f in dataclasses.fields(struct):
        value = getattr(struct, f.name)
        if f.type not in _NUMBERS or value is None or callable(value) or config.jaxtyping_disable:
            continue
        name = f"{type(struct).__name__}.{f.name}"
        if np.shape(value) != ():
            how = "to train with several values, vmap over them, or pass the trainer `axes`"
            raise ShapeError(f"{name} must be one number, got {describe(value)}; {how}")
        if isinstance(value, Tracer | jax.ShapeDtypeStruct):
            continue
        low, high, open_low = f.metadata.get("within", (-np.inf, np.inf, False))
        number = float(value)
        if not low <= number <= high or (open_low and number == low):
            raise ValueError(f"{name} must be in {'(' if open_low else '['}{low}, {high}], got {number:g}")


def as_scalar(x: float | int | np.ndarray | np.generic | Array) -> Shaped[Array, "..."]:
    """A number as a strongly typed float32 array; weak types and Python floats would retrace. Wider floats keep their
    width under `jax_enable_x64` only where they already are arrays."""
    if isinstance(x, Array) and jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(x.dtype)
    if isinstance(x, str):  # which NumPy would read as a number
        raise TypeError(f"a number is needed, got {x!r}")
    return jnp.asarray(x if isinstance(x, Array) else np.asarray(x, np.float32), jnp.float32)


def as_schedule(x: float | int | np.ndarray | np.generic | Array | Callable) -> Shaped[Array, "..."] | Callable:
    """A number becomes a float32 array; a schedule stays what it is."""
    return x if callable(x) else as_scalar(x)


def optional(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The converter for what may be left out, which None stands for."""
    return lambda x: None if x is None else converter(x)


def at_step(x: Any, num_updates: Int[Array, ""] | Float[Array, ""]) -> Any:
    """The value of a coefficient (a `Schedule`, or None) after `num_updates` gradient updates, or whatever it goes by."""
    return as_scalar(cast(Any, x(num_updates))) if callable(x) else x


def as_number(x: Schedule) -> Scalar:
    """A coefficient that `at_step` has been applied to."""
    if callable(x):
        raise TypeError(f"{x} is a schedule; take its value first, with at_step(num_updates)")
    return x


def as_key(rng: KeyLike) -> Key[Array, "..."]:
    """A typed key; an old-style `uint32[..., 2]` key is wrapped, and an int is a seed."""
    if isinstance(rng, int):
        return jax.random.key(rng)
    if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    if rng.ndim == 0 or rng.shape[-1] != 2:
        how = "pass jax.random.key(seed), or jax.random.split of one"
        raise ValueError(f"rng must be a JAX key or a seed, got uint32{list(rng.shape)}; {how}")
    return jax.random.wrap_key_data(rng)


def one_more(count: Int[Array, ""]) -> Int[Array, ""]:
    """`count + 1`, which stops at 2³¹ - 1 instead of wrapping."""
    return jnp.minimum(count, jnp.iinfo(count.dtype).max - 1) + 1


def strong(tree: T) -> T:
    """The same values without weak types, which would make a second call compile again."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_array(x) else x, tree)


if TYPE_CHECKING:
    from equinox import field  # static checkers know only this one as what makes a field of a Module
else:

    def field(*, static: bool | None = None, converter: Callable[[Any], Any] | None = None, **kwargs: Any) -> Any:
        """`dataclasses.field` for `eqx.Module`s. A field whose default is an int or a bool is static (it sets a shape or picks
        a branch, so changing it compiles anew); any other is a leaf of the pytree, and a float default is kept as a float32
        array, so that it can be swept by `vmap` without a recompile.

        - `static`: overrides the choice above.
        - `converter`: called on the value in `__init__`; for a float default it is `as_scalar`.
        - `kwargs`: those of `dataclasses.field`.
        """
        default = kwargs.get("default")
        if static is None:
            static = isinstance(default, bool | int)
        if converter is None and isinstance(default, float) and not static:
            converter = as_scalar
        kwargs["metadata"] = kwargs.get("metadata") or {}
        return eqx.field(static=static, converter=converter, **kwargs)


class ShapeError(TypeError):
    """A part returned something that doesn't fit the seam it was returned through."""


def describe(x: Any) -> str:
    """`float32[64 4]` for an array, the type's name for anything else, leaf by leaf for a pytree."""
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0] is x and hasattr(x, "shape"):
        return f"{x.dtype}[{' '.join(map(str, x.shape))}]"
    if leaves and leaves[0] is not x and not isinstance(x, eqx.Module):
        return "(" + ", ".join(map(describe, leaves)) + ")"
    return type(x).__name__


def leading(axes: str) -> dict[str, Any]:
    """The metadata of a field that holds a pytree (of arrays, or a struct) whose every leaf starts with `axes`, such as
    `"*batch"`."""
    return {"leading": axes}


def check_leading(struct: Any, **sizes: tuple[int, ...]) -> None:
    """For `__check_init__`: every leaf of a field declared with `leading(axes)` starts with `sizes[axes]`."""
    for f in dataclasses.fields(struct):
        axes, value = f.metadata.get("leading", "").strip("*"), getattr(struct, f.name)
        if axes in sizes and not config.jaxtyping_disable and not _starts_with(value, sizes[axes]):
            where = f"{type(struct).__name__}.{f.name} = {describe(value)}"
            raise ShapeError(f"{where}, but every leaf must start with [{axes}] = {list(sizes[axes])}")


def validate(producer: object, struct: T, *, batch: str, kind: type | None = None, **sizes: int) -> T:
    """Check `struct`, which `producer` (a part) has just returned, against its annotations and the sizes that hold here. vmap
    and scan rebuild structs without calling `__init__`, and a name bound in one struct does not bind in another, so a
    struct's own check isn't enough.

    - `batch`: what `*batch` stands for, as in `"steps envs"`.
    - `kind`: the class that it must be of.
    - `sizes`: the size of each axis, as in `steps=64, envs=8`.

    **Raises:** `ShapeError`, which names the part's class, the field, the axes expected and the shape got.
    """
    if kind is not None and not isinstance(struct, kind):
        raise ShapeError(f"{type(producer).__name__} returned {describe(struct)}, but must return {kind.__name__}")
    if config.jaxtyping_disable:  # which turns off what checks arguments, but not `isinstance`
        return struct
    words: dict[Any, list[str]] = {"*batch": batch.split()} | {axis: [axis] for axis in sizes}
    bound = {axes: tuple(sizes[axis] for axis in names) for axes, names in words.items()}
    spelled: dict[Any, Any] = {axes: " ".join(f"{axis}={sizes[axis]}" for axis in names) for axes, names in words.items()}
    with jaxtyped("context"):
        for axes, shape in bound.items():
            axis_type: Any = Shaped[np.ndarray, axes]
            isinstance(np.empty(shape, np.bool_), axis_type)  # an isinstance check binds the axis
        for f in dataclasses.fields(struct):  # pyright: ignore[reportArgumentType]
            value = getattr(struct, f.name)
            where = f"{type(producer).__name__} returned {type(struct).__name__}.{f.name} = {describe(value)}"
            axes = f.metadata.get("leading")
            if axes is not None and not _starts_with(value, bound[axes]):
                raise ShapeError(f"{where}, but every leaf must start with [{spelled[axes]}]")
            annotation: Any = f.type
            if hasattr(annotation, "dim_str") and not isinstance(value, annotation):
                expected = " ".join(spelled.get(axis, axis) for axis in annotation.dim_str.split())
                raise ShapeError(f"{where}, but {annotation.__name__.split('[')[0].lower()}[{expected}] was expected")
            if axes is None and dataclasses.is_dataclass(value):  # what has `leading` axes is a user's own, annotated for one
                validate(producer, value, batch=batch, kind=None, **sizes)
    return struct


def _starts_with(tree: PyTree, shape: tuple[int, ...]) -> bool:
    return all(hasattr(x, "shape") and x.shape[: len(shape)] == shape for x in jax.tree.leaves(tree))


def check_positive(struct: Any, *names: str) -> None:
    """For `__check_init__`: these sizes are integers of at least 1."""
    for name in names:
        if getattr(struct, name) < 1:
            raise ValueError(f"{type(struct).__name__}.{name} must be at least 1, got {getattr(struct, name)}")


def check_below(struct: Any, low: str, high: str) -> None:
    """For `__check_init__`: the one number is less than the other; nothing is said of numbers that are traced."""
    a, b = getattr(struct, low), getattr(struct, high)
    if not isinstance(a, Tracer) and not isinstance(b, Tracer) and not float(a) < float(b):
        name = type(struct).__name__
        raise ValueError(f"{name}.{low} must be below {name}.{high}, got {float(a):g} and {float(b):g}")
