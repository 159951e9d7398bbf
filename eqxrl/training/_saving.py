"""A run's checkpoints, written and read."""

import errno
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from eqxrl._structs import EvalMetrics
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.training import _programs as programs
from eqxrl.training._callback import decode_state
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._files import CheckpointDamaged, CheckpointMismatch, load, read_metadata
from eqxrl.training._interrupts import Interrupted
from eqxrl.training._listeners import Listeners
from eqxrl.training._metrics import flat, hyperparameters
from eqxrl.training._run_state import RunState

_TOTAL = "hp/total_timesteps"


class Saver:
    """Writes where the run of a trainer stands to its folder, if it has one."""

    def __init__(self, trainer: Any, listeners: Listeners, hyperparameters: dict[str, Any], keep: int):
        self._trainer, self._listeners, self._hyperparameters = trainer, listeners, hyperparameters
        self._checkpoints = None if trainer.folder is None else Checkpoints(trainer.folder, keep=keep)
        self._wanted: dict[str, float | None] | None = None
        self.safe = False
        """Is there a checkpoint of the run?"""
        self.unwritten: OSError | None = None
        """Why the last checkpoint couldn't be written."""

    def request(self, score: float | None) -> None:
        if self._checkpoints is None:
            raise ValueError("there is no folder to write a checkpoint to; pass Trainer(folder=...)")
        scores = [x for x in (score, (self._wanted or {}).get("score")) if x is not None]
        self._wanted = {"score": max(scores, default=None)}

    def write_if_due(self, finished: bool) -> None:
        if self._wanted is not None or finished:
            self.write(**(self._wanted or {}))
        self._wanted = None

    def write(self, score: float | None = None) -> Path | None:
        """The checkpoint's path; `None` where there is no folder, and, after a warning, where it couldn't be written."""
        if self._checkpoints is None:
            return None
        tree, run = self._trainer.run.stored()
        metadata = {"hyperparameters": self._hyperparameters, "run": run, "callbacks": self._listeners.states()}
        try:
            path = self._checkpoints.save(tree, iteration=self._trainer.iteration, metadata=metadata, score=score)
        except OSError as e:
            if not self.safe:
                raise
            self.unwritten = e
            warnings.warn(f"{e}. Training goes on, and will try again at the next checkpoint", stacklevel=3)
            return None
        self.unwritten, self.safe = None, True
        return path

    def rescue(self, e: BaseException) -> None:
        """Saves what can be saved after an exception."""
        if isinstance(e, Interrupted) or not isinstance(e, Exception) or not self.safe:
            return
        where = self._trainer.run.where()
        gone = any(x.is_deleted() for x in jax.tree.leaves(eqx.filter(self._trainer.state, eqx.is_array)))
        if gone or isinstance(e, FloatingPointError):
            e.add_note(f"{where}; the newest checkpoint in {self._trainer.folder} is of before")
            return
        self._listeners.send_row()
        try:
            path = self.write()
        except Exception as unwritten:  # the state itself may be what is broken
            e.add_note(f"{where}; no checkpoint could be written: {unwritten!r}")
        else:
            e.add_note(f"{where}; written to {path}, so fit(algo, resume=True) goes on from here")


def load_checkpoint(
    folder: str | Path, algo: AbstractAlgorithm, *, best: bool = False, axes: PyTree = None
) -> tuple[Any, EvalMetrics]:
    """The training state in the newest checkpoint of a run, or in the best one, and the evaluations up to then, shaped as `fit`
    returns them.

    **Arguments:** `folder` as it was given to `Trainer`; the algorithm of the run, and its `axes` if it was a sweep.

    **Raises:** `FileNotFoundError`, `CheckpointMismatch`, `CheckpointDamaged`.
    """
    return read_run(Path(folder), algo, axes, best)[0].result()


def read_run(
    folder: Path, algo: AbstractAlgorithm, axes: PyTree, best: bool = False
) -> tuple[RunState, PyTree, dict[str, Any], bool]:
    """Where the run stood in its newest checkpoint that is whole, or in the best one; the algorithm's axes; the states of the
    callbacks; and whether the algorithm has a larger `total_timesteps` than the run, and is otherwise the same."""
    damage: list[str] = []
    for path in [folder / "best.eqx"] if best else [path for _, path in Checkpoints(folder).files()]:
        try:
            metadata = read_metadata(path)
            like, checked, extended = _expected(folder, metadata, algo, axes)
            run = RunState.of(load(path, like), metadata["run"], programs.member(algo, checked, 0))
        except FileNotFoundError:  # a running trainer has just deleted it
            continue
        except CheckpointDamaged as e:
            damage.append(str(e))
            continue
        for why in damage:
            warnings.warn(f"{why} Fell back to {path.name}.", stacklevel=3)
        return run, checked, {k: decode_state(x) for k, x in metadata["callbacks"].items()}, extended
    if damage:
        raise CheckpointDamaged(f"no checkpoint in {folder} can be read:\n" + "\n".join(damage))
    raise FileNotFoundError(errno.ENOENT, f"there is no {'best ' if best else ''}checkpoint in this folder", str(folder))


def _expected(folder: Path, metadata: dict[str, Any], algo: AbstractAlgorithm, axes: PyTree) -> tuple[PyTree, PyTree, bool]:
    """What the checkpoint with this metadata must hold, the algorithm's axes, and whether it extends the run."""
    try:
        run, stored = metadata["run"], flat(metadata["hyperparameters"])
        keys, num_evaluations = jax.random.key(0, impl=run["key_impl"]), len(run["evaluated_at"])
        keys = keys if run["num_seeds"] is None else jax.random.split(keys, run["num_seeds"])
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointMismatch(f"the checkpoints in {folder} weren't written by a Trainer; read them with eqxrl.load") from e
    axes = programs.check_axes(algo, axes, keys)
    present = flat(hyperparameters(algo, None if axes is False else axes))
    changed = {k for k in {*stored, *present} if stored.get(k) != present.get(k)}
    extended = changed == {_TOTAL} and present[_TOTAL] > stored[_TOTAL]
    if changed and not extended:
        lines = [f"\n  {k}: the run has {stored.get(k)}, the algorithm {present.get(k)}" for k in sorted(changed)]
        raise CheckpointMismatch(
            f"the run in {folder} isn't one of this algorithm:{''.join(lines)}\nPass the algorithm that it was started with; only "
            "total_timesteps may be larger. To go on with other hyperparameters, pass the state that load_checkpoint returns as "
            "train_state, in a new folder"
        )
    state = eqx.filter_eval_shape(programs.init, algo, axes, keys)
    one = eqx.filter_eval_shape(programs.evaluate, algo, axes, state)
    evaluations = jax.tree.map(lambda x: np.zeros((num_evaluations, *x.shape), x.dtype), one) if num_evaluations else None
    return {"train_state": state, "evaluations": evaluations}, axes, extended
