"""The callbacks that come with the trainer."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl.envs import env_name
from eqxrl.training._callback import Callback
from eqxrl.training._programs import for_each


class Checkpointing(Callback):
    """Says when the trainer writes a checkpoint to its folder: after every so many epochs, or seconds (whichever comes
    first), and whenever the mean return of an evaluation, over all episodes and seeds, is the best so far; that one is also
    kept as `best.eqx`. A checkpoint is written after all callbacks have seen the evaluation, so it holds their state."""

    def __init__(self, every_epochs: int | None = 1, every_seconds: float | int | None = None, *, best: bool = True, keep: int = 2):
        """**Arguments:** `None` for a period: not by that measure. `keep`: how many of the newest stay."""
        for name, period in (("every_epochs", every_epochs), ("every_seconds", every_seconds)):
            if period is not None and period <= 0:
                raise ValueError(f"{name} must be above 0, got {period}; pass None for no such period")
        self.every_epochs, self.every_seconds, self.best, self.keep = every_epochs, every_seconds, best, keep
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


class EarlyStopping(Callback):
    """Stops when the mean return of an evaluation reaches `threshold`, or hasn't improved on the best so far by more than
    `min_delta` for `patience` evaluations in a row; whichever comes first. Of several seeds each is judged by itself: one that
    stops is frozen, and the run ends with the last one."""

    def __init__(self, threshold: float | int | None = None, patience: int | None = None, min_delta: float | int = 0.0):
        if threshold is None and patience is None:
            raise ValueError("EarlyStopping() would never stop; pass a threshold, a patience, or both")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.threshold, self.patience, self.min_delta = threshold, patience, min_delta

    def setup(self, trainer: Any, algo: Any, state: Any) -> None:
        seeds = () if trainer.num_seeds is None else (trainer.num_seeds,)
        self.state = {"best": np.full(seeds, -np.inf), "evaluations_since": np.zeros(seeds, int)}

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        means = np.asarray(metrics.cumulative_reward.mean(-1), float)
        better = means > self.state["best"] + self.min_delta
        since = np.where(better, 0, self.state["evaluations_since"] + 1)
        self.state = {"best": np.where(better, means, self.state["best"]), "evaluations_since": since}
        reached = means >= (np.nan if self.threshold is None else self.threshold)  # nothing reaches NaN
        stopping = reached | (since >= (np.nan if self.patience is None else self.patience))
        if stopping.any():
            stuck = f"no improvement in {self.patience} evaluations"
            why = f"a mean return of {self.threshold} was reached" if reached.any() else stuck
            trainer.request_stop(why, members=None if trainer.num_seeds is None else stopping)


class HParamLog(Callback):
    """Logs, for each epoch, `hp/<name>`: the hyperparameters that are leaves, those that are schedules at the present update,
    such as the learning rate; and `hp/num_updates` itself."""

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        leaves = {f.name: getattr(algo.hp, f.name) for f in dataclasses.fields(algo.hp)}
        schedules = [k for k, x in leaves.items() if callable(x)]
        at_step = lambda algo, n: {k: getattr(algo.hp, k)(n) for k in schedules}  # noqa: E731
        values = {k: x for k, x in leaves.items() if eqx.is_array(x)} | for_each(at_step, algo, trainer.axes, state.num_updates)
        trainer.log({f"hp/{k}": x for k, x in jax.device_get(values | {"num_updates": state.num_updates}).items()})


class NonFinite(FloatingPointError):
    """A NaN or an infinity where there should be none. The trainer doesn't write a checkpoint of it."""


