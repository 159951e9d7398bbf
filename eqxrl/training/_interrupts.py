"""Ctrl-C and SIGTERM while a run is under way."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or SIGTERM; its message says how to go on. Nothing is lost: `state` is where the run stood,
    and so is the checkpoint."""

    def __init__(self, message: str, signum: signal.Signals, state: Any, checkpoint: Path | None):
        super().__init__(message)
        self.signal = signum
        self.state = state
        """The training state, to be passed to `fit` as `train_state`."""
        self.checkpoint = checkpoint
        """The file it was written to; `None` where the trainer has no folder, or the file couldn't be written."""


class Interrupts(contextlib.AbstractContextManager):
    """Turns the first SIGINT or SIGTERM into a note in `received`, for the run to look at between two compiled programs; the
    second one ends the process at once or, in an interactive session, whose variables would be lost, raises
    `KeyboardInterrupt`.

    Python runs its handlers when the main thread comes back from C, so signals that come within a compiled program are one
    signal, noted when the program ends. Only the main thread gets signals: in any other one this does nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was set from C

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum)
        for s in _SIGNALS:
            signal.signal(s, signal.default_int_handler if hasattr(sys, "ps1") else signal.SIG_DFL)
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # which a progress bar hides
        os.write(2, show_cursor + b"\nfinishing the iterations under way; press Ctrl-C again to leave at once\n")
