"""The algorithms of a sweep's points: one for each, and stacked where they share a program."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from eqxrl._schedules import LinearSchedule
from eqxrl._typing import as_scalar, describe
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.algorithms._base import names_read
from eqxrl.sweeps._space import Point


def with_values(algo: AbstractAlgorithm, point: Point) -> AbstractAlgorithm:
    """The algorithm with these values, by name: of a hyperparameter (`gamma`, `hp.gamma`), or a path to a number within one or within a
    part (`advantage.gae_lambda`). The latter is set in the part that comes of the other values.

    A hyperparameter that is a `LinearSchedule` begins at the value and goes on to its end; one that spans the run still does where the
    run's number of updates changes.

    **Raises:** `ValueError` or `TypeError` for a name that there isn't, and a value that it can't have.
    """
    hp, names, deep = algo.hp, {f.name for f in dataclasses.fields(algo.hp)}, {}
    new: dict[str, Any] = {}
    for name, x in point.items():
        first, _, rest = name.removeprefix("hp.").partition(".")
        if first in names and not rest:
            old = getattr(hp, first)
            is_schedule = isinstance(old, LinearSchedule) and isinstance(x, int | float)
            new[first] = dataclasses.replace(old, init_value=x) if is_schedule else x
        elif rest and (first in names or (first in algo.part_names() and not name.startswith("hp."))):
            deep[name] = (first, rest.split("."), x)
        else:
            near = difflib.get_close_matches(first, [*names, *algo.part_names()], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(sorted(names))}, and path.to.a.number in a part"
            raise ValueError(f"{type(algo).__name__} has no {name!r} to sweep; {hint}")
    changed = dataclasses.replace(hp, **new)
    spans = [f for f in names if isinstance(x := getattr(changed, f), LinearSchedule) and x.transition_steps == hp.num_updates]
    spanning = {f: dataclasses.replace(getattr(changed, f), transition_steps=changed.num_updates) for f in spans}
    algo = dataclasses.replace(algo, hp=dataclasses.replace(changed, **spanning))
    for name, (first, path, x) in deep.items():
        if first in names:
            algo = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, **{first: _set(name, getattr(algo.hp, first), path, x)}))
        else:
            algo = dataclasses.replace(algo, parts={**algo.parts, first: _set(name, getattr(algo, first), path, x)})
    return algo


def _set(name: str, struct: Any, path: list[str], x: Any) -> Any:
    fields = [f.name for f in dataclasses.fields(struct)] if isinstance(struct, eqx.Module) else []
    if path[0] not in fields:
        there = f"there is {', '.join(fields)}" if fields else f"{describe(struct)} has no fields; sweep the hyperparameter it is made of"
        raise ValueError(f"there is no {name!r} to sweep; {there}")
    old = getattr(struct, path[0])
    if path[1:]:
        x = _set(name, old, path[1:], x)
    elif isinstance(old, int):  # flags as well
        raise ValueError(f"{name} is {old!r}, which sets a shape or picks a branch of a part; only floats of a part can be swept")
    elif isinstance(x, int | float):
        x = as_scalar(x)
    return dataclasses.replace(struct, **{path[0]: x})


def check_read(algo: AbstractAlgorithm, names: Sequence[str]) -> None:
    """Traces an iteration and an evaluation, without running anything.

    **Raises:** what that raises; `ValueError` for a swept name that nothing reads.
    """
    hp, parts = names_read(algo)
    for name in names:
        first = name.removeprefix("hp.").split(".")[0]
        if first not in hp | parts:
            passed = ", ".join(algo.parts) or "none"
            raise ValueError(f"{name} is swept, but no part reads it, so that it would change nothing (parts that were passed: {passed})")


def groups(algos: Sequence[AbstractAlgorithm]) -> list[list[int]]:
    """Those that share a program: equal but for the values of their arrays. In the order of their first ones."""
    found: list[tuple[Any, list[int]]] = []
    for i, algo in enumerate(algos):
        arrays, static = eqx.partition(algo, eqx.is_array)
        kind = (static, [(x.shape, x.dtype) for x in jax.tree.leaves(arrays)])
        for other, members in found:
            if eqx.tree_equal(other[0], kind[0]) is True and other[1] == kind[1]:
                members.append(i)
                break
        else:
            found.append((kind, [i]))
    return [members for _, members in found]


def stacked(algos: Sequence[AbstractAlgorithm], varying: PyTree, rows: Sequence[int]) -> tuple[AbstractAlgorithm, PyTree]:
    """One algorithm for `Trainer.fit`, whose `varying` leaves are `[rows]`, and its axes."""
    stack = lambda varies, *x: jnp.stack([x[i] for i in rows]) if varies else x[0]  # noqa: E731
    axes = jax.tree.map(lambda varies: 0 if varies else None, varying)
    return jax.tree.map(stack, varying, *algos), axes


def varying(algos: Sequence[AbstractAlgorithm]) -> PyTree:
    """Of a group: which leaves differ."""
    return jax.tree.map(lambda *x: eqx.is_array(x[0]) and any(_bytes(y) != _bytes(x[0]) for y in x[1:]), *algos)


def _bytes(x: Any) -> bytes:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
