"""The compiled programs that a `Trainer` runs: an algorithm's own methods, for each seed where several are trained at once.
Those that learn reuse the buffers of the training state.

`axes` is `False` for a single agent; for several, it says of each leaf of the algorithm whether it has a value for each seed
(0), or all share it (`None`). Several are spread over the devices: each has its share of the seeds, and runs the program on it by itself,
without a word to the others, so that loops of one device don't wait for those of another. An agent that several devices work on is on all
of them before and after each program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, Key, PyTree

from eqxrl._devices import mesh_of
from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import Scalar, Schedule, T, describe
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.algorithms._base import evaluated, started

Kept = tuple[AbstractAlgorithm, PyTree, Int[Array, ""]]
"""An algorithm, its axes, and a number (of iterations, or of the iteration)."""

_AXES = "eqx.tree_at(lambda a: a.hp.learning_rate, jax.tree.map(lambda _: None, algo), 0, is_leaf=lambda x: x is None)"
_STATIC = "Static fields can't be swept, and field(default=1) is static because its default is an int; declare it with static=False"


def check_axes(algo: AbstractAlgorithm, axes: PyTree, keys: Key[Array, "..."]) -> PyTree:
    """What `Trainer.fit` was given, as one entry for each leaf; `False` for a single agent.

    **Raises:** `ValueError` where it doesn't fit the algorithm, or the keys.
    """
    if keys.ndim > 1:
        raise ValueError(f"got keys of shape {list(keys.shape)}; pass one key, or [seeds] of them")
    if keys.ndim == 0 and axes is not None:
        raise ValueError("axes says what is swept over the seeds, but got one key; pass [seeds] of them, as jax.random.split gives")
    is_none = lambda x: x is None  # noqa: E731
    fields = {f"hp.{f.name}": f for f in dataclasses.fields(algo.hp)}
    for name, f in fields.items():
        if f.metadata.get("static", False) and eqx.is_array(getattr(algo.hp, f.name)):
            raise ValueError(f"{name} is an array in a static field. {_STATIC}")
    try:
        axes = jax.tree.map(lambda axis, x: jax.tree.map(lambda _: axis, x), axes, algo, is_leaf=is_none)
    except ValueError as e:
        raise ValueError(f"axes must be a pytree like the algorithm, such as {_AXES}. {_STATIC}") from e
    leaves = jax.tree.leaves_with_path(algo, is_leaf=is_none)
    for (path, x), axis in zip(leaves, jax.tree.leaves(axes, is_leaf=is_none), strict=True):
        name = jax.tree_util.keystr(path).removeprefix(".")
        if axis is not None and not (axis == 0 and eqx.is_array(x) and x.shape[:1] == keys.shape):
            wanted = f"it must be 0 for JAX arrays that start with an axis of {keys.size} seeds, and None for anything else"
            raise ValueError(f"axes is {axis} for {name} = {describe(x)}; {wanted}")
        if axis is None and name in fields and fields[name].type in (Scalar, Schedule) and eqx.is_array(x) and x.ndim:
            sweep = f"pass [seeds] keys and axes={_AXES.replace('hp.learning_rate', name)}"
            raise ValueError(f"{name} must be one number, got {describe(x)}; to train a seed with each of these values, {sweep}")
    return axes if keys.ndim else False


def for_each(f: Callable, algo: Any, axes: PyTree, *args: Any) -> Any:
    """`f(algo, *args)`; for each seed, if there is an axis of them. One seed is a single agent, which compiles and runs faster than in
    `vmap`."""
    if axes is False:
        return _on_all(shared_by(algo), f(algo, *args))
    num_seeds = next(x for x in jax.tree.leaves(args) if eqx.is_array(x)).shape[0]
    if num_seeds == 1:
        out = f(member(algo, axes, 0), *jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, args))
        return _on_all(shared_by(algo), jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, out))
    seeds = eqx.filter_vmap(f, in_axes=(axes, *[eqx.if_array(0)] * len(args)))
    mesh = devices_for(num_seeds)
    if mesh is None:
        return _on_all(shared_by(algo), seeds(algo, *args))
    arrays, static = eqx.partition((algo, args), eqx.is_array)
    rest: list[Any] = []

    def share(arrays: Any) -> Any:
        algo, args = eqx.combine(arrays, static)
        out, other = eqx.partition(seeds(algo, *args), eqx.is_array)
        rest.append(other)
        return out

    out = jax.shard_map(share, mesh=mesh, in_specs=(_specs(arrays, axes),), out_specs=P("seeds"), check_vma=False)(arrays)
    return eqx.combine(out, rest[-1])


def num_devices(num_seeds: int | None, algo: Any = None) -> int:
    """That so many seeds are spread over; given the algorithm, also those that work on one agent."""
    mesh = devices_for(num_seeds) or shared_by(algo)
    return 1 if mesh is None else mesh.size


def shared_by(algo: Any) -> Mesh | None:
    """The devices that work on one agent of the algorithm; `None` if it is one."""
    return mesh_of(getattr(getattr(algo, "hp", None), "num_devices", 1))


def _on_all(mesh: Mesh | None, tree: T) -> T:
    """What a program returns, with the training state, if there is more the first of it, on all devices. A batch stays where it is, so that
    what is learned from it is computed as in a program that collects it as well."""
    if mesh is None:
        return tree
    if isinstance(tree, tuple):
        return _on_all(mesh, tree[0]), *tree[1:]  # pyright: ignore[reportReturnType]
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.with_sharding_constraint(arrays, NamedSharding(mesh, P())), static)


def devices_for(num_seeds: int | None) -> Mesh | None:
    """Those that so many seeds are spread over: as many as divide their number; `None` for one, as it is under `jax.default_device`."""
    devices = jax.devices()
    if num_seeds is None or jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    return _mesh(max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0))


@functools.cache
def _mesh(num_devices: int) -> Mesh | None:
    return None if num_devices == 1 else Mesh(np.array(jax.devices()[:num_devices]), ("seeds",))


def _specs(algo_and_args: tuple[Any, Any], axes: PyTree) -> Any:
    algo, args = algo_and_args
    spec = lambda axis, x: None if x is None else P() if axis is None else P("seeds")  # noqa: E731
    return jax.tree.map(spec, axes, algo, is_leaf=lambda x: x is None), jax.tree.map(lambda _: P("seeds"), args)


def spread(axes: PyTree, algo: Any, *args: Any) -> Any:
    """The algorithm and the arrays `[seeds ...]`, each share on its device; the rest on all of them, as all is where several devices work
    on one agent."""
    leaves = [x for x in jax.tree.leaves(args) if eqx.is_array(x)]
    mesh, shared = None if axes is False else devices_for(leaves[0].shape[0]), shared_by(algo)
    if mesh is None and shared is None:
        return algo, *args
    arrays, static = eqx.partition((algo, args), eqx.is_array)
    if mesh is None:
        shardings: Any = NamedSharding(shared, P())  # pyright: ignore[reportArgumentType]
    else:
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), _specs(arrays, axes))
    algo, args = eqx.combine(jax.device_put(arrays, shardings), static)
    return algo, *args


def member(tree: PyTree, axes: PyTree, i: int) -> PyTree:
    """What one seed sees of an algorithm whose leaves are swept."""
    return tree if axes is False else jax.tree.map(lambda axis, x: x if axis is None else x[i], axes, tree, is_leaf=lambda x: x is None)


def on_one_device(tree: T) -> T:
    """What was spread over several, or is on all of them, on the first."""
    first = jax.devices()[0]
    leaf = lambda x: jax.device_put(x, first) if isinstance(x, jax.Array) and len(x.devices()) > 1 else x  # noqa: E731
    return jax.tree.map(leaf, tree)


@eqx.filter_jit
def init(algo: AbstractAlgorithm, axes: PyTree, keys: Key[Array, "..."]) -> Any:
    return for_each(lambda algo, key: started(algo, key)[0], algo, axes, keys)


@eqx.filter_jit(donate="all-except-first")
def iterate(kept: Kept, state: Any) -> tuple[Any, TrainStepMetrics]:
    algo, axes, num_iterations = kept
    return for_each(lambda algo, state: algo.iterations(state, num_iterations), algo, axes, state)


@eqx.filter_jit
def collect(kept: Kept, state: Any) -> tuple[Any, Any]:
    algo, axes, batch_idx = kept
    return for_each(lambda algo, state: algo.get_batch(state, batch_idx), algo, axes, state)


@eqx.filter_jit(donate="all-except-first")
def learn(kept: tuple[Kept, Any], state: Any) -> tuple[Any, TrainStepMetrics]:
    (algo, axes, batch_idx), batch = kept
    return for_each(lambda algo, state, batch: algo.training_step(batch_idx, state, batch), algo, axes, state, batch)


@eqx.filter_jit
def evaluate(algo: AbstractAlgorithm, axes: PyTree, state: Any) -> EvalMetrics:
    return for_each(lambda algo, state: evaluated(algo, state)[0], algo, axes, state)


@eqx.filter_jit
def keep(stopped: Bool[Array, " seeds"], before: Any, after: Any) -> Any:
    """The state before for seeds that are stopped, after for the others."""
    leaf = lambda stopped, b, a: jnp.where(stopped, b, a) if eqx.is_array(a) else a  # noqa: E731
    each = lambda _, stopped, before, after: jax.tree.map(lambda b, a: leaf(stopped, b, a), before, after)  # noqa: E731
    return for_each(each, None, None, stopped, before, after)
