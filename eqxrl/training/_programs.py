"""The compiled programs that a `Trainer` runs: an algorithm's own methods, for each seed where several are trained at once.
Those that learn reuse the buffers of the training state.

`axes` is `False` for a single agent; for several, it says of each leaf of the algorithm whether it has a value for each seed
(0), or all share it (`None`)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import Scalar, Schedule, describe
from eqxrl.algorithms import AbstractAlgorithm

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
    """`f(algo, *args)`; for each seed, if there are several."""
    if axes is False:
        return f(algo, *args)
    return eqx.filter_vmap(f, in_axes=(axes, *[eqx.if_array(0)] * len(args)))(algo, *args)


def member(tree: PyTree, axes: PyTree, i: int) -> PyTree:
    """What one seed sees of an algorithm whose leaves are swept."""
    return tree if axes is False else jax.tree.map(lambda axis, x: x if axis is None else x[i], axes, tree, is_leaf=lambda x: x is None)


@eqx.filter_jit
def init(algo: AbstractAlgorithm, axes: PyTree, keys: Key[Array, "..."]) -> Any:
    return for_each(lambda algo, key: algo.init_train_state(key), algo, axes, keys)


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
    return for_each(lambda algo, state: algo.eval_callback(state), algo, axes, state)


@eqx.filter_jit
def keep(stopped: Bool[Array, " seeds"], before: Any, after: Any) -> Any:
    """The state before for seeds that are stopped, after for the others."""
    leaf = lambda b, a: jnp.where(stopped.reshape(-1, *[1] * (a.ndim - 1)), b, a) if eqx.is_array(a) else a  # noqa: E731
    return jax.tree.map(leaf, before, after)
