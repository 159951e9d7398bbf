import dataclasses
from typing import Any

import equinox as eqx
import jax

from eqxrl._structs import EvalMetrics
from eqxrl.training._callback import Callback
from eqxrl.training._programs import for_each


class HParamLog(Callback):
    """Logs, for each epoch, `hp/<name>`: the hyperparameters that are leaves, those that are schedules at the present update,
    such as the learning rate; and `hp/num_updates` itself."""

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        leaves = {f.name: getattr(algo.hp, f.name) for f in dataclasses.fields(algo.hp)}
        schedules = [k for k, x in leaves.items() if callable(x)]
        at = for_each(lambda algo, num_updates: {k: getattr(algo.hp, k)(num_updates) for k in schedules}, algo, trainer.axes)
        values = {k: x for k, x in leaves.items() if eqx.is_array(x)} | at(state.num_updates) | {"num_updates": state.num_updates}
        trainer.log({f"hp/{k}": x for k, x in jax.device_get(values).items()})
