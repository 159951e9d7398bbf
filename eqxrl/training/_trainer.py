"""The host's loop over compiled chunks of an algorithm's iterations."""

import errno
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import KeyLike, as_key
from eqxrl.algorithms import AbstractOnPolicy, PPOState
from eqxrl.training import _programs as programs
from eqxrl.training._callback import Callback, decode_state, encode_state, overrides
from eqxrl.training._checkpointing import Checkpointing
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._interrupts import Interrupted, Interrupts
from eqxrl.training._loggers import AbstractLogger
from eqxrl.training._metrics import (
    Sums,
    add_metrics,
    hyperparameters,
    mean_metrics,
    plain,
    summarize_evaluation,
    summarize_training,
)
from eqxrl.training._restore import read_run, room_for_evaluations, stack


class CheckpointNotWritten(OSError):
    """A run ended well, but its last checkpoint couldn't be written. Nothing is lost: `result` is what `fit` would have
    returned."""

    def __init__(self, error: OSError, result: tuple[PPOState, EvalMetrics]):
        super().__init__(error.errno, f"{error.strerror}. The run itself ended well; `result` of this error holds it", error.filename)
        self.result = result


class Trainer:
    """Runs an algorithm from the host, with callbacks, loggers and checkpoints around the very iterations that `algo.train`
    runs: the numbers are the same, bit for bit.

    During a run, and after it, a trainer knows where the run stands:

    - `state`: the training state, also after an exception. While the run goes on its buffers are reused; copy what you keep.
    - `num_seeds`: how many agents are trained at once; `None` for a single one, whose state isn't stacked.
    - `iteration` of `num_iterations` of this run, and `epoch` of `num_epochs`: how many evaluations ago it started.
    - `env_steps`: behind the state, over all environments (of one seed), those of earlier runs included; a Python integer.
    - `evaluations`: of this run, oldest first, `[episodes]` or `[seeds episodes]`.
    - `stopped`: which seeds are frozen, `[seeds]`; `None` for a single agent. `stop_reason`: why the run ends early, or `None`.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[AbstractLogger] = (),
        folder: str | Path | None = None,
    ):
        """**Arguments:**

        - `callbacks`: called in this order.
        - `loggers`: each gets everything.
        - `folder`: for the checkpoints of one run. They are written when it starts and ends, when it is interrupted or a
            callback fails, and in between as the callback `Checkpointing` says; without one, after each evaluation.
        """
        self.callbacks = list(callbacks)
        self.loggers = list(loggers)
        self.folder = None if folder is None else Path(folder)
        checkpointing = [x for x in self.callbacks if isinstance(x, Checkpointing)]
        if len(checkpointing) > 1 or (checkpointing and self.folder is None):
            raise ValueError(f"got {len(checkpointing)} Checkpointing and folder={folder}; pass at most one, and a folder with it")
        if self.folder is not None and not checkpointing:
            checkpointing = [Checkpointing()]
            self.callbacks += checkpointing
        self._checkpoints = None if self.folder is None else Checkpoints(self.folder, keep=checkpointing[0].keep)
        kinds = [type(x).__name__ for x in self.callbacks]
        self._names = [k if kinds.count(k) == 1 else f"{k}-{kinds[:i].count(k) + 1}" for i, k in enumerate(kinds)]

    # A run, from the outside in.

    def fit(
        self,
        algo: AbstractOnPolicy,
        rng: KeyLike | None = None,
        train_state: PPOState | None = None,
        skip_initial_evaluation: bool = False,
        resume: bool = False,
    ) -> tuple[PPOState, EvalMetrics]:
        """Trains as `algo.train` does with the same arguments; given `[seeds]` keys or a stacked state, as
        `eqx.filter_vmap(algo.train)` does. Then, float hyperparameters in `algo.hp` that have a leading axis too are swept
        along.

        **Arguments:**

        - `rng`: seeds the networks and the environments: one key, or `[seeds]` of them.
        - `train_state`: go on from this state, for `total_timesteps` more. It is copied, and stays usable.
        - `skip_initial_evaluation`: don't evaluate before the first iteration.
        - `resume`: go on with the run whose checkpoints are in `folder`, from the newest; the result is that of the undisturbed
            run. The arguments above are then the checkpoint's; only where there is none yet, the run starts from them.

        **Returns:** the final state, and all evaluations, `[evals episodes]`, or `[seeds evals episodes]`.

        **Raises:**

        - what a callback raises, after the other callbacks and the loggers were closed and a checkpoint was written; for a
            `FloatingPointError`, none is, so that the last good one stays the newest.
        - `Interrupted`, on Ctrl-C and SIGTERM, after the iterations under way and a checkpoint.
        - `FileExistsError` where `folder` holds a run and `resume` isn't set; `FileNotFoundError` where there is none to
            resume; `CheckpointMismatch` where it is of another algorithm or other hyperparameters; `CheckpointDamaged`.
        - `OSError` if the first checkpoint can't be written. If a later one can't, that is a warning, and the next one is
            tried; if the last one can't, `CheckpointNotWritten`, which holds the result.
        """
        resumed = self._begin(algo, rng, train_state, skip_initial_evaluation, resume)
        closing: list[Callable[[], Any]] = []
        with Interrupts() as self._interrupts:
            try:
                self._open(resumed, closing)
                self._call("on_fit_start")
                self._run()
                self._call("on_fit_end")
                self._log_row()
                self._leave_if_interrupted()
            except BaseException as e:
                self._rescue(e)
                raise
            finally:
                self._close(closing)
        metrics = stack(self.evaluations, self.num_seeds is not None)
        if self._unwritten is not None:
            raise CheckpointNotWritten(self._unwritten, (self.state, metrics)) from self._unwritten
        return self.state, metrics

    def _run(self) -> None:
        if not self._skip_initial_evaluation and not self.evaluations:
            self._evaluate()
        self._call("on_train_start")
        while not self._finished:
            self._train_epoch()
            if not self._finished:
                self._evaluate()
        self._call("on_train_end")

    def _train_epoch(self) -> None:
        end = int(np.cumsum(self._algo.chunks)[self.epoch])
        if self.iteration < end:
            self._call("on_train_epoch_start")
        while self.iteration < end and self.stop_reason is None:
            self._leave_if_interrupted()
            self._train(end)
        self._leave_if_interrupted()
        if self._is_heard("on_train_epoch_end") and self._ended_at != self.iteration:
            self._fetch()
            if self._sums:  # none where the run was stopped at once
                self._call("on_train_epoch_end", mean_metrics(self._sums))
        self._ended_at = self.iteration

    def _train(self, end: int) -> None:
        """Up to `end`, or a single iteration if a callback wants to see each."""
        algo, stacked = self._algo, self.num_seeds is not None
        stopped = self.stopped if self.stopped is not None and self.stopped.any() else None
        before = self.state if stopped is None else _copy(self.state)
        seen: tuple = ()
        if self._is_heard("on_train_batch_start") or self._is_heard("on_train_batch_end"):
            num_iterations = 1
            batch_idx = self.iteration - (end - int(algo.chunks[self.epoch]))
            # self.state stays what it was until the iteration is over, so that one that fails can be gone back to.
            collected, batch = programs.collect((algo, jnp.int32(batch_idx), stacked), self.state)
            self._call("on_train_batch_start", batch, batch_idx, state=collected)
            self.state, outputs = programs.learn((algo, jnp.int32(batch_idx), batch, stacked), collected)
            seen = (outputs, batch, batch_idx)
        else:
            num_iterations = end - self.iteration
            self.state, outputs = programs.iterate((algo, jnp.int32(num_iterations), stacked), self.state)
        if stopped is not None:
            self.state = programs.keep(jnp.asarray(stopped), before, self.state)
        jax.block_until_ready(eqx.filter(self.state, eqx.is_array))
        self._pending.append((num_iterations, stopped, outputs))
        self.iteration += num_iterations
        if seen:
            self._call("on_train_batch_end", *seen)

    def _evaluate(self) -> None:
        self._call("on_validation_epoch_start")
        evaluation = programs.evaluate((self._algo, self.num_seeds is not None), self.state)
        if self._live_loggers or self._is_heard("on_validation_epoch_end"):
            evaluation = self._fetch(evaluation)
        if self._live_loggers:
            self.log((summarize_training(mean_metrics(self._sums)) if self._sums else {}) | summarize_evaluation(evaluation))
        self._pending, self._sums = [], {}
        self.evaluations.append(jax.block_until_ready(evaluation))
        self._evaluated_at = self.iteration
        self._call("on_validation_epoch_end", evaluation)
        self._log_row()
        if self._checkpoints is not None and (self._wanted is not None or self._finished):
            self._write(**(self._wanted or {}))
        self._wanted = None
        self._leave_if_interrupted()

    # What callbacks may ask for.

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds numbers, or `[seeds]` arrays of them, to what the loggers get next: after the evaluation that closes the
        epoch."""
        if self._live_loggers:
            self._row |= {k: plain(x) for k, x in values.items()}

    def request_stop(self, reason: str, members: Bool[np.ndarray | Array, " seeds"] | None = None) -> None:
        """Ends the run after the iterations under way and an evaluation. With `members`, only these seeds: their state no
        longer changes, and the run ends when all are stopped."""
        if members is not None:
            if self.stopped is None:
                raise ValueError("members is for runs over several seeds; this run is of one agent, so leave it out")
            self.stopped = self.stopped | np.asarray(members)
        if members is None or self.stopped.all():  # pyright: ignore[reportOptionalMemberAccess]
            self.stop_reason = self.stop_reason or reason

    def request_checkpoint(self, score: float | None = None) -> None:
        """Writes a checkpoint when all callbacks have seen the evaluation under way, and also keeps it as the best if `score`
        is higher than any before."""
        if self._checkpoints is None:
            raise ValueError("there is no folder to write a checkpoint to; pass Trainer(folder=...)")
        scores = [x for x in (score, (self._wanted or {}).get("score")) if x is not None]
        self._wanted = {"score": max(scores, default=None)}

    @property
    def num_iterations(self) -> int:
        return int(self._algo.chunks.sum())

    @property
    def num_epochs(self) -> int:
        return len(self._algo.chunks)

    @property
    def epoch(self) -> int:
        return max(0, len(self.evaluations) - (not self._skip_initial_evaluation))

    @property
    def env_steps(self) -> int:
        return self._first_env_step + self.iteration * self._algo.iteration_size

    @property
    def _finished(self) -> bool:
        ends_here = self.stop_reason is not None or self.iteration == self.num_iterations
        return ends_here and self._evaluated_at == self.iteration

    # How a run begins, and how it ends.

    def _begin(
        self,
        algo: AbstractOnPolicy,
        rng: KeyLike | None,
        train_state: PPOState | None,
        skip_initial_evaluation: bool,
        resume: bool,
    ) -> bool:
        """Everything that makes up where a run stands. Whether it was resumed."""
        self._algo = algo
        self._config = hyperparameters(algo)
        self.iteration, self.stop_reason = 0, None
        self._ended_at, self._evaluated_at = -1, -1  # iterations after which an epoch ended, and the state was evaluated
        self.evaluations: list[EvalMetrics] = []
        self._pending: list[tuple[int, Bool[np.ndarray, " seeds"] | None, TrainStepMetrics]] = []  # not yet fetched
        self._sums: Sums = {}
        self._row: dict[str, Any] = {}
        self._last_row = -1
        self._room: EvalMetrics | None = None  # `[evals ...]`, in which the first `_num_stored` evaluations are
        self._num_stored = 0
        self._live_loggers: list[AbstractLogger] = []
        self._failed_loggers: set[int] = set()
        self._callback_states: dict[str, Any] = {}
        self._wanted: dict[str, float | None] | None = None
        self._unwritten: OSError | None = None
        self._safe = False  # is there a checkpoint of this run?
        if resume and self.folder is None:
            raise ValueError("resume=True needs a folder to resume from; pass Trainer(folder=...)")
        there = self._checkpoints is not None and bool(self._checkpoints.files())
        if there and not resume:
            raise FileExistsError(
                errno.EEXIST,
                "this folder holds a run; pass fit(..., resume=True) to go on with it, or another folder",
                str(self.folder),
            )
        if there:
            self._restore()
            return True
        if resume and rng is None and train_state is None:
            raise FileNotFoundError(errno.ENOENT, "there is no run to resume in this folder; pass rng to start one", str(self.folder))
        if (rng is None) == (train_state is None):
            raise ValueError("pass either rng, to start anew, or train_state, to go on from it")
        if train_state is None:
            keys = as_key(rng)  # pyright: ignore[reportArgumentType]
            self.num_seeds = _num_seeds(keys, algo)
            self.state = programs.init(algo, keys)
        else:
            self.num_seeds = _num_seeds(train_state.rng, algo)
            self.state = train_state
        self.state = _copy(self.state)  # its buffers are donated
        self.stopped = None if self.num_seeds is None else np.zeros(self.num_seeds, bool)
        self._skip_initial_evaluation = skip_initial_evaluation
        self._first_env_step = algo.env_steps(self.state)
        return False

    def _open(self, resumed: bool, closing: list[Callable[[], Any]]) -> None:
        for name, callback in zip(self._names, self.callbacks, strict=True):
            if overrides(callback, "setup"):
                callback.setup(self, self._algo, self.state)
            closing.append(lambda callback=callback: callback.teardown(self, self._algo, self.state))
            if name in self._callback_states:
                callback.state = self._callback_states.pop(name)
        if self._callback_states:
            lost = ", ".join(self._callback_states)
            warnings.warn(f"the checkpoint holds the state of callbacks that aren't there now: {lost}", stacklevel=3)
        for logger in self.loggers:
            if self._guarded(logger, "start", self._config, self._last_row if resumed else None):
                self._live_loggers.append(logger)
                closing.append(lambda logger=logger: self._guarded(logger, "close"))
        if self._checkpoints is not None and not resumed:
            self._write()
        self._safe = self._checkpoints is not None

    def _close(self, closing: list[Callable[[], Any]]) -> None:
        """All of them, whatever some of them raise."""
        under_way, failed = sys.exception(), None
        for close in closing:
            try:
                close()
            except Exception as e:
                failed = failed or e
        if failed is not None and under_way is None:
            raise failed
        if failed is not None:
            warnings.warn(f"a callback's teardown failed as well: {failed!r}", stacklevel=3)

    def _leave_if_interrupted(self) -> None:
        signum = self._interrupts.received
        if signum is None:
            return
        self._log_row()
        path = self._write() if self._checkpoints is not None else None
        if path is not None:
            how = f"Go on with Trainer(folder={str(self.folder)!r}, ...).fit(algo, resume=True)."
        else:
            why = "there is no folder" if self.folder is None else repr(self._unwritten)
            how = f"No checkpoint was written ({why}); the training state is in this exception's `state`, and in the trainer's."
        message = f"stopped by {signum.name} {self._where()}. {how}"
        raise Interrupted(message, signum=signum, state=self.state, checkpoint=path)

    def _rescue(self, e: BaseException) -> None:
        """What can be saved after an exception."""
        if isinstance(e, Interrupted) or not isinstance(e, Exception) or not self._safe:
            return
        gone = any(x.is_deleted() for x in jax.tree.leaves(eqx.filter(self.state, eqx.is_array)))
        if gone or isinstance(e, FloatingPointError):
            e.add_note(f"{self._where()}; the newest checkpoint in {self.folder} is of before")
            return
        self._log_row()
        try:
            path = self._write()
        except Exception as unwritten:  # the state itself may be what is broken
            e.add_note(f"{self._where()}; no checkpoint could be written: {unwritten!r}")
        else:
            e.add_note(f"{self._where()}; written to {path}, so fit(algo, resume=True) goes on from here")

    def _where(self) -> str:
        return f"after iteration {self.iteration} of {self.num_iterations}, at {self.env_steps} env steps"

    # Callbacks and loggers.

    def _is_heard(self, hook: str) -> bool:
        return any(overrides(callback, hook) for callback in self.callbacks)

    def _call(self, hook: str, *args: Any, state: PPOState | None = None) -> None:
        for callback in self.callbacks:
            if overrides(callback, hook):
                getattr(callback, hook)(self, self._algo, self.state if state is None else state, *args)

    def _fetch(self, more: PyTree = None) -> PyTree:
        """Brings the metrics of the epoch to the host, and `more`, in one transfer; what seeds did after they were stopped
        doesn't count."""
        pending, more = jax.device_get((self._pending, more))
        for num_iterations, stopped, metrics in pending:
            if stopped is not None:
                metrics = jax.tree.map(lambda x: np.where(stopped, np.float32(np.nan), x), metrics)
            self._sums = add_metrics(self._sums, num_iterations, metrics)
        self._pending = []
        return more

    def _log_row(self) -> None:
        if self._row:
            for logger in self._live_loggers:
                self._guarded(logger, "log", self.env_steps, self._row)
            self._row, self._last_row = {}, self.env_steps

    def _guarded(self, logger: AbstractLogger, method: str, *args: Any) -> bool:
        """Calls a logger, whose failure is no reason to stop, except one to make its file before there is anything to lose."""
        try:
            getattr(logger, method)(*args)
        except Exception as e:
            if method == "start" and isinstance(e, OSError) and e.filename is not None:
                raise
            if id(logger) not in self._failed_loggers:
                self._failed_loggers.add(id(logger))
                name = type(logger).__name__
                lost = f"Training goes on; what {name} misses is lost, and it won't be mentioned again"
                warnings.warn(f"{name}.{method} failed {self._where()}: {e!r}. {lost}", stacklevel=3)
            return False
        return True

    # Checkpoints.

    def _write(self, score: float | None = None) -> Path | None:
        """The whole of where the run stands, as one file; `None`, and a warning, if it couldn't be written."""
        self._fetch()
        if self._room is None:
            self._room = room_for_evaluations(self._algo, self.state, self._skip_initial_evaluation)
        new = slice(self._num_stored, len(self.evaluations))
        self.evaluations[new] = jax.device_get(self.evaluations[new])
        for i, evaluation in enumerate(self.evaluations[new], self._num_stored):
            jax.tree.map(lambda room, x, i=i: np.copyto(room[i], x), self._room, evaluation)
        self._num_stored = len(self.evaluations)
        states = {name: callback.state for name, callback in zip(self._names, self.callbacks, strict=True)}
        metadata = {
            "hyperparameters": self._config,
            "run": {
                "num_seeds": self.num_seeds,
                "key_impl": str(jax.random.key_impl(self.state.rng)),
                "skip_initial_evaluation": self._skip_initial_evaluation,
                "first_env_step": self._first_env_step,
                "num_evaluations": len(self.evaluations),
                "stopped": None if self.stopped is None else self.stopped.tolist(),
                "stop_reason": self.stop_reason,
                "ended_at": self._ended_at,
                "evaluated_at": self._evaluated_at,
                "last_row": self._last_row,
                "sums": jax.tree.map(lambda x: x.tolist(), self._sums),
            },
            "callbacks": {name: encode_state(x, name) for name, x in states.items() if x is not None},
        }
        try:
            tree = {"train_state": self.state, "evaluations": self._room}
            path = self._checkpoints.save(tree, iteration=self.iteration, metadata=metadata, score=score)  # pyright: ignore
        except OSError as e:
            if not self._safe:
                raise
            self._unwritten = e
            warnings.warn(f"{e}. Training goes on, and will try again at the next checkpoint", stacklevel=3)
            return None
        self._unwritten = None
        return path

    def _restore(self) -> None:
        metadata, self.state, self.evaluations = read_run(self.folder, self._algo)  # pyright: ignore[reportArgumentType]
        run = metadata["run"]
        self.iteration = metadata["iteration"]
        self.num_seeds, self.stopped = run["num_seeds"], None if run["stopped"] is None else np.array(run["stopped"], bool)
        self.stop_reason, self._last_row = run["stop_reason"], run["last_row"]
        self._ended_at, self._evaluated_at = run["ended_at"], run["evaluated_at"]
        self._skip_initial_evaluation, self._first_env_step = run["skip_initial_evaluation"], run["first_env_step"]
        self._sums = jax.tree.map(lambda x: np.asarray(x, np.float64), run["sums"], is_leaf=lambda x: isinstance(x, list))
        self._callback_states = {name: decode_state(x) for name, x in metadata["callbacks"].items()}


def _num_seeds(keys: Key[Array, "..."], algo: AbstractOnPolicy) -> int | None:
    swept = {x.shape for x in jax.tree.leaves(getattr(algo, "hp", None)) if eqx.is_array(x) and x.ndim}
    if keys.ndim > 1 or (swept and swept != {keys.shape}):
        raise ValueError(
            f"got keys of shape {list(keys.shape)} and hyperparameters of shape {[list(x) for x in swept] or '[]'}; pass one "
            "key, or [seeds] of them, and hyperparameters that are scalars, or [seeds] as well"
        )
    return keys.shape[0] if keys.ndim else None


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array_like(x) and hasattr(x, "dtype") else x, tree)
