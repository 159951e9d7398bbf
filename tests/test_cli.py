"""The command, run as a user would."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

QUICK = ["--hp.num-envs", "4", "--hp.num-steps", "8", "--hp.num-minibatches", "2", "--hp.num-epochs", "1"]
QUICK += ["--hp.num-seeds-per-eval", "3", "--hp.eval-freq", "64", "--preset", "default"]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """A cache of compiled programs for the commands of this file, several of which run the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def eqxrl(*args, cwd, check=True):
    command = [sys.executable, "-m", "eqxrl.cli", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one finished run of two seeds."""
    cwd = tmp_path_factory.mktemp("cli")
    done = eqxrl("train", "CartPole-v1", *QUICK, "--hp.total-timesteps", "128", "--seeds", "2", "--json", cwd=cwd)
    result = json.loads(done.stdout)
    assert result["run"] == "runs/CartPole-v1-001"
    assert result["env_steps"] == 128
    assert len(result["returns"]) == 2
    return cwd


def test_train_leaves_what_it_promises(folder):
    run = folder / "runs" / "CartPole-v1-001"
    for name in ("config.json", "metrics.jsonl", "metrics.csv", "learning_curve.png", "policy.eqx"):
        assert (run / name).stat().st_size > 0
    config = json.loads((run / "config.json").read_text())
    assert config["env_id"] == "CartPole-v1" and config["num_seeds"] == 2 and config["hp"]["num_envs"] == 4
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [0, 64, 128]
    assert all(len(row["eval/return_mean"]) == 2 for row in rows)


def test_the_policy_can_be_loaded_and_played(folder):
    import jax

    from eqxrl.training import Run

    ppo, ts = Run(folder / "runs" / "CartPole-v1-001").load(member=1)
    action = ppo.make_actor(ts)(jax.numpy.zeros(4), jax.random.key(0))
    assert int(action) in (0, 1)
    returns = ppo.eval_callback(ts, jax.random.key(0)).cumulative_reward
    assert returns.shape == (3,)


def test_a_run_is_never_overwritten(folder):
    done = eqxrl("train", "CartPole-v1", "--name", "CartPole-v1-001", cwd=folder, check=False)
    assert done.returncode == 2 and "never overwritten" in done.stderr
    done = eqxrl("train", "--resume", "runs/CartPole-v1-001", cwd=folder, check=False)
    assert done.returncode == 2 and "has finished" in done.stderr


def test_evaluate_plot_and_runs(folder):
    done = eqxrl("evaluate", "runs/CartPole-v1-001", "--episodes", "5", "--json", cwd=folder)
    assert len(json.loads(done.stdout)["returns"]) == 2
    eqxrl("plot", "runs/CartPole-v1-001", "--out", "curves.png", cwd=folder)
    assert (folder / "curves.png").stat().st_size > 10_000
    rows = json.loads(eqxrl("runs", "--json", cwd=folder).stdout)
    first = next(row for row in rows if row["run"] == "runs/CartPole-v1-001")
    assert first["finished"] and first["env_steps"] == 128 and np.isfinite(first["iqm"])
    assert "CartPole-v1" in eqxrl("runs", cwd=folder).stdout


def test_render(folder):
    pytest.importorskip("pygame")
    eqxrl("render", "runs/CartPole-v1-001", "--out", "episode.gif", cwd=folder)
    assert (folder / "episode.gif").read_bytes()[:6] == b"GIF89a"


@pytest.mark.parametrize(
    "args, message",
    [
        (["train", "CartPole-v2"], "CartPole-v1"),
        (["train"], "name an environment"),
        (["train", "CartPole-v1", "--preset", "zo"], "zoo"),
        (["train", "CartPole-v1", "--preset", "default", "--hp.num-minibatches", "5"], "remainder 1"),
        (["train", "CartPole-v1", "--hp.gamma", "1.5"], "gamma must be in [0.0, 1.0], got 1.5"),
        (["train", "CartPole-v1", "--seeds", "0"], "--seeds must be at least 1"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "config.json"),
        (["runs", "nowhere"], "no folder"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(args, message, tmp_path):
    done = eqxrl(*args, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_says_how_to_go_on_and_the_resumed_run_is_the_undisturbed_one(tmp_path):
    args = ["train", "CartPole-v1", *QUICK, "--hp.total-timesteps", "40000", "--hp.eval-freq", "2000", "--quiet", "--name"]
    command = [sys.executable, "-m", "eqxrl.cli", *args]
    process = subprocess.Popen([*command, "cut"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "cut" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "eqxrl train --resume runs/cut" in errors
    eqxrl("train", "--resume", "runs/cut", "--quiet", cwd=tmp_path)
    eqxrl(*args, "whole", cwd=tmp_path)
    for name in ("policy.eqx", "metrics.jsonl"):
        assert (tmp_path / "runs" / "cut" / name).read_bytes() == (tmp_path / "runs" / "whole" / name).read_bytes(), name
