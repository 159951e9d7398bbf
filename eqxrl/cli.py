"""The `eqxrl` command. Exit codes: 0 done, 1 it failed (or `verify` found something), 2 the command line or the files that it
names are wrong, 130 interrupted (143 by SIGTERM); the run can be resumed then."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eqxrl import PPOHParams, set_cpu_flags

# tyro takes jaxtyping's scalars for constants, so the command line has a plain mirror of the hyperparameters, where `None`
# means: as in the preset.
HP = dataclasses.make_dataclass(
    "HP",
    [
        (f.name, (type(f.default) if isinstance(f.default, int) else float) | None, dataclasses.field(default=None))
        for f in dataclasses.fields(PPOHParams)
    ],
    frozen=True,
)
if TYPE_CHECKING:
    Hyperparameters = Any
else:
    Hyperparameters = Annotated[HP, tyro.conf.arg(help="Hyperparameters: fields of PPOHParams.")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]

app = tyro.extras.SubcommandApp()


def main() -> None:
    """The entry point."""
    set_cpu_flags()
    try:
        code = app.cli(prog="eqxrl", description="Reinforcement learning in JAX and Equinox.")
    except (ValueError, TypeError, OSError, IndexError, ImportError) as error:
        print(f"eqxrl: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


@app.command
def train(
    env_id: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    preset: str | None = None,
    hp: Hyperparameters = HP(),
    seed: int = 0,
    seeds: int = 1,
    out: Path = Path("runs"),
    name: str | None = None,
    resume: Path | None = None,
    quiet: Flag = False,
    json: Flag = False,
) -> int:
    """Train one agent, or many at once, and leave a folder with all there is to see.

    Args:
        env_id: A gymnax environment, such as CartPole-v1.
        preset: A tuned configuration; the environment's first one if there is any. "default" is PPOHParams as it is.
        hp: Hyperparameters that differ from the preset's.
        seed: The same seed gives the same run.
        seeds: How many agents to train at once.
        out: Where run folders go.
        name: The run's folder in there, instead of a number.
        resume: Go on with this run instead, given its folder.
        quiet: Print nothing but errors.
        json: Print the result as JSON and nothing else.
    """
    from eqxrl.algorithms import PRESETS
    from eqxrl.training import Run, RunConfig

    if resume is not None and env_id is None:
        return _fit(Run(resume), quiet, json, resume=True)
    if env_id is None or resume is not None:
        raise ValueError("name an environment, as in: eqxrl train CartPole-v1, or a run, as in: eqxrl train --resume RUN")
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    chosen = preset or next(iter(PRESETS.get(env_id, {})), None)
    given = {field: value for field, value in dataclasses.asdict(hp).items() if value is not None}
    config = RunConfig(env_id, None if chosen == "default" else chosen, given, seed=seed, num_seeds=seeds)
    config.create()  # what is wrong with it shows before there is a folder
    return _fit(Run.new(config, out, name), quiet, json, resume=False)


def _fit(run: Any, quiet: bool, as_json: bool, *, resume: bool) -> int:
    from eqxrl.training import CSVLogger, Interrupted, JSONLLogger, ProgressBar, Trainer

    silent = quiet or as_json
    if run.finished:
        raise ValueError(f"{run.folder} has finished; its policy is {run.policy}")
    if not silent:
        c = run.config
        print(f"{c.env_id}, preset {c.preset or 'default'}, {c.num_seeds} seed{'s' * (c.num_seeds > 1)}, into {run.folder}")
    trainer = Trainer(
        callbacks=[] if silent else [ProgressBar()],
        loggers=[JSONLLogger(run.folder / "metrics.jsonl"), CSVLogger(run.folder / "metrics.csv")],
        folder=run.checkpoints,
    )
    try:
        state, metrics = trainer.fit(run.config.create(), run.config.keys(), resume=resume)
    except Interrupted as interruption:
        print(f"eqxrl: {interruption}\nGo on with: eqxrl train --resume {run.folder}", file=sys.stderr)
        return 128 + interruption.signal
    run.finish(state)
    _report(run.folder, metrics.cumulative_reward[:, -1], metrics.episode_length[:, -1], quiet, as_json, trainer.env_steps)
    return 0


def _report(folder: Path, returns: Any, lengths: Any, quiet: bool, as_json: bool, env_steps: int | None = None) -> None:
    """The final evaluation, `[seeds episodes]`, as a table or JSON."""
    import numpy as np

    from eqxrl.viz import iqm

    by_seed = np.asarray(returns, np.float64).mean(-1)
    if as_json:
        steps = {} if env_steps is None else {"env_steps": env_steps}
        content = dict(run=str(folder), **steps, returns=by_seed.tolist(), iqm=float(iqm(by_seed)))
        print(json.dumps(content))
    elif not quiet:
        from rich.console import Console
        from rich.table import Table

        table = Table("seed", "mean return", "std", "worst", "best", "mean length", title=f"{returns.shape[-1]} episodes")
        for i, (x, n) in enumerate(zip(np.asarray(returns, np.float64), np.asarray(lengths), strict=True)):
            table.add_row(str(i), *(f"{v:.1f}" for v in (x.mean(), x.std(), x.min(), x.max(), n.mean())))
        if len(by_seed) > 1:
            values = (iqm(by_seed), by_seed.std(), by_seed.min(), by_seed.max(), lengths.mean())
            table.add_section()
            table.caption = "IQM: over the seeds' means, as are std, worst and best in its row"
            table.add_row("IQM", *(f"{v:.1f}" for v in values))
        Console().print(table)
        print(f"Everything is in {folder}: play it with: eqxrl render {folder} --out episode.gif")


@app.command
def evaluate(
    run: tyro.conf.Positional[Path],
    *,
    episodes: int = 128,
    seed: int = 0,
    stochastic: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
) -> int:
    """Play whole episodes with the policies of a run.

    Args:
        run: The run's folder.
        episodes: How many, for each of the run's policies.
        seed: Of the environments.
        stochastic: Draw actions instead of taking the likeliest.
        quiet: Print nothing but errors.
        json: Print the result as JSON and nothing else.
    """
    import equinox as eqx
    import jax

    from eqxrl import EpisodeEvaluator
    from eqxrl.training import Run

    folder = Run(run)
    evaluator = EpisodeEvaluator(num_episodes=episodes, deterministic=not stochastic)
    algo, agents = folder.load_all()
    keys = jax.random.split(jax.random.key(seed), folder.config.num_seeds)
    play = eqx.filter_jit(eqx.filter_vmap(lambda agent, key: evaluator(algo.env, algo.env_params, agent, key)))
    metrics = play(agents, keys)
    _report(run, metrics.cumulative_reward, metrics.episode_length, quiet, json)
    return 0


@app.command
def render(
    run: tyro.conf.Positional[Path], *, out: Path = Path("episode.gif"), member: int = 0, seed: int = 0, quiet: Flag = False
) -> int:
    """Draw an episode of a run's policy as a GIF.

    Args:
        run: The run's folder.
        out: The GIF.
        member: Which of the run's policies.
        seed: Of the environment.
        quiet: Print nothing but errors.
    """
    import jax

    from eqxrl.training import Run

    algo, state = Run(run).load(member)
    path = algo.visualize(state, out, jax.random.key(seed))
    if not quiet:
        print(path)
    return 0


@app.command
def plot(runs: tyro.conf.Positional[tuple[Path, ...]], *, out: Path = Path("learning_curves.png"), quiet: Flag = False) -> int:
    """Draw the learning curves of one or several runs: IQM over seeds, with a 95 % bootstrap band.

    Args:
        runs: Their folders.
        out: The PNG.
        quiet: Print nothing but errors.
    """
    from eqxrl.training import Run
    from eqxrl.viz import plot_learning_curves

    if not runs:
        raise ValueError("name at least one run's folder")
    opened = [Run(folder) for folder in runs]
    envs = {run.config.env_id for run in opened}
    path = plot_learning_curves({str(run.folder): run.curve() for run in opened}, out, title=", ".join(sorted(envs)))
    if not quiet:
        print(path)
    return 0


@app.command
def runs(folder: tyro.conf.Positional[Path] = Path("runs"), *, json: Flag = False) -> int:
    """List the runs in a folder.

    Args:
        folder: Where they are.
        json: Print them as JSON.
    """
    import json as json_module

    from rich.console import Console
    from rich.table import Column, Table

    from eqxrl.training import Run
    from eqxrl.viz import iqm

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    rows = []
    for path in sorted(folder.iterdir()):
        if not (path / "config.json").is_file():
            continue
        run = Run(path)
        row = dict(run=str(path), **dataclasses.asdict(run.config), finished=run.finished, env_steps=None, iqm=None)
        try:
            curve = run.curve()
        except FileNotFoundError:
            pass  # killed before its first evaluation
        else:
            row |= dict(env_steps=int(curve.env_steps[-1]), iqm=float(iqm(curve.returns)[-1]))
        rows.append(row)
    if json:
        print(json_module.dumps(rows))
        return 0
    table = Table(
        Column("run", no_wrap=True),
        Column("environment", no_wrap=True),
        Column("options", overflow="fold"),
        Column("seeds", justify="right"),
        Column("env steps", justify="right"),
        Column("IQM", justify="right"),
        "done",
        caption="IQM: of the last evaluation's mean returns, over seeds",
    )
    for row in rows:
        options = " ".join([row["preset"] or "default", *(f"{k}={v}" for k, v in row["hp"].items())])
        last = ("", "") if row["iqm"] is None else (f"{row['env_steps']:,}", f"{row['iqm']:.1f}")
        cells = (row["run"], row["env_id"], options, str(row["num_seeds"]), *last, "yes" if row["finished"] else "no")
        table.add_row(*cells)
    Console().print(table)
    return 0


@app.command
def verify(
    env_id: tyro.conf.Positional[str],
    *,
    preset: str | None = None,
    hp: Hyperparameters = HP(),
    quiet: Flag = False,
) -> int:
    """Check an assembled PPO for the usual mistakes, and print what held.

    Args:
        env_id: A gymnax environment.
        preset: A tuned configuration; PPOHParams as it is if none is given.
        hp: Hyperparameters that differ from it.
        quiet: Print nothing; the exit code tells.
    """
    from eqxrl.training import RunConfig
    from eqxrl.verification import verify as check

    given = {field: value for field, value in dataclasses.asdict(hp).items() if value is not None}
    report = check(RunConfig(env_id, preset, given).create(), quiet=quiet)
    return 0 if report.ok else 1


if __name__ == "__main__":
    main()
