"""What a callback is. One that keeps the mean return of every evaluation, survives a resume, and stops the run when it is
content, in full:

    class StopAt(Callback):
        def __init__(self, mean_return):
            self.mean_return = mean_return
            self.state = []  # goes into the checkpoint

        def on_validation_epoch_end(self, trainer, algo, state, metrics):
            self.state.append(float(metrics.cumulative_reward.mean()))
            trainer.log({"stop_at/missing": self.mean_return - self.state[-1]})
            if self.state[-1] >= self.mean_return:
                trainer.request_stop(f"the mean return is {self.state[-1]}")

    Trainer(callbacks=[StopAt(450.0)]).fit(ppo, jax.random.key(0))

A run calls the hooks in this order:

    setup
    on_fit_start
        on_validation_epoch_start, on_validation_epoch_end      of the policy before training, unless that is skipped
        on_train_start
            on_train_epoch_start                                an epoch is what lies between two evaluations
                on_train_batch_start, on_train_batch_end        a batch is one iteration: a rollout, and learning from it
            on_train_epoch_end
            on_validation_epoch_start, on_validation_epoch_end
        on_train_end
    on_fit_end
    teardown                                                    also when the run was interrupted or failed
"""

import abc
import base64
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from eqxrl._structs import EvalMetrics, TrainStepMetrics, TrajectoryWithLastObs
from eqxrl.algorithms import PPOState

if TYPE_CHECKING:
    import eqxrl.training._trainer


class Callback(abc.ABC):
    """Ordinary Python that the `Trainer` calls between compiled chunks of iterations. Subclass it and override the hooks you
    need.

    Every hook gets the trainer (where the run stands, `log`, `request_stop`, `request_checkpoint`), the algorithm and the
    training state; all of it stacked, `[seeds ...]`, where several seeds are trained at once. The state's buffers are reused by
    the next iteration: what is to be kept beyond the hook has to be copied.

    A hook that isn't overridden costs nothing. `on_train_epoch_end` and `on_validation_epoch_end` cost one small transfer,
    that of the metrics; `on_train_batch_start` and `on_train_batch_end` turn the run into single iterations, of which each
    is two compiled programs. None of them changes the numbers.
    """

    state: Any = None
    """What the trainer puts into its checkpoints, under the callback's class name, and gives back on a resume, after `setup`:
    any nesting of dicts, lists, numbers, strings, `None` and (small) arrays, which come back as NumPy's. Assign to it, or
    override it with a property."""

    def setup(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """First of all; before anything is compiled but the initial state."""

    def on_fit_start(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """All callbacks are set up and have their state; the loggers are open."""

    def on_fit_end(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """The run is over, and wasn't interrupted."""

    def on_train_start(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """Before the first iteration."""

    def on_train_end(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """After the last evaluation."""

    def on_train_epoch_start(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """Before the iterations that lead to the next evaluation."""

    def on_train_epoch_end(
        self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState, outputs: TrainStepMetrics
    ) -> None:
        """After these iterations, before the evaluation. `outputs` are means over them, as NumPy arrays; NaN for seeds that
        were stopped."""

    def on_train_batch_start(
        self,
        trainer: "eqxrl.training._trainer.Trainer",
        algo: Any,
        state: PPOState,
        batch: TrajectoryWithLastObs,
        batch_idx: int,
    ) -> None:
        """A rollout was collected, and is about to be learned from; `batch_idx` counts from 0 in each epoch. `state` is of after
        the rollout, `trainer.state` still of before."""

    def on_train_batch_end(
        self,
        trainer: "eqxrl.training._trainer.Trainer",
        algo: Any,
        state: PPOState,
        outputs: TrainStepMetrics,
        batch: TrajectoryWithLastObs,
        batch_idx: int,
    ) -> None:
        """The rollout was learned from. `outputs` are still on the device."""

    def on_validation_epoch_start(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """Before an evaluation."""

    def on_validation_epoch_end(
        self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState, metrics: EvalMetrics
    ) -> None:
        """After an evaluation; `metrics` are NumPy arrays, `[episodes]`, or `[seeds episodes]`."""

    def teardown(self, trainer: "eqxrl.training._trainer.Trainer", algo: Any, state: PPOState) -> None:
        """Last of all, however the run ended; undo `setup`. After a failure inside the compiled program the state may be
        gone."""


_ARRAY = "__array__"


def overrides(callback: Callback, hook: str) -> bool:
    """Does the callback do anything in this hook?"""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def encode_state(x: Any, name: str) -> Any:
    """A callback's state as JSON."""
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        x = np.asarray(x, order="C")
        if x.dtype.kind in "OV":
            raise TypeError(f"the state of callback {name} holds an array of {x.dtype}; only numbers and bools can be saved")
        return {_ARRAY: [x.dtype.name, list(x.shape), base64.b64encode(x.tobytes()).decode()]}
    if isinstance(x, dict) and all(isinstance(k, str) for k in x) and _ARRAY not in x:
        return {k: encode_state(v, name) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [encode_state(v, name) for v in x]
    if x is None or isinstance(x, bool | int | float | str):
        return x
    raise TypeError(
        f"the state of callback {name} holds {type(x).__name__}; pass dicts with string keys, lists, numbers, strings, None "
        "and arrays of numbers"
    )


def decode_state(x: Any) -> Any:
    """What `encode_state` was given; arrays as NumPy's, tuples as lists.

    **Raises:** `ValueError` or `TypeError` for anything that it can't have returned.
    """
    if isinstance(x, list):
        return [decode_state(v) for v in x]
    if not isinstance(x, dict):
        return x
    if _ARRAY not in x:
        return {k: decode_state(v) for k, v in x.items()}
    dtype, shape, data = x[_ARRAY]
    return np.frombuffer(base64.b64decode(data, validate=True), np.dtype(dtype)).reshape(shape).copy()
