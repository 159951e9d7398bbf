from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from eqxrl._structs import TrainStepMetrics
from eqxrl.algorithms import PPOState
from eqxrl.training._callback import Callback


class NonFinite(FloatingPointError):
    """A NaN or an infinity where there should be none. The trainer doesn't write a checkpoint of it."""


class NanGuard(Callback):
    """Looks, after the iterations of each epoch, for NaNs and infinities in their metrics and in the training state (what the
    environments keep to themselves left out), and raises `NonFinite`, which names the first one, by path, and its seeds. The
    newest checkpoint stays that of the epoch before.

    It costs one small program and transfer for each epoch. To find the operation that did it, go on from that checkpoint with
    `hp.debug` set, or under `jax.config.jax_debug_nans`.
    """

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: PPOState, outputs: TrainStepMetrics) -> None:
        collection = state.data_collection_state
        watched = {
            "outputs": outputs,
            "state.agent": state.agent,
            "state.learner_state": state.learner_state,
            "state.data_collection_state.last_obs": collection.last_obs,
            "state.data_collection_state.rms_state": collection.rms_state,
            "state.data_collection_state.episode_return": collection.episode_return,
        }
        watched = {k: jax.tree.leaves_with_path(eqx.filter(x, eqx.is_inexact_array)) for k, x in watched.items()}
        names = [f"{k}{jax.tree_util.keystr(path)}" for k, leaves in watched.items() for path, _ in leaves]
        arrays = [x for leaves in watched.values() for _, x in leaves]
        for name, bad in zip(names, jax.device_get(_non_finite(arrays, trainer.num_seeds is not None)), strict=True):
            bad = bad if trainer.stopped is None else bad & ~trainer.stopped
            if bad.any():
                seeds = "" if trainer.stopped is None else f" of seed {', '.join(map(str, np.flatnonzero(bad)))}"
                raise NonFinite(f"{name}{seeds} isn't finite after iteration {trainer.iteration} of {trainer.num_iterations}")


@eqx.filter_jit
def _non_finite(arrays: PyTree, stacked: bool) -> list[Bool[Array, "*seeds"]]:
    return [jnp.any(~jnp.isfinite(x), axis=tuple(range(int(stacked), x.ndim))) for x in arrays]