class NanGuard(Callback):
    """Looks, after the iterations of each epoch, for NaNs and infinities in their metrics and in the training state (what the
    environments keep to themselves left out), and after each evaluation at its returns, and raises `NonFinite`, which names the first
    one, by path, and its seeds. The newest checkpoint stays that of the epoch before. Without this callback, a trainer warns.

    It costs a small transfer for each epoch. To find the operation that did it, go on from that checkpoint with
    `hp.debug` set, or under `jax.config.jax_debug_nans`.
    """

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: Any, outputs: TrainStepMetrics) -> None:
        if (bad := trainer.run.non_finite()) is not None:
            raise NonFinite(bad)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        if not np.isfinite(metrics.cumulative_reward).all() and (bad := trainer.run.non_finite(metrics)) is not None:
            raise NonFinite(bad)


class EpisodeRendering(Callback):
    """Writes a GIF of an episode, `episode-000004096.gif` after 4096 env steps: before the training, after it, and every so
    many epochs in between. Of several seeds, the first is shown.

    **Raises:** at the start of the run, if the environment can't be drawn.
    """

    def __init__(self, folder: str | Path, *, every_epochs: int | None = None, start: bool = True, end: bool = True):
        if every_epochs is not None and every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1, got {every_epochs}; pass None for no GIFs in between")
        self.folder, self.every_epochs, self.start, self.end = Path(folder), every_epochs, start, end

    def on_train_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._render(trainer, self.start and trainer.iteration == 0)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        self._render(trainer, self.every_epochs is not None and trainer.epoch > 0 and trainer.epoch % self.every_epochs == 0)

    def on_train_end(self, trainer: Any, algo: Any, state: Any) -> None:
        self._render(trainer, self.end)

    def _render(self, trainer: Any, due: bool) -> None:
        path = self.folder / f"episode-{trainer.env_steps:09d}.gif"
        if due and not path.exists():
            algo, state = trainer.member(0)
            algo.visualize(state, path)


class ProgressBar(Callback):
    """Env steps per second (of all seeds together), the mean return of the last evaluation (with its deviation over seeds
    where there are several), and the time left, on stderr; nothing where that isn't a terminal."""

    def __init__(self, console: Any = None):
        """**Arguments:** `console`: a `rich.console.Console` to draw on instead."""
        self.console = console
        self._bar: Any = None

    def on_fit_start(self, trainer: Any, algo: Any, state: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = self.console or Console(file=sys.stderr)
        texts = ("{task.description}", "env steps", "{task.fields[speed]}", "{task.fields[returns]}")
        texts = [TextColumn(text, markup=False) for text in texts]
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (texts[0], BarColumn(), MofNCompleteColumn(), *texts[1:], *times)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._trained, self._first = None, trainer.run.first_env_step
        total, completed = trainer.num_iterations * trainer.run.iteration_size, trainer.env_steps - self._first
        self._task = self._bar.add_task(env_name(algo.env), total=total, completed=completed, speed="", returns="compiling")
        self._bar.start()

    def on_train_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._trained = time.perf_counter(), trainer.env_steps

    def on_validation_epoch_start(self, trainer: Any, algo: Any, state: Any) -> None:
        if self._trained is not None:
            env_steps = (trainer.env_steps - self._trained[1]) * (trainer.num_seeds or 1)
            speed = f"{env_steps / (time.perf_counter() - self._trained[0]):,.0f}/s"
            self._bar.update(self._task, completed=trainer.env_steps - self._first, speed=speed)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        means = np.asarray(metrics.cumulative_reward.mean(-1))
        spread = f" ± {means.std():.1f}" if means.ndim else ""
        self._bar.update(self._task, returns=f"return {means.mean():.1f}{spread}")

    def teardown(self, trainer: Any, algo: Any, state: Any) -> None:
        if self._bar is not None and not self._bar.disable:  # rich 13 ends the line even of one that is disabled
            self._bar.stop()


class Throughput(Callback):
    """Logs, for each epoch, `time/env_steps_per_second` of training (evaluation left out; of all seeds together; compilation is in
    the first), `time/train_seconds`, `time/evaluation_seconds`, and `time/elapsed_seconds` since the run started or was
    resumed."""

    def on_fit_start(self, trainer: Any, algo: Any, state: Any) -> None:
        self._started, self._trained = time.perf_counter(), None

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
