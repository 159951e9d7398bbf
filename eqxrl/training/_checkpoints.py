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


class Foreign(CheckpointMismatch):
    """The file is whole, but nothing that was ever written to a folder of checkpoints like this one."""


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
        one wouldn't be the latest. (Later ones that are damaged, from which `latest` fell back, are renamed to `<name>.damaged`.)
        """
        if iteration < 0:
            raise ValueError(f"iteration must be at least 0, got {iteration}")
        if taken := {"iteration", "score"} & set(metadata or {}):
            raise ValueError(f"metadata must not hold {sorted(taken)}; pass them as arguments of save")
        later = [(i, path) for i, path in self.files() if i >= iteration]
        for i, path in later:
            if i > iteration and _is_whole(load_with_metadata, path, tree):
                how = "pass another folder for another run, continue from latest(like), or delete the later checkpoints"
                raise ValueError(f"iteration {iteration} would not be the latest in {self.folder}, which holds iteration {i}; {how}")
        for i, path in later:
            if i > iteration or not path.is_file():
                set_aside(path)
        score = None if score is None else float(score)
        document = encode(tree, {**(metadata or {}), "iteration": iteration, "score": score})
        path = self.folder / f"checkpoint-{iteration:09d}.eqx"
        best, twin = self.folder / "best.eqx", None
        if score is not None and score > self._best_score():
            write(best, document)  # first: a run that goes on from the checkpoint wouldn't write it again
            twin = best
        write(path, document, twin=twin)
        kept = 1
        for _, other in self.files()[1:]:
            if not other.is_file():
                set_aside(other)
            elif kept == self.keep:
                other.unlink()
            elif _is_whole(read_metadata, other):
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
            set_aside(self.folder / "best.eqx")
        return -math.inf

    def files(self) -> list[tuple[int, Path]]:
        """Iterations and paths, newest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*.eqx")]
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def newest(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of the newest checkpoint; where it is damaged, of the one before, with a warning.

    **Raises:** what `read` raises; `FileNotFoundError` where there is none, `CheckpointDamaged` where all are damaged.
    """
    damage, foreign = [], None
    for _, path in Checkpoints(folder).files():
        try:
            found = read(path)
        except FileNotFoundError:
            if os.path.lexists(path):  # or else a running trainer has just deleted it
                damage.append(f"{path} isn't a file, or is a link to nowhere.")
        except CheckpointDamaged as e:
            damage.append(str(e))
        except Foreign as e:
            damage.append(f"{path} isn't of this run: {e}.")
            foreign = e
        else:
            for why in damage:
                warnings.warn(f"{why} Fell back to {path.name}.", stacklevel=3)
            return found
    if foreign is not None:
        raise foreign
    if damage:
        none = f"none of the {len(damage)} checkpoints in {folder} can be read; best.eqx may still be:"
        raise CheckpointDamaged("\n".join([none, *damage]))
    raise FileNotFoundError(errno.ENOENT, "there is no checkpoint in this folder", str(folder))


def set_aside(path: Path) -> None:
    """Renames what is damaged, instead of deleting it: to `<name>.damaged`, or `<name>.damaged-2` where that is taken, and so on."""
    other, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(other):
        other, number = path.with_name(f"{path.name}.damaged-{number + 1}"), number + 1
    os.replace(path, other)


def _is_whole(read: Callable[..., Any], *args: Any) -> bool:
    try:
        read(*args)
    except (CheckpointDamaged, FileNotFoundError):  # such as a folder
        return False
    except CheckpointMismatch:  # of another tree, or in a newer format
        return True
    return True
