import abc
import base64
import difflib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from eqxrl._structs import EvalMetrics, TrainStepMetrics

if TYPE_CHECKING:
    from eqxrl.training._trainer import Trainer
else:
    Trainer = Any  # which would be a circular import


class Callback(abc.ABC):
    """Ordinary Python that the `Trainer` calls between compiled chunks of iterations. Subclass it and override the hooks you
    need. One that keeps the mean return of every evaluation, survives a resume, and stops the run at a given return, in full:

        class StopAt(Callback):
            def __init__(self, mean_return):
                self.mean_return = mean_return
                self.state = []  # goes into the checkpoint

            def on_validation_epoch_end(self, trainer, algo, state, metrics):
                self.state.append(float(metrics.cumulative_reward.mean()))
                trainer.log({"stop_at/missing": self.mean_return - self.state[-1]})
                if self.state[-1] >= self.mean_return:
                    trainer.request_stop(f"the mean return is {self.state[-1]}")

        Trainer(callbacks=[StopAt(450.0)]).fit(algo, 0)

    A run calls the hooks in this order:

        setup
        on_fit_start
            on_validation_epoch_start, on_validation_epoch_end      of the policy before training, unless that is skipped
            on_train_start
                on_train_epoch_start                                an epoch is what lies between two evaluations
                    on_train_batch_start, on_train_batch_end        a batch is one iteration: collect, then learn
                on_train_epoch_end
                on_validation_epoch_start, on_validation_epoch_end
            on_train_end
        on_fit_end
        teardown                                                    also when the run was interrupted or failed

    Every hook gets the trainer (where the run stands, `log`, `request_stop`, `request_checkpoint`), the algorithm and the
    training state; both stacked, `[seeds ...]`, where several seeds are trained at once. Of a training state you may assume
    `rng`, `num_iterations` and `num_updates`; the rest is the algorithm's own. Its buffers are reused by the next iteration, so
    copy what you keep beyond the hook.

    A hook that isn't overridden costs nothing. `on_train_epoch_end` and `on_validation_epoch_end` cost one small transfer,
    that of the metrics; `on_train_batch_start` and `on_train_batch_end` turn the run into single iterations, of which each
    is two compiled programs. None of them changes the numbers.
    """

    state: Any = None
    """What the trainer puts into its checkpoints, under the callback's class name, and gives back on a resume, after `setup`:
    any nesting of dicts, lists, numbers, strings, `None` and (small) arrays, which come back as NumPy's. Assign to it, or
    override it with a property."""

    def setup(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """First of all; before anything is compiled but the initial state."""

    def on_fit_start(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """All callbacks are set up and have their state; the loggers are open."""

    def on_fit_end(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """The run is over, and wasn't interrupted."""

    def on_train_start(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """Before the first iteration."""

    def on_train_end(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """After the last evaluation."""

    def on_train_epoch_start(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """Before the iterations that lead to the next evaluation."""

    def on_train_epoch_end(self, trainer: Trainer, algo: Any, state: Any, outputs: TrainStepMetrics) -> None:
        """After these iterations, before the evaluation. `outputs` are NumPy arrays: means over the iterations, and sums over
        the episodes that ended in them; NaN for seeds that were stopped."""

    def on_train_batch_start(self, trainer: Trainer, algo: Any, state: Any, batch: Any, batch_idx: int) -> None:
        """`algo.get_batch` returned `batch`, and it is about to be learned from; `batch_idx` counts from 0 in each epoch. `state`
        is the state after `get_batch`, `trainer.state` still the one before."""

    def on_train_batch_end(self, trainer: Trainer, algo: Any, state: Any, outputs: TrainStepMetrics, batch: Any, batch_idx: int) -> None:
        """The batch was learned from. `outputs` are still on the device."""

    def on_validation_epoch_start(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """Before an evaluation."""

    def on_validation_epoch_end(self, trainer: Trainer, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        """After an evaluation; `metrics` are NumPy arrays, `[episodes]`, or `[seeds episodes]`."""

    def teardown(self, trainer: Trainer, algo: Any, state: Any) -> None:
        """Last of all, however the run ended; undo `setup`. After a failure inside the compiled program the state may be
        gone."""


HOOKS = tuple(name for name, x in vars(Callback).items() if callable(x) and not name.startswith("_"))

_ARRAY = "__array__"
_DEEPEST = 100


def overrides(callback: Callback, hook: str) -> bool:
    """Does the callback do anything in this hook?"""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def check_hooks(callback: Callback) -> None:
    """**Raises:** `TypeError` for a method that was surely meant to be a hook, and isn't one."""
    for name in dir(callback):
        near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.7 if name.startswith("on_") else 0.9)
        is_meant = name.startswith("on_") or (near and not name.startswith("_"))
        if name not in HOOKS and is_meant and callable(getattr(callback, name)):
            probably = f"did you mean {near[0]}? " if near else ""
            raise TypeError(f"{type(callback).__name__}.{name} would never be called; {probably}The hooks are {', '.join(HOOKS)}")


def encode_state(x: Any, name: str, depth: int = 0) -> Any:
    """A callback's state as JSON that `decode_state` can read."""
    if depth > _DEEPEST:
        raise TypeError(f"the state of callback {name} is nested more than {_DEEPEST} deep, or holds itself; pass something flatter")
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        if getattr(x.dtype, "kind", "keys") not in "biufc":
            raise TypeError(f"the state of callback {name} holds an array of {x.dtype}; only numbers and bools can be saved")
        x = np.asarray(x, x.dtype.newbyteorder("="), order="C")
        return {_ARRAY: [x.dtype.name, list(x.shape), base64.b64encode(x.tobytes()).decode()]}
    if isinstance(x, dict) and all(isinstance(k, str) for k in x) and _ARRAY not in x:
        return {k: encode_state(v, name, depth + 1) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [encode_state(v, name, depth + 1) for v in x]
    if x is None or isinstance(x, bool | int | float | str):
        return x
    fit = "dicts with string keys, lists, numbers, strings, None and arrays of numbers"
    raise TypeError(f"the state of callback {name} holds {type(x).__name__}; pass {fit}")


def decode_state(x: Any) -> Any:
    """What `encode_state` was given; arrays as NumPy's, tuples as lists."""
    if isinstance(x, list):
        return [decode_state(v) for v in x]
    if not isinstance(x, dict):
        return x
    if _ARRAY not in x:
        return {k: decode_state(v) for k, v in x.items()}
    dtype, shape, data = x[_ARRAY]
    return np.frombuffer(base64.b64decode(data, validate=True), np.dtype(dtype)).reshape(shape).copy()
