"""A population: every point with every seed, in as few programs as there are shapes."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.algorithms._memory import check_fits, state_size
from eqxrl.sweeps._diverged import Diverged
from eqxrl.sweeps._members import check_read, groups, stacked, varying, with_values
from eqxrl.sweeps._memory import chunk_size, fits
from eqxrl.sweeps._result import Chunk, Sweep
from eqxrl.sweeps._space import points_of
from eqxrl.training import Callback, Checkpointing, JSONLLogger, Trainer, hyperparameters
from eqxrl.training._files import versions
from eqxrl.training._lock import owned
from eqxrl.training._loggers import replace_text
from eqxrl.training._metrics import flat
from eqxrl.training._programs import num_devices

Todo = tuple[list[int], list[tuple[int, int]], int]
"""Of a chunk: the points that share its program, its rows (point, seed), and how many they are filled up to."""


def sweep(
    algo: AbstractAlgorithm, space: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, seeds: int = 1, samples: int | None = None,
    seed: int = 0, folder: str | Path | None = None, chunk: int | None = None, callbacks: Callable[[], Iterable[Callback]] = list,
    env_id: str | None = None, preset: str | None = None, say: Callable[[str], object] = print,
) -> Sweep:
    """Trains a population: an algorithm with each of many points, and each of these with several seeds, all at once and spread over all
    devices; and says which point is best.

        result = sweep(ppo, {"learning_rate": log_uniform(1e-4, 1e-2), "ent_coef": [0.0, 0.01]}, samples=16, seeds=8, folder="sweeps/mine")
        print(result)
        act = result.load()[0].make_actor(result.load()[1])

    **Arguments:**

    - `algo`: with the values that all have.
    - `space`: the values of each name. A name is a hyperparameter (`"learning_rate"`) or the path of a number (`"advantage.gae_lambda"`,
      which is then set in the part that comes of the other values); its values a list, `log_uniform(low, high)` or `uniform(low, high)`.
      Floats share one program; every combination of integers and flags compiles one of its own, one after the other. Without `samples`
      it is a grid. Or a list of points, `[{"learning_rate": 1e-3, "gamma": 0.9}, ...]`.
    - `seeds`: of each point, the same for all: those of a run with this `seed` and so many seeds.
    - `samples`: draw so many points instead of the grid.
    - `seed`: of the agents, and of the points that are drawn.
    - `folder`: where everything is kept; by default one that is gone with what is returned. A sweep that was cut off goes on when it is
      called again with the same arguments and folder, and ends bit for bit as if it hadn't been.
    - `chunk`: how many agents (points times seeds) are trained at once; by default as many as half of the free memory is enough for, by
      the sizes of their states and rollouts.
    - `callbacks`: makes those of each chunk's `Trainer`.
    - `env_id`, `preset`: as for `Run.new`.
    - `say`: is told, before anything is trained, how many agents are trained at once and how many bytes their states take.

    **Returns:** the table and what else there is to see; in `folder` also `table.csv`, `sweep.png`, `best/`, which is the run folder of the
    best point, and in `chunks/` the metrics and checkpoints of all. An agent whose state isn't finite any more is ended, the others go on;
    its point has no IQM and is never the best.

    **Raises:** `ValueError` or `TypeError`, before anything compiles, for names and values that make no sense, and where `folder` holds
    another sweep, or a chunk's states can't fit into the free memory; what `Trainer.fit` raises.
    """
    if seeds < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"seeds and chunk must be at least 1, got seeds={seeds}, chunk={chunk}")
    points = points_of(space, samples, seed)
    algos = [with_values(algo, point) for point in points]
    found = groups(algos)
    for members in found:
        check_read(algos[members[0]], list(points[0]))
    place = Path(tempfile.mkdtemp(prefix="eqxrl-sweep-") if folder is None else folder)
    try:
        with owned(place):
            at_most = min(fits(algos[members[0]]) for members in found) if chunk is None else chunk
            size = _begin(place, algo, points, seeds, seed, chunk, at_most)
            todo = [it for members in found for it in _cut(members, seeds, size)]
            for line in dict.fromkeys(_what_it_takes(algos[members[0]], rows, each) for members, rows, each in todo):
                say(line)
            chunks = _chunks(algos, todo, seeds, seed, place / "chunks", callbacks)
            result = Sweep(place, points, algos, seeds, seed, chunks)
            result.write(env_id, preset)
    except BaseException:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
        raise
    if folder is None:
        weakref.finalize(result, shutil.rmtree, place, ignore_errors=True)
    return result


def _cut(members: list[int], seeds: int, size: dict[str, int]) -> list[Todo]:
    rows = [(m, s) for m in members for s in range(seeds)]
    each = chunk_size(len(rows), size["at_most"], size["devices"])
    return [(members, rows[i : i + each], each) for i in range(0, len(rows), each)]


def _what_it_takes(algo: Any, rows: list[tuple[int, int]], each: int) -> str:
    """**Raises:** `ValueError` where it is more than there is."""
    size = state_size(algo, each)
    check_fits(algo, size, num_devices(each), "chunk")
    return f"chunks of {each} agents at once; state: {size}"


def _chunks(algos: list[Any], todo: list[Todo], seeds: int, seed: int, folder: Path, callbacks: Callable) -> list[Chunk]:
    """Trains everybody, or goes on with it."""
    keys, chunks = jax.random.split(jax.random.key(seed), seeds), []
    for i, (members, rows, each) in enumerate(todo):
        padded = rows + [rows[-1]] * (each - len(rows))
        one = [algos[m] for m in members]
        many, axes = stacked(one, varying(one), [members.index(m) for m, _ in padded])
        chunks.append(_train(many, axes, keys[np.array([s for _, s in padded])], folder / f"{i:03d}", callbacks, rows))
    return chunks


def _train(algo: Any, axes: Any, keys: Any, folder: Path, callbacks: Callable, rows: list[tuple[int, int]]) -> Chunk:
    diverged, metrics = Diverged(), folder / "metrics.jsonl"
    trainer = Trainer([*callbacks(), diverged, Checkpointing(best=False)], [JSONLLogger(metrics)], folder / "checkpoints")
    with owned(trainer.folder):
        if not list((folder / "checkpoints").glob("checkpoint-*.eqx")):
            metrics.unlink(missing_ok=True)  # of a process that was killed before it wrote a checkpoint
        _, evaluations = trainer._fit(algo, keys, axes=axes)
    returns = np.asarray(evaluations.cumulative_reward, np.float64).mean(-1)
    at, since = np.array(trainer.run.evaluated_at), diverged.state["since"]
    returns[(since >= 0)[:, None] & (at >= since[:, None])] = np.nan
    env_steps = trainer.run.first_env_step + at * trainer.run.iteration_size
    return Chunk(folder, rows, algo, axes, env_steps, returns[: len(rows)])


def _begin(place: Path, algo: Any, points: list, seeds: int, seed: int, chunk: int | None, at_most: int) -> dict[str, int]:
    """How the sweep in this folder was cut into chunks, when it began or now.

    **Raises:** `FileExistsError` where the folder holds another one.
    """
    described = {"algorithm": hyperparameters(algo), "points": points, "seeds": seeds, "seed": seed}
    size = {"at_most": at_most, "devices": jax.device_count()}
    path = place / "sweep.json"
    if not path.is_file():
        others = [x.name for x in place.iterdir() if x.name != ".lock"]
        if others:
            raise FileExistsError(f"{place} holds {', '.join(sorted(others)[:3])}, but no sweep; pass another folder")
        replace_text(path, json.dumps({**described, "chunks": size, "versions": versions()}, indent=2) + "\n")
        return size
    try:
        there = json.loads(path.read_text())
        old, now = flat({k: there[k] for k in described}), flat(json.loads(json.dumps(described)))
        size = {k: int(there["chunks"][k]) for k in size}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or of another version of eqxrl: {error}") from error
    if changed := [k for k in old | now if old.get(k) != now.get(k)]:
        lines = "".join(f"\n  {k}: there {old.get(k)}, now {now.get(k)}" for k in changed[:10])
        raise FileExistsError(f"{place} holds another sweep; pass another folder, or the arguments of that one:{lines}")
    if chunk is not None and chunk != size["at_most"]:
        raise ValueError(f"the sweep in {place} was begun with chunk={size['at_most']}, and goes on only so; got {chunk}")
    return size
