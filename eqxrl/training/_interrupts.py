"""Ctrl-C and SIGTERM while a run is under way."""

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"


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
    second one ends the process at once.

    Python runs its handlers only when the main thread comes back from C, which may take as long as a chunk or a compilation
    does. So a thread of its own reads the signals from a wakeup file descriptor, answers the first one, and leaves at the
    second. In an interactive session, whose variables would be lost, the second one raises `KeyboardInterrupt` as soon as
    Python can.

    Only the main thread gets signals: in any other one this does nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Interrupts":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._handlers = {s: signal.signal(s, self._handle) for s in _SIGNALS}
            self._wakeup_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, name="eqxrl-interrupts", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._active:
            signal.set_wakeup_fd(self._wakeup_fd)
            for signum, handler in self._handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was set from C
            self._writer.close()
            self._watcher.join()
            self._reader.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and _interactive():
            raise KeyboardInterrupt
        self.received = signal.Signals(signum)

    def _watch(self) -> None:
        seen = 0
        while numbers := self._reader.recv(64):
            for signum in numbers:
                if signum not in _SIGNALS:
                    continue
                seen += 1
                if seen == 1:
                    print("\nfinishing the iterations under way; press Ctrl-C again to leave at once", file=sys.stderr)
                elif not _interactive():
                    if os.isatty(2):
                        os.write(2, _SHOW_CURSOR)  # a progress bar hides it
                    os._exit(128 + signum)


def _interactive() -> bool:
    return hasattr(sys, "ps1")
