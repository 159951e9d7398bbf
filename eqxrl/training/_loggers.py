"""What a logger is. One that prints, in full:

    class Print(AbstractLogger):
        def start(self, hyperparameters, resumed_at):
            print(hyperparameters)

        def log(self, env_steps, values):
            print(env_steps, values)

        def close(self):
            pass

Whatever it raises, the run goes on.
"""

import abc
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from eqxrl.training._metrics import flat

Values = Mapping[str, Any]
"""By name, such as `eval/return_mean`: a number, or a list of one for each seed where several are trained. NaN: there is
none."""


class AbstractLogger(abc.ABC):
    """Takes what a run has to tell, once each. An instance serves one run. If `log` raises, the trainer warns, once, and goes
    on with the run and the other loggers."""

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

    On a resume, rows that will come again are cut off; a file that is there already is otherwise an error.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        _start_file(self.path, hyperparameters, resumed_at, self._kept)

    def _kept(self, text: str, resumed_at: int) -> str:
        lines = text.splitlines(keepends=True)
        return "".join(x for x in lines if x.endswith("\n") and json.loads(x)["env_steps"] <= resumed_at)

    def log(self, env_steps: int, values: Values) -> None:
        line = json.dumps({"env_steps": env_steps, **{k: _null(x) for k, x in values.items()}}, allow_nan=False)
        _append(self.path, line + "\n")

    def close(self) -> None:
        pass


class CSVLogger(AbstractLogger):
    """A table with a column `env_steps` and one for each name; where several seeds are trained, one for each seed,
    `eval/return_mean/seed_0`; empty for what isn't a number. The hyperparameters go to `<name>.hyperparameters.json` beside it.

    On a resume, rows that will come again are cut off; a file that is there already is otherwise an error.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        _start_file(self.path, hyperparameters, resumed_at, self._kept)
        with open(self.path, newline="") as file:
            self._columns = next(csv.reader(file), [])

    def _kept(self, text: str, resumed_at: int) -> str:
        lines = text.splitlines(keepends=True)
        return "".join(lines[:1] + [x for x in lines[1:] if x.endswith("\n") and int(x.split(",")[0]) <= resumed_at])

    def log(self, env_steps: int, values: Values) -> None:
        row = {"env_steps": env_steps} | {k: "" if _null(x) is None else x for k, x in flat(values).items()}
        new = [name for name in row if name not in self._columns]
        if new:  # a name that wasn't there before, such as the training's after the first evaluation
            self._columns = self._columns + new
            with open(self.path, newline="") as file:
                earlier = list(csv.DictReader(file))
            _replace(self.path, self._lines([dict(zip(self._columns, self._columns)), *earlier, row]))
        else:
            _append(self.path, self._lines([row]))

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, lineterminator="\n").writerows(rows)
        return buffer.getvalue()

    def close(self) -> None:
        pass


class TensorBoardLogger(AbstractLogger):
    """Event files for TensorBoard, by tensorboardX: `pip install 'eqxrl[tensorboard]'`. The hyperparameters are a text.

    **Arguments:** the folder; anything else that tensorboardX's `SummaryWriter` takes.
    """

    def __init__(self, folder: str | os.PathLike, **kwargs: Any):
        try:
            import tensorboardX  # noqa: F401
        except ImportError as e:
            raise ImportError("TensorBoardLogger needs tensorboardX: pip install 'eqxrl[tensorboard]'") from e
        self.folder = Path(folder)
        self.kwargs = kwargs

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        from tensorboardX import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(self.folder), purge_step=purge, **self.kwargs)
        if resumed_at is None:
            text = json.dumps(hyperparameters, indent=2)
            self._writer.add_text("hyperparameters", "\n".join(f"    {line}" for line in text.splitlines()), 0)  # as code

    def log(self, env_steps: int, values: Values) -> None:
        for name, x in flat(values).items():
            if _null(x) is not None:
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
        try:
            import wandb  # noqa: F401
        except ImportError as e:
            raise ImportError("WandbLogger needs wandb: pip install 'eqxrl[wandb]'") from e
        self.kwargs = kwargs

    def start(self, hyperparameters: dict[str, Any], resumed_at: int | None) -> None:
        import wandb

        self._run = wandb.init(**{**self.kwargs, "config": hyperparameters | self.kwargs.get("config", {})})

    def log(self, env_steps: int, values: Values) -> None:
        self._run.log({k: x for k, x in flat(values).items() if _null(x) is not None}, step=env_steps)

    def close(self) -> None:
        self._run.finish()


def _null(x: Any) -> Any:
    if isinstance(x, list):
        return [_null(y) for y in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _start_file(path: Path, hyperparameters: dict[str, Any], resumed_at: int | None, kept: Callable[[str, int], str]) -> None:
    if resumed_at is None or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            open(path, "x").close()
        except FileExistsError as e:
            raise FileExistsError(e.errno, "this file is there already; pass another path for another run", str(path)) from e
        path.with_suffix(".hyperparameters.json").write_text(json.dumps(hyperparameters, indent=2) + "\n")
    else:
        _replace(path, kept(path.read_text(), resumed_at))


def _append(path: Path, text: str) -> None:
    """The whole text or, where the disk is full, nothing of it: half a row would spoil the next one too."""
    size = path.stat().st_size
    try:
        with open(path, "a", newline="") as file:
            file.write(text)
    except OSError:
        os.truncate(path, size)
        raise


def _replace(path: Path, text: str) -> None:
    """Whole, or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
