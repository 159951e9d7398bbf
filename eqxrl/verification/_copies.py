"""Copies of an algorithm: smaller, with another part, with another number somewhere."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from eqxrl._typing import Scalar, Schedule, as_scalar
from eqxrl.algorithms import AbstractOnPolicy
from eqxrl.envs._check import shorten_episodes
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.nn import AbstractActorCritic

TModule = TypeVar("TModule", bound=eqx.Module)
TAlgo = TypeVar("TAlgo", bound=AbstractOnPolicy)

NUM_ENVS, NUM_STEPS, NUM_EPISODES, NUM_ITERATIONS = 6, 32, 5, 3
SIZES = dict(
    num_envs=NUM_ENVS,
    num_steps=NUM_STEPS,
    num_epochs=2,
    num_minibatches=3,
    num_seeds_per_eval=NUM_EPISODES,
    num_episodes=NUM_EPISODES,
    total_timesteps=NUM_ITERATIONS * NUM_ENVS * NUM_STEPS,
    eval_freq=NUM_ENVS * NUM_STEPS,
)
EPISODE_LIMIT = 20  # episodes are cut off within a rollout, and long enough to end by themselves sometimes


def with_fields(module: TModule, **values: Any) -> TModule:
    """The module with these fields, static ones too, and nothing checked: whoever calls keeps it consistent."""
    copy = object.__new__(type(module))
    for f in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
        if f.name in values or hasattr(module, f.name):
            object.__setattr__(copy, f.name, values.get(f.name, getattr(module, f.name, None)))
    return copy


def edit(tree: Any, change: Callable[[eqx.Module, Any, Any], Any]) -> Any:
    """The tree in which every field of every module in it is what `change(module, field, value)` says; policies are left alone,
    and what was changed isn't looked into."""
    if isinstance(tree, eqx.Module) and not isinstance(tree, AbstractActorCritic):
        new = {}
        for f in dataclasses.fields(tree):  # pyright: ignore[reportArgumentType]
            if hasattr(tree, f.name):
                value = getattr(tree, f.name)
                changed = change(tree, f, value)
                new[f.name] = edit(value, change) if changed is value else changed
        return with_fields(tree, **new)
    if type(tree) is tuple:
        return tuple(edit(x, change) for x in tree)
    if type(tree) is list:
        return [edit(x, change) for x in tree]
    if type(tree) is dict:
        return {name: edit(x, change) for name, x in tree.items()}
    return tree


def reduced(algo: TAlgo) -> TAlgo:
    """The algorithm with small sizes wherever a field that sets one is (`SIZES`), no two of them alike, and with short
    episodes."""

    def change(module: eqx.Module, f: Any, value: Any) -> Any:
        is_size = f.name in SIZES and isinstance(value, int) and not isinstance(value, bool)
        return SIZES[f.name] if is_size else value

    env, env_params = algo.env, shorten_episodes(algo.env_params, EPISODE_LIMIT)
    small = edit(with_fields(algo, env=None, env_params=None), change)
    return with_fields(small, env=env, env_params=env_params)


def with_part(algo: TAlgo, **parts: Any) -> TAlgo:
    """The algorithm with other parts: fields of its own, or of its `parts`."""
    own = {f.name for f in dataclasses.fields(algo)}  # pyright: ignore[reportArgumentType]
    if set(parts) <= own:
        return with_fields(algo, **parts)
    holder = getattr(algo, "parts", None)
    if holder is None:
        raise TypeError(f"{type(algo).__name__} has neither the fields {sorted(parts)} nor `parts` that could be replaced")
    return with_fields(algo, parts=with_fields(holder, **parts))


def find(tree: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """Every module of that kind in the tree, outermost first, and none inside another."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in leaves if isinstance(x, kind)]


class Scaled(eqx.Module):
    """A schedule times a number, so that there is a leaf that can be changed."""

    schedule: Callable = eqx.field(static=True)
    factor: Scalar = eqx.field(default=1.0, converter=as_scalar)

    def __call__(self, num_updates: Int[Array, ""] | Float[Array, ""]) -> Scalar:
        return as_scalar(self.schedule(num_updates)) * self.factor


def scale_schedules(algo: TAlgo) -> TAlgo:
    """The algorithm whose schedules, where they are plain functions, have a factor of 1 that can be changed."""

    def change(module: eqx.Module, f: Any, value: Any) -> Any:
        if f.type != Schedule or not callable(value) or isinstance(value, eqx.Module):
            return value
        return Scaled(value)

    return edit(algo, change)


def numbers(algo: AbstractOnPolicy) -> list[tuple[str, Any, Callable[[Any], AbstractOnPolicy]]]:
    """`(path, value, replace)` of every leaf that is a number or an array of some, and that training could depend on: not in
    the environment, not in a policy, whose leaves are learned, and not in the evaluator."""
    apart = (AbstractActorCritic, AbstractEvaluator)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(algo, is_leaf=lambda x: isinstance(x, apart))
    plain = [x for _, x in leaves]

    def replace(i: int) -> Callable[[Any], AbstractOnPolicy]:
        return lambda value: treedef.unflatten([*plain[:i], value, *plain[i + 1 :]])

    found = [(jax.tree_util.keystr(path).lstrip("."), x, replace(i)) for i, (path, x) in enumerate(leaves)]
    in_env = ("env", "env_params")
    is_number = lambda x: isinstance(x, float | int) and not isinstance(x, bool) or eqx.is_inexact_array(x)  # noqa: E731
    return [(path, x, new) for path, x, new in found if is_number(x) and path.split(".")[0].split("[")[0] not in in_env]


def alternatives(value: Any) -> Iterator[Any]:
    """Other values of an array, of its own shape and dtype: near and far, since one that matters may do so only there."""
    value = np.asarray(value)
    finite = np.where(np.isfinite(value), value, 1.0)
    nonzero = np.where(finite == 0, 0.1, finite)
    for factor in (0.5, 1e-3, 1e3, 1e6):
        yield jax.numpy.asarray((nonzero * factor).astype(value.dtype))


def statics(algo: AbstractOnPolicy) -> list[tuple[str, list[AbstractOnPolicy]]]:
    """`(path, others)` of every integer and flag in the hyperparameters `hp`; the others have another value there."""
    hp = getattr(algo, "hp", None)
    if not isinstance(hp, eqx.Module):
        return []
    found = []
    for f in dataclasses.fields(hp):  # pyright: ignore[reportArgumentType]
        value = getattr(hp, f.name)
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int):
            others = [value * 2, value + 1]
        else:
            continue
        found.append((f"hp.{f.name}", [with_fields(algo, hp=with_fields(hp, **{f.name: other})) for other in others]))
    return found
