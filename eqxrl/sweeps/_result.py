import csv
import dataclasses
import functools
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.envs import env_name
from eqxrl.sweeps._space import Point
from eqxrl.training import Checkpoints, JSONLLogger, Run, hyperparameters
from eqxrl.training._checkpoints import newest
from eqxrl.training._loggers import read_rows, replace_text
from eqxrl.training._numerics import numerics
from eqxrl.training._programs import num_devices
from eqxrl.training._run_state import RunState, _read, fingerprint
from eqxrl.viz import Curve, bootstrap_interval, iqm, plot_sweep


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Agents that were trained at once."""

    folder: Path
    rows: list[tuple[int, int]]
    """The point and the seed of each; what comes after them in the training state only fills it up."""
    algo: AbstractAlgorithm
    axes: PyTree
    env_steps: Float[np.ndarray, " evals"] | Any
    returns: Float[np.ndarray, "rows evals"]
    """Mean return of each evaluation; NaN from where the agent's state wasn't finite."""


class Sweep:
    """What `sweep` returns. Points are counted from 0, in the order of the grid or of the draws.

    - `points`: the values of each, by name.
    - `returns`: `[points seeds]`, each agent's mean return in the last evaluation; NaN where its state wasn't finite any more.
    - `table`: a row for each point: its values; `iqm` over the seeds with a 95 % bootstrap interval (`low`, `high`), `mean`, `min`,
      `max`, and how many seeds `diverged`, with which it has no IQM. `print(result)` shows it, the best first.
    - `best`: the point with the highest IQM.
    - `folder`: where everything lies.
    """

    def __init__(self, folder: Path, points: list[Point], algos: list[Any], seeds: int, seed: int, chunks: list[Chunk]):
        self.folder, self.points, self.seeds, self.seed = folder, points, seeds, seed
        self._algos, self._chunks = algos, chunks
        self._where = {row: (chunk, i) for chunk in chunks for i, row in enumerate(chunk.rows)}
        self.returns = np.array([[self._returns(i, s)[-1] for s in range(seeds)] for i in range(len(points))])
        low, high = bootstrap_interval(self.returns, axis=1)
        self.table = []
        for i, x in enumerate(self.returns):
            diverged = int(np.isnan(x).sum())
            middle = np.nan if diverged else float(iqm(x))
            over_seeds = dict(iqm=middle, low=low[i], high=high[i], mean=x.mean(), min=x.min(), max=x.max())
            self.table.append({"point": i, **points[i], **{k: float(v) for k, v in over_seeds.items()}, "diverged": diverged})

    def _returns(self, point: int, seed: int) -> Float[np.ndarray, " evals"]:
        chunk, i = self._where[point, seed]
        return chunk.returns[i]

    @property
    def best(self) -> int:
        """**Raises:** `ValueError` where every point has a seed that diverged."""
        scores = np.array([row["iqm"] for row in self.table])
        if np.isnan(scores).all():
            raise ValueError("every point has a seed whose state isn't finite, so none is the best; try lower learning rates")
        return int(np.nanargmax(scores))

    def curve(self, point: int) -> Curve:
        """Its evaluations, `[seeds evals]`."""
        env_steps = self._where[point, 0][0].env_steps
        return Curve(env_steps=env_steps, returns=np.stack([self._returns(point, s) for s in range(self.seeds)]))

    def load(self, point: int | None = None, member: int | None = 0) -> tuple[Any, Any]:
        """The algorithm, and the training state of one of its seeds (`None`: of all, `[seeds ...]`): of the best point, or another."""
        point = self.best if point is None else point
        state = self._run_of(point).state
        return self._algos[point], state if member is None else jax.tree.map(lambda x: x[member] if eqx.is_array(x) else x, state)

    def _run_of(self, point: int) -> RunState:
        """As if the point had been trained by itself."""
        parts, run, algo = [], None, None
        rows = [self._where[point, s] for s in range(self.seeds)]
        for chunk in dict.fromkeys(chunk.folder for chunk, _ in rows):
            there = [(c, i) for c, i in rows if c.folder == chunk]
            whole = newest(chunk / "checkpoints", functools.partial(_read, there[0][0].algo, there[0][0].axes))[0]
            run, algo, index = whole, there[0][0].algo, np.array([i for _, i in there])
            take = lambda x, index=index: x[index] if eqx.is_array(x) else x  # noqa: E731
            parts.append(jax.tree.map(take, (whole.state, whole.evaluations, whole.stopped)))
        join = lambda *x: (np if isinstance(x[0], np.ndarray) else jnp).concatenate(x) if eqx.is_array(x[0]) else x[0]  # noqa: E731
        state, evaluations, stopped = jax.tree.map(join, *parts)
        assert run is not None
        keys = self._keys()
        return dataclasses.replace(
            run, state=state, evaluations=evaluations, stopped=stopped, num_seeds=self.seeds, num_devices=num_devices(self.seeds, algo),
            started_with=fingerprint(keys),
        )

    def _keys(self) -> Any:
        return jax.random.split(jax.random.key(self.seed), self.seeds)

    def plot(self, path: str | Path) -> Path:
        """The curves of all points, and what each name does to the last evaluation."""
        values = {name: [point[name] for point in self.points] for name in self.points[0]}
        curves = [self.curve(i) for i in range(len(self.points))]
        return plot_sweep(values, curves, path, title=env_name(self._algos[0].env))

    def write(self, env_id: str | None, preset: str | None) -> None:
        """`table.csv`, `sweep.png` and `best/`, in the folder."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table)
        replace_text(self.folder / "table.csv", text.getvalue())
        self.plot(self.folder / "sweep.png")
        if all(np.isnan(row["iqm"]) for row in self.table):
            warnings.warn("every point has a seed whose state isn't finite, so there is no best one", stacklevel=3)
        elif not (self.folder / "best").exists():  # else it is whole
            self._write_best(env_id, preset)

    def _write_best(self, env_id: str | None, preset: str | None) -> None:
        unfinished, algo = self.folder / ".best.tmp", self._algos[self.best]
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            run = Run.new(algo, self.folder, unfinished.name, seed=self.seed, num_seeds=self.seeds, env_id=env_id, preset=preset)
        except ValueError as error:
            warnings.warn(f"the best point gets no run folder, but load() has it: {error}", stacklevel=4)
            return
        state = self._run_of(self.best)
        tree, settings = state.stored()
        config = hyperparameters(algo)
        metadata = {"hyperparameters": config, "run": settings, "callbacks": {}, "numerics": numerics()}
        Checkpoints(run.checkpoints).save(tree, iteration=state.iteration, metadata=metadata)
        logger = JSONLLogger(run.folder / "metrics.jsonl")
        logger.start(config, None)
        for env_steps, row in self._rows(self.best):
            logger.log(env_steps, row)
        run.fit()  # which has come to its end, and writes the rest
        run.folder.rename(self.folder / "best")

    def _rows(self, point: int) -> list[tuple[int, dict[str, Any]]]:
        """What was logged of it."""
        rows = [self._where[point, s] for s in range(self.seeds)]
        logs = {chunk: read_rows(chunk / "metrics.jsonl") for chunk in {c.folder for c, _ in rows}}
        first = logs[rows[0][0].folder]
        return [
            (x["env_steps"], {k: [logs[c.folder][n][k][i] for c, i in rows] for k in x if k != "env_steps"}) for n, x in enumerate(first)
        ]

    def __str__(self) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        best_first = sorted(self.table, key=lambda row: -np.inf if np.isnan(row["iqm"]) else row["iqm"], reverse=True)
        env_steps = self._chunks[0].env_steps[-1]
        caption = f"mean returns after {env_steps:,} env steps, over {self.seeds} seed{'s' * (self.seeds > 1)}; 95 % bootstrap interval"
        table = Table("point", *self.points[0], "IQM", "interval", "mean", "min", "max", caption=caption, box=SIMPLE_HEAD, pad_edge=False)
        number = lambda x: "diverged" if np.isnan(x) else f"{x:.1f}"  # noqa: E731
        for row in best_first:
            values = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in (row[name] for name in self.points[0])]
            interval = "" if np.isnan(row["low"]) else f"{row['low']:.1f} to {row['high']:.1f}"
            table.add_row(str(row["point"]), *values, number(row["iqm"]), interval, *(number(row[k]) for k in ("mean", "min", "max")))
        with (console := Console(file=io.StringIO(), width=200)).capture() as text:
            console.print(table)
        return "\n".join(line.rstrip() for line in text.get().splitlines())

    def as_json(self) -> str:
        """The folder, the best point and the table."""
        null = lambda x: None if isinstance(x, float) and np.isnan(x) else x  # noqa: E731
        table = [{k: null(x) for k, x in row.items()} for row in self.table]
        best = None if all(row["iqm"] is None for row in table) else self.best
        return json.dumps({"sweep": str(self.folder), "best": best, "table": table})
