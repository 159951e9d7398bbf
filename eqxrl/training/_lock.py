"""A folder's only writer."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def owned(folder: Path | None) -> Iterator[None]:
    """Makes the folder, if need be, and keeps others from owning it: other processes, and other trainers in this one. The lock, on a
    file `.lock` in there that says who has it, ends with the process, however that ends; what it leaves behind is in nobody's way.

    **Raises:** `BlockingIOError` where somebody else owns it.
    """
    if folder is None:
        yield
        return
    new, path = not folder.exists(), folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(path)
    try:
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked, so that nobody is let in who has opened this very file
        os.close(lock)
        if new:
            with contextlib.suppress(OSError):  # where something came of it
                folder.rmdir()


def _locked(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "this system has no fcntl")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.read(lock, 1000).decode(errors="replace") or "another process"
            os.close(lock)
            why = f"{owner} is writing to this folder; wait for it or end it, or pass another folder"
            raise BlockingIOError(e.errno, why, str(path.parent)) from None
        except OSError as e:
            warnings.warn(f"{path.parent} can't be locked ({e.strerror}): see to it that no other process writes to it", stacklevel=5)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)  # its owner has just left, and taken the file along
