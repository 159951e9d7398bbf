"""A run's folder: what was run, how it went, and the policy that came of it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from eqxrl.algorithms import PPO, PPOHParams, PPOState, preset
from eqxrl.nn import AbstractActorCritic
from eqxrl.training._files import load, save


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that it takes to do the run again."""

    env_id: str
    preset: str | None
    """`None`: the defaults of `PPOHParams`."""
    hp: Mapping[str, Any]
    """Hyperparameters that differ from the preset's."""
    seed: int = 0
    num_seeds: int = 1

    def create(self) -> PPO:
        """The algorithm."""
        if self.preset is None:
            return PPO.create(self.env_id, hp=PPOHParams(**self.hp))
        return preset(self.env_id, self.preset).create(**self.hp)

    def keys(self) -> Key[Array, " seeds"]:
        """One key for each agent."""
        return jax.random.split(jax.random.key(self.seed), self.num_seeds)


class Run:
    """A run's folder:

    - `config.json`: environment, preset, hyperparameters, seeds;
    - `metrics.jsonl`, `metrics.csv`: how it went;
    - `checkpoints/`: where to go on from;
    - `learning_curve.png`;
    - `policy.eqx`: the trained agents, stacked, for `eqxrl.load` or `Run.load`.
    """

    def __init__(self, folder: str | Path):
        """An existing run.

        **Raises:** `FileNotFoundError` where there is none, `ValueError` where its configuration can't be read.
        """
        self.folder = Path(folder)
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} is not the folder of a run: it has no config.json")
        try:
            content = json.loads(path.read_text())
            self.config = RunConfig(**{f.name: content[f.name] for f in dataclasses.fields(RunConfig)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error

    @classmethod
    def new(cls, config: RunConfig, out: str | Path = "runs", name: str | None = None) -> "Run":
        """Makes a folder for a run: `out/name`, or `out/<environment>-<number>` with the next free number.

        **Raises:** `FileExistsError` if there is one by that name; a run is never overwritten.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        if name is not None:
            folder = out / name
            if folder.exists():
                raise FileExistsError(f"{folder} exists, and a run is never overwritten; pass another name")
            folder.mkdir(parents=True)
        else:
            number = 1
            while True:
                folder = out / f"{config.env_id}-{number:03d}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:
                    number += 1
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return cls(folder)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.eqx"

    @property
    def finished(self) -> bool:
        return self.policy.is_file()

    def finish(self, state: PPOState) -> None:
        """Writes what there is to show: the policies, and a picture of how they came about."""
        save(self.policy, state.agent, metadata=dataclasses.asdict(self.config))
        self.plot(self.folder / "learning_curve.png")

    def curve(self) -> Any:
        """The evaluations so far, as a `viz.Curve`.

        **Raises:** `FileNotFoundError` if there are none.
        """
        from eqxrl.viz import Curve

        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have torn the last one
        rows = [row for row in rows if "eval/return_mean" in row]
        if not rows:
            raise FileNotFoundError(f"{self.folder} has no evaluations yet; go on with it: eqxrl train --resume {self.folder}")
        returns = [[math.nan if x is None else x for x in row["eval/return_mean"]] for row in rows]
        return Curve(env_steps=np.array([row["env_steps"] for row in rows]), returns=np.array(returns, np.float64).T)

    def plot(self, path: str | Path) -> Path:
        from eqxrl.viz import plot_learning_curves

        return plot_learning_curves({self.folder.name: self.curve()}, path, title=self.config.env_id)

    def load_all(self) -> tuple[PPO, AbstractActorCritic]:
        """The algorithm, and the trained policies, stacked `[seeds ...]`.

        **Raises:** `FileNotFoundError` if the run hasn't finished, and what `eqxrl.load` raises.
        """
        if not self.finished:
            raise FileNotFoundError(f"{self.folder} hasn't finished; go on with it: eqxrl train --resume {self.folder}")
        algo = self.config.create()
        like = eqx.filter_eval_shape(eqx.filter_vmap(algo.init_train_state), self.config.keys())
        return algo, load(self.policy, like.agent)

    def load(self, member: int = 0) -> tuple[PPO, PPOState]:
        """The algorithm, and a training state with the trained policy of one member of the run: what `make_actor`,
        `eval_callback` and `visualize` take.

        **Raises:** as `load_all`, and `IndexError` if there is no such member.
        """
        algo, agents = self.load_all()
        if not 0 <= member < self.config.num_seeds:
            raise IndexError(f"{self.folder} has {self.config.num_seeds} members, counted from 0, so there is no {member}")
        agent = jax.tree.map(lambda x: x[member] if eqx.is_array(x) else x, agents)
        return algo, dataclasses.replace(algo.init_train_state(self.config.keys()[member]), agent=agent)
