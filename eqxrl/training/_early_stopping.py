from typing import Any

import numpy as np

from eqxrl._structs import EvalMetrics
from eqxrl.training._callback import Callback


class EarlyStopping(Callback):
    """Stops when the mean return of an evaluation reaches `threshold`, or hasn't improved on the best so far by more than
    `min_delta` for `patience` evaluations in a row; whichever comes first. Of several seeds each is judged by itself: one that
    stops is frozen, and the run ends with the last one."""

    def __init__(self, threshold: float | int | None = None, patience: int | None = None, min_delta: float | int = 0.0):
        if threshold is None and patience is None:
            raise ValueError("EarlyStopping() would never stop; pass a threshold, a patience, or both")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.threshold = threshold
        self.patience = patience
        self.min_delta = min_delta

    def setup(self, trainer: Any, algo: Any, state: Any) -> None:
        seeds = () if trainer.num_seeds is None else (trainer.num_seeds,)
        self.state = {"best": np.full(seeds, -np.inf), "evaluations_since": np.zeros(seeds, int)}

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        means = np.asarray(metrics.cumulative_reward.mean(-1), float)
        better = means > self.state["best"] + self.min_delta
        since = np.where(better, 0, self.state["evaluations_since"] + 1)
        self.state = {"best": np.where(better, means, self.state["best"]), "evaluations_since": since}
        reached = np.zeros(means.shape, bool) if self.threshold is None else means >= self.threshold
        stuck = np.zeros(means.shape, bool) if self.patience is None else since >= self.patience
        stopping = reached | stuck
        if stopping.any():
            why = (
                f"a mean return of {self.threshold} was reached"
                if reached.any()
                else f"no improvement in {self.patience} evaluations"
            )
            trainer.request_stop(why, members=None if trainer.num_seeds is None else stopping)
