"""What is made of a run's numbers on the host: means over an epoch, summaries of an evaluation, hyperparameters for reading."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics, no_episodes
from eqxrl._typing import describe
from eqxrl.envs import env_name
from eqxrl.viz import iqm

_FEW = 32  # arrays of up to so many numbers are written out

Sums = dict[str, Any]
"""Float64 sums, of numbers or `[seeds]`: `num_iterations`; `means`, by name, weighted with the number of iterations;
`episodes`, by the fields of `EpisodeStats`."""


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


def add_metrics(sums: Sums, num_iterations: int, metrics: TrainStepMetrics) -> Sums:
    """Counts the metrics of some more iterations (NumPy arrays); `sums` may be empty."""
    new: Sums = {
        "num_iterations": np.asarray(num_iterations, np.float64),
        "means": {k: np.asarray(x, np.float64) * num_iterations for k, x in metrics.means.items()},
        "episodes": {k: np.asarray(x, np.float64) for k, x in vars(metrics.episodes).items()},
    }
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return jax.tree.map(np.add, sums, new) if sums else new


def mean_metrics(sums: Sums) -> TrainStepMetrics:
    """Means over all iterations counted, and sums over their episodes, float32 NumPy arrays; exactly those that went in if it
    was one lot."""
    means = {k: np.float32(x / sums["num_iterations"]) for k, x in sums["means"].items()}
    like = TrainStepMetrics(means=dict.fromkeys(means, jnp.zeros(())), episodes=no_episodes())
    leaves = [means[k] for k in sorted(means)] + [np.float32(sums["episodes"][k]) for k in vars(like.episodes)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)  # the constructor would insist on JAX arrays


def summarize_training(outputs: TrainStepMetrics) -> dict[str, Any]:
    """By the name that it is logged under; NaN for means over no episode."""
    episodes = outputs.episodes
    per_episode = {"return": episodes.total_return, "length": episodes.total_length}
    count = np.where(episodes.count > 0, episodes.count, np.float32(np.nan))
    means = {f"train/{k}": x for k, x in outputs.means.items()} | {"train/num_episodes": episodes.count}
    return means | {f"train/episode_{k}": x / count for k, x in per_episode.items()}


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


def hyperparameters(algo: Any, axes: PyTree = None) -> dict[str, Any]:
    """An algorithm's configuration as nested dicts of numbers and names: for people, for loggers, and for a resume, which
    compares it with that of the run. Of the environment, `env` is the name, `environment` each wrapper's class and settings.

    **Arguments:** `axes` as for `Trainer.fit`: which leaves hold a value for each seed, all of which are then written out.
    """
    written = lambda axis, x: x if axis is None else jax.tree.map(plain, x)  # noqa: E731
    algo = jax.tree.map(written, axes, algo, is_leaf=lambda x: x is None)
    settings = {f.name: readable(getattr(algo, f.name)) for f in dataclasses.fields(algo) if f.name != "env"}
    for x in settings.values():
        if isinstance(x, dict):
            x.pop("type", None)
    return {"algorithm": type(algo).__name__, "env": env_name(algo.env), "environment": _environment(algo.env), **settings}


def plain(x: Any) -> Any:
    """A number or array as Python's numbers in nested lists; a float32 as the shortest decimal that stands for it."""
    x = np.asarray(x)
    if x.ndim:
        return [plain(y) for y in x]
    return float(str(x)) if jnp.issubdtype(x.dtype, np.floating) else x.item()


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, its keys joined by `/`; lists (of seeds) as one entry for each, `name/seed_0`."""
    entries: dict[str, Any] = {}
    for key, x in values.items():
        if isinstance(x, Mapping):
            entries |= {f"{key}/{k}": v for k, v in flat(x).items()}
        elif isinstance(x, list):
            entries |= flat({f"{key}/seed_{i}": y for i, y in enumerate(x)})
        else:
            entries[key] = x
    return entries


def _environment(env: Any) -> dict[str, Any]:
    """The class and the settings of an environment, and of the one that it wraps. Of a plain Python object, settings are the
    public attributes that are numbers or strings."""
    if dataclasses.is_dataclass(env):
        settings = {f.name: getattr(env, f.name, None) for f in dataclasses.fields(env)}
    else:
        settings = {k: x for k, x in getattr(env, "__dict__", {}).items() if k == "env" or isinstance(x, bool | int | float | str)}
    public = {k: x for k, x in settings.items() if not k.startswith("_")}
    return {"type": type(env).__qualname__} | {k: (_environment if k == "env" else readable)(x) for k, x in public.items()}


def readable(x: Any) -> Any:
    """As JSON: numbers, names, nested dicts with a `type`; infinities and NaN as strings."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, float | np.generic | np.ndarray | Array):
        number = isinstance(x, float) or jnp.issubdtype(x.dtype, np.number) or x.dtype == np.bool_
        if not number or np.size(x) > _FEW:
            return describe(x)
        return jax.tree.map(lambda y: str(y) if isinstance(y, complex) or not np.isfinite(y) else y, plain(x))
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {"type": type(x).__qualname__} | {f.name: readable(getattr(x, f.name, None)) for f in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return {str(k): readable(v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return [readable(y) for y in x]
    return getattr(x, "__qualname__", type(x).__qualname__)
