"""When and what a run under way writes to its folder."""

import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._interrupts import Interrupted
from eqxrl.training._listeners import Listeners
from eqxrl.training._numerics import numerics
from eqxrl.training._run_state import RunState


class Saving:
    """The checkpoints of one run. None is written of a state that isn't finite, so that the last finite one stays."""

    def __init__(
        self, checkpoints: Checkpoints | None, run: RunState, hyperparameters: dict[str, Any], listeners: Listeners, resumed: bool
    ):
        self.checkpoints, self._run, self._hyperparameters, self._listeners = checkpoints, run, hyperparameters, listeners
        self.safe = resumed
        """Is there a checkpoint of the run?"""
        self.unwritten: OSError | None = None
        """Why the last one couldn't be written."""
        self._warned = False

    def write(self, score: float | None = None) -> Path | None:
        """Where the run stands, as a checkpoint. `None` where there is no folder or the state isn't finite, and, after a warning, where
        it couldn't be written."""
        if self.checkpoints is None or self.warn_unless_finite(self._run.non_finite(of_state_only=True)):
            return None
        tree, run = self._run.stored()
        metadata = {"hyperparameters": self._hyperparameters, "run": run, "callbacks": self._listeners.states(), "numerics": numerics()}
        try:
            path = self.checkpoints.save(tree, iteration=self._run.iteration, metadata=metadata, score=score)
        except OSError as e:
            if not self.safe:
                raise
            self.unwritten = e
            warnings.warn(f"{e}. Training goes on, and will try again at the next checkpoint", stacklevel=4)
            return None
        self.unwritten, self.safe = None, True
        return path

    def warn_unless_finite(self, bad: str | None) -> bool:
        """Once for each run, with what isn't finite."""
        if bad is not None and not self._warned:
            self._warned = True
            warnings.warn(f"{bad}, so what comes of this run is no result. Training goes on; {self.last()}", stacklevel=5)
        return bad is not None

    def last(self) -> str:
        if self.checkpoints is None:
            return "there is no folder, and so no checkpoint"
        files = self.checkpoints.files()
        return f"the last finite checkpoint, {files[0][1]}, is of before, and stays" if files else "there is no finite checkpoint"

    def why_not(self) -> str:
        """Why no checkpoint was written."""
        if self.checkpoints is None:
            return "there is no folder"
        return repr(self.unwritten) if self.unwritten else f"the state isn't finite; {self.last()}"

    def rescue(self, e: BaseException) -> None:
        """Saves what can be saved after an exception."""
        if isinstance(e, Interrupted) or not isinstance(e, Exception):
            return
        where = self._run.where()
        if isinstance(e, FloatingPointError):
            e.add_note(self.last())
            return
        if not self.safe:
            return
        if any(x.is_deleted() for x in jax.tree.leaves(eqx.filter(self._run.state, eqx.is_array))):
            e.add_note(f"{where}; the newest checkpoint in {self.checkpoints and self.checkpoints.folder} is of before")
            return
        self._listeners.send_row()
        try:
            path = self.write()
        except Exception as unwritten:  # the state itself may be what is broken
            e.add_note(f"{where}; no checkpoint could be written: {unwritten!r}")
        else:
            how = f"written to {path}, so fit(algo, resume=True) goes on from here"
            e.add_note(f"{where}; {how if path else f'no checkpoint was written: {self.why_not()}'}")
