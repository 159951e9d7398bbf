import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Real

from eqxrl._typing import typed
from eqxrl.viz._files import written_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's palette, which colour-blind readers can tell apart, without its yellow: too pale for a line on white."""
LINE_STYLES = ("-", "--", ":", "-.")
"""From the eighth run on, colours come back with another line style."""
FEW_SEEDS = 5
"""Up to so many seeds are drawn one by one as well: an interval of so few says little."""
MANY_RUNS = 5
"""A legend of more than so many lines stands beside the axes, not on top of the curves."""


@typed
class Curve(eqx.Module):
    """What one algorithm's runs returned, as training went on.

    Of a vmapped `train`, whose metrics are `[seeds evals episodes]`:
    `Curve(env_steps, metrics.cumulative_reward.mean(axis=-1))`.
    """

    env_steps: Real[Array | np.ndarray, " points"]
    """Steps over all envs when the point was measured."""
    returns: Real[Array | np.ndarray, "seeds points"]
    """Mean episode return of each run; NaN where no episode had ended."""


def iqm(x: Real[Array | np.ndarray, "..."], axis: int = 0) -> Float[np.ndarray, "..."]:
    """Interquartile mean along `axis`: the mean of the middle half, cut by whole numbers (of fewer than four values none is
    cut). NaNs are left out; where there is nothing else, it is NaN.

    Agarwal et al. 2021, https://arxiv.org/abs/2108.13264.
    """
    x = np.asarray(x, np.float64)
    if not np.isnan(x).any():
        return _middle_half(x, axis)
    return np.apply_along_axis(lambda v: _middle_half(v) if (v := v[~np.isnan(v)]).size else np.nan, axis, x)


def _middle_half(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Its mean. SciPy's `trim_mean` is the same, and takes a second to import."""
    cut = x.shape[axis] // 4
    return np.asarray(np.mean(np.take(np.sort(x, axis=axis), range(cut, x.shape[axis] - cut), axis=axis), axis=axis))


def bootstrap_interval(
    x: Real[Array | np.ndarray, "..."], axis: int = 0, *, confidence: float | int = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Percentile bootstrap interval of the `iqm` along `axis`: its lower and its upper end. The same seed gives the same
    interval. NaNs are left out; where fewer than two values are left, both ends are NaN.

    Percentiles rather than the bias-corrected interval, which isn't defined where all values are equal (every seed at the
    best return possible).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; pass 0.95 for 95 %")

    def interval(v: np.ndarray) -> np.ndarray:
        v = v[~np.isnan(v)]
        if v.size < 2:
            return np.array([np.nan, np.nan])
        # The same resamples at every point (where none is NaN), so that a band has no noise of its own.
        resamples = np.random.default_rng(seed).integers(v.size, size=(num_resamples, v.size))
        return np.quantile(_middle_half(v[resamples], axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])

    low, high = np.moveaxis(np.apply_along_axis(interval, axis, np.asarray(x, np.float64)), axis, 0)
    return np.asarray(low), np.asarray(high)


def plot_learning_curves(
    runs: Mapping[str, Curve | tuple], path: str | os.PathLike, *, title: str | None = None, ylabel: str = "episode return",
    figsize: tuple[float | int, float | int] = (7.0, 4.4),
) -> Path:
    """Draw the learning curves of `runs` into one PNG: for each the interquartile mean over its seeds, with a 95 % bootstrap
    interval as a band where there are at least two, and the seeds one by one, thinly, where they are few.

    **Arguments:**

    - `runs`: from label to `Curve`, or to `(env_steps [points], returns [seeds points])`. Runs may differ in points and seeds;
        points without any finished episode (NaN) are skipped.
    - `path`: ends in `.png`; its folder is created where it's missing. It only appears once it's whole.
    - `figsize`: width and height in inches, at 150 dots per inch.

    **Returns:** the path.
    """
    from matplotlib.figure import Figure  # without pyplot there is no global state: no backend, no current figure
    from matplotlib.ticker import EngFormatter

    if not runs:
        raise ValueError("there is nothing to draw: runs is empty; pass at least one {label: Curve(env_steps, returns)}")
    curves = {label: run if isinstance(run, Curve) else Curve(*(np.asarray(x) for x in run)) for label, run in runs.items()}
    with written_whole(path, ".png") as unfinished:
        figure = Figure(figsize=figsize, dpi=150, layout="tight")
        ax = figure.subplots()
        for i, (label, curve) in enumerate(curves.items()):
            look: Any = dict(color=COLOURS[i % len(COLOURS)], linestyle=LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)])
            env_steps, returns = np.asarray(curve.env_steps), np.asarray(curve.returns, np.float64)
            middle, (low, high) = iqm(returns), bootstrap_interval(returns)
            if 1 < len(returns) <= FEW_SEEDS:
                ax.plot(env_steps, returns.T, linewidth=0.7, alpha=0.35, **look)
            seen = ~np.isnan(middle)
            ax.fill_between(env_steps[seen], low[seen], high[seen], color=look["color"], alpha=0.2, linewidth=0)
            marker = "o" if seen.sum() <= 20 else None
            ax.plot(env_steps[seen], middle[seen], linewidth=1.8, marker=marker, markersize=3.5, label=label, **look)

        ax.set(xlabel="environment steps", ylabel=ylabel)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.margins(x=0.02)
        if title is not None:
            ax.set_title(title, loc="left", fontweight="bold")
        num_seeds = sorted({len(curve.returns) for curve in curves.values()})
        if num_seeds != [1]:
            spelled = " to ".join(map(str, dict.fromkeys([num_seeds[0], num_seeds[-1]])))
            ax.set_title(f"IQM of {spelled} seeds, band: 95 % bootstrap interval", loc="right", fontsize=8, color="0.4")
        if len(curves) > 1:
            beside: Any = dict(loc="upper left", bbox_to_anchor=(1, 1)) if len(curves) > MANY_RUNS else {}
            ax.legend(frameon=False, **beside)
        figure.savefig(unfinished, format="png")
    return Path(path)
