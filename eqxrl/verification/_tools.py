"""What the laws of every kind of part are written with."""

import abc
import re
import traceback
from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._typing import describe
from eqxrl.verification._report import law

TOLERANCE = 1e-4


# What spares three quarters of the time for compiling on CPU; jaxlib 0.11 doesn't know the second one.
QUICK = {"xla_backend_optimization_level": 0} | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`eqx.filter_jit` for a program that takes longer to compile than to run."""
    options = QUICK if jax.default_backend() == "cpu" else {}
    return eqx.filter_jit(function, compiler_options=options)  # pyright: ignore[reportCallIssue]


def close(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> str:
    """Checks that two pytrees are equal leaf by leaf, up to rounding. Returns how far apart they are."""
    got, want, furthest = jax.tree.leaves_with_path(got), jax.tree.leaves(want), 0.0
    assert len(got) == len(want), f"{what}: {len(got)} arrays, {len(want)} expected"
    for (path, g), w in zip(got, want):
        g, w, name = _comparable(g), _comparable(w), f"{what}{jax.tree_util.keystr(path)}"
        assert g.shape == w.shape, f"{name} has the shape {list(g.shape)}, {list(w.shape)} expected"
        with np.errstate(invalid="ignore"):
            error = np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, np.abs(g - w) / (1 + np.abs(w)))
        error = np.where(np.isnan(error), np.inf, error)
        if (share := np.mean(error > tolerance) if error.size else 0) > 0:
            at = np.unravel_index(np.argmax(error), error.shape)
            raise AssertionError(f"{name} is {g[at]:.6g} where {w[at]:.6g} was expected, at {tuple(map(int, at))}; {share:.0%} differ")
        furthest = max(furthest, float(error.max(initial=0.0)))
    return f"up to {furthest:.1g}"


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees are equal, leaf by leaf."""
    a, b = ([_comparable(x) for x in jax.tree.leaves(t)] for t in (a, b))
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


def _comparable(x: Any) -> np.ndarray:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x, np.float64)


def finite(**named: Any) -> str:
    """Checks that nothing is NaN or infinite."""
    count = 0
    for name, tree in named.items():
        for path, x in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
            bad = ~np.isfinite(np.asarray(x))
            assert not bad.any(), f"{bad.sum()} of {bad.size} numbers in {name}{jax.tree_util.keystr(path)} aren't finite"
            count += bad.size
    return f"{count} numbers"


def moved(params: Any, scale: float) -> Any:
    """Parameters, each a little away from where it was."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype), params)


def same_arrays(before: Any, after: Any, what: str) -> None:
    """Checks that structure, shapes and dtypes are the same, weak ones told apart, so that it can be carried through a loop."""

    def arrays(tree: Any) -> dict[str, str]:
        weak = lambda x: "weak " if getattr(x, "weak_type", False) else ""  # noqa: E731
        return {jax.tree_util.keystr(k): weak(x) + describe(x) for k, x in jax.tree.leaves_with_path(tree) if hasattr(x, "shape")}

    old, new = arrays(before), arrays(after)
    changed = [(x, old.get(x, "nothing"), new.get(x, "nothing")) for x in old | new if old.get(x) != new.get(x)]
    assert not changed, "{}{} goes from {} to {}".format(what, *changed[0])


def program_text(function: Callable[..., Any], *args: Any) -> str:
    """A function as JAX traces it, constants and all: two with the same text do the same."""
    arrays, static = eqx.partition(args, eqx.is_array)
    traced = jax.make_jaxpr(lambda arrays: eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array))(arrays)
    constants = [hash(_comparable(x).tobytes()) for x in traced.consts]
    return f"{re.sub(r' at 0x[0-9a-f]+', '', str(traced))} {constants}"


def keys_used_once(program: Callable[..., Any], *args: Any) -> None:
    """Checks that no key is used twice, along any path of the program; nothing is run."""
    arrays, static = eqx.partition(args, eqx.is_array)
    with jax.debug_key_reuse(True):
        try:
            jax.jit(lambda arrays: eqx.filter(program(*eqx.combine(arrays, static)), eqx.is_array)).trace(arrays)
        except jax.errors.KeyReuseError as error:
            raise AssertionError(f"a key is used twice: {str(error).splitlines()[0]}{_where(error)}") from error


def _where(error: BaseException | None) -> str:
    """The last line of somebody's own code on the way to the error; JAX keeps it in the error's causes."""
    place, apart = "", ("/jax/", "/equinox/", "/jaxtyping/", "/eqxrl/verification/", "/eqxrl/testing/", "<")
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            own = not any(x in frame.filename for x in apart)
            place = f", at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} in {frame.name}" if own else place
        error = error.__cause__ or error.__context__
    return place


class AbstractLaws(abc.ABC):
    """The laws of one kind of part: a part, the world that it is tried in, and a method for each law. A part is a pure function at
    heart, so that to the laws of its kind come those that any pure function of arrays keeps, whatever it computes."""

    call: Callable[..., Any]
    """The part, as a function of everything that it depends on."""

    @abc.abstractmethod
    def members(self) -> list[Any]:
        """Two tuples of arguments for `call`, with arrays of the same shapes."""

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        return quick_jit(lambda *args: self.call(*args))

    @cached_property
    def given(self) -> list[Any]:
        return self.members()

    @cached_property
    def results(self) -> list[Any]:
        """What `compiled` returns for each member."""
        return [self.compiled(*args) for args in self.given]

    @law("finite", "divisions, logarithms, square roots of 0")
    def finite(self) -> str:
        return finite(result=self.results)

    @law("keys used once", "split a key before each use, and once for each environment or epoch")
    def keys_used_once(self) -> None:
        keys_used_once(self.call, *self.given[0])

    @law("pure", "Python's or NumPy's random numbers, and attributes that a call changes")
    def pure(self) -> None:
        first, second = (program_text(self.call, *self.given[0]) for _ in range(2))
        assert first == second, "traced twice with the same arguments, it does something else the second time"

    @law("jit = no jit", "`if` on a value, and Python state: compiled, they keep what they were when traced")
    def jit(self) -> str:
        compiled = eqx.filter(self.results[0], eqx.is_array)
        return close(compiled, eqx.filter(self.call(*self.given[0]), eqx.is_array), "under jit, the result")

    @law("vmap[i] = alone", "reductions and reshapes over axes that aren't the part's own")
    def vmap(self) -> str:
        split = [eqx.partition(args, eqx.is_array) for args in self.given]
        @quick_jit
        def together(members: list[Any]) -> list[Any]:
            stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
            results = jax.vmap(lambda arrays: eqx.filter(self.call(*eqx.combine(arrays, split[0][1])), eqx.is_array))(stacked)
            return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(members))]
        for i, (mine, alone) in enumerate(zip(together([arrays for arrays, _ in split]), self.results)):
            close(mine, eqx.filter(alone, eqx.is_array), f"under vmap, member {i} of {len(split)}: the result")
        return f"{len(split)} members"
