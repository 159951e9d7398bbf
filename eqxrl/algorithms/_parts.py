"""Parts of an algorithm, as its class declares them:

    class Mine(AbstractOnPolicy):
        @part(AbstractAdvantage)
        def advantage(self):
            return GAE(gamma=self.hp.gamma)

`algo.advantage` is then what was passed to `create(advantage=...)`: an instance, or a function of the hyperparameters, which is called
with `algo.hp`; otherwise it is the default, as the method says. Default parts are built from `hp` whenever they are used, so each number
lives in one leaf, `hp`'s, and changing it there (`eqx.tree_at`, `dataclasses.replace`, `vmap`) changes the run.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jax.core import Tracer

from eqxrl._typing import T, describe

Reads = tuple[frozenset[str], frozenset[str]]
"""The names of the hyperparameters and of the parts that a program reads."""


class Part(property):
    """A part, as a read-only attribute of the algorithm."""


def part(kind: type, *, made_later: bool = False) -> Callable[[Callable[[Any], Any]], Any]:
    """Declares a part of the class `kind`. `made_later`: a network, which may be passed as what makes one (its class, say) and is
    made when the spaces and a key are known."""

    def declare(default: Callable[[Any], Any]) -> Part:
        name = default.__name__

        @functools.wraps(default)
        def get(algo: Any) -> Any:
            given: Any = algo.parts.get(name)
            if given is None:
                return default(algo)
            part_of_another_kind = isinstance(given, eqx.Module) and not isinstance(given, eqx.Partial)  # most parts are callable
            makes_one = callable(given) and not part_of_another_kind
            if isinstance(given, kind) or (made_later and makes_one):
                return given
            if isinstance(given, type) or not makes_one:
                maker = "what makes one: (observation_space, action_space, *, key)" if made_later else "a function of the hyperparameters"
                raise TypeError(f"{name} must be an {kind.__name__}, or {maker}; got {name_of(given)}")
            made = given(algo.hp)  # pyright: ignore[reportCallIssue]
            if not isinstance(made, kind):
                raise TypeError(f"{name} was passed as a function, which returned {describe(made)}; it must return an {kind.__name__}")
            return made

        return Part(get)

    return declare


def name_of(x: Any) -> str:
    return x.__name__ if isinstance(x, type) else type(x).__name__


def check_names(cls: type, names: tuple[str, ...], given: dict[str, Any]) -> None:
    """**Raises:** `TypeError` for a part that the algorithm hasn't."""
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its parts are {', '.join(names)}"
            raise TypeError(f"{cls.__name__}.create got an unknown argument {name!r}; {hint}")


def check_sizes(algo: Any) -> None:
    """A size that a passed part has as well as `hp` must be the same in both, since lengths of schedules and of runs are computed
    from `hp`.

    **Raises:** `ValueError` where they differ.
    """
    for name, x, size in _sizes_in_both(algo):
        got, own = getattr(x, size), getattr(algo.hp, size)
        if got != own:
            raise ValueError(
                f"{name} has {size}={got}, but hp has {size}={own}; pass hp={type(algo.hp).__name__}({size}={got}), or {name} "
                f"as a function of the hyperparameters, {name}=lambda hp: {type(x).__name__}({size}=hp.{size}, ...)"
            )


def _sizes_in_both(algo: Any) -> list[tuple[str, Any, str]]:
    """Passed parts, by name, with each size that they have as well as `hp`."""
    sizes = [f.name for f in dataclasses.fields(algo.hp) if f.type is int]
    passed = [(name, getattr(algo, name)) for name in algo.parts]
    return [(name, x, size) for name, x in passed for size in sizes if isinstance(getattr(x, size, None), int)]


class _Watched:
    """Hyperparameters or parts that note which names are read. Properties of the original are computed from what is watched."""

    def __init__(self, original: Any, read: set[str]):
        self.__dict__.update(original=original, read=read)

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        prop = getattr(type(self.original), name, None)
        return prop.fget(self) if isinstance(prop, property) and prop.fget else getattr(self.original, name)

    def get(self, name: str) -> Any:
        self.read.add(name)
        return self.original.get(name)


def watched(algo: T) -> tuple[T, Callable[[], Reads]]:
    """The algorithm, and a function that tells what has been read from it so far."""
    hp_read, parts_read = set(), set()
    original: Any = algo
    watching = _Watched(original.hp, hp_read), _Watched(original.parts, parts_read)
    return eqx.tree_at(lambda a: (a.hp, a.parts), algo, watching), lambda: (frozenset(hp_read), frozenset(parts_read))


def check_read(algo: Any, hp_read: frozenset[str], parts_read: frozenset[str]) -> None:
    """**Raises:** `ValueError` for a part that was passed, or a hyperparameter that was set, and isn't used."""
    for name in algo.parts:
        if name not in parts_read:
            others = ", ".join(x for x in algo.parts if x != name)
            raise ValueError(f"{name} was passed, but isn't used: another part that was passed ({others}) brings its own; leave one out")
    hp_read = hp_read | {size for _, _, size in _sizes_in_both(algo)}  # these were compared with the part's
    for f in dataclasses.fields(algo.hp):
        value = getattr(algo.hp, f.name)
        if f.name not in hp_read and not _is_default(f, value):
            passed = ", ".join(algo.parts) or "none"
            raise ValueError(
                f"hp.{f.name} was set, but no part reads it. A part that is passed brings its own numbers (passed: {passed}): set it "
                f"there, or pass the part as a function of the hyperparameters, such as learner=lambda hp: ..., that reads hp.{f.name}"
            )


def _is_default(f: Any, value: Any) -> bool:
    if callable(value) or isinstance(value, Tracer):
        return value is f.default
    return bool(np.asarray(value) == np.asarray(f.default, np.asarray(value).dtype))
