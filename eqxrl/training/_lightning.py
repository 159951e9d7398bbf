"""Callbacks and loggers that were written for Lightning (`pip install 'eqxrl[lightning]'`), such as its `RichProgressBar` and
`CSVLogger`. Nothing of Lightning is imported here: they bring it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from eqxrl._structs import EvalMetrics, TrainStepMetrics, TrajectoryWithLastObs
from eqxrl.algorithms import PPOState
from eqxrl.training._callback import Callback
from eqxrl.training._loggers import AbstractLogger, Values
from eqxrl.training._metrics import flat


class LightningLogger(AbstractLogger):
    """Gives everything to a Lightning logger; the step is the env step."""

    def __init__(self, logger: Any):
        self.logger = logger

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        self.logger.log_hyperparams(hyperparameters)

    def log(self, env_steps: int, values: Values) -> None:
        metrics = {k: x for k, x in flat(values).items() if isinstance(x, int) or math.isfinite(x)}
        self.logger.log_metrics(metrics, step=env_steps)
        self.logger.save()

    def close(self) -> None:
        self.logger.finalize("success")


class LightningCallback(Callback):
    """Calls a Lightning callback's hooks of the same names, and `on_validation_start/end`. It gets the algorithm for a
    module, and for a trainer a view of this one with what a progress bar asks for: `current_epoch`, `max_epochs`,
    `global_step` (in env steps), `num_training_batches`, `progress_bar_metrics`, `should_stop` (which may be set) and the
    like. Callbacks that want tensors or a strategy find none.

    If the callback looks at batches, as `RichProgressBar` does, the run is made of single iterations (see `Callback`).
    """

    def __init__(self, callback: Any):
        self.callback = callback
        self.view = SimpleNamespace(
            callbacks=[callback],
            progress_bar_callback=callback,
            state=SimpleNamespace(fn="fit"),
            is_global_zero=True,
            sanity_checking=False,
            training=True,
            should_stop=False,
            max_steps=-1,
            loggers=[],
            progress_bar_metrics={},
            callback_metrics={},
        )
        inherited = next(x for x in type(callback).__mro__ if x.__name__ == "Callback")
        for hook in ("on_train_batch_start", "on_train_batch_end"):
            if getattr(type(callback), hook) is not getattr(inherited, hook):
                setattr(self, hook, getattr(self, f"_{hook}"))

    def _forward(self, hook: str, trainer: Any, algo: Any, *args: Any, **kwargs: Any) -> None:
        self.view.current_epoch, self.view.max_epochs = trainer.epoch, trainer.num_epochs
        self.view.global_step = trainer.env_steps
        self.view.num_training_batches = int(algo.chunks[min(trainer.epoch, trainer.num_epochs - 1)])
        getattr(self.callback, hook)(self.view, algo, *args, **kwargs)
        if self.view.should_stop:
            trainer.request_stop(f"{type(self.callback).__name__} set should_stop")

    def setup(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("setup", trainer, algo, stage="fit")

    def on_fit_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("on_fit_start", trainer, algo)

    def on_fit_end(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("on_fit_end", trainer, algo)

    def on_train_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("on_train_start", trainer, algo)

    def on_train_end(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("on_train_end", trainer, algo)

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("on_train_epoch_start", trainer, algo)

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: PPOState, outputs: TrainStepMetrics) -> None:
        self._forward("on_train_epoch_end", trainer, algo)

    def _on_train_batch_start(
        self, trainer: Any, algo: Any, state: PPOState, batch: TrajectoryWithLastObs, batch_idx: int
    ) -> None:
        self._forward("on_train_batch_start", trainer, algo, batch, batch_idx)

    def _on_train_batch_end(
        self, trainer: Any, algo: Any, state: PPOState, outputs: TrainStepMetrics, batch: TrajectoryWithLastObs, batch_idx: int
    ) -> None:
        self._forward("on_train_batch_end", trainer, algo, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self.view.training = False
        self._forward("on_validation_start", trainer, algo)
        self._forward("on_validation_epoch_start", trainer, algo)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: PPOState, metrics: EvalMetrics) -> None:
        self.view.progress_bar_metrics = self.view.callback_metrics = {"return": float(np.mean(metrics.cumulative_reward))}
        self._forward("on_validation_epoch_end", trainer, algo)
        self._forward("on_validation_end", trainer, algo)
        self.view.training = True

    def teardown(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._forward("teardown", trainer, algo, stage="fit")
