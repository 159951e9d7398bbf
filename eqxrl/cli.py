"""The `eqxrl` command. Exit codes: 0 done, 1 it failed (what isn't finite came of it, or `verify` found something), 2 the command line or
the files that it names are wrong, 130 interrupted (143 by SIGTERM); the run can be resumed then."""

import contextlib
import dataclasses
import itertools
import json as json_module
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import numpy as np
import tyro

from eqxrl import EpisodeEvaluator, set_cpu_flags
from eqxrl import sweep as sweep_over
from eqxrl import verify as check
from eqxrl._options import Chosen
from eqxrl._program_cache import keep_programs
from eqxrl.algorithms._memory import check_fits, state_size
from eqxrl.envs import env_ids, env_name, known_suites
from eqxrl.training import Interrupted, NonFinite, ProgressBar, Run
from eqxrl.training._programs import num_devices
from eqxrl.training._runs import drawable
from eqxrl.viz import iqm, plot_learning_curves

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
WORTH_SAYING = 100_000_000
"""Bytes of training states from which on it is printed how many they are."""


def main() -> None:
    """The entry point."""
    handlers = {signal.SIGTERM: _terminate, signal.SIGINT: signal.default_int_handler}  # in place of `_command`'s
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        set_cpu_flags()
        keep_programs()
        app, argv = _app(sys.argv[1:])
        code = app.cli(prog="eqxrl", description="Reinforcement learning in JAX and Equinox.", args=argv)
    except NonFinite as error:
        code = _complain("; ".join([str(error), *getattr(error, "__notes__", ())]), 1)
    except (ValueError, TypeError, OSError, IndexError, ImportError) as error:
        code = _complain(error, 2)
    except KeyboardInterrupt as error:
        code = _complain("interrupted", 143 if isinstance(error, _Terminated) else 130)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    sys.exit(code)


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(signum: int, frame: Any) -> None:
    raise _Terminated


def _complain(why: Any, code: int = 0) -> int:
    """On one line."""
    with contextlib.suppress(OSError):
        print(f"eqxrl: {_plain(why)}", file=sys.stderr, flush=True)
    return code


def _plain(text: Any) -> str:
    """What may come from a file, on one line, and without what drives a terminal."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= 2000 else text[:1997] + "..."


@contextlib.contextmanager
def _output(of_a_run: bool = False) -> Iterator[None]:
    """For what is printed. That whoever reads it has left is no failure; that the disk is full is one, except of a run that is well."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich leaves the process where a pipe is closed
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or else Python would fail again when it ends
        if not isinstance(error, BrokenPipeError | SystemExit):
            if not of_a_run:
                raise
            _complain(f"what was to be printed is lost: {error}")


def _say(line: str) -> None:
    with _output(of_a_run=True):
        print(line)


def _ignore(line: str) -> None:
    pass


