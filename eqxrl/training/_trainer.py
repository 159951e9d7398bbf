"""The host's loop over compiled chunks of an algorithm's iterations."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from eqxrl._structs import EvalMetrics
from eqxrl._typing import KeyLike
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.training import _programs as programs
from eqxrl.training._builtin import Checkpointing, NanGuard
from eqxrl.training._callback import Callback
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._interrupts import Interrupted, Interrupts
from eqxrl.training._listeners import Listeners, check_listeners
from eqxrl.training._lock import owned
from eqxrl.training._loggers import AbstractLogger
from eqxrl.training._metrics import hyperparameters, mean_metrics, summarize_evaluation, summarize_training
from eqxrl.training._run_state import RunState, copy, start
from eqxrl.training._saving import Saving


class CheckpointNotWritten(OSError):
    """A run ended well, but its last checkpoint couldn't be written. Nothing is lost: `result` is what `fit` would have returned."""

    def __init__(self, error: OSError, result: tuple[Any, EvalMetrics]):
        super().__init__(error.errno, f"{error.strerror}. The run itself ended well; `result` of this error holds it", error.filename)
        self.result = result


def _of_run(name: str) -> Any:
    return property(lambda self: getattr(self.run, name), lambda self, x: setattr(self.run, name, x))


class Trainer:
    """Runs an algorithm from the host, with callbacks, loggers and checkpoints around the very iterations that `algo.train`
    runs: the numbers are the same, bit for bit.

    Several seeds are spread over the devices (CPU cores are devices after `set_cpu_flags`): over as many as divide their number, over all
    if it is a multiple. On as many devices a run is the same bit for bit; on others, as for another number of seeds in `vmap`, it may be
    rounded otherwise; one key in an axis of its own gives what a single agent does. Under `jax.default_device` one device is used.

    During a run, and after it, a trainer knows where the run stands:

    - `state`: the training state, also after an exception. While the run goes on its buffers are reused; copy what you keep.
    - `num_seeds`: how many agents are trained at once; `None` for a single one, whose state isn't stacked.
    - `iteration` of `num_iterations` of this run, and `epoch` of `num_epochs`: how many evaluations ago it started.
    - `env_steps`: behind the state, over all environments (of one seed), those of earlier runs included; a Python integer.
    - `evaluations`: of this run, oldest first, `[episodes]` or `[seeds episodes]`.
    - `stopped`: which seeds are frozen, `[seeds]`; `None` for a single agent. `stop_reason`: why the run ends early, or `None`.
    - `axes`: which leaves of the algorithm are swept over the seeds, one entry for each; `False` for a single agent.
    """

    run: RunState
    state, num_seeds, evaluations, env_steps = map(_of_run, ("state", "num_seeds", "evaluations", "env_steps"))
    iteration, num_iterations, epoch, num_epochs = map(_of_run, ("iteration", "num_iterations", "epoch", "num_epochs"))
    stopped, stop_reason = map(_of_run, ("stopped", "stop_reason"))

    def __init__(self, callbacks: Iterable[Callback] = (), loggers: Iterable[AbstractLogger] = (), folder: str | Path | None = None):
        """**Arguments:**

        - `callbacks`: called in this order.
        - `loggers`: each gets everything.
        - `folder`: for the checkpoints of one run. They are written when it starts and ends, when it is interrupted or a
            callback fails, and in between as the callback `Checkpointing` says; without one, after each evaluation.
        """
        self.callbacks: list[Callback] = check_listeners("callbacks", callbacks, Callback)
        self.loggers: list[AbstractLogger] = check_listeners("loggers", loggers, AbstractLogger)
        self.folder = None if folder is None else Path(folder)
        checkpointing = [x for x in self.callbacks if isinstance(x, Checkpointing)]
        if len(checkpointing) > (self.folder is not None):
            raise ValueError(f"got {len(checkpointing)} Checkpointing and folder={folder}; pass at most one, and a folder with it")
        if self.folder is not None and not checkpointing:
            checkpointing = [Checkpointing()]
            self.callbacks += checkpointing
        self._checkpoints = None if self.folder is None else Checkpoints(self.folder, keep=checkpointing[0].keep)

    def fit(
        self, algo: AbstractAlgorithm, rng: KeyLike | None = None, train_state: Any = None, skip_initial_evaluation: bool = False,
        resume: bool = False, axes: PyTree = None,
    ) -> tuple[Any, EvalMetrics]:
        """Trains as `algo.train` does with the same arguments; given `[seeds]` keys or a stacked state, as
        `eqx.filter_vmap(algo.train)` does.

        **Arguments:**

        - `rng`: seeds the networks and the environments: a key or an int, or `[seeds]` keys.
        - `train_state`: go on from this state, for `total_timesteps` more; its own key counts, and `rng` isn't looked at. It is
            copied, and stays usable.
        - `skip_initial_evaluation`: don't evaluate before the first iteration.
        - `resume`: go on with the run whose checkpoints are in `folder`, from the newest; the result is that of the undisturbed
            run. The arguments above are then the checkpoint's; only where there is none yet, the run starts from them. The
            algorithm must be that of the run, but its `total_timesteps` may be larger: that extends the run, also one that has
            ended, and what depends on it, such as a DQN's exploration, follows the larger one. A run that was ended by
            `request_stop` only goes on if it is extended; otherwise it is returned as it is, with a warning.
        - `axes`: sweeps leaves of the algorithm over the seeds: a pytree like `algo`, or a prefix of one, that is 0 where a leaf has
            a leading `[seeds]` axis, and `None` elsewhere, as `in_axes` of `eqx.filter_vmap`; to be passed on a resume as well.

        **Returns:** the final state, and all evaluations, `[evals episodes]`, or `[seeds evals episodes]`.

        **Raises:**

        - `ValueError`, before anything compiles, where the training state of all seeds can't fit into the free memory.
        - what a callback raises, after the other callbacks and the loggers were closed and a checkpoint was written. None is of a
            state that isn't finite, which is a warning, or, with a `NanGuard`, an error.
        - `Interrupted`, on Ctrl-C and SIGTERM, after the iterations under way and a checkpoint.
        - `FileExistsError` where `folder` holds a run and `resume` isn't set; `FileNotFoundError` where there is none to
            resume; `CheckpointMismatch` where it is of another algorithm, environment or hyperparameters; `CheckpointDamaged`.
        - `BlockingIOError` while another process, or another trainer, writes to `folder`.
        - `OSError` if the first checkpoint can't be written. If a later one can't, that is a warning, and the next one is
            tried; if the last one can't, `CheckpointNotWritten`, which holds the result.
        """
        with owned(self.folder):
            return self._fit(algo, rng, train_state, skip_initial_evaluation, resume, axes)

    def _fit(
        self, algo: Any, rng: Any, train_state: Any = None, skip_initial_evaluation: bool = False, resume: bool = True, axes: PyTree = None
    ) -> tuple[Any, EvalMetrics]:
        """In a folder that is `owned`."""
        self.run, self.axes, states = start(self.folder, algo, rng, train_state, skip_initial_evaluation, resume, axes)
        config = hyperparameters(algo, None if self.axes is False else self.axes)
        self._listeners = Listeners(self, algo)
        self._algo, self.run.state = programs.spread(self.axes, algo, self.run.state)
        self._requested: list[float | None] = []  # the scores of the checkpoints that were asked for
        self._saving = Saving(self._checkpoints, self.run, config, self._listeners, resumed=states is not None)
        with Interrupts() as self._interrupts:
            try:
                self._listeners.open(config, states or {}, None if states is None else self.run.last_row)
                if states is None:
                    self._saving.write()
                self._listeners.call("on_fit_start")
                self._loop()
                self._listeners.call("on_fit_end")
                self._listeners.send_row()
                self._leave_if_interrupted()
            except BaseException as e:
                self._saving.rescue(e)
                raise
            finally:
                self._listeners.close()
        if (unwritten := self._saving.unwritten) is not None:
            raise CheckpointNotWritten(unwritten, self.run.result()) from unwritten
        return self.run.result()

    def _loop(self) -> None:
        if not self.run.skip_initial_evaluation and not self.evaluations:
            self._evaluate()
        self._listeners.call("on_train_start")
        while not self.run.finished:
            self._train_epoch()
            if not self.run.finished:
                self._evaluate()
        self._listeners.call("on_train_end")

    def _train_epoch(self) -> None:
        run, end = self.run, self.run.epoch_ends_at
        if run.iteration < end:
            self._listeners.call("on_train_epoch_start")
        while run.iteration < end and run.stop_reason is None:
            self._leave_if_interrupted()
            self._train(end)
        self._leave_if_interrupted()
        if self._listeners.hear("on_train_epoch_end") and run.epoch_ended_at != run.iteration:
            run.fetch()
            if run.sums:  # none where the run was stopped at once
                self._listeners.call("on_train_epoch_end", mean_metrics(run.sums))
        run.epoch_ended_at = run.iteration

    def _train(self, end: int) -> None:
        """Up to `end`, or a single iteration if a callback wants to see each."""
        run = self.run
        stopped = run.stopped if run.stopped is not None and run.stopped.any() else None
        before = run.state if stopped is None else copy(run.state)
        seen: tuple = ()
        if self._listeners.hear("on_train_batch_start", "on_train_batch_end"):
            num_iterations, batch_idx = 1, run.iteration - run.epoch_started_at
            kept = (self._algo, self.axes, jnp.asarray(np.int32(batch_idx)))
            # run.state stays what it was until the iteration is over, so that one that fails can be gone back to.
            collected, batch = programs.collect(kept, run.state)
            self._listeners.call("on_train_batch_start", batch, batch_idx, state=collected)
            run.state, outputs = programs.learn((kept, batch), collected)
            seen = (outputs, batch, batch_idx)
        else:
            num_iterations = end - run.iteration
            run.state, outputs = programs.iterate((self._algo, self.axes, jnp.asarray(np.int32(num_iterations))), run.state)
        if stopped is not None:
            run.state = programs.keep(jnp.asarray(stopped), before, run.state)
        jax.block_until_ready(eqx.filter(run.state, eqx.is_array))
        run.pending.append((num_iterations, stopped, outputs))
        run.iteration += num_iterations
        if seen:
            self._listeners.call("on_train_batch_end", *seen)

    def _evaluate(self) -> None:
        run = self.run
        self._listeners.call("on_validation_epoch_start")
        evaluation = programs.evaluate(self._algo, self.axes, run.state)
        if not any(isinstance(x, NanGuard) for x in self.callbacks):
            self._saving.warn_unless_finite(run.non_finite(evaluation))
        if self._listeners.loggers or self._listeners.hear("on_validation_epoch_end"):
            evaluation = run.fetch(evaluation)
        if self._listeners.loggers:
            self.log((summarize_training(mean_metrics(run.sums)) if run.sums else {}) | summarize_evaluation(evaluation))
        run.pending, run.sums = [], {}
        run.evaluations.append(jax.block_until_ready(evaluation))
        run.evaluated_at.append(run.iteration)
        self._listeners.call("on_validation_epoch_end", evaluation)
        self._listeners.send_row()
        if self._requested or run.finished:
            self._saving.write(max((x for x in self._requested if x is not None), default=None))
        self._requested = []
        self._leave_if_interrupted()

    def _leave_if_interrupted(self) -> None:
        if (signum := self._interrupts.received) is None:
            return
        self._listeners.send_row()
        path = self._saving.write()
        how = f"Go on with Trainer(folder={str(self.folder)!r}, ...).fit(algo, resume=True)."
        if path is None:
            how = f"No checkpoint was written ({self._saving.why_not()}); "
            how += "the training state is in this exception's `state`, and in the trainer's."
        raise Interrupted(f"stopped by {signum.name} {self.run.where()}. {how}", signum, self.state, checkpoint=path)

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds numbers, or `[seeds]` arrays of them, to what the loggers get after the evaluation that closes the epoch."""
        self._listeners.log(values)

    def request_stop(self, reason: str, members: Bool[np.ndarray | Array, " seeds"] | None = None) -> None:
        """Ends the run after the iterations under way and an evaluation. With `members`, only these seeds: their state no
        longer changes, and the run ends when all are stopped."""
        if members is not None:
            if self.stopped is None:
                raise ValueError("members is for runs over several seeds; this run is of one agent, so leave it out")
            self.stopped = self.stopped | np.asarray(members)
        if members is None or self.stopped.all():
            self.stop_reason = self.stop_reason or reason

    def request_checkpoint(self, score: float | None = None) -> None:
        """Writes a checkpoint when all callbacks have seen the evaluation under way, and also keeps it as the best if `score`
        is higher than any before."""
        if self._checkpoints is None:
            raise ValueError("there is no folder to write a checkpoint to; pass Trainer(folder=...)")
        self._requested.append(score)

    def member(self, i: int) -> tuple[Any, Any]:
        """The algorithm and the training state of one seed, not stacked: what `make_actor`, `visualize` and the like take."""
        one = self.state if self.num_seeds is None else jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, self.state)
        return programs.on_one_device((programs.member(self._algo, self.axes, i), one))
