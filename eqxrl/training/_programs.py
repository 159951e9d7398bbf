"""The compiled programs that a `Trainer` runs: an algorithm's own methods, for each seed where several are trained at once.
Those that learn reuse the buffers of the training state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from eqxrl._structs import EvalMetrics, TrainStepMetrics, TrajectoryWithLastObs
from eqxrl.algorithms import AbstractOnPolicy, PPOState
from eqxrl.training._metrics import swept_axes


def _for_each(f: Callable, algo: Any, stacked: bool) -> Callable:
    """`f(algo, *args)` as a function of `args`; for each seed, if they are stacked."""
    if not stacked:
        return lambda *args: f(algo, *args)
    axes = jax.tree.map(lambda _: None, algo)
    if hasattr(algo, "hp"):
        axes = eqx.tree_at(lambda algo: algo.hp, axes, swept_axes(algo.hp), is_leaf=lambda x: x is None)
    return lambda *args: eqx.filter_vmap(f, in_axes=(axes, *[eqx.if_array(0)] * len(args)))(algo, *args)


@eqx.filter_jit
def init(algo: AbstractOnPolicy, keys: Key[Array, "..."]) -> PPOState:
    return _for_each(lambda algo, key: algo.init_train_state(key), algo, keys.ndim > 0)(keys)


@eqx.filter_jit(donate="all-except-first")
def iterate(kept: tuple[AbstractOnPolicy, Int[Array, ""], bool], state: PPOState) -> tuple[PPOState, TrainStepMetrics]:
    algo, num_iterations, stacked = kept
    return _for_each(lambda algo, state: algo.iterations(state, num_iterations), algo, stacked)(state)


@eqx.filter_jit
def collect(kept: tuple[AbstractOnPolicy, Int[Array, ""], bool], state: PPOState) -> tuple[PPOState, TrajectoryWithLastObs]:
    algo, batch_idx, stacked = kept
    return _for_each(lambda algo, state: algo.get_batch(state, batch_idx), algo, stacked)(state)


@eqx.filter_jit(donate="all-except-first")
def learn(
    kept: tuple[AbstractOnPolicy, Int[Array, ""], TrajectoryWithLastObs, bool], state: PPOState
) -> tuple[PPOState, TrainStepMetrics]:
    algo, batch_idx, batch, stacked = kept
    return _for_each(lambda algo, state, batch: algo.training_step(batch_idx, state, batch), algo, stacked)(state, batch)


@eqx.filter_jit
def evaluate(kept: tuple[AbstractOnPolicy, bool], state: PPOState) -> EvalMetrics:
    algo, stacked = kept
    return _for_each(lambda algo, state: algo.eval_callback(state), algo, stacked)(state)


@eqx.filter_jit
def keep(stopped: Bool[Array, " seeds"], before: PPOState, after: PPOState) -> PPOState:
    """The state before for seeds that are stopped, after for the others."""

    def leaf(b: Any, a: Any) -> Any:
        return jnp.where(stopped.reshape(-1, *[1] * (a.ndim - 1)), b, a) if eqx.is_array(a) else a

    return jax.tree.map(leaf, before, after)
