"""A run's folder: what was run, how it went, and the policy that came of it."""

import contextlib
import dataclasses
import errno
import importlib
import itertools
import json
import math
import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from beartype.door import is_bearable
from jaxtyping import Array, Key

from eqxrl._structs import EvalMetrics
from eqxrl._user_code import from_file, is_user_code
from eqxrl.algorithms import ALGORITHMS, PRESETS, AbstractAlgorithm
from eqxrl.envs import env_name
from eqxrl.envs._protocol import layers
from eqxrl.envs._wrappers import WithOptions
from eqxrl.training._builtin import NanGuard
from eqxrl.training._callback import Callback
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._files import CheckpointDamaged, CheckpointMismatch, read_metadata, save, versions
from eqxrl.training._lock import owned
from eqxrl.training._loggers import AbstractLogger, JSONLLogger, read_rows, replace_text
from eqxrl.training._metrics import flat, hyperparameters, readable
from eqxrl.training._run_state import fingerprint, load_checkpoint
from eqxrl.training._trainer import Trainer
from eqxrl.viz import Curve, plot_learning_curves

_DESCRIPTION = ("hp", "parts", "env", "environment", "env_params")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that it takes to do a run again."""

    algorithm: str
    """A name in `ALGORITHMS`, or `/path/to/file.py:Class`; with a `source`, the class's name."""
    env_id: str | None
    env_kwargs: Mapping[str, Any]
    """Options with which the environment was made."""
    preset: str | None
    """Where hyperparameters and parts were taken from, for people: they are written out, so it may change without changing the run."""
    source: str | None
    """`/path/to/file.py:make`, a function that returns the algorithm, where the other fields can't tell all of it."""
    seed: int
    num_seeds: int
    hp: Mapping[str, Any]
    """All of them. This and what follows is `hyperparameters(algo)`, with which the algorithm that `create` makes is compared."""
    parts: Mapping[str, Any]
    """Those that were passed to `create`."""
    env: str
    environment: Mapping[str, Any]
    env_params: Any
    versions: Mapping[str, str]

    def create(self) -> AbstractAlgorithm:
        """The algorithm.

        **Raises:** `ValueError` where it isn't that of the run (any more), by name, or can't be made; `ImportError`, `OSError`,
        `TypeError`.
        """
        try:
            return self._create()
        except (ValueError, TypeError, OSError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"the algorithm can't be made of what is written down of the run: {error!r}") from error

    def _create(self) -> AbstractAlgorithm:
        if self.source is not None:
            algo: Any = from_file(self.source)()
            if not isinstance(algo, AbstractAlgorithm):
                raise TypeError(f"{self.source} returned {type(algo).__name__}, which is no algorithm")
            hp = dataclasses.replace(algo.hp, total_timesteps=self.hp["total_timesteps"])  # the run may have been extended
            algo = dataclasses.replace(algo, hp=hp)
        else:
            cls = find_algorithm(self.algorithm)
            algo = cls.create(self.env_id, env_kwargs=self.env_kwargs, hp=cls.HParams(**_decode(self.hp)), **_decode(self.parts))
        now = hyperparameters(algo)
        run = {k: getattr(self, k) for k in _DESCRIPTION} | {"algorithm": self.algorithm if self.source else now["algorithm"]}
        run, now = flat(run), flat({k: now[k] for k in run})
        changed = [f"\n  {k}: the run has {run.get(k)}, this would have {now.get(k)}" for k in run | now if run.get(k) != now.get(k)]
        if changed:
            raise ValueError(f"what {self.source or 'the configuration'} makes isn't the algorithm of the run:{''.join(changed)}")
        return algo

    @property
    def algorithm_name(self) -> str:
        """The class's name."""
        known = ALGORITHMS.get(self.algorithm)
        return known.__name__ if known else self.algorithm.rpartition(":")[2]

    def options(self) -> dict[str, Any]:
        """Hyperparameters that differ from the preset's, or from the defaults of a class of this package; of a schedule, its begin."""
        if self.algorithm not in ALGORITHMS or self.source:
            return {}
        presets = PRESETS.get(self.env_id or "", {}).get(self.algorithm, {})
        hp: Any = presets[self.preset].hparams() if self.preset in presets else ALGORITHMS[self.algorithm].HParams()
        begin = lambda x: x.get("init_value") if isinstance(x, Mapping) else x  # noqa: E731
        usual = readable(hp)
        return {k: begin(x) for k, x in self.hp.items() if begin(x) != begin(usual.get(k))}


