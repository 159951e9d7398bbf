"""Callbacks and loggers that were written for Lightning (`pip install lightning`): two classes to copy, which let a `Trainer` call them.

Trainer([LightningCallback(RichProgressBar())], [LightningLogger(CSVLogger("logs"))]).fit(ppo, 0)"""

import functools
from types import SimpleNamespace

import numpy as np

from eqxrl import Callback
from eqxrl.training import AbstractLogger


class LightningLogger(AbstractLogger):
    """Gives everything to a Lightning logger, with the env step as its step; of several seeds, their mean."""

    def __init__(self, logger):
        self.logger = logger

    def start(self, hyperparameters, resumed_at):
        self.logger.log_hyperparams(hyperparameters)

    def log(self, env_steps, values):
        self.logger.log_metrics({k: float(np.mean(x)) for k, x in values.items() if np.isfinite(x).all()}, step=env_steps)

    def close(self):
        self.logger.finalize("success")


class LightningCallback(Callback):
    """Calls the hooks of a Lightning callback, with the algorithm for a module, and for a trainer what a progress bar asks one for."""

    def __init__(self, callback):
        self.callback = callback
        lists = dict(callbacks=[callback], loggers=[], progress_bar_metrics={}, max_steps=-1, state=SimpleNamespace(fn="fit"))
        flags = dict(is_global_zero=True, sanity_checking=False, training=True, should_stop=False)
        self.view = SimpleNamespace(progress_bar_callback=callback, **lists, **flags)
        self.setup, self.teardown = (functools.partial(self._forward, hook, stage="fit") for hook in ("setup", "teardown"))
        inherited = next(x for x in type(callback).__mro__ if x.__name__ == "Callback")
        batch = [x for x in ("on_train_batch_start", "on_train_batch_end") if getattr(type(callback), x) is not getattr(inherited, x)]
        for hook in ("on_fit_start", "on_train_start", "on_train_epoch_start", *batch, "on_train_epoch_end", "on_train_end", "on_fit_end"):
            setattr(self, hook, functools.partial(self._forward, hook))

    def _forward(self, hook, trainer, algo, state, *args, **kwargs):
        where = dict(current_epoch=trainer.epoch, max_epochs=trainer.num_epochs, global_step=trainer.env_steps)
        self.view.__dict__.update(where, num_training_batches=int(algo.chunks[min(trainer.epoch, trainer.num_epochs - 1)]))
        getattr(self.callback, hook)(self.view, algo, *(args if "batch" in hook else ()), **kwargs)
        if self.view.should_stop:
            trainer.request_stop(f"{type(self.callback).__name__} set should_stop")

    def on_validation_epoch_start(self, trainer, algo, state):
        self.view.training = False
        self._forward("on_validation_start", trainer, algo, state)
        self._forward("on_validation_epoch_start", trainer, algo, state)

    def on_validation_epoch_end(self, trainer, algo, state, metrics):
        self.view.progress_bar_metrics = self.view.callback_metrics = {"return": float(metrics.cumulative_reward.mean())}
        self._forward("on_validation_epoch_end", trainer, algo, state)
        self._forward("on_validation_end", trainer, algo, state)
        self.view.training = True
