import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from eqxrl._structs import EvalMetrics
from eqxrl.algorithms import PPOState
from eqxrl.training._callback import Callback
from eqxrl.training._metrics import swept_axes


class HParamLog(Callback):
    """Logs, for each epoch, `hp/<name>`: the hyperparameters that are leaves, those that are schedules at the present update,
    such as the learning rate; and `hp/num_updates` itself."""

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: PPOState, metrics: EvalMetrics) -> None:
        num_updates = state.learner_state.num_updates
        leaves = {f.name: getattr(algo.hp, f.name) for f in dataclasses.fields(algo.hp)}
        values = {k: _at(x, num_updates) if callable(x) else x for k, x in leaves.items() if callable(x) or eqx.is_array(x)}
        trainer.log({f"hp/{k}": x for k, x in jax.device_get({**values, "num_updates": num_updates}).items()})


def _at(schedule: Callable, num_updates: Int[Array, "*seeds"]) -> Float[Array, "*seeds"]:
    if num_updates.ndim == 0:
        return schedule(num_updates)
    return eqx.filter_vmap(lambda schedule, n: schedule(n), in_axes=(swept_axes(schedule), 0))(schedule, num_updates)
