"""One environment of each suite that is installed, by the command: a run that is killed goes on as if undisturbed, a sweep ranks its
points, and `verify` finds nothing wrong. Some minutes each:

    pytest -m slow -n 0 tests/envs/test_suites.py
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from eqxrl.envs import known_suites, make

ENVS = {
    "brax": "brax/inverted_pendulum", "craftax": "craftax/Craftax-Classic-Symbolic-v1", "envpool": "envpool/CartPole-v1",
    "gymnasium": "gymnasium/CartPole-v1", "jaxmarl": "jaxmarl/MPE_simple_spread_v3", "jumanji": "jumanji/Game2048-v1",
    "navix": "navix/Navix-Empty-8x8-v0", "pgx": "pgx/tic_tac_toe", "playground": "playground/CartpoleBalance",
    "popgym": "popgym/RepeatPreviousEasy", "xminigrid": "xminigrid/MiniGrid-Empty-8x8",
}
SIZES = {
    "num-envs": 4, "num-steps": 16, "num-minibatches": 2, "num-epochs": 2, "total-timesteps": 6400, "eval-freq": 640,
    "num-seeds-per-eval": 4,
}
TRAINING = ["--preset", "default", "--algo", "ppo", *(word for name, x in SIZES.items() for word in (f"--hp.{name}", str(x)))]
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(3600),
    pytest.mark.parametrize(
        "env_id", [pytest.param(x, id=suite, marks=pytest.mark.skipif(bool(known_suites()[suite]), reason="isn't installed"))
                   for suite, x in ENVS.items()]
    ),
]


def command(*args):
    return [sys.executable, "-m", "eqxrl.cli", *args]


def eqxrl(*args, cwd):
    done = subprocess.run(command(*args), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_killed_run_ends_as_undisturbed(env_id, tmp_path, promotion_of_ranks):
    """Where an environment can't be saved, as is said, it is enough that the run ends."""
    train = ["train", env_id, *TRAINING, "--quiet", "--name"]
    with subprocess.Popen(command(*train, "cut"), cwd=tmp_path) as process:
        metrics = tmp_path / "runs/cut/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    said = eqxrl("train", "--resume", "runs/cut", cwd=tmp_path).stderr
    eqxrl(*train, "whole", cwd=tmp_path)
    files = ("policy.eqx", "metrics.jsonl")
    cut, whole = ({name: (tmp_path / "runs" / run / name).read_bytes() for name in files} for run in ("cut", "whole"))
    lost = getattr(make(env_id)[0], "not_restored", None)
    assert cut == whole if lost is None else " ".join(lost.split()) in " ".join(said.split())
    assert json.loads(cut["metrics.jsonl"].splitlines()[-1])["env_steps"] == SIZES["total-timesteps"]


def test_a_sweep(env_id, tmp_path):
    rates = ["--hp.learning-rate", "1e-4,1e-3"]
    done = eqxrl("sweep", env_id, *TRAINING, *rates, "--seeds", "2", "--folder", "sweep", "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)["table"]) == 2
    assert {"best", "sweep.json"} <= set(os.listdir(tmp_path / "sweep"))


def test_verify(env_id, tmp_path):
    eqxrl("verify", env_id, "--preset", "default", cwd=tmp_path)
