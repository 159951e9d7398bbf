import sys
import time
from typing import Any

import numpy as np

from eqxrl._structs import EvalMetrics
from eqxrl.envs import env_name
from eqxrl.training._callback import Callback


class ProgressBar(Callback):
    """Env steps per second (of all seeds together), the mean return of the last evaluation (with its deviation over seeds
    where there are several), and the time left, on stderr; nothing where that isn't a terminal."""

    def __init__(self, console: Any = None):
        """**Arguments:** `console`: a `rich.console.Console` to draw on instead."""
        self.console = console
        self._bar = None
        self._trained = None

    def on_fit_start(self, trainer: Any, algo: Any, state: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = self.console or Console(file=sys.stderr)
        if not console.is_terminal:
            return
        texts = [TextColumn(text) for text in ("{task.description}", "env steps", "{task.fields[speed]}", "{task.fields[returns]}")]
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(texts[0], BarColumn(), MofNCompleteColumn(), *texts[1:], *times, console=console)
        self._first, total = trainer.run.first_env_step, trainer.num_iterations * trainer.run.iteration_size
        completed = trainer.env_steps - self._first
        self._task = self._bar.add_task(env_name(algo.env), total=total, completed=completed, speed="", returns="compiling")
        self._bar.start()

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._trained = time.perf_counter(), trainer.env_steps

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        if self._bar is not None and self._trained is not None:
            env_steps = (trainer.env_steps - self._trained[1]) * (trainer.num_seeds or 1)
            speed = f"{env_steps / (time.perf_counter() - self._trained[0]):,.0f}/s"
            self._bar.update(self._task, completed=trainer.env_steps - self._first, speed=speed)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        if self._bar is not None:
            means = np.asarray(metrics.cumulative_reward.mean(-1))
            spread = f" ± {means.std():.1f}" if means.ndim else ""
            self._bar.update(self._task, returns=f"return {means.mean():.1f}{spread}")

    def teardown(self, trainer: Any, algo: Any, state: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Throughput(Callback):
    """Logs, for each epoch, `time/env_steps_per_second` of training (evaluation left out; of all seeds together; compilation is in
    the first), `time/train_seconds`, `time/evaluation_seconds`, and `time/elapsed_seconds` since the run started or was
    resumed."""

    def on_fit_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._started = time.perf_counter()
        self._trained = None

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._trained = time.perf_counter(), trainer.env_steps

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._evaluating = time.perf_counter()
        if self._trained is not None:
            seconds = self._evaluating - self._trained[0]
            env_steps = (trainer.env_steps - self._trained[1]) * (trainer.num_seeds or 1)
            trainer.log({"time/train_seconds": seconds, "time/env_steps_per_second": env_steps / seconds})

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        now = time.perf_counter()
        trainer.log({"time/evaluation_seconds": now - self._evaluating, "time/elapsed_seconds": now - self._started})
