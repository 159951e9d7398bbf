"""A folder of checkpoints: the newest few and the best."""

import errno
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import PyTree

from eqxrl.training._files import CheckpointDamaged, CheckpointMismatch, encode, load_with_metadata, read_metadata, write

T = TypeVar("T")

_NAME = re.compile(r"checkpoint-(\d+)\.eqx")


class Checkpoints:
    """Checkpoints of one run, `checkpoint-000000120.eqx` after iteration 120 and so on, and `best.eqx`.

    From the first save on, there is a whole checkpoint in the folder at every instant, even if the process is killed while saving.
    One process writes to a folder at a time; any number may read. All state is in the folder: a new process goes on where the last
    one stopped. Of older checkpoints only the headers are read, so that a save costs one write.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        """**Arguments:**

        - `folder`: made by the first save.
        - `keep`: how many of the newest checkpoints stay. With 1, there is nothing to fall back to.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}; the newest checkpoint is always kept")
        self.folder = Path(folder)
        self.keep = keep

    def save(
        self, tree: PyTree, *, iteration: int, metadata: Mapping[str, Any] | None = None, score: float | int | None = None
    ) -> Path:
        """Writes a checkpoint, and then deletes those that have `keep` newer ones, not counting those whose size or header is wrong.

        **Arguments:**

        - `tree`: see `eqxrl.save`.
        - `iteration`: the training iterations made so far. Saving one again replaces it.
        - `metadata`: JSON; `iteration` and `score` are added.
        - `score`: if it is higher than any so far, `best.eqx` is written too. NaN is never the best.

        **Returns:** the checkpoint's path.

        **Raises:** what `eqxrl.save` raises; `ValueError` where the folder holds a whole checkpoint of a later iteration, since this
        one wouldn't be the latest. (Later ones that are damaged, from which `latest` fell back, are deleted.)
        """
        if iteration < 0:
            raise ValueError(f"iteration must be at least 0, got {iteration}")
        if taken := {"iteration", "score"} & set(metadata or {}):
            raise ValueError(f"metadata must not hold {sorted(taken)}; pass them as arguments of save")
        for i, path in self.files():
            if i > iteration and _is_whole(load_with_metadata, path, tree):
                how = "pass another folder for another run, continue from latest(like), or delete the later checkpoints"
                raise ValueError(f"iteration {iteration} would not be the latest in {self.folder}, which holds iteration {i}; {how}")
        score = None if score is None else float(score)
        document = encode(tree, {**(metadata or {}), "iteration": iteration, "score": score})
        path = self.folder / f"checkpoint-{iteration:09d}.eqx"
        write(path, document)
        if score is not None and score > self._best_score():
            write(self.folder / "best.eqx", document, twin=path)
        kept = 1
        for i, other in self.files():
            if i > iteration or (i < iteration and kept == self.keep):
                other.unlink()
            elif i < iteration and _is_whole(read_metadata, other):
                kept += 1
        for leftover in self.folder.glob(".*.eqx.*.tmp"):  # of a writer that was killed
            leftover.unlink()
        return path

    def latest(self, like: T) -> tuple[T, dict[str, Any]]:
        """The newest checkpoint and its metadata; where it is damaged, the one before, with a warning.

        **Raises:** `CheckpointMismatch` (see `eqxrl.load`; an older checkpoint is no answer to that), `FileNotFoundError` where
        there is none, `CheckpointDamaged` where all are damaged.
        """
        return newest(self.folder, lambda path: load_with_metadata(path, like))

    def best(self, like: T) -> tuple[T, dict[str, Any]]:
        """The checkpoint with the highest score so far, and its metadata.

        **Raises:** `CheckpointDamaged`, `CheckpointMismatch`, `FileNotFoundError` where nothing was saved with a score.
        """
        return load_with_metadata(self.folder / "best.eqx", like)

    def _best_score(self) -> float:
        try:
            return read_metadata(self.folder / "best.eqx")["score"]
        except FileNotFoundError:
            pass
        except CheckpointDamaged as e:
            warnings.warn(f"{e} It is replaced by the present checkpoint.", stacklevel=3)
        return -math.inf

    def files(self) -> list[tuple[int, Path]]:
        """Iterations and paths, newest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*.eqx")]
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def newest(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of the newest checkpoint; where it is damaged, of the one before, with a warning.

    **Raises:** what `read` raises; `FileNotFoundError` where there is none, `CheckpointDamaged` where all are damaged.
    """
    damage = []
    for _, path in Checkpoints(folder).files():
        try:
            found = read(path)
        except FileNotFoundError:  # a running trainer has just deleted it
            continue
        except CheckpointDamaged as e:
            damage.append(str(e))
            continue
        for why in damage:
            warnings.warn(f"{why} Fell back to {path.name}.", stacklevel=3)
        return found
    if damage:
        none = f"none of the {len(damage)} checkpoints in {folder} can be read; best.eqx may still be:"
        raise CheckpointDamaged("\n".join([none, *damage]))
    raise FileNotFoundError(errno.ENOENT, "there is no checkpoint in this folder", str(folder))


def _is_whole(read: Callable[..., Any], *args: Any) -> bool:
    try:
        read(*args)
    except CheckpointDamaged:
        return False
    except CheckpointMismatch:  # of another tree, or in a newer format
        return True
    return True
