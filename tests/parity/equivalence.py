"""Whether two learn equally well: learning curves over seeds, and the test that their means are no further apart than a margin."""

import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from rejax.evaluate import evaluate
from rejax_side import FiveValueStep
from scipy import stats

CHUNK = 25
"""How many seeds are trained at once; bounds the memory."""
NUM_EVALS, NUM_EPISODES = 10, 32


def play(case: Any, act: Callable, key: Any) -> Any:
    """The mean return of whole episodes."""
    env, env_params = gymnax.make(case.env_id)
    _, returns = evaluate(act, key, FiveValueStep(env), env_params, NUM_EPISODES, env_params.max_steps_in_episode)
    return jnp.mean(returns)


def train_rejax(algo: Any, case: Any, key: Any) -> Any:
    """For `compare`."""
    ts, returns = algo.train(key)
    return returns, ts.global_step


def learning_curves(train: Callable, algo: Any, case: Any, seed: int, num_seeds: int) -> np.ndarray:
    """`[seeds evals]`"""
    many = eqx.filter_jit(jax.vmap(functools.partial(train, algo, case)))
    keys = jax.random.split(jax.random.key(seed), num_seeds)
    curves = []
    for start in range(0, num_seeds, CHUNK):
        returns, env_steps = many(keys[start : start + CHUNK])
        assert np.all(np.asarray(env_steps) == case.env_steps)
        curves.append(np.asarray(returns))
    return np.concatenate(curves)


def tost(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    """The p-value of "the means differ by `margin` or more": two one-sided Welch tests. Schuirmann 1987,
    https://doi.org/10.1007/BF01068419."""
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    return max(above, below)


def compare(case: Any, num_seeds: int, sides: dict[str, tuple[Callable, Callable]], margin: float) -> float:
    """Trains both sides, each by its name: what makes its algorithm of the case, and `train(algo, case, key) -> (returns [evals], env
    steps)`. Prints what came of it, and returns `tost`'s p-value. A case has `env_id`, `env_steps`, and `low` and `high` of its returns;
    `margin` is a part of their distance."""
    margin *= case.high - case.low
    means = {}
    print(f"\n{case.env_id}, {num_seeds} seeds of each, {case.env_steps} env steps, margin {margin:.0f}")
    for seed, (name, (make_algo, train)) in enumerate(sides.items()):
        start = time.perf_counter()
        curves = learning_curves(train, make_algo(case), case, seed, num_seeds)
        means[name] = curves.mean(1)
        print(f"{name}: {means[name].mean():.1f} +- {means[name].std(ddof=1):.1f}, {time.perf_counter() - start:.0f} s")
        print("  by evaluation:", np.array2string(curves.mean(0), precision=0, max_line_width=200))
    interval = stats.ttest_ind(means["eqxrl"], means["rejax"], equal_var=False).confidence_interval(0.9)
    p = tost(means["eqxrl"], means["rejax"], margin)
    print(f"eqxrl - rejax: {interval.low:.1f} to {interval.high:.1f} (90 %); p = {p:.2g} that they differ by {margin:.0f}")
    return p
