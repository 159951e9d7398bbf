"""What is made of the numbers of a run on the host: means over an epoch, summaries of an evaluation, hyperparameters for
reading."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import describe
from eqxrl.viz import iqm

_PER_EPISODE = ("episode_return", "episode_length")
_FEW = 32
"""Arrays of up to so many numbers are written out."""

Sums = dict[str, Any]
"""Float64 sums, by the names of `TrainStepMetrics`, those of `extra` in a dict of its own; and `num_iterations`."""


def get_error_from_metrics(metrics: EvalMetrics) -> tuple[str, float]:
    """What a hyperparameter search should minimise: a name, and minus the mean return of the last evaluation, over all episodes
    and seeds. NaN, which no search can rank, becomes infinity.

    **Arguments:** `metrics` as `train` and `fit` return them, `[evals episodes]`, or `[seeds evals episodes]`.
    """
    returns = np.asarray(metrics.cumulative_reward, np.float64)
    if returns.ndim < 2:
        raise ValueError(f"cumulative_reward must be [evals episodes] or [seeds evals episodes], got {list(returns.shape)}")
    error = -float(returns[..., -1, :].mean())
    return "mean_cumulative_reward", math.inf if math.isnan(error) else error


def add_metrics(sums: Sums, num_iterations: int, means: TrainStepMetrics) -> Sums:
    """Counts the means over some more iterations (NumPy arrays); `sums` may be empty."""
    new: Sums = jax.tree.map(lambda x: np.asarray(x, np.float64), vars(means))
    weights = dict.fromkeys(_PER_EPISODE, new["num_episodes"]) | {"num_episodes": 1}
    with np.errstate(invalid="ignore"):  # infinity times no episodes
        new = {k: jax.tree.map(lambda x: x * weights.get(k, num_iterations), v) for k, v in new.items()}
    new["num_iterations"] = np.asarray(num_iterations, np.float64)
    return jax.tree.map(np.add, sums, new) if sums else new


def mean_metrics(sums: Sums) -> TrainStepMetrics:
    """The means over all iterations counted, float32 NumPy arrays; exactly those that went in if it was one lot."""
    weights = {k: np.maximum(sums["num_episodes"], 1) for k in _PER_EPISODE} | {"num_episodes": 1}
    n = sums["num_iterations"]
    means = {k: jax.tree.map(lambda x: np.float32(x / weights.get(k, n)), v) for k, v in sums.items() if k != "num_iterations"}
    zeros = TrainStepMetrics(**jax.tree.map(lambda _: jnp.zeros((), jnp.float32), means))
    leaves = jax.tree.leaves([means[f.name] for f in dataclasses.fields(zeros)])
    return jax.tree.unflatten(jax.tree.structure(zeros), leaves)  # the constructor would insist on JAX arrays


def summarize_training(outputs: TrainStepMetrics) -> dict[str, Any]:
    """By the name that it is logged under; NaN for means over no episode."""
    values = {f"train/{k}": v for k, v in vars(outputs).items() if k != "extra"}
    for name in _PER_EPISODE:
        values[f"train/{name}"] = np.where(outputs.num_episodes > 0, getattr(outputs, name), np.nan)
    return values | {f"train/{k}": v for k, v in outputs.extra.items()}


def summarize_evaluation(metrics: EvalMetrics) -> dict[str, Any]:
    """Over the episodes of one evaluation, for each seed; by the name that it is logged under."""
    returns = metrics.cumulative_reward
    return {
        "eval/return_mean": returns.mean(-1),
        "eval/return_std": returns.std(-1),
        "eval/return_iqm": iqm(returns, axis=-1),
        "eval/return_min": returns.min(-1),
        "eval/return_max": returns.max(-1),
        "eval/length_mean": metrics.episode_length.mean(-1),
    }


def hyperparameters(algo: Any) -> dict[str, Any]:
    """An algorithm's configuration as nested dicts of numbers and names: for people, for loggers, and to be compared."""
    settings = {f.name: _readable(getattr(algo, f.name)) for f in dataclasses.fields(algo) if f.name != "env"}
    for x in settings.values():
        if isinstance(x, dict):
            x.pop("type", None)
    return {"algorithm": type(algo).__name__, "env": algo.env.name, **settings}


def swept_axes(tree: PyTree) -> PyTree[int | None]:
    """For `vmap`: which leaves, of a tree of scalars, have a leading axis of seeds."""
    return jax.tree.map(lambda x: 0 if eqx.is_array(x) and x.ndim else None, tree)


def plain(x: Any) -> Any:
    """A number or array as Python's numbers in nested lists; a float32 as the shortest decimal that stands for it."""
    x = np.asarray(x)
    if x.ndim:
        return [plain(y) for y in x]
    return float(str(x)) if jnp.issubdtype(x.dtype, np.floating) else x.item()


def flat(values: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Nested dicts as one, its keys joined; lists (of seeds) as one entry for each, `name/seed_0`."""
    entries: dict[str, Any] = {}
    for key, x in values.items():
        if isinstance(x, Mapping):
            entries |= {f"{key}{separator}{k}": v for k, v in flat(x, separator).items()}
        elif isinstance(x, list):
            entries |= flat({f"{key}{separator}seed_{i}": y for i, y in enumerate(x)}, separator)
        else:
            entries[key] = x
    return entries


def _readable(x: Any) -> Any:
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, float | np.generic | np.ndarray | Array):
        dtype = np.dtype(float) if isinstance(x, float) else x.dtype
        number = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
        return jax.tree.map(_finite, plain(x)) if number and np.size(x) <= _FEW else describe(x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {"type": type(x).__qualname__} | {f.name: _readable(getattr(x, f.name, None)) for f in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return {str(k): _readable(v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return [_readable(y) for y in x]
    return getattr(x, "__qualname__", type(x).__qualname__)


def _finite(x: Any) -> Any:
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
