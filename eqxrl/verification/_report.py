"""Laws, and what became of them. A law is a function that returns what it saw, raises `AssertionError` where the law is broken,
and `NotApplicable` where it has nothing to judge."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal


class NotApplicable(Exception):
    """A law that says nothing about this part, and why."""


@dataclasses.dataclass(frozen=True)
class Law:
    """Something that must hold."""

    name: str
    holds: Callable[[], str]
    look_at: str
    """Where the mistake usually is, when it doesn't."""
    gate: bool = False
    """Where this one fails, those after it can't be judged."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What became of one law."""

    name: str
    status: Literal["held", "failed", "skipped"]
    detail: str
    """What was seen, or why there was nothing to see."""
    look_at: str
    cause: Exception | None = dataclasses.field(default=None, repr=False, compare=False)


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
        return "\n".join([self.subject, *(f"  {check.status:7}  {check.name}: {check.detail}" for check in self.checks)])

    def print(self) -> None:
        """As a table, on the standard output."""
        from rich.console import Console
        from rich.table import Table

        table = Table("", "", "seen", "look at", title=self.subject, title_justify="left", show_lines=not self.ok)
        marks = {"held": "[green]held", "failed": "[bold red]failed", "skipped": "[dim]skipped"}
        for check in self.checks:
            look_at = check.look_at if check.status == "failed" else ""
            table.add_row(marks[check.status], check.name, _plain(check.detail), _plain(look_at))
        if self.ok:
            table.columns.pop()
        Console().print(table)


def judge(subject: str, laws: Iterable[Law]) -> Report:
    """Tries every law; one that breaks with any other error has failed, too."""
    checks: list[Check] = []
    shut = None
    for law in laws:
        if shut is not None:
            checks.append(Check(law.name, "skipped", f"can't be judged before this holds: {shut}", law.look_at))
            continue
        try:
            checks.append(Check(law.name, "held", law.holds(), law.look_at))
        except NotApplicable as reason:
            checks.append(Check(law.name, "skipped", str(reason), law.look_at))
        except Exception as error:  # a part may break in any way
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            checks.append(Check(law.name, "failed", _shorten(said), law.look_at, error))
            shut = law.name if law.gate else None
    return Report(subject, tuple(checks))


def insist(subject: str, laws: Iterable[Law]) -> None:
    """**Raises:** `AssertionError`, one for all laws that are broken, each with what was seen and what to look at."""
    report = judge(subject, laws)
    if not report.ok:
        listed = "".join(
            f"\n  {i}. {check.name}: {check.detail}\n     look at: {check.look_at}" for i, check in enumerate(report.failed, 1)
        )
        raise AssertionError(f"{subject} breaks {len(report.failed)} of {len(report.checks)} laws:{listed}") from report.failed[0].cause


def _shorten(message: str, limit: int = 600) -> str:
    message = message.strip()
    return message if len(message) <= limit else message[:limit] + " ..."


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
