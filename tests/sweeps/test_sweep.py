"""A sweep as a whole: what it trains, what it says of it, and that it survives."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import quick_jit, same
from scipy.stats import trim_mean

from eqxrl import PPO, PPOHParams, log_uniform, sweep
from eqxrl.algorithms import MakeNetwork
from eqxrl.sweeps._result import Chunk, Sweep
from eqxrl.training import Callback, Run

SPACE = {"learning_rate": log_uniform(1e-3, 1e-1, 2), "num_epochs": [1, 2]}
SIZES = dict(num_envs=3, num_steps=8, num_minibatches=2, num_seeds_per_eval=2, total_timesteps=24 * 4, eval_freq=24 * 2)


def make(**hp):
    return PPO.create("CartPole-v1", hp=PPOHParams(**{**SIZES, **hp}), actor_critic=MakeNetwork("mlp", dict(hidden_sizes=(5,))))


@pytest.fixture(scope="module")
def algo():
    return make()


@pytest.fixture(scope="module")
def result(algo, tmp_path_factory):
    """Two programs; two points of three seeds each, in chunks of at most four, so that a point lies in two chunks, and one is filled up."""
    return sweep(algo, SPACE, seeds=3, seed=7, folder=tmp_path_factory.mktemp("sweep") / "whole", chunk=4)


@quick_jit
def alone(algo, keys):
    return eqx.filter_vmap(algo.train)(keys)


def files(folder):
    """What is bit for bit the same, however the sweep came about."""
    names = [x.relative_to(folder) for x in sorted(folder.rglob("*")) if x.is_file()]
    return {str(x): (folder / x).read_bytes() for x in names if x.suffix in (".csv", ".jsonl") or x.name in ("policy.eqx", "config.json")}


def test_each_agent_is_the_one_that_is_trained_by_itself(result):
    """With `train`, of an algorithm that was made with these numbers."""
    assert [tuple(x.values()) for x in result.points] == [(1e-3, 1), (1e-3, 2), (1e-1, 1), (1e-1, 2)]
    keys = jax.random.split(jax.random.key(7), 3)
    for i, (learning_rate, num_epochs) in enumerate(tuple(x.values()) for x in result.points):
        states, metrics = alone(make(learning_rate=learning_rate, num_epochs=num_epochs), keys)
        np.testing.assert_allclose(result.returns[i], metrics.cumulative_reward[:, -1].mean(-1), rtol=1e-5)
        np.testing.assert_allclose(result.curve(i).returns, metrics.cumulative_reward.mean(-1), rtol=1e-5)
        assert result.curve(i).env_steps.tolist() == [0, 48, 96]
        made, state = result.load(i, None)
        same(state, states, rtol=1e-4, atol=1e-5)
        assert made.hp.num_epochs == num_epochs and made.hp.learning_rate == np.float32(learning_rate)
    assert len({*result.returns.ravel()}) > 6


def test_the_table(result):
    rows = list(csv.DictReader((result.folder / "table.csv").read_text().splitlines()))
    assert len(rows) == 4 == len(result.table)
    for i, (row, returns) in enumerate(zip(rows, result.returns, strict=True)):
        wanted = dict(iqm=trim_mean(returns, 0.25), mean=np.mean(returns), min=np.min(returns), max=np.max(returns))
        for name, x in wanted.items():
            assert float(row[name]) == pytest.approx(x) == result.table[i][name]
        assert float(row["min"]) <= float(row["low"]) <= float(row["high"]) <= float(row["max"])
        assert int(row["point"]) == i and int(row["diverged"]) == 0
    assert result.best == np.argmax([float(row["iqm"]) for row in rows])
    lines = str(result).splitlines()
    assert lines[2 if lines[0].strip() else 3].split()[0] == str(result.best) and "over 3 seeds" in lines[-1]
    assert json.loads(result.as_json())["best"] == result.best


def test_the_best_points_run(result):
    """A run's folder like any other: evaluations, metrics and policies are those of the sweep."""
    run = Run(result.folder / "best")
    assert run.finished and (run.folder / "learning_curve.png").stat().st_size > 0
    assert run.config.num_seeds == 3 and run.config.seed == 7 and run.config.hp["num_epochs"] == result.points[result.best]["num_epochs"]
    np.testing.assert_array_equal(run.curve().returns, np.float32(result.curve(result.best).returns))
    made, state = run.load(None)
    same(state, result.load(member=None)[1])
    same(run.load(1)[1], result.load(member=1)[1])


@pytest.mark.slow
def test_the_best_points_run_goes_on(result, tmp_path):
    shutil.copytree(result.folder / "best", tmp_path / "run")
    run = Run(tmp_path / "run")
    run.extend(24 * 6)
    _, evaluations = run.fit()
    assert evaluations.cumulative_reward.shape == (3, 4, 2)
    straight = make(**{**result.points[result.best], "total_timesteps": 24 * 6})
    states, _ = alone(straight, jax.random.split(jax.random.key(7), 3))
    same(run.load(None)[1], states, rtol=1e-4, atol=1e-5)


def test_the_picture(result):
    from PIL import Image

    picture = np.asarray(Image.open(result.folder / "sweep.png").convert("RGB"))
    assert picture.shape[1] > picture.shape[0] and (picture == (213, 94, 0)).all(-1).sum() > 100  # the best one's colour


class Killed(BaseException):
    pass


class Kill(Callback):
    def __init__(self, after):
        self.after = after

    def on_validation_epoch_end(self, trainer, *_):
        self.after[0] -= 1
        if not self.after[0]:
            raise Killed


