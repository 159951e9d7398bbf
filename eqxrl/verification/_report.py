"""Laws, and what became of them. A law is a function that returns what it saw, if anything, raises `AssertionError` where the law
is broken, and `NotApplicable` where it has nothing to judge."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal


class NotApplicable(Exception):
    """A law that says nothing about this part, and why."""


@dataclasses.dataclass(frozen=True)
class Law:
    """Something that must hold."""

    name: str
    holds: Callable[[], str | None]
    look_at: str
    """Where the mistake usually is, when it doesn't."""
    gate: bool = False
    """Where this one fails, those after it can't be judged."""


def law(name: str, look_at: str, gate: bool = False) -> Callable[[Any], Any]:
    """Decorator: makes a method a law of its class's table."""

    def mark(method: Any) -> Any:
        method.law = (name, look_at, gate)
        return method

    return mark


def laws_of(table: Any) -> list[Law]:
    """The methods of `table` that are laws: gates first, those of its own class next, and then those that are inherited."""
    marked = {name: x.law for cls in type(table).__mro__ for name, x in vars(cls).items() if hasattr(x, "law")}
    laws = [Law(name, getattr(table, method), look_at, gate) for method, (name, look_at, gate) in marked.items()]
    return sorted(laws, key=lambda law: not law.gate)


@dataclasses.dataclass(frozen=True)
class Check:
    """What became of one law."""

    name: str
    status: Literal["held", "failed", "skipped"]
    detail: str
    """What was seen, or why there was nothing to see."""
    look_at: str
    cause: Exception | None = dataclasses.field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        look_at = f"\n{' ' * 11}look at: {self.look_at}" if self.status == "failed" else ""
        return f"  {self.status:7}  {self.name}{detail}{look_at}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What held and what didn't."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def __str__(self) -> str:
        return "\n".join(map(str, (self.subject, *self.checks)))

    def print(self) -> None:
        """Line by line, on the standard output, with what to look at where a law is broken."""
        print(self)


def judged(laws: Iterable[Law]) -> Iterator[Check]:
    """Tries one law after the other; one that breaks with any other error has failed, too."""
    shut = None
    for law in laws:
        if shut is not None:
            yield Check(law.name, "skipped", f"can't be judged before this holds: {shut}", law.look_at)
            continue
        try:
            yield Check(law.name, "held", law.holds() or "", law.look_at)
        except NotApplicable as reason:
            yield Check(law.name, "skipped", str(reason), law.look_at)
        except Exception as error:  # a part may break in any way
            said = str(error).strip() if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}".strip()
            shut = law.name if law.gate else None
            yield Check(law.name, "failed", said if len(said) <= 600 else said[:600] + " ...", law.look_at, error)


def judge(subject: str, laws: Iterable[Law]) -> Report:
    """What becomes of all of them."""
    return Report(subject, tuple(judged(laws)))


def insist(subject: str, laws: Iterable[Law]) -> None:
    """**Raises:** `AssertionError`, one for all laws that are broken, each with what was seen and what to look at."""
    report = judge(subject, laws)
    if not report.ok:
        listed = [f"\n  {i}. {x.name}: {x.detail}\n     look at: {x.look_at}" for i, x in enumerate(report.failed, 1)]
        message = f"{subject} breaks {len(listed)} of {len(report.checks)} laws:{''.join(listed)}"
        raise AssertionError(message) from report.failed[0].cause
