import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, *suffixes: str) -> Iterator[Path]:
    """Yields a name in the folder of `path` (created where it's missing) to write to. It becomes `path` when the block
    succeeds; when the block fails or is interrupted it is removed, and what was at `path` before stays.

    **Raises:** `ValueError`, before the block, if `path` doesn't end in one of `suffixes`.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes)
        raise ValueError(f"this writes a {kinds} file, got the path {str(path)!r}; pass a name that ends in {kinds}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