@pytest.mark.parametrize("after", [1, 3, 5, 11])
def test_a_sweep_that_was_cut_off_ends_as_undisturbed(algo, result, tmp_path, after):
    """In the first chunk or a later one, before or after its checkpoints."""
    whole, left = files(result.folder), [after]
    with pytest.raises(Killed):
        sweep(algo, SPACE, seeds=3, seed=7, folder=tmp_path / "cut", chunk=4, callbacks=lambda: [Kill(left)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint holds the state of callbacks")
        again = sweep(algo, SPACE, seeds=3, seed=7, folder=tmp_path / "cut")
    np.testing.assert_array_equal(again.returns, result.returns)
    now = files(tmp_path / "cut")
    assert now.keys() == whole.keys()
    for name in now:
        assert now[name] == whole[name], name
    same(again.load(member=None)[1], result.load(member=None)[1])


def test_a_sweep_that_is_there_is_returned_at_once(algo, result):
    before = files(result.folder)
    again = sweep(algo, SPACE, seeds=3, seed=7, folder=result.folder)
    np.testing.assert_array_equal(again.returns, result.returns)
    assert files(result.folder) == before


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(seeds=2), "seeds: there 3, now 2"),
        (dict(seed=8), "seed: there 7, now 8"),
        (dict(space={"learning_rate": [1e-3]}), "points/seed_0/num_epochs: there 1, now None"),
        (dict(algo="gamma"), "algorithm/hp/gamma: there 0.99, now 0.5"),
    ],
)
def test_another_sweep_is_refused(algo, result, change, named):
    changed = make(gamma=0.5) if change.pop("algo", None) else algo
    arguments = dict(space=SPACE, seeds=3, seed=7, folder=result.folder) | change
    with pytest.raises(FileExistsError, match="holds another sweep; pass another folder, or the arguments of that one") as error:
        sweep(changed, **arguments)
    assert named in str(error.value)


def test_what_else_is_refused(algo, result, tmp_path):
    with pytest.raises(ValueError, match="begun with chunk=4, and goes on only so; got 6"):
        sweep(algo, SPACE, seeds=3, seed=7, folder=result.folder, chunk=6)
    with pytest.raises(ValueError, match="seeds and chunk must be at least 1, got seeds=0"):
        sweep(algo, SPACE, seeds=0)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="holds thesis.tex, but no sweep"):
        sweep(algo, SPACE, folder=tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text("[]")
    with pytest.raises(ValueError, match="sweep.json is damaged"):
        sweep(algo, SPACE, folder=tmp_path / "damaged")


def test_one_that_diverges_is_ended_and_the_others_go_on(tmp_path):
    """A step size with which parameters overflow, beside one that is well; and nobody is told that the whole is no result."""
    algo = make(max_grad_norm=0.5)
    result = sweep(algo, [{"learning_rate": 1e38}, {"learning_rate": 1e-3}], seeds=2, folder=tmp_path / "x")
    assert result.best == 1 and [row["diverged"] for row in result.table] == [2, 0]
    assert np.isnan(result.returns[0]).all() and np.isnan(result.table[0]["iqm"]) and np.isfinite(result.curve(0).returns[:, 0]).all()
    _, metrics = alone(make(max_grad_norm=0.5, learning_rate=1e-3), jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(result.returns[1], metrics.cumulative_reward[:, -1].mean(-1), rtol=1e-5)
    assert "diverged" in str(result) and json.loads(result.as_json())["table"][0]["iqm"] is None
    again = sweep(algo, [{"learning_rate": 1e38}, {"learning_rate": 1e-3}], seeds=2, folder=tmp_path / "x")
    np.testing.assert_array_equal(again.returns, result.returns)
    with pytest.warns(UserWarning, match="there is no best one"):
        none = sweep(algo, [{"learning_rate": 1e38}, {"learning_rate": 1e37}], seeds=2)
    assert none.folder.is_dir()
    with pytest.raises(ValueError, match="none is the best"):
        none.load()
    folder = none.folder
    del none
    gc.collect()
    assert not folder.exists()


def test_a_point_of_which_a_seed_diverged_is_never_the_best(algo, tmp_path):
    """However well its other seeds did."""
    rows = [(0, 0), (0, 1), (1, 0), (1, 1)]
    returns = np.array([[1.0, np.nan], [1.0, 900.0], [1.0, 5.0], [1.0, 5.0]])
    chunk = Chunk(tmp_path, rows, algo, None, np.array([0, 96]), returns)
    result = Sweep(tmp_path, [{"gamma": 0.5}, {"gamma": 0.9}], [algo, algo], 2, 0, [chunk])
    assert result.best == 1 and [row["diverged"] for row in result.table] == [1, 0]
    assert np.isnan(result.table[0]["iqm"]) and result.table[1]["iqm"] == 5
    assert "900" not in str(result).splitlines()[2] and "diverged" in str(result)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import eqxrl
eqxrl.set_cpu_flags(2)
from test_sweep import make, log_uniform
from eqxrl import sweep
space = {{"learning_rate": log_uniform(1e-3, 1e-1, 4)}}
sweep(make(total_timesteps=24 * 400, eval_freq=24 * 4), space, seeds=2, folder=sys.argv[1], chunk=4)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_in_the_middle(tmp_path):
    """At random instants, over and over; on two devices."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    subprocess.run([*command, tmp_path / "whole"], env=environment, check=True)
    took, rng, kills = time.monotonic() - start, np.random.default_rng(0), 0
    while True:
        process = subprocess.Popen([*command, tmp_path / "cut"], env=environment)
        try:
            assert process.wait(took * rng.uniform(0.4, 0.9) if kills < 6 else None) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills > 1
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
