import sys
import time
from typing import Any

import numpy as np

from eqxrl._structs import EvalMetrics
from eqxrl.algorithms import PPOState
from eqxrl.training._callback import Callback


class ProgressBar(Callback):
    """Env steps per second (of all seeds together), the mean return of the last evaluation (with its deviation over seeds
    where there are several), and the time left, on stderr; nothing where that isn't a terminal."""

    def __init__(self, console: Any = None):
        """**Arguments:** `console`: a `rich.console.Console` to draw on instead."""
        self.console = console
        self._bar = None
        self._trained = None

    def on_fit_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = self.console or Console(file=sys.stderr)
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("env steps"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[returns]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._first = trainer.env_steps - trainer.iteration * algo.iteration_size
        self._task = self._bar.add_task(
            algo.env.name,
            total=trainer.num_iterations * algo.iteration_size,
            completed=trainer.env_steps - self._first,
            speed="",
            returns="compiling",
        )
        self._bar.start()

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._trained = time.perf_counter(), trainer.env_steps

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        if self._bar is not None and self._trained is not None:
            env_steps = (trainer.env_steps - self._trained[1]) * (trainer.num_seeds or 1)
            speed = f"{env_steps / (time.perf_counter() - self._trained[0]):,.0f}/s"
            self._bar.update(self._task, completed=trainer.env_steps - self._first, speed=speed)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: PPOState, metrics: EvalMetrics) -> None:
        if self._bar is not None:
            means = np.asarray(metrics.cumulative_reward.mean(-1))
            spread = f" ± {means.std():.1f}" if means.ndim else ""
            self._bar.update(self._task, returns=f"return {means.mean():.1f}{spread}")

    def teardown(self, trainer: Any, algo: Any, state: PPOState) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Throughput(Callback):
    """Logs, for each epoch, `time/env_steps_per_second` of training (evaluation left out; of all seeds together; compilation is in
    the first), `time/train_seconds`, `time/evaluation_seconds`, and `time/elapsed_seconds` since the run started or was
    resumed."""

    def on_fit_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._started = time.perf_counter()
        self._trained = None

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._trained = time.perf_counter(), trainer.env_steps

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: PPOState) -> None:
        self._evaluating = time.perf_counter()
        if self._trained is not None:
            seconds = self._evaluating - self._trained[0]
            env_steps = (trainer.env_steps - self._trained[1]) * (trainer.num_seeds or 1)
            trainer.log({"time/train_seconds": seconds, "time/env_steps_per_second": env_steps / seconds})

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: PPOState, metrics: EvalMetrics) -> None:
        now = time.perf_counter()
        trainer.log({"time/evaluation_seconds": now - self._evaluating, "time/elapsed_seconds": now - self._started})
