"""How a run begins: anew, from a training state, or from its checkpoints."""

import errno
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from eqxrl._typing import as_key
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.training import _programs as programs
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._run_state import RunState
from eqxrl.training._saving import read_run


def start(
    folder: Path | None, algo: Any, rng: Any, train_state: Any, skip_initial_evaluation: bool, resume: bool, axes: PyTree
) -> tuple[RunState, PyTree, dict[str, Any] | None]:
    """Where a run stands when `Trainer.fit` is called with these arguments; the algorithm's axes; and, if it goes on from a
    checkpoint, the states of its callbacks."""
    if not isinstance(algo, AbstractAlgorithm):
        got = algo.__name__ if isinstance(algo, type) else type(algo).__name__
        raise TypeError(f"fit takes an algorithm first, such as PPO.create('CartPole-v1'), got {got}")
    if train_state is not None and not hasattr(train_state, "rng"):
        raise TypeError(f"train_state must be a training state, the first of the two that fit returns, got {type(train_state).__name__}")
    if resume and folder is None:
        raise ValueError("resume=True needs a folder to resume from; pass Trainer(folder=...)")
    if folder is not None and Checkpoints(folder).files():
        if resume:
            return _resumed(folder, algo, axes)
        why = "this folder holds a run; pass fit(..., resume=True) to go on with it, or another folder"
        raise FileExistsError(errno.EEXIST, why, str(folder))
    if rng is None and train_state is None:
        if resume:
            why = "there is no run to resume in this folder; pass rng to start one"
            raise FileNotFoundError(errno.ENOENT, why, str(folder))
        raise ValueError("pass either rng, a key or a seed, to start anew, or train_state, to go on from it")
    keys = as_key(rng) if train_state is None else train_state.rng  # pyright: ignore[reportArgumentType]
    axes = programs.check_axes(algo, axes, keys)
    state = programs.init(algo, axes, keys) if train_state is None else train_state
    one, num_seeds = programs.member(algo, axes, 0), keys.shape[0] if keys.ndim else None
    run = RunState(
        state=copy(state),  # its buffers are donated
        num_seeds=num_seeds,
        key_impl=str(jax.random.key_impl(state.rng)),
        skip_initial_evaluation=skip_initial_evaluation,
        first_env_step=one.env_steps(state),
        stopped=None if num_seeds is None else np.zeros(num_seeds, bool),
        ends=np.cumsum(one.chunks),
        iteration_size=one.iteration_size,
    )
    return run, axes, None


def _resumed(folder: Path, algo: AbstractAlgorithm, axes: PyTree) -> tuple[RunState, PyTree, dict[str, Any]]:
    run, axes, callback_states, extended = read_run(folder, algo, axes)
    for iteration, path in Checkpoints(folder).files():
        if iteration > run.iteration:  # it is damaged, and would be in the way of the next one
            path.unlink()
    if run.stop_reason is not None and extended:
        run.stop_reason = None
        if run.stopped is not None and run.stopped.all():  # seeds that were stopped before the others stay so
            run.stopped[:] = False
    elif run.stop_reason is not None:
        how = f"pass an algorithm whose total_timesteps is above {algo.hp.total_timesteps}, and is otherwise the same"
        warnings.warn(
            f"the run in {folder} was stopped ({run.stop_reason}) {run.where()}, and stays so; to go on with it, {how}", stacklevel=4
        )
    return run, axes, callback_states


def copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array_like(x) and hasattr(x, "dtype") else x, tree)
