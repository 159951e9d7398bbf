import time
from typing import Any

from eqxrl._structs import EvalMetrics
from eqxrl.training._callback import Callback


class Checkpointing(Callback):
    """Says when the trainer writes a checkpoint to its folder: after every so many epochs, or seconds (whichever comes
    first), and whenever the mean return of an evaluation, over all episodes and seeds, is the best so far; that one is also
    kept as `best.eqx`. A checkpoint is written after all callbacks have seen the evaluation, so it holds their state."""

    def __init__(
        self, every_epochs: int | None = 1, every_seconds: float | int | None = None, *, best: bool = True, keep: int = 2
    ):
        """**Arguments:** `None` for a period: not by that measure. `keep`: how many of the newest stay."""
        for name, period in (("every_epochs", every_epochs), ("every_seconds", every_seconds)):
            if period is not None and period <= 0:
                raise ValueError(f"{name} must be above 0, got {period}; pass None for no such period")
        self.every_epochs = every_epochs
        self.every_seconds = every_seconds
        self.best = best
        self.keep = keep
        self.state = {"best_score": None}

    def on_fit_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._last_time, self._last_epoch = time.monotonic(), trainer.epoch

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        score = float(metrics.cumulative_reward.mean())
        best = self.best and (self.state["best_score"] is None or score > self.state["best_score"])
        if best:
            self.state["best_score"] = score
        due = self.every_epochs is not None and trainer.epoch - self._last_epoch >= self.every_epochs
        due |= self.every_seconds is not None and time.monotonic() - self._last_time >= self.every_seconds
        if best or due:
            trainer.request_checkpoint(score if best else None)
        if due:
            self._last_time, self._last_epoch = time.monotonic(), trainer.epoch
