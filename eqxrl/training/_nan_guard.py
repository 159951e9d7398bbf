import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from eqxrl._structs import TrainStepMetrics, TrajectoryCollectionState
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

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: Any, outputs: TrainStepMetrics) -> None:
        leaves = {**_floats("outputs", outputs), **_floats("state", state)}
        found = jax.device_get(_non_finite(list(leaves.values()), trainer.num_seeds is not None))
        for name, bad in zip(leaves, found, strict=True):
            bad = bad if trainer.stopped is None else bad & ~trainer.stopped
            if bad.any():
                seeds = "" if trainer.stopped is None else f" of seed {', '.join(map(str, np.flatnonzero(bad)))}"
                raise NonFinite(f"{name}{seeds} isn't finite after iteration {trainer.iteration} of {trainer.num_iterations}")


def _floats(name: str, tree: PyTree) -> dict[str, Any]:
    """Its float arrays by path, but for what environments keep to themselves."""
    leaves: dict[str, Any] = {}
    for path, x in jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, TrajectoryCollectionState)):
        where = name + jax.tree_util.keystr(path)
        if isinstance(x, TrajectoryCollectionState):
            for f in dataclasses.fields(x):
                leaves |= {} if f.name in ("env_state", "reset_state") else _floats(f"{where}.{f.name}", getattr(x, f.name))
        elif eqx.is_inexact_array(x):
            leaves[where] = x
    return leaves


@eqx.filter_jit
def _non_finite(arrays: PyTree, stacked: bool) -> list[Bool[Array, "*seeds"]]:
    return [jnp.any(~jnp.isfinite(x), axis=tuple(range(int(stacked), x.ndim))) for x in arrays]
