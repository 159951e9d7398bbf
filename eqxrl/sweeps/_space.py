"""What a sweep tries: lists of values, ranges, and the points that are made of them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Point = dict[str, Any]
"""A value for each name that is swept."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Floats between two ends, see `uniform` and `log_uniform`."""

    low: float
    high: float
    log: bool
    points: int

    def __post_init__(self):
        name = "log_uniform" if self.log else "uniform"
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"{name} takes two finite numbers, the lower one first, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log_uniform takes numbers above 0, got {self.low:g}; pass uniform({self.low:g}, {self.high:g})")
        if self.points < 2:
            raise ValueError(f"{name}(points=...) must be at least 2, got {self.points}; pass a list for a single value")

    def at(self, fractions: Any) -> list[float]:
        """The values so far (0 to 1) along the range, as the shortest decimals of float32, which they become."""
        low, high = np.log([self.low, self.high]) if self.log else (self.low, self.high)
        x = low + np.asarray(fractions, np.float64) * (high - low)
        x = np.clip(np.exp(x) if self.log else x, self.low, self.high)
        return [float(str(y)) for y in x.astype(np.float32)]


def uniform(low: float | int, high: float | int, points: int = 5) -> Range:
    """Floats from `low` to `high`: drawn, in a sweep with `samples`; else `points` of them, evenly spaced.

    **Raises:** `ValueError` where they aren't finite, or not in this order.
    """
    return Range(float(low), float(high), False, points)


def log_uniform(low: float | int, high: float | int, points: int = 5) -> Range:
    """As `uniform`, but evenly in the logarithm: each power of ten is as likely as the next."""
    return Range(float(low), float(high), True, points)


def points_of(space: Mapping[str, Any] | Sequence[Mapping[str, Any]], samples: int | None, seed: int) -> list[Point]:
    """The points of a sweep: a grid, `samples` draws, or those that were given one by one.

    **Raises:** `ValueError` or `TypeError` where that makes no sense.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not isinstance(space, Mapping):
        return _explicit(space, samples)
    if not space:
        raise ValueError("nothing is swept; pass at least one name with its values, as in {'learning_rate': log_uniform(1e-4, 1e-2)}")
    for name, x in space.items():
        if not isinstance(x, Range) and (isinstance(x, str) or not isinstance(x, Sequence | np.ndarray) or not len(x)):
            raise TypeError(f"{name} takes a list of values, log_uniform(low, high) or uniform(low, high), got {x!r}")
    if samples is None:
        axes = [x.at(np.linspace(0, 1, x.points)) if isinstance(x, Range) else [_plain(y) for y in x] for x in space.values()]
        return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
    rng = np.random.default_rng(seed)
    drawn = {
        name: x.at(rng.random(samples)) if isinstance(x, Range) else [_plain(x[i]) for i in rng.integers(len(x), size=samples)]
        for name, x in space.items()
    }
    return [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]


def _explicit(space: Any, samples: int | None) -> list[Point]:
    points = list(space) if isinstance(space, Sequence) and not isinstance(space, str) else []
    if not points or not all(isinstance(x, Mapping) and x for x in points):
        raise TypeError("a sweep takes {name: values}, or a list of points, [{name: value}, ...]")
    if samples is not None:
        raise ValueError("samples draws from {name: values}; leave it out with a list of points")
    for x in points:
        if set(x) != set(points[0]):
            raise ValueError(f"every point must have a value for the same names, got {sorted(points[0])} and {sorted(x)}")
    return [{name: _plain(x[name]) for name in points[0]} for x in points]


def _plain(x: Any) -> Any:
    """NumPy's and JAX's numbers as Python's, to be compared and written down."""
    x = x.item() if hasattr(x, "item") and np.ndim(x) == 0 else x
    if not (x is None or isinstance(x, bool | int | float)):
        raise TypeError(f"a swept value must be a number, True, False or None, got {x!r}")
    return x