def _app(argv: list[str]) -> tuple[Any, list[str]]:
    """The commands, and what is left of the arguments for their parser."""
    app = tyro.extras.SubcommandApp()
    chosen = Chosen(argv[1:], argv[0] == "sweep") if argv and argv[0] in ("train", "sweep", "verify") else None
    HP: Any = Annotated[chosen.HP, tyro.conf.arg(help=chosen.about)] if chosen else Any
    default: Any = chosen.HP() if chosen else None
    tuned = chosen.preset.name if chosen and chosen.preset else "default"

    @app.command
    def train(
        env_id: tyro.conf.Positional[str | None] = None, *, algo: str = "ppo", preset: str = tuned, seed: int = 0, seeds: int = 1,
        hp: HP = default,  # pyright: ignore[reportInvalidTypeForm]
        out: Path = Path("runs"), name: str | None = None, resume: Path | None = None, quiet: Flag = False, json: Flag = False,
    ) -> int:
        """Train one agent, or many at once, and leave a folder with all there is to see.

        Args:
            env_id: An environment, such as CartPole-v1 of gymnax or popgym/AutoencodeEasy, or one of your own, path/to/file.py:Name. Its
                options go as --env.NAME VALUE, such as --env.max-episode-steps 500 for gymnasium/CartPole-v1.
            algo: ppo, a2c, impala, pqn, reppo, dqn, sac, td3, or one of your own, path/to/file.py:Class.
            preset: A tuned configuration; the environment's first one if there is any. "default" is the algorithm as it is.
            hp: Hyperparameters.
            seed: The same seed gives the same run.
            seeds: How many agents to train at once.
            out: Where run folders go.
            name: The run's folder in there, instead of a number.
            resume: Go on with this run instead, given its folder; with --hp.total-timesteps, to more than it was started for.
            quiet: Print nothing but errors.
            json: Print the result as JSON and nothing else.
        """
        assert chosen is not None
        if resume is not None:
            run = chosen.resumed(hp)
        else:
            if seeds < 1:
                raise ValueError(f"--seeds must be at least 1, got {seeds}")
            made, preset_name = chosen.create(hp), chosen.preset and chosen.preset.name
            check_fits(made, state_size(made, seeds), num_devices(seeds), "--seeds")  # before there is a folder
            run = Run.new(made, out, name, seed=seed, num_seeds=seeds, env_id=chosen.env_id, preset=preset_name)
        silent = quiet or json
        if not silent:
            with _output(of_a_run=True):
                print(f"{_what(run, 'preset ')}, into {run.folder}")
                if (size := state_size(run.config.create(), run.config.num_seeds)).total >= WORTH_SAYING:
                    print(f"state: {size}")
                if (used := num_devices(n := run.config.num_seeds)) < min(n, jax.device_count()):
                    print(f"{used} of {jax.device_count()} devices: more would be used if --seeds were a multiple of their number")
        try:
            _, metrics = run.fit([] if silent else [ProgressBar()])
        except Interrupted as interruption:
            return _complain(f"{interruption} Or with: eqxrl train --resume {run.folder}", 128 + interruption.signal)
        with _output(of_a_run=True):
            rewards, lengths = (np.asarray(x)[:, -1] for x in (metrics.cumulative_reward, metrics.episode_length))
            _report(run.folder, rewards, lengths, quiet, json, run.env_steps)
        return 0

    @app.command
    def sweep(
        env_id: tyro.conf.Positional[str | None] = None, *, algo: str = "ppo", preset: str = tuned, seed: int = 0, seeds: int = 1,
        hp: HP = default,  # pyright: ignore[reportInvalidTypeForm]
        samples: int | None = None, folder: Path | None = None, chunk: int | None = None, quiet: Flag = False, json: Flag = False,
    ) -> int:
        """Train a population on all devices: a grid, or random points, of hyperparameters, each with several seeds; and rank them.

        The same command with the same --folder goes on with a sweep that was cut off.

        Args:
            env_id: As for train.
            algo: As for train.
            preset: As for train.
            hp: Hyperparameters.
            seed: Of the agents, and of the points that are drawn.
            seeds: How many agents to train with each point.
            samples: Draw so many points, instead of the whole grid.
            folder: Where everything goes, instead of a numbered folder in sweeps; best/ in there is the best point's run.
            chunk: How many agents to train at once, instead of as many as memory allows.
            quiet: Print nothing but errors.
            json: Print the result as JSON and nothing else.
        """
        assert chosen is not None
        (made, space), silent = chosen.swept(hp), quiet or json
        numbered = (Path("sweeps", f"{env_name(made.env).replace('/', '-')}-{i:03d}") for i in itertools.count(1))
        place = folder or next(x for x in numbered if not x.exists())
        try:
            result = sweep_over(
                made, space, seeds=seeds, samples=samples, seed=seed, folder=place, chunk=chunk, env_id=chosen.env_id,
                preset=chosen.preset and chosen.preset.name, callbacks=list if silent else lambda: [ProgressBar()],
                say=_ignore if silent else _say,
            )
        except Interrupted as interruption:
            how = f"Go on with the same command and --folder {place}"
            return _complain(f"stopped by {signal.Signals(interruption.signal).name}. {how}", 128 + interruption.signal)
        with _output(of_a_run=True):
            if not quiet:
                there = f"Everything is in {place}; the best point is a run: eqxrl evaluate {place}/best"
                print(result.as_json() if json else f"{result}\n{there}")
        return 0

    for command in (evaluate, render, plot, envs, runs):
        app.command(command)

    @app.command
    def verify(
        env_id: tyro.conf.Positional[str | None] = None, *, algo: str = "ppo", preset: str = tuned, seed: int = 0, quiet: Flag = False,
        hp: HP = default,  # pyright: ignore[reportInvalidTypeForm]
    ) -> int:
        """Check for the usual mistakes what `train` with the same options would train, and print what held.

        Args:
            env_id: As for train.
            algo: As for train.
            preset: As for train.
            hp: Hyperparameters.
            seed: Of the networks and environments that are tried.
            quiet: Print nothing; the exit code tells.
        """
        assert chosen is not None
        return 0 if check(chosen.create(hp), key=seed, quiet=quiet).ok else 1

    return app, [argv[0], *chosen.argv] if chosen else argv


