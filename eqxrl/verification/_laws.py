"""Laws, and what became of them. A law is a method that returns what it saw, if anything, raises `AssertionError` where the law is
broken, and `NotApplicable` where it has nothing to judge.

A part that breaks a law on purpose says so in its class, and why; the report then lists the law as declared, not as held:

    class AcrossLives(AbstractAdvantage):
        deviates = {"cut at episode ends": "lets credit flow across lives"}
"""

import abc
import dataclasses
import re
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._typing import describe
from eqxrl.verification._copies import modules

TOLERANCE = 1e-4
NAMES: set[str] = set()  # of all laws that there are
# What spares three quarters of the time for compiling on CPU; jaxlib 0.11 doesn't know the second one.
QUICK = {"xla_backend_optimization_level": 0} | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})


class NotApplicable(Exception):
    """A law that says nothing about this part, and why."""


def law(name: str, look_at: str, gate: bool = False) -> Callable[[Any], Any]:
    """Decorator: makes a method a law of its table. `look_at`: where the mistake mostly is; `gate`: without it others can't be judged."""
    NAMES.add(name)
    def mark(method: Any) -> Any:
        method.law = (name, look_at, gate)
        return method
    return mark


def laws_of(table: Any) -> dict[str, tuple[Callable[[], str | None], str, bool]]:
    """Each law of a table by its name, with what to look at, and whether it is a gate: gates first, inherited ones last."""
    marked = {method: x.law for cls in type(table).__mro__ for method, x in vars(cls).items() if hasattr(x, "law")}
    return {name: (getattr(table, method), *of) for method, (name, *of) in sorted(marked.items(), key=lambda it: not it[1][2])}


def declared(table: Any) -> dict[str, str]:
    """Which laws the part breaks on purpose, and why."""
    found: dict[str, str] = {}
    for module in modules([table.part, getattr(table, "agent", ())]):
        found |= getattr(type(module), "deviates", {})
    return found


@dataclasses.dataclass(frozen=True)
class Check:
    """What became of one law; `detail`: what was seen, or why there was nothing to see."""
    name: str
    status: Literal["held", "failed", "skipped", "declared"]
    detail: str
    look_at: str
    cause: Exception | None = dataclasses.field(default=None, repr=False, compare=False)
    gate: bool = False

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        look_at = f"\n{' ' * 11}look at: {self.look_at}" if self.status == "failed" else ""
        return f"  {self.status:8} {self.name}{detail}{look_at}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What held and what didn't."""
    subject: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def ok(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        return "\n".join(map(str, (self.subject, *self.checks)))


def judged(table: Any, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Check]:
    """Tries one law after the other; one that breaks with any other error has failed, too."""
    laws, reasons, shut = laws_of(table), declared(table), None
    for name in sorted(reasons.keys() - NAMES):
        yield Check("declared deviations", "failed", f"there is no law {name!r}; there are: {', '.join(laws)}", "the names in `deviates`")
    for name, (holds, look_at, gate) in laws.items():
        if not wanted(name):
            continue
        status, said, cause = "held", "", None
        try:
            if shut is not None:
                raise NotApplicable(f"can't be judged before this holds: {shut}")
            said = holds() or ""
        except NotApplicable as reason:
            status, said = "skipped", str(reason)
        except Exception as error:  # a part may break in any way
            status, cause, shut = "failed", error, name if gate else None
            said = str(error).strip() if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}".strip()
            said = said if len(said) <= 600 else said[:600] + " ..."
        if name in reasons and status != "skipped":
            said = f"{reasons[name]} ({said if cause else 'but here it holds'})"
            status, cause = "declared", None
        yield Check(name, status, said, look_at, cause, gate)


