"""A user's own file, named on the command line or in `make`: `my_env.py:Grid`."""

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def is_user_code(name: str) -> bool:
    """Whether `name` has the form `path/to/file.py:Name`."""
    return ".py:" in name


def from_file(where: str) -> Any:
    """What is called `Name` in the file of `path/to/file.py:Name`, which is imported once in a process: the same file gives
    the same objects each time. Its folder is appended to `sys.path`, so that it can import its neighbours.

    **Raises:** `ValueError` for a `where` of another form, `FileNotFoundError` where there is no such file, `ImportError`
    where the file can't be imported, or has nothing called so.
    """
    file, colon, name = where.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"got {where!r}; pass a file and the name of what is in it, such as 'path/to/file.py:Name'")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{where!r} names the file {path}, which isn't there; the path is taken from {Path.cwd()}")
    module = _import(path)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [other for other in vars(module) if not other.startswith("_")], n=1, cutoff=0.5)
        raise ImportError(f"{path} has nothing called {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return getattr(module, name)


def _import(path: Path) -> Any:
    module_name = f"user_code:{path}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up here while it is being imported
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ImportError(f"importing {path} raised {type(error).__name__}: {error}") from error
    return module