def _what(run: Run, preset: str = "") -> str:
    c = run.config
    return f"{c.algorithm_name} on {c.env}, {preset}{c.preset or 'default'}, {c.num_seeds} seed{'s' * (c.num_seeds > 1)}"


def _report(folder: Path, returns: Any, lengths: Any, quiet: bool, as_json: bool, env_steps: Any) -> None:
    """The evaluation of the policies after so many env steps, `[seeds episodes]`, as a table or JSON."""
    by_seed = np.asarray(returns, np.float64).mean(-1)
    if as_json:
        print(json_module.dumps(dict(run=str(folder), env_steps=env_steps, returns=by_seed.tolist(), iqm=float(iqm(by_seed)))))
    elif not quiet:
        from rich.console import Console
        from rich.table import Table

        title = f"{returns.shape[-1]} episodes after {env_steps:,} env steps"
        table = Table("seed", "mean return", "std", "worst", "best", "mean length", title=title)
        for i, (x, n) in enumerate(zip(np.asarray(returns, np.float64), np.asarray(lengths), strict=True)):
            table.add_row(str(i), *(f"{v:.1f}" for v in (x.mean(), x.std(), x.min(), x.max(), n.mean())))
        if len(by_seed) > 1:
            values = (iqm(by_seed), by_seed.std(), by_seed.min(), by_seed.max(), lengths.mean())
            table.add_section()
            table.caption = "IQM: over the seeds' means, as are std, worst and best in its row"
            table.add_row("IQM", *(f"{v:.1f}" for v in values))
        Console().print(table)
        print(f"Everything is in {folder}: play it with: eqxrl render {folder} --out episode.gif")


def evaluate(
    run: tyro.conf.Positional[Path], *, episodes: int = 128, best: Flag = False, seed: int = 0, stochastic: Flag = False,
    quiet: Flag = False, json: Flag = False,
) -> None:
    """Play whole episodes with the policies of a run, finished or not.

    Args:
        run: The run's folder.
        episodes: How many, for each of the run's policies.
        best: The policies with the best evaluation so far, instead of the newest.
        seed: Of the environments.
        stochastic: Explore, instead of taking the actions that the policy holds best.
        quiet: Print nothing but errors.
        json: Print the result as JSON and nothing else.
    """
    opened = Run(run)
    algo, states = opened.load(None, best=best)
    own = algo.evaluator if isinstance(algo.evaluator, EpisodeEvaluator) else EpisodeEvaluator(num_episodes=1)
    evaluator = dataclasses.replace(own, num_episodes=episodes, deterministic=not stochastic)
    keys = jax.random.split(jax.random.key(seed), opened.config.num_seeds)
    play = eqx.filter_jit(eqx.filter_vmap(lambda ts, key: evaluator(algo.env, algo.env_params, algo.policy(ts), key)))
    metrics = play(states, keys)
    with _output():
        _report(run, metrics.cumulative_reward, metrics.episode_length, quiet, json, algo.env_steps(states))