def insist(part: Any, table: Any, where: str = "") -> None:
    """**Raises:** `AssertionError`, one for all laws of the table that are broken, each with what was seen and what to look at."""
    report = Report(type(part).__name__, tuple(judged(table)))
    if failed := report.failed:
        listed = "".join(f"\n  {i}. {x.name}: {x.detail}\n     look at: {x.look_at}" for i, x in enumerate(failed, 1))
        raise AssertionError(f"{report.subject}{where} breaks {len(failed)} of {len(report.checks)} laws:{listed}") from failed[0].cause


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`eqx.filter_jit` for a program that takes longer to compile than to run."""
    options = QUICK if jax.default_backend() == "cpu" else {}
    return eqx.filter_jit(function, compiler_options=options)  # pyright: ignore[reportCallIssue]


def close(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> str:
    """Checks that two pytrees are equal leaf by leaf, up to rounding. Returns how far apart they are."""
    got, want, furthest = jax.tree.leaves_with_path(got), jax.tree.leaves(want), 0.0
    for (path, g), w in zip(got, want, strict=True):
        g, w, name = _comparable(g), _comparable(w), f"{what}{jax.tree_util.keystr(path)}"
        assert g.shape == w.shape, f"{name} has the shape {list(g.shape)}, {list(w.shape)} expected"
        with np.errstate(invalid="ignore"):
            error = np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, np.nan_to_num(np.abs(g - w) / (1 + np.abs(w)), nan=np.inf))
        if np.any(error > tolerance):
            at, share = np.unravel_index(np.argmax(error), error.shape), np.mean(error > tolerance)
            raise AssertionError(f"{name} is {g[at]:.6g} where {w[at]:.6g} was expected, at {tuple(map(int, at))}; {share:.0%} differ")
        furthest = max(furthest, error.max(initial=0.0))
    return f"up to {furthest:.1g}"


def same(a: Any, b: Any) -> bool:
    a, b = ([_comparable(x) for x in jax.tree.leaves(t)] for t in (a, b))
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


def _comparable(x: Any) -> np.ndarray:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x, np.float64)


def finite(**named: Any) -> str:
    """Checks that nothing is NaN or infinite."""
    arrays = {f"{name}{jax.tree_util.keystr(k)}": x for name, tree in named.items() for k, x in jax.tree.leaves_with_path(tree)}
    arrays = {name: ~np.isfinite(np.asarray(x)) for name, x in arrays.items() if eqx.is_inexact_array(x)}
    for name, bad in arrays.items():
        assert not bad.any(), f"{bad.sum()} of {bad.size} numbers in {name} aren't finite"
    return f"{sum(bad.size for bad in arrays.values())} numbers"


def same_arrays(before: Any, after: Any, what: str) -> None:
    """Checks that structure, shapes and dtypes are the same, weak ones told apart, so that it can be carried through a loop."""
    def arrays(tree: Any) -> dict[str, str]:
        weak = lambda x: "weak " if getattr(x, "weak_type", False) else ""  # noqa: E731
        return {jax.tree_util.keystr(k): weak(x) + describe(x) for k, x in jax.tree.leaves_with_path(tree) if hasattr(x, "shape")}
    old, new = arrays(before), arrays(after)
    changed = [(x, old.get(x, "nothing"), new.get(x, "nothing")) for x in old | new if old.get(x) != new.get(x)]
    assert not changed, "{}{} goes from {} to {}".format(what, *changed[0])


def of_arrays(function: Callable[..., Any], args: Any) -> tuple[Callable[[Any], Any], Any]:
    """A function of its arguments' arrays alone, which returns arrays alone; and these."""
    arrays, static = eqx.partition(args, eqx.is_array)
    return lambda arrays: eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array), arrays


def keys_used_once(program: Callable[..., Any], *args: Any) -> None:
    """Checks that no key is used twice, along any path of the program; nothing is run."""
    program, arrays = of_arrays(program, args)
    with jax.debug_key_reuse(True):
        try:
            jax.jit(program).trace(arrays)
        except jax.errors.KeyReuseError as error:
            raise AssertionError(f"a key is used twice: {str(error).splitlines()[0]}{_where(error)}") from error


def _where(error: BaseException | None) -> str:
    """The last line of somebody's own code on the way to the error; JAX keeps it in the error's causes."""
    frames, apart = [], ("/jax/", "/equinox/", "/jaxtyping/", "/eqxrl/verification/", "/eqxrl/testing/", "<")
    while error is not None:
        frames += [x for x in traceback.extract_tb(error.__traceback__) if not any(y in x.filename for y in apart)]
        error = error.__cause__ or error.__context__
    return f", at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


class AbstractLaws(abc.ABC):
    """The laws of one kind of part, a method for each; to them come those that any pure function of arrays keeps, whatever it computes."""
    part: Any
    call: Callable[..., Any]

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
        return [self.compiled(*args) for args in self.given]

    @law("finite", "divisions, logarithms, square roots of 0")
    def finite(self) -> str:
        return finite(result=self.results)

    @law("keys used once", "split a key before each use, and once for each environment or epoch")
    def keys_used_once(self) -> None:
        keys_used_once(self.call, *self.given[0])

    @law("pure", "Python's or NumPy's random numbers, and attributes that a call changes")
    def pure(self) -> None:
        function, arrays = of_arrays(self.call, self.given[0])
        traced = [jax.make_jaxpr(lambda x: function(x))(arrays) for _ in range(2)]
        first, second = (re.sub(r" at 0x[0-9a-f]+", "", str(x)) for x in traced)
        alike = first == second and same(*(x.consts for x in traced))
        assert alike, "traced twice with the same arguments, it does something else the second time"

    @law("jit = no jit", "`if` on a value, and Python state: compiled, they keep what they were when traced")
    def jit(self) -> str:
        compiled = eqx.filter(self.results[0], eqx.is_array)
        return close(compiled, eqx.filter(self.call(*self.given[0]), eqx.is_array), "under jit, the result")

    @law("vmap[i] = alone", "reductions and reshapes over axes that aren't the part's own")
    def vmap(self) -> str:
        function, split = of_arrays(self.call, self.given[0])[0], [of_arrays(self.call, args)[1] for args in self.given]
        together = quick_jit(lambda *members: jax.vmap(function)(jax.tree.map(lambda *xs: jnp.stack(xs), *members)))(*split)
        for i, alone in enumerate(self.results):
            mine = jax.tree.map(lambda x, i=i: x[i], together)
            close(mine, eqx.filter(alone, eqx.is_array), f"under vmap, member {i} of {len(split)}: the result")
        return f"{len(split)} members"
