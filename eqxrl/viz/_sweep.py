import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqxrl.viz._curves import COLOURS, Curve, bootstrap_interval, iqm
from eqxrl.viz._files import written_whole


def plot_sweep(values: Mapping[str, Sequence[Any]], curves: Sequence[Curve], path: str | os.PathLike, *, title: str | None = None) -> Path:
    """Draw a sweep into one PNG: the curve of each point (IQM over its seeds), coloured from the worst (pale) to the best, which has a band
    of its 95 % bootstrap interval; and for each name a panel of the points' last values against the name's, with that interval.

    **Arguments:**

    - `values`: of each name, one for each point. Numbers that span more than a power of ten are drawn on a logarithmic axis; flags and the
      like side by side.
    - `curves`: one for each point.
    - `path`: ends in `.png`; it only appears once it's whole.

    **Returns:** the path.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if not curves or any(len(x) != len(curves) for x in values.values()):
        raise ValueError(f"each name needs a value for each of {len(curves)} curves, got {({k: len(x) for k, x in values.items()})}")
    returns = [np.asarray(curve.returns, np.float64) for curve in curves]
    last = np.array([iqm(x[:, -1]) if np.isfinite(x[:, -1]).all() else np.nan for x in returns])
    low, high = np.array([bootstrap_interval(x[:, -1]) for x in returns]).T
    order = np.argsort(np.where(np.isnan(last), -np.inf, last), kind="stable")
    best = None if np.isnan(last).all() else int(order[-1])
    with written_whole(path, ".png") as unfinished:
        columns = 1 + len(values)
        rows = 1 if columns <= 3 else -(-columns // 3)
        figure = Figure(figsize=(4.4 * min(columns, 3), 3.8 * rows), dpi=150, layout="tight")
        axes = figure.subplots(rows, min(columns, 3), squeeze=False).ravel()
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="0.9", linewidth=0.8)
            ax.set_axisbelow(True)
        for ax in axes[columns:]:
            ax.remove()
        for rank, i in enumerate(order):
            colour = COLOURS[1] if i == best else colormaps["Blues"](0.25 + 0.6 * rank / max(len(order) - 1, 1))
            env_steps, middle = np.asarray(curves[i].env_steps), iqm(returns[i])
            axes[0].plot(env_steps, middle, color=colour, linewidth=2.0 if i == best else 1.0)
            if i == best:
                axes[0].fill_between(env_steps, *bootstrap_interval(returns[i]), color=colour, alpha=0.2, linewidth=0)
        axes[0].set(xlabel="environment steps", ylabel="episode return, IQM over seeds")
        axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.suptitle(title or "", x=0.01, ha="left", fontweight="bold")
        if best is not None:
            named = ", ".join(f"{name} {_short(x[best])}" for name, x in values.items())
            figure.text(0.99, 0.985, f"best: {named}", ha="right", va="top", fontsize=9, color=COLOURS[1])
        for ax, (name, x) in zip(axes[1:], values.items()):
            at, labels = _positions(x)
            for i in order:
                error = None if np.isnan(low[i] + last[i]) else [[max(last[i] - low[i], 0)], [max(high[i] - last[i], 0)]]
                colour = COLOURS[1] if i == best else COLOURS[0]
                ax.errorbar(at[i], last[i], yerr=error, fmt="o", markersize=4, linewidth=0.8, color=colour, alpha=1 if i == best else 0.6)
            for i in np.flatnonzero(np.isnan(last)):  # at the axis
                ax.plot(at[i], 0.02, "x", color="0.4", transform=ax.get_xaxis_transform())
            if labels:
                ax.set_xticks(range(len(labels)), labels)
                ax.set_xlim(-0.5, len(labels) - 0.5)
            elif min(at) > 0 and max(at) > 10 * min(at):
                ax.set_xscale("log")
            ax.set(xlabel=name, ylabel="last evaluation")
        if np.isnan(last).any():
            axes[1].set_title("x: a seed diverged", loc="right", fontsize=8, color="0.4")
        figure.savefig(unfinished, format="png")
    return Path(path)


def _positions(x: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where the values stand; with labels, if they aren't numbers, or are few and integers, or start at 0, which has no logarithm."""
    kinds = list(dict.fromkeys(x))
    are_numbers = all(isinstance(y, int | float) and not isinstance(y, bool) for y in x)
    if are_numbers and (len(kinds) > 5 or (min(x) != 0 and not all(isinstance(y, int) for y in x))):
        return [float(y) for y in x], []
    kinds = sorted(kinds, key=lambda y: (y is not None, y or 0))
    return [float(kinds.index(y)) for y in x], [_short(y) for y in kinds]


def _short(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else str(x)
