"""Where what a run has to tell is written."""

import abc
import csv
import io
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eqxrl._extras import extra
from eqxrl.training._files import open_regular, sync
from eqxrl.training._metrics import flat

Values = Mapping[str, Any]
"""By name, such as `eval/return_mean`: a number, or a list of one for each seed where several are trained. NaN: there is none."""


class AbstractLogger(abc.ABC):
    """Takes what a run has to tell, once each. An instance serves one run. If `log` raises, the trainer warns, once, and goes
    on with the run and the other loggers. One that prints, in full:

        class Print(AbstractLogger):
            def start(self, hyperparameters, resumed_at):
                print(hyperparameters)

            def log(self, env_steps, values):
                print(env_steps, values)

            def close(self):
                pass
    """

    @abc.abstractmethod
    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        """**Arguments:**

        - `hyperparameters`: the algorithm's, nested.
        - `resumed_at`: `None` for a new run. Where one goes on, it is the env step of the last row that it had logged, or -1;
            rows after that, of a process that was killed, will be logged again.
        """

    @abc.abstractmethod
    def log(self, env_steps: int, values: Values) -> None:
        """A row: everything about one epoch and the evaluation after it. `env_steps` are those of the algorithm's whole life,
        over all environments (of one seed), and never go down."""

    @abc.abstractmethod
    def close(self) -> None:
        """No more rows come, however the run ended."""


class JSONLLogger(AbstractLogger):
    """A line of JSON for each row, `{"env_steps": 4096, "train/entropy": 0.69, ...}`; lists where several seeds are trained;
    `null` for what isn't a number. The hyperparameters go to `<name>.hyperparameters.json` beside it.

    When it is closed, it writes the same as a table to `<name>.csv`, with a column `env_steps` and one for each name; where
    several seeds are trained, one for each seed, `eval/return_mean/seed_0`; empty for what isn't a number.

    On a resume, rows that will come again are cut off, and lines that are damaged are moved to `<name>.jsonl.damaged`. A file that is
    there already is otherwise an error, unless it is empty.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        if resumed_at is not None and os.path.lexists(self.path):
            rows, damaged = parse_rows(self.path)
            if damaged:
                aside = self.path.with_name(self.path.name + ".damaged")
                with open(aside, "ab") as file:
                    file.writelines(line for line, _ in damaged)
                warnings.warn(f"{_listed(self.path, damaged)}, moved to {aside}", stacklevel=4)
            replace_text(self.path, "".join(line for line, row in rows if row["env_steps"] <= resumed_at))
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            open(self.path, "x").close()
        except FileExistsError as e:
            if not self.path.is_file() or self.path.stat().st_size:  # or else a process was killed before it wrote a row
                raise FileExistsError(e.errno, "this file is there already; pass another path for another run", str(self.path)) from e
        replace_text(self.path.with_suffix(".hyperparameters.json"), json.dumps(hyperparameters, indent=2) + "\n")

    def log(self, env_steps: int, values: Values) -> None:
        line = json.dumps({"env_steps": env_steps, **{k: _null(x) for k, x in values.items()}}, allow_nan=False)
        size = self.path.stat().st_size
        try:
            with open(self.path, "a", newline="") as file:
                file.write(line + "\n")
        except OSError:  # where the disk is full: half a row would spoil the next one too
            os.truncate(self.path, size)
            raise

    def close(self) -> None:
        rows = [flat(row) for row in read_rows(self.path)]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_text(self.path.with_suffix(".csv"), table.getvalue())


class TensorBoardLogger(AbstractLogger):
    """Event files for TensorBoard, by tensorboardX: `pip install 'eqxrl[tensorboard]'`. The hyperparameters are a text.

    **Arguments:** the folder; anything else that tensorboardX's `SummaryWriter` takes.
    """

    def __init__(self, folder: str | os.PathLike, **kwargs: Any):
        self._tensorboard = extra("tensorboardX", "tensorboard", type(self).__name__)
        self.folder, self.kwargs = Path(folder), kwargs

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = self._tensorboard.SummaryWriter(str(self.folder), purge_step=purge, **self.kwargs)
        if resumed_at is None:
            text = json.dumps(hyperparameters, indent=2)
            self._writer.add_text("hyperparameters", "\n".join(f"    {line}" for line in text.splitlines()), 0)  # as code

    def log(self, env_steps: int, values: Values) -> None:
        for name, x in _finite(values).items():
            self._writer.add_scalar(name, x, env_steps)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbLogger(AbstractLogger):
    """Weights & Biases: `pip install 'eqxrl[wandb]'`. The hyperparameters are the run's config; the step is the env step.

    **Arguments:** those of `wandb.init`, such as `project` and `mode="offline"`; to go on with a run that W&B already knows,
    `id` and `resume="allow"`.
    """

    def __init__(self, **kwargs: Any):
        self._wandb = extra("wandb", "wandb", type(self).__name__)
        self.kwargs = kwargs

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        self._run = self._wandb.init(**{**self.kwargs, "config": hyperparameters | self.kwargs.get("config", {})})

    def log(self, env_steps: int, values: Values) -> None:
        self._run.log(_finite(values), step=env_steps)

    def close(self) -> None:
        self._run.finish()


def _finite(values: Values) -> dict[str, Any]:
    """One number by name, for services that know nothing else."""
    return {k: x for k, x in flat(values).items() if _null(x) is not None}


def _null(x: Any) -> Any:
    if isinstance(x, list):
        return [_null(y) for y in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What the lines of a `JSONLLogger` say; those that are damaged are left out, with a warning."""
    rows, damaged = parse_rows(path)
    if damaged:
        warnings.warn(f"{_listed(path, damaged)}, left out", stacklevel=3)
    return [row for _, row in rows]


def parse_rows(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[bytes, int]]]:
    """The lines with what they say; and those that are damaged, with their numbers. A kill may have torn the last one, which then has
    no end: it doesn't count."""
    rows, damaged = [], []
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            try:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                np.int64(row["env_steps"].__index__())
                rows.append((line.decode(), row))
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
                damaged.append((line, number))
    return rows, damaged


def _listed(path: Path, damaged: list[tuple[bytes, int]]) -> str:
    numbers = ", ".join(str(number) for _, number in damaged[:20]) + ", ..." * (len(damaged) > 20)
    return f"{path}, line{'s' * (len(damaged) > 1)} {numbers}: damaged, no row of numbers with env_steps"


def replace_text(path: Path, text: str) -> None:
    """Whole, or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
