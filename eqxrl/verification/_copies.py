"""Copies of an algorithm: smaller, with another part, with another number somewhere."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._typing import Schedule, as_scalar
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.envs import TimeLimit
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.nn import AbstractActorCritic

NUM_ITERATIONS = 3
SIZES = dict(num_envs=6, num_steps=32, num_epochs=2, num_minibatches=3, num_seeds_per_eval=5, num_episodes=5, num_devices=1)
SIZES |= dict(buffer_size=400, capacity=400, batch_size=16, learning_starts=0, target_update_freq=2)
EPISODE_LIMIT = 20  # episodes are cut off within a rollout, and long enough to end by themselves sometimes


def with_fields(module: Any, **values: Any) -> Any:
    """The module with these fields, static ones too, and nothing checked: whoever calls keeps it consistent."""
    copy = object.__new__(type(module))
    for name, x in {**vars(module), **values}.items():
        object.__setattr__(copy, name, x)
    return copy


def edit(tree: Any, change: Callable[[Any, Any], Any]) -> Any:
    """The tree in which every field of every module in it is what `change(field, value)` says; policies are left alone, and what was
    changed isn't looked into."""
    if type(tree) in (tuple, list):
        return type(tree)(edit(x, change) for x in tree)
    if isinstance(tree, eqx.Module) and not isinstance(tree, AbstractActorCritic):
        old = {f: getattr(tree, f.name) for f in dataclasses.fields(tree) if hasattr(tree, f.name)}  # pyright: ignore[reportArgumentType]
        new = {f: change(f, x) for f, x in old.items()}
        return with_fields(tree, **{f.name: edit(x, change) if x is old[f] else x for f, x in new.items()})
    return {name: edit(x, change) for name, x in tree.items()} if type(tree) is dict else tree


def find(tree: Any, kind: type) -> list[Any]:
    """Every module of that kind in the tree, outermost first, and none inside another."""
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]


def modules(tree: Any) -> Iterator[Any]:
    """Every module in the tree, also those in modules."""
    if isinstance(tree, eqx.Module):
        yield tree
        tree = vars(tree)
    for x in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from modules(x)


def moved(tree: Any, scale: float, seed: int = 0) -> Any:
    """The tree with its floats, each a little away from where it was."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype) if eqx.is_inexact_array_like(x) else x, tree)


def reduced(algo: AbstractAlgorithm) -> AbstractAlgorithm:
    """The algorithm with small sizes wherever a field that sets one is (`SIZES`), no two of them alike, with short episodes, a run of
    `NUM_ITERATIONS` iterations and an evaluation after each. Schedules that are plain functions get a factor of 1 that can be changed."""
    def change(f: Any, value: Any) -> Any:
        if f.type == Schedule and callable(value) and not isinstance(value, eqx.Module):
            return eqx.Partial(lambda schedule, factor, n: as_scalar(schedule(n)) * factor, value, as_scalar(1.0))
        return SIZES[f.name] if f.name in SIZES and type(value) is int else value
    small = with_fields(algo, env=TimeLimit(algo.env, EPISODE_LIMIT), hp=edit(algo.hp, change), parts=edit(algo.parts, change))
    size = small.iteration_size
    return with_fields(small, hp=with_fields(small.hp, total_timesteps=NUM_ITERATIONS * size, eval_freq=size))


def numbers(algo: AbstractAlgorithm) -> list[tuple[str, Any, Callable[[Any], AbstractAlgorithm]]]:
    """`(path, value, with another value)` of every number among the leaves of `hp` and `parts`, but for policies and the evaluator."""
    of, apart = {"hp": algo.hp, "parts": algo.parts}, (AbstractActorCritic, AbstractEvaluator)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(of, is_leaf=lambda x: isinstance(x, apart))
    plain, name = [x for _, x in leaves], lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    new = lambda i: lambda value: with_fields(algo, **treedef.unflatten([*plain[:i], value, *plain[i + 1 :]]))  # noqa: E731
    is_number = lambda x: eqx.is_inexact_array(x) or type(x) in (float, int)  # noqa: E731
    return [(name(path), x, new(i)) for i, (path, x) in enumerate(leaves) if is_number(x)]


def alternatives(value: Any) -> Iterator[Any]:
    """Other values of an array, of its own shape and dtype: near and far, since one that matters may do so only there."""
    finite = np.where(np.isfinite(value), value, 1.0)
    for factor in (0.5, 1e-3, 1e3, 1e6, -1e6):
        yield jnp.asarray(np.where(finite == 0, 0.1, finite) * factor, value.dtype)
