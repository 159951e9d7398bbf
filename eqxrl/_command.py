"""Ctrl-C and SIGTERM while the `eqxrl` command imports its libraries, which takes seconds: it ends with a line, not with a traceback."""

import os
import signal
import sys
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"eqxrl: interrupted\n")
    os._exit(128 + signum)


if os.path.basename(sys.argv[0]).removesuffix(".exe") == "eqxrl" or "eqxrl.cli" in sys.orig_argv:
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
