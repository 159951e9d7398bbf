import contextlib
import importlib
import sys
from typing import Any


def extra(package: str, name: str, user: str) -> Any:
    """The package, which the extra `name` installs and `user` needs. What it prints while it is imported goes where errors do, so that
    what a command prints stays what it says.

    **Raises:** `ImportError`, with the command that installs it, where it isn't there.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(package)
    except ImportError as e:
        raise ImportError(f"{user} needs {package.partition('.')[0]}: {how_to_install(name)}") from e


def how_to_install(name: str) -> str:
    return f"pip install 'eqxrl[{name}]'"