class Run:
    """A run's folder:

    - `config.json`: algorithm, environment, hyperparameters, parts, seeds, versions;
    - `metrics.jsonl`, with `metrics.hyperparameters.json`, and `metrics.csv` when it ends: how it went;
    - `checkpoints/`: where to go on from;
    - `learning_curve.png`;
    - `policy.eqx`: the trained policies, stacked `[seeds ...]`, for `eqxrl.load`.

    `Run.new(algo).fit()` makes one and trains; `Run(folder).fit()` goes on where the run was cut off.
    """

    def __init__(self, folder: str | Path):
        """An existing run.

        **Raises:** `FileNotFoundError` where there is none, `ValueError` where its configuration can't be read.
        """
        self.folder = Path(folder)
        self.checkpoints, self.policy = self.folder / "checkpoints", self.folder / "policy.eqx"
        self.env_steps: int | None = None  # of a run that `fit` has ended
        path = self.folder / "config.json"
        if not path.is_file():
            why = "there is none" if not os.path.lexists(path) else "what is called so is no file"
            rest = "If a run was to begin here, nothing of it was written, and the folder can be removed or, if it is empty, used anew"
            raise FileNotFoundError(f"{self.folder} is not the folder of a run: it has no config.json ({why}). {rest}")
        try:
            content = json.loads(path.read_text())
            self.config = RunConfig(**{f.name: content[f.name] for f in dataclasses.fields(RunConfig)})
            for f in dataclasses.fields(RunConfig):
                if not is_bearable(content[f.name], f.type):  # pyright: ignore[reportArgumentType]
                    raise TypeError(f"{f.name} is {_short(content[f.name])}")
            if type(self.config.hp.get("total_timesteps")) is not int:
                raise TypeError("hp has no total_timesteps that is an int")
            if self.config.num_seeds < 1 or abs(self.config.seed) >= 2**63:
                raise ValueError(f"num_seeds is {_short(self.config.num_seeds)}, seed is {_short(self.config.seed)}")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged, or of another version of eqxrl: {_short(error)}") from error

    @classmethod
    def new(
        cls, algo: AbstractAlgorithm, out: str | Path = "runs", name: str | None = None, *, seed: int = 0, num_seeds: int = 1,
        source: str | None = None, env_id: str | None = None, preset: str | None = None,
    ) -> "Run":
        """Makes a folder for a run: `out/name`, or `out/<environment>-<number>` with the next free number.

        **Arguments:**

        - `algo`: what is to be trained.
        - `source`: `"path/to/script.py:make"`, a function without arguments that returns the algorithm. It is needed where the
            configuration can't tell all of it: an environment that was passed as an object, parts that aren't made of numbers and
            strings, a class of one's own. The script is imported whenever the run is loaded, so it must train under
            `if __name__ == "__main__":` only. (The command needs none for classes that it was given as `path/to/file.py:Class`.)
        - `env_id`: what the environment was made with, if it isn't called so.
        - `preset`: where hyperparameters and parts were taken from, for people.

        **Raises:** `FileExistsError` if there is a folder by that name, since a run is never overwritten; `ValueError` where
        `source` is needed, or makes another algorithm.
        """
        if num_seeds < 1:
            raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
        kind, described = type(algo), hyperparameters(algo)
        names = {x: name for name, x in ALGORITHMS.items()}
        algorithm = (names.get(kind) or _origin(kind) if source is None else None) or kind.__qualname__
        if made := next((x for x in layers(algo.env) if isinstance(x, WithOptions)), None):
            env_id = made.env_id
        env_id = _absolute(env_id or _origin(type(_innermost(algo.env))) or described["env"]) if source is None else None
        env_kwargs = readable(made.options) if made and source is None else {}
        source = None if source is None else _absolute(source)
        rest = {k: described[k] for k in _DESCRIPTION}
        config = RunConfig(algorithm, env_id, env_kwargs, preset, source, seed, num_seeds, **rest, versions=versions())
        try:
            config.create()
        except (ValueError, TypeError, OSError, ImportError) as error:
            hint = "" if source else "; pass source='path/to/script.py:make', a function without arguments that returns the algorithm"
            raise ValueError(f"this {kind.__name__} can't be made again from its run's folder: {error}{hint}") from error
        env = env_name(algo.env).replace("/", "-")
        folders = [Path(out, name)] if name else (Path(out, f"{env}-{number:03d}") for number in itertools.count(1))
        for folder in folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
            unfinished.mkdir()
            try:
                _write(unfinished, config)
                unfinished.rename(folder)  # which is refused where there is one, unless it is empty
                return cls(folder)
            except OSError as e:
                shutil.rmtree(unfinished)
                if e.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
        raise FileExistsError(f"{out}/{name} exists, and a run is never overwritten; pass another name")

    @property
    def finished(self) -> bool:
        return self.policy.is_file()

    def fit(self, callbacks: Iterable[Callback] = (), loggers: Iterable[AbstractLogger] = ()) -> tuple[Any, EvalMetrics]:
        """Trains, or goes on from the newest checkpoint; then writes the policies and a picture of how they came about.

        **Returns:** what `Trainer.fit` returns: the state, `[seeds ...]`, and all evaluations, `[seeds evals episodes]`.

        **Raises:** what `Trainer.fit` raises; `NonFinite` as `NanGuard`; `ValueError` for a run that has finished, and where the
        seeds in its configuration aren't those of its checkpoints.
        """
        with owned(self.checkpoints):
            if self.finished:
                raise ValueError(f"{self.folder} has finished; its policy is {self.policy}. It goes on only to a larger total_timesteps")
            self._check_seeds()
            algo, metrics = self.config.create(), self.folder / "metrics.jsonl"
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed
                leftover.unlink()
            if not Checkpoints(self.checkpoints).files():
                metrics.unlink(missing_ok=True)  # likewise, before it wrote a checkpoint
            callbacks = [*callbacks, _ImportsMeanwhile()]
            callbacks += [] if any(isinstance(x, NanGuard) for x in callbacks) else [NanGuard()]
            trainer = Trainer(callbacks, [JSONLLogger(metrics), *loggers], self.checkpoints)
            state, evaluations = trainer._fit(algo, self._keys())
            self.env_steps = trainer.env_steps
            picture = self.folder / "learning_curve.png"
            try:
                self.plot(picture)
            except Exception as error:
                warnings.warn(f"{picture} couldn't be drawn: {error!r}; the policy is written nevertheless", stacklevel=2)
            # Last of all, since it says that all is there.
            save(self.policy, eqx.filter_jit(eqx.filter_vmap(algo.policy))(state), metadata=dataclasses.asdict(self.config))
        return state, evaluations

    def _keys(self) -> Key[Array, " seeds"]:
        return jax.random.split(jax.random.key(self.config.seed), self.config.num_seeds)

    def _check_seeds(self) -> None:
        """**Raises:** `ValueError` where the checkpoints are those of other seeds than `config.json` says."""
        for _, path in Checkpoints(self.checkpoints).files():
            with contextlib.suppress(CheckpointDamaged, CheckpointMismatch, OSError, LookupError, TypeError):
                run = read_metadata(path)["run"]
                what = None if run["num_seeds"] == self.config.num_seeds else f"num_seeds={self.config.num_seeds}"
                if what is None and run.get("started_with") not in (None, fingerprint(self._keys())):
                    what = f"seed={self.config.seed}"
                if what is not None:
                    how = "but the run was started with another; put that back, or start a run of its own"
                    raise ValueError(f"{self.folder / 'config.json'} says {what}, {how}")
                return

    def extend(self, total_timesteps: int) -> None:
        """Lets `fit` go on to more env steps, also where the run has finished. Nothing else changes: schedules stay as they are.

        **Raises:** `ValueError` if they aren't more.
        """
        with owned(self.checkpoints):
            self._extend(total_timesteps)

    def _extend(self, total_timesteps: int) -> None:
        old = self.config.hp["total_timesteps"]
        if total_timesteps <= old:
            raise ValueError(f"{self.folder} has total_timesteps={old}, which can only be extended, got {total_timesteps}")
        config = dataclasses.replace(self.config, hp={**self.config.hp, "total_timesteps": total_timesteps})
        config.create()  # what is wrong with it shows before anything is changed
        self.policy.unlink(missing_ok=True)
        self.config = config
        _write(self.folder, config)

    def load(self, member: int | None = 0, *, best: bool = False) -> tuple[Any, Any]:
        """The algorithm, and the training state of one member of the run, finished or not: what `make_actor`, `eval_callback` and
        `visualize` take.

        **Arguments:** `member`: `None` for all of them, stacked `[seeds ...]`; `best`: that with the best evaluation, not the newest.

        **Raises:** as `RunConfig.create` and `load_checkpoint`; `IndexError` if there is no such member.
        """
        num_seeds = self.config.num_seeds
        if member is not None and not 0 <= member < num_seeds:
            raise IndexError(f"{self.folder} has {num_seeds} members, counted from 0, so there is no {member}")
        self._check_seeds()
        algo = self.config.create()
        state, _ = load_checkpoint(self.checkpoints, algo, best=best)
        return algo, state if member is None else jax.tree.map(lambda x: x[member] if eqx.is_array(x) else x, state)

    def curve(self) -> Curve:
        """The evaluations so far.

        **Raises:** `FileNotFoundError` if there are none. Rows that are damaged are left out, with a warning.
        """
        path = self.folder / "metrics.jsonl"
        rows = [row for row in read_rows(path) if "eval/return_mean" in row] if os.path.lexists(path) else []
        if not rows:
            raise FileNotFoundError(f"{self.folder} has no evaluations yet; go on with it: eqxrl train --resume {self.folder}")
        found = [(row["env_steps"], x) for row in rows if (x := _numbers(row["eval/return_mean"], self.config.num_seeds)) is not None]
        if len(found) < len(rows):
            lost = f"in {len(rows) - len(found)} of {len(rows)} rows"
            what = f"eval/return_mean isn't a number for each of {self.config.num_seeds} seeds {lost}"
            if not found:
                raise ValueError(f"{path}: {what}")
            warnings.warn(f"{path}: {what}, which are left out", stacklevel=2)
        env_steps, returns = zip(*found, strict=True)
        return Curve(env_steps=np.array(env_steps), returns=np.array(returns).T)

    def plot(self, path: str | Path) -> Path:
        return plot_learning_curves({drawable(self.folder.name): self.curve()}, path, title=drawable(self.config.env))