def render(
    run: tyro.conf.Positional[Path], *, out: Path = Path("episode.gif"), member: int = 0, best: Flag = False, seed: int = 0,
    quiet: Flag = False,
) -> None:
    """Draw an episode of a run's policy as a GIF or an MP4, whether the run has finished or not.

    Args:
        run: The run's folder.
        out: Where to; it ends in .gif or .mp4 (which needs pip install 'eqxrl[mp4]').
        member: Which of the run's policies.
        best: The policy with the best evaluation so far, instead of the newest.
        seed: Of the environment.
        quiet: Print nothing but errors.
    """
    algo, state = Run(run).load(member, best=best)
    path = algo.visualize(state, out, jax.random.key(seed))
    if not quiet:
        with _output():
            print(path)


def plot(runs: tyro.conf.Positional[tuple[Path, ...]], *, out: Path = Path("learning_curves.png"), quiet: Flag = False) -> None:
    """Draw the learning curves of one or several runs of one environment: IQM over seeds, with a 95 % bootstrap band.

    Args:
        runs: Their folders.
        out: The PNG.
        quiet: Print nothing but errors.
    """
    opened = [Run(folder) for folder in runs]
    envs = {run.config.env: str(run.folder) for run in opened}
    if len(envs) != 1:
        found = ", ".join(f"{folder} of {env}" for env, folder in envs.items()) or "none"
        raise ValueError(f"name runs of one environment: returns of different ones don't belong on one axis; got {found}")
    path = plot_learning_curves({drawable(str(run.folder)): run.curve() for run in opened}, out, title=drawable(next(iter(envs))))
    if not quiet:
        with _output():
            print(path)


def envs(suite: tyro.conf.Positional[str | None] = None, *, json: Flag = False) -> None:
    """List the environments of a suite, or the suites.

    Args:
        suite: gymnax, popgym, brax or another one; without it, all suites, and how to install those that aren't there.
        json: Print them as JSON.
    """
    there = {} if suite else known_suites()
    names = env_ids(suite) if suite else list(there)
    with _output():
        if json:
            print(json_module.dumps(there or names))
        else:
            print("\n".join(f"{name:12} {there[name] or f'eqxrl envs {name}'}" if there else name for name in names))


def runs(folder: tyro.conf.Positional[Path] = Path("runs"), *, json: Flag = False) -> None:
    """List the runs in a folder.

    Args:
        folder: Where they are.
        json: Print them as JSON.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found, paths = [], sorted(x for x in folder.iterdir() if os.path.lexists(x / "config.json") and not x.name.startswith("."))
    width = min(28, max([3, *(len(path.name) for path in paths)]))
    columns = [Column("run", overflow="fold", width=width), Column("what", overflow="fold")]
    columns += [Column("env steps", justify="right", no_wrap=True), Column("IQM", justify="right", no_wrap=True)]
    caption = "IQM: of the last evaluation's mean returns, over seeds"
    table = Table(*columns, "done", box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    for path in paths:
        try:
            row, what, last = _row(Run(path))
        except Exception as error:  # whatever is wrong with it, the others are listed
            _complain(error)
            row, what, last = dict(run=str(path), error=_plain(error)), "damaged", ("", "", "no")
        table.add_row(Text(_plain(path.name)), Text(_plain(what)), *last)
        found.append(row)
    with _output():
        if json:
            print(json_module.dumps(found))
        else:
            Console().print(table)


def _row(run: Run) -> tuple[dict[str, Any], str, tuple[str, str, str]]:
    """What is listed of a run, as JSON and as words: what it is; how far it has come, how good it is, and whether it has ended."""
    row = dict(run=str(run.folder), **dataclasses.asdict(run.config), finished=run.finished, env_steps=None, iqm=None)
    with contextlib.suppress(FileNotFoundError):  # killed before its first evaluation
        curve = run.curve()
        row |= dict(env_steps=int(curve.env_steps[-1]), iqm=float(iqm(curve.returns)[-1]))
    json_module.dumps(row)
    env_steps, last = ("", "") if row["iqm"] is None else (f"{row['env_steps']:,}", f"{row['iqm']:.1f}")
    options = (f"{k}={v}" for k, v in [*((f"env.{k}", v) for k, v in run.config.env_kwargs.items()), *run.config.options().items()])
    return row, " ".join([_what(run), *options]), (env_steps, last, "yes" if run.finished else "no")


if __name__ == "__main__":
    main()