class _ImportsMeanwhile(Callback):
    """Imports what draws the curve, which takes a fifth of a second, while a program runs, which needs no Python."""

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: Any, outputs: Any) -> None:
        threading.Thread(target=importlib.import_module, args=("matplotlib.figure",), daemon=True).start()


def drawable(text: str) -> str:
    """For matplotlib, which has no glyph for what can't be printed, and takes what is between dollars for a formula."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def find_algorithm(name: str) -> type[AbstractAlgorithm]:
    """The class called so: a name in `ALGORITHMS`, or `path/to/file.py:Class`."""
    if name not in ALGORITHMS and not is_user_code(name):
        there = ", ".join(ALGORITHMS)
        raise ValueError(f"there is no algorithm {name!r}; there is {there}, or a class of your own, path/to/file.py:Class")
    cls = ALGORITHMS.get(name) or from_file(name)
    if not (isinstance(cls, type) and issubclass(cls, AbstractAlgorithm)):
        raise TypeError(f"{name} isn't an algorithm: a class that inherits from AbstractOnPolicy, AbstractOffPolicy or AbstractAlgorithm")
    return cls


def _write(folder: Path, config: RunConfig) -> None:
    replace_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def _numbers(values: Any, num: int) -> list[float] | None:
    """`num` floats, if `values` are so many."""
    try:
        return [math.nan if x is None else float(x) for x in values] if isinstance(values, list) and len(values) == num else None
    except (TypeError, ValueError, OverflowError):
        return None


def _short(x: Any) -> str:
    return text if len(text := repr(x)) <= 200 else text[:197] + "..."


def _absolute(name: str) -> str:
    file, _, what = name.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{what}" if is_user_code(name) else name


def _innermost(env: Any) -> Any:
    return _innermost(env.env) if hasattr(env, "env") else env


def _origin(cls: type) -> str | None:
    """`/path/to/file.py:Class` of a class that was imported by `from_file`."""
    kind, _, path = cls.__module__.partition(":")
    return f"{path}:{cls.__qualname__}" if kind == "user_code" else None


def _decode(x: Any) -> Any:
    """What `hyperparameters` has written, if it is made of numbers, strings, and public structs, parts and makers of networks."""
    if isinstance(x, Mapping):
        import eqxrl

        fields = {k: _decode(y) for k, y in x.items() if k != "type"}
        known = {name: cls for name, cls in vars(eqxrl).items() if isinstance(cls, type) and dataclasses.is_dataclass(cls)}
        if "type" not in x:
            return fields
        if x["type"] not in known:
            raise TypeError(f"{x['type']} can't be made of what is written down of it")
        return known[x["type"]](**fields)
    if isinstance(x, list):
        return tuple(map(_decode, x))
    return float(x) if x in ("inf", "-inf", "nan") else x
