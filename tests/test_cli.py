"""The command, run as a user would."""

import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from eqxrl import PPO, EvalMetrics, cli
from eqxrl._options import Chosen
from eqxrl.training import Run, RunConfig, Trainer, hyperparameters

QUICK = ["--hp.num-envs", "4", "--hp.num-steps", "8", "--hp.num-minibatches", "2", "--hp.num-epochs", "1"]
QUICK += ["--hp.num-seeds-per-eval", "3", "--hp.eval-freq", "64", "--preset", "default"]
QUICK_DQN = ["--algo", "dqn", "--preset", "default", "--hp.num-envs", "4", "--hp.num-seeds-per-eval", "3", "--hp.eval-freq", "64"]
QUICK_DQN += ["--hp.learning-starts", "32", "--hp.buffer-size", "100", "--hp.total-timesteps", "128"]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """A cache of compiled programs for the commands of this file, several of which run the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("COLUMNS", "80")
        yield


def eqxrl(*args, cwd, check=True):
    command = [sys.executable, "-m", "eqxrl.cli", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process, which is quicker where nothing is trained: `here(*args)` gives exit code, output and errors."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["eqxrl", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one finished run of two seeds, and one of another algorithm."""
    cwd = tmp_path_factory.mktemp("cli")
    done = eqxrl("train", "CartPole-v1", *QUICK, "--hp.total-timesteps", "128", "--seeds", "2", "--json", cwd=cwd)
    result = json.loads(done.stdout)
    assert result["run"] == "runs/CartPole-v1-001"
    assert result["env_steps"] == 128
    assert len(result["returns"]) == 2
    eqxrl("train", "CartPole-v1", *QUICK_DQN, "--quiet", cwd=cwd)
    return cwd


# Training.


def test_train_leaves_what_it_promises(folder):
    run = folder / "runs" / "CartPole-v1-001"
    for name in ("config.json", "metrics.jsonl", "metrics.csv", "learning_curve.png", "policy.eqx"):
        assert (run / name).stat().st_size > 0
    config = json.loads((run / "config.json").read_text())
    assert config["env_id"] == "CartPole-v1" and config["num_seeds"] == 2 and config["hp"]["num_envs"] == 4
    assert config["algorithm"] == "ppo" and config["preset"] is None and config["hp"]["gamma"] == 0.99
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [0, 64, 128]
    assert all(len(row["eval/return_mean"]) == 2 for row in rows)


def test_the_policy_can_be_loaded_and_played(folder):
    import jax

    for name in ("CartPole-v1-001", "CartPole-v1-002"):
        algo, ts = Run(folder / "runs" / name).load(member=0)
        action = algo.make_actor(ts)(jax.numpy.zeros(4), jax.random.key(0))
        assert int(action) in (0, 1)
        assert algo.eval_callback(ts, jax.random.key(0)).cumulative_reward.shape == (3,)
    assert type(algo).__name__ == "DQN" and algo.hp.learning_starts == 32


def test_another_algorithm(folder):
    config = json.loads((folder / "runs/CartPole-v1-002/config.json").read_text())
    assert config["algorithm"] == "dqn" and config["hp"]["learning_starts"] == 32 and config["hp"]["target_update_freq"] == 500
    rows = [json.loads(line) for line in (folder / "runs/CartPole-v1-002/metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [0, 64, 128] and "train/value_loss" in rows[-1]


def test_an_algorithm_and_an_environment_of_ones_own(tmp_path):
    """From files, named by a relative path; everything else serves them as it does the package's own."""
    for name in ("custom_algorithm.py", "custom_env.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    sizes = ["--hp.num-envs", "4", "--hp.num-steps", "8", "--hp.num-seeds-per-eval", "3", "--hp.eval-freq", "64"]
    args = ["custom_env.py:Grid", "--algo", "custom_algorithm.py:Reinforce", *sizes, "--hp.total-timesteps", "128", "--hp.gamma=0.9"]
    done = eqxrl("train", *args, cwd=tmp_path)
    assert "Reinforce on Grid, preset default, 1 seed, into runs/Grid-001" in done.stdout
    config = json.loads((tmp_path / "runs/Grid-001/config.json").read_text())
    assert config["algorithm"] == f"{tmp_path}/custom_algorithm.py:Reinforce" and config["env_id"] == f"{tmp_path}/custom_env.py:Grid"
    assert config["hp"]["gamma"] == 0.9 and config["hp"]["learning_rate"] == 0.003
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    returns = json.loads(eqxrl("evaluate", tmp_path / "runs/Grid-001", "--episodes", "5", "--json", cwd=elsewhere).stdout)["returns"]
    assert len(returns) == 1
    eqxrl("render", tmp_path / "runs/Grid-001", "--out", "grid.gif", cwd=elsewhere)
    assert (elsewhere / "grid.gif").read_bytes()[:6] == b"GIF89a"


def test_a_run_is_never_overwritten(folder, here, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, errors = here("train", "CartPole-v1", "--name", "CartPole-v1-001")
    assert code == 2 and "never overwritten" in errors
    code, _, errors = here("train", "--resume", "runs/CartPole-v1-001")
    assert code == 2 and "has finished" in errors


# Presets and hyperparameters.


def chosen(*args):
    choice = Chosen([*args])
    fields = {f.name: f.default for f in cli.dataclasses.fields(choice.HP)}
    return choice, fields


def test_defaults_are_those_of_what_was_chosen():
    assert chosen()[1]["learning_rate"] == 3e-4 and chosen()[1]["max_grad_norm"] == np.inf
    choice, zoo = chosen("--seed", "3", "CartPole-v1", "--out", "runs")
    assert choice.preset.name == "zoo" and zoo["learning_rate"] == 1e-3 and zoo["num_epochs"] == 20 and zoo["clip_value"] is False
    assert chosen("CartPole-v1", "--preset=cleanrl")[1]["learning_rate"] == 2.5e-4
    assert chosen("--preset", "default", "CartPole-v1")[1] == chosen("--algo", "ppo")[1] == chosen("MountainCar-v0")[1]
    dqn = chosen("--hp.gamma", "0.5", "CartPole-v1", "--algo", "dqn")[1]
    assert dqn["buffer_size"] == 100_000 and dqn["gamma"] == 0.99 and "gae_lambda" not in dqn
    assert chosen("--algo", f"{EXAMPLES}/custom_algorithm.py:Reinforce", "CartPole-v1")[1]["learning_rate"] == 3e-3


OWN = ["Grid", "--algo", f"{EXAMPLES}/custom_algorithm.py:Reinforce"]


@pytest.mark.parametrize("args", [["CartPole-v1"], ["CartPole-v1", "--algo", "dqn"], OWN, []], ids=["ppo", "dqn", "own", "none"])
@pytest.mark.parametrize("command", ["train", "verify"])
def test_help_has_a_text_and_the_default_of_every_hyperparameter(here, args, command):
    code, text, _ = here(command, *args, "--help")
    assert code == 0
    text = re.sub(r"\s+", " ", re.sub("[│╭╮╰╯─]", " ", text))
    _, defaults = chosen(*args)
    told = re.findall(r"--hp\.([a-z-]+) (?:INT|FLOAT|\{None\}\|FLOAT|\{True,False\})(.*?)\(default: (\S+?)\)", text)
    assert [name.replace("-", "_") for name, _, _ in told] == list(defaults)
    for name, words, default in told:
        assert default == str(defaults[name.replace("-", "_")])
        own = "custom" in str(args) and name not in ("learning-rate", "gamma")
        assert own or len(words.split()) >= 3, f"{name} has no text"
    if args == ["CartPole-v1"]:
        assert "Adam's step size. It goes linearly to 0 over the run. (default: 0.001)" in text and "preset zoo" in text


ODD = """
import equinox as eqx
from eqxrl import *

class OddHParams(PPOHParams):
    sizes: tuple = eqx.field(static=True, default=(4, 4))
    beta: Schedule = field(default=LinearSchedule(0.5, 0.0, 10))
    "What beta is."
    mode: str = eqx.field(static=True, default="fast")

class Odd(AbstractOnPolicy):
    HParams = OddHParams
"""


def test_hyperparameters_that_are_no_numbers(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    choice, defaults = chosen("CartPole-v1", "--algo", f"{tmp_path}/odd.py:Odd")
    assert "sizes" not in defaults and defaults["beta"] is None and defaults["mode"] == "fast"
    (beta,) = (f for f in cli.dataclasses.fields(choice.HP) if f.name == "beta")
    assert beta.type.__metadata__[0].help.startswith("What beta is. LinearSchedule(")
    assert choice.given(choice.HP(beta=0.25, gamma=0.5)) == {"beta": 0.25, "gamma": 0.5}


@pytest.fixture
def not_trained(here, monkeypatch, tmp_path):
    """What `train` would train and `verify` would check, as algorithms, with the same options."""
    monkeypatch.chdir(tmp_path)

    class Enough(Exception):
        pass

    def both(*args):
        algos = []

        def stop(self, callbacks=()):
            algos.append(self.config.create())
            raise OSError("enough")

        monkeypatch.setattr(Run, "fit", stop)
        monkeypatch.setattr(cli, "check", lambda algo, **kwargs: (algos.append(algo), type("Report", (), {"ok": True}))[1])
        assert here("train", *args, "--quiet")[0] == 2
        assert here("verify", *args, "--quiet")[0] == 0
        return algos

    return both


@pytest.mark.parametrize(
    "args",
    [
        ["CartPole-v1"],
        ["CartPole-v1", "--hp.learning-rate", "0.002", "--hp.num_epochs=3"],
        ["--preset", "cleanrl", "CartPole-v1", "--hp.ent-coef", "0"],
        ["CartPole-v1", "--algo", "dqn", "--hp.double", "False"],
        ["Pendulum-v1", "--preset", "default", "--hp.gamma", "0.9"],
        [f"{EXAMPLES}/custom_env.py:Grid", "--algo", f"{EXAMPLES}/custom_algorithm.py:Reinforce"],
    ],
    ids=lambda args: " ".join(Path(x).name for x in args),
)
def test_verify_checks_the_very_configuration_that_train_trains(not_trained, args):
    trained, checked = not_trained(*args)
    assert type(trained) is type(checked) and hyperparameters(trained) == hyperparameters(checked)


def test_overriding_one_value_of_a_preset_changes_only_that_value(not_trained):
    zoo, _ = not_trained("CartPole-v1")
    changed, _ = not_trained("CartPole-v1", "--hp.learning-rate", "0.002")
    before, after = hyperparameters(zoo)["hp"], hyperparameters(changed)["hp"]
    assert before["learning_rate"]["init_value"] == 0.001 and before["learning_rate"]["end_value"] == 0
    assert after == {**before, "learning_rate": {**before["learning_rate"], "init_value": 0.002}}
    assert Run("runs/CartPole-v1-002").config.options() == {"learning_rate": 0.002}
    same, _ = not_trained("CartPole-v1", "--hp.num-epochs", "10")
    assert hyperparameters(same)["hp"]["num_epochs"] == 10 and same.hp.clip_eps.init_value == zoo.hp.clip_eps.init_value
    network, _ = not_trained("MountainCarContinuous-v0", "--hp.gamma", "0.9")
    assert hyperparameters(network)["parts"]["actor_critic"]["options"]["log_std_init"] == 0.5


def test_options_of_the_environment(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = ["Catch-bsuite", "--hp.total-timesteps", "64", "--env.rows", "6", "--env.columns=4", *QUICK, "--quiet"]
    assert here("train", *args) == (0, "", "")
    assert Run("runs/Catch-bsuite-001").config.env_kwargs == {"columns": 4, "rows": 6}
    assert "env.columns=4 env.rows=6" in " ".join(here("runs")[1].split())
    assert here("evaluate", "runs/Catch-bsuite-001", "--quiet")[0] == 0
    for wrong, why in [
        (["--env.rowz", "6"], "unexpected keyword argument 'rowz'"),
        (["--env.rows"], "with a value, as in: --env.max-episode-steps 500; got --env.rows"),
        (["--env.", "6"], "is given by name"),
        (["--env.rows", "--quiet"], "got --env.rows"),
    ]:
        code, _, errors = here("train", "Catch-bsuite", *wrong)
        assert code == 2 and why in errors and errors.count("\n") == 1
    code, _, errors = here("train", "--resume", "runs/Catch-bsuite-001", "--env.rows", "7")
    assert code == 2 and "leave out --env.rows" in errors


@pytest.mark.parametrize(
    "text, value",
    [("6", 6), ("1e-3", 0.001), ("true", True), ("False", False), ("none", None), ("hard", "hard"), ("(3, 4)", (3, 4)), ("8x8", "8x8")],
)
def test_an_option_is_a_python_value_or_a_text(text, value):
    assert Chosen(["Catch-bsuite", f"--env.some-thing={text}"]).env_kwargs == {"some_thing": value}


# What is done with runs.


def unfinished(folder, path):
    """As a kill leaves it: without policy, table and the last checkpoint."""
    shutil.copytree(folder / "runs/CartPole-v1-001", path)
    for name in ("policy.eqx", "metrics.csv", "learning_curve.png", "checkpoints/checkpoint-000000004.eqx"):
        (path / name).unlink()
    rows = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(rows[:2]) + rows[2][:10])
    return path


def test_evaluate_plot_and_runs(folder, here, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("CartPole-v1-001", "CartPole-v1-002"):
        _, text, _ = here("evaluate", f"runs/{name}", "--episodes", "5", "--json")
        result = json.loads(text)
        assert len(result["returns"]) == (2 if name.endswith("1") else 1) and result["env_steps"] == 128
    _, text, _ = here("evaluate", "runs/CartPole-v1-001", "--episodes", "5", "--stochastic")
    assert "5 episodes after 128 env steps" in text and "IQM" in text
    assert here("plot", "runs/CartPole-v1-001", "runs/CartPole-v1-002", "--out", "curves.png")[0] == 0
    assert (folder / "curves.png").stat().st_size > 10_000
    rows = json.loads(here("runs", "--json")[1])
    first = next(row for row in rows if row["run"] == "runs/CartPole-v1-001")
    assert first["finished"] and first["env_steps"] == 128 and np.isfinite(first["iqm"])


def test_an_unfinished_run_is_served_too(folder, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = unfinished(folder, tmp_path / "runs/cut")
    result = json.loads(here("evaluate", run, "--episodes", "2", "--json")[1])
    assert result["env_steps"] == 64 and len(result["returns"]) == 2
    best = json.loads(here("evaluate", run, "--episodes", "2", "--best", "--json")[1])
    assert best["env_steps"] in (0, 64, 128)
    assert here("plot", run, "--quiet")[0] == 0 and Path("learning_curves.png").stat().st_size > 10_000
    text = here("runs")[1]
    assert re.search(r"cut .* 64 .* no *\n", text)
    pytest.importorskip("pygame")
    assert here("render", run, "--best", "--quiet")[0] == 0 and Path("episode.gif").read_bytes()[:6] == b"GIF89a"


def test_suites_and_their_environments(here, monkeypatch):
    code, out, _ = here("envs")
    assert code == 0 and {"gymnax", "popgym", "brax"} <= {line.split()[0] for line in out.splitlines()}
    assert "popgym/RepeatPreviousEasy" in json.loads(here("envs", "popgym", "--json")[1])
    assert {"CartPole-v1", "CartPoleNoVel-v1"} <= set(here("envs", "gymnax")[1].splitlines())
    assert here("envs", "atari")[0] == 2
    for module in ("brax", "brax.envs"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, errors = here("envs", "brax")
    assert code == 2 and "the suite brax needs brax: pip install 'eqxrl[brax]'" in errors


def test_runs_are_readable_at_80_columns(folder, here, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree("runs/CartPole-v1-001", tmp_path / "runs/MountainCarContinuous-v0-001")
    shutil.copytree("runs/CartPole-v1-002", tmp_path / "runs/a-long-name-of-a-run-that-someone-gave-it")
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/config.json").write_text("{")
    code, text, errors = here("runs", tmp_path / "runs")
    assert code == 0 and "damaged/config.json is damaged" in errors, "what is damaged hides nothing"
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines()) and "…" not in text and str(tmp_path) not in text
    assert re.search(r"MountainCarContinuous-v0-001 .* 128 +\d+\.\d +yes", text), "the last part of the path, in one piece"
    for words in ("PPO on CartPole-v1", "DQN on CartPole-v1", "2 seeds", "1 seed ", "num_envs=4", "learning_starts=32"):
        assert words in text


def test_different_environments_are_not_drawn_on_one_axis(folder, here, tmp_path, monkeypatch):
    other = shutil.copytree(folder / "runs/CartPole-v1-002", tmp_path / "other")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"env": "CartPole-v1"', '"env": "Acrobot-v1"'))
    monkeypatch.chdir(tmp_path)
    code, _, errors = here("plot", folder / "runs/CartPole-v1-001", "other")
    assert code == 2 and not Path("learning_curves.png").exists()
    assert "name runs of one environment" in errors and "CartPole-v1-001 of CartPole-v1" in errors and "other of Acrobot-v1" in errors


def test_render(folder):
    pytest.importorskip("pygame")
    eqxrl("render", "runs/CartPole-v1-001", "--out", "episode.gif", "--member", "1", cwd=folder)
    assert (folder / "episode.gif").read_bytes()[:6] == b"GIF89a"


@pytest.mark.parametrize(
    "args, message",
    [
        (["train", "CartPole-v2"], "CartPole-v1"),
        (["train"], "name an environment"),
        (["train", "--preset", "zoo"], "name an environment"),
        (["verify"], "name an environment"),
        (["train", "CartPole-v1", "--preset", "zo"], "zoo"),
        (["train", "CartPole-v1", "--algo", "pop"], "there is no algorithm 'pop'; there is"),
        (["verify", "CartPole-v1", "--algo", "nowhere.py:Mine"], "nowhere.py"),
        (["train", "nowhere.py:Grid"], "nowhere.py"),
        (["train", "CartPole-v1", "--algo", "dqn", "--preset", "cleanrl"], "no preset 'cleanrl' for dqn on CartPole-v1; there is zoo"),
        (["train", "CartPole-v1", "--algo", "dqn", "--hp.gae-lambda", "0.5"], "--hp.gae-lambda"),
        (["train", "CartPole-v1", "--preset", "default", "--hp.num-minibatches", "5"], "remainder 1"),
        (["train", "CartPole-v1", "--hp.gamma", "1.5"], "gamma must be in [0.0, 1.0], got 1.5"),
        (["train", "CartPole-v1", "--hp.num-envs", "8.5"], "8.5"),
        (["train", "CartPole-v1", "--seeds", "0"], "--seeds must be at least 1"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--resume"], "--resume"),
        (["evaluate", "nowhere"], "config.json"),
        (["plot"], "name runs of one environment"),
        (["runs", "nowhere"], "no folder"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(here, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = here(*args)
    assert code == 2
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


def test_bad_input_in_a_process_of_its_own(tmp_path):
    done = eqxrl("train", "CartPole-v2", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "CartPole-v1" in done.stderr and "Traceback" not in done.stderr and not done.stdout


# Damaged and hostile files.

DEEP = "[" * 400 + "]" * 400
HOSTILE = ["null", "[]", "{}", '"[/]"', "1" + "0" * 30, "-1", "NaN", "1.5", "true", DEEP, '"\\u001b[2J[bold]$x_{"', '[["[/]"]]', "9" * 5000]
WHOLE = ["", "{", "[]", "null", "3", '"x"', "\x00\x01", "[" * 100_000, '{"algorithm": "ppo"}', '{"a":' * 5000, "\xff\xfe"]
FIELDS = [f.name for f in dataclasses.fields(RunConfig)]


def edits(config, rng=None, num=0):
    """Texts of a `config.json`: a short table of what may be wrong with one, and `num` more by chance."""
    yield from WHOLE
    for field in FIELDS:
        yield json.dumps({k: x for k, x in config.items() if k != field})
        yield replaced(config, [field], HOSTILE[FIELDS.index(field) % len(HOSTILE)])
    for place in ("seed", "num_seeds", "env_id", "hp"):
        for value in ("null", '["CartPole-v1"]', '"[/]"', "7", DEEP):
            yield replaced(config, [place], value)
    yield replaced(config, ["hp", "num_envs"], "1" + "0" * 18)
    yield replaced(config, ["parts"], '{"actor_critic": {"type": "Popen"}}')
    for _ in range(num):
        place, inner = [rng.choice(FIELDS)], None
        while isinstance(inner := functools.reduce(lambda x, k: x[k], place, config), dict) and inner and rng.random() < 0.8:
            place.append(rng.choice(sorted(inner)))
        yield replaced(config, place, rng.choice(HOSTILE))


def replaced(config, place, value):
    """With the text `value` in that place."""
    config = json.loads(json.dumps(config))
    functools.reduce(lambda x, k: x[k], place[:-1], config)[place[-1]] = "HERE"
    return json.dumps(config).replace('"HERE"', value)


@pytest.fixture
def refuses(folder, here, monkeypatch, tmp_path):
    """Gives each command a run with such a configuration: it must say what is wrong on one line, or it doesn't matter."""
    monkeypatch.chdir(tmp_path)
    run = unfinished(folder, tmp_path / "runs/edited")
    unfinished(folder, tmp_path / "runs/whole")
    monkeypatch.setattr(Trainer, "_fit", lambda *_, **__: (_ for _ in ()).throw(OSError("enough")))
    monkeypatch.setattr(cli, "EpisodeEvaluator", Played)
    monkeypatch.setattr(PPO, "visualize", lambda self, state, path, key: path)

    def refuses(text):
        path = run / "config.json"
        path.write_bytes(text.encode("latin-1"))
        codes = []
        for args in (["evaluate", run], ["render", run], ["plot", run, "--quiet"], ["train", "--resume", run]):
            code, _, errors = here(*args)
            assert code in (0, 2) and "Traceback" not in errors and errors.count("\n") == (code == 2), (args, text[:300], errors)
            assert "\x1b" not in errors and (code == 0 or errors.startswith("eqxrl: "))
            codes.append(code)
        code, listed, errors = here("runs")
        assert code == 0 and re.search(r"whole .* 64 .* no *\n", listed) and "edited" in listed, (text[:300], errors)
        assert ("damaged" in listed) == (errors != "") and (errors == "" or errors.startswith(("eqxrl: runs/edited/", "eqxrl: edited")))
        return codes

    return refuses


@dataclasses.dataclass
class Played:
    """Instead of episodes."""

    num_episodes: int
    deterministic: bool = True

    def __call__(self, env, env_params, policy, key):
        return EvalMetrics(episode_length=jax.numpy.ones(2, int), cumulative_reward=jax.numpy.ones(2))


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_hostile_configuration_is_refused_on_one_line(folder, refuses):
    config = json.loads((folder / "runs/CartPole-v1-001/config.json").read_text())
    assert refuses(json.dumps(config))[:3] == [0, 0, 0]
    for text in edits(config):
        refuses(text)
    for seeds in ('"num_seeds": 3', '"seed": 1'):
        name = seeds.split('"')[1]
        edited = json.dumps({**config, name: int(seeds[-1])})
        assert refuses(edited)[0] == refuses(edited)[3] == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_four_hundred_edits_of_a_configuration(folder, refuses):
    config = json.loads((folder / "runs/CartPole-v1-001/config.json").read_text())
    for text in edits(config, random.Random(0), 400):
        refuses(text)


# What isn't finite; signals; pipes.


def test_what_is_not_finite_is_no_result(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, errors = here("train", "CartPole-v1", *QUICK, "--hp.total-timesteps", "128", "--hp.learning-rate", "1e38", "--seeds", "2")
    assert code == 1 and errors.count("\n") == 1 and "mean return" not in text
    where = "after iteration 2 of 4, at 64 env steps, in interval 1 of 2, which began at 0"
    last = "the last finite checkpoint, runs/CartPole-v1-001/checkpoints/checkpoint-000000000.eqx, is of before, and stays"
    assert re.match(rf"eqxrl: outputs.means\['\w+'\] of seed 0, 1 isn't finite {where}; {last}", errors)
    assert not Path("runs/CartPole-v1-001/policy.eqx").exists() and Run("runs/CartPole-v1-001").load()[1].num_iterations == 0


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", ["before the run", "in the report"])
def test_a_signal_outside_of_the_training(folder, here, monkeypatch, tmp_path, signum, code, when):
    kill = lambda *_, **__: os.kill(os.getpid(), signum)  # noqa: E731
    if when == "before the run":
        monkeypatch.setattr(Run, "fit", kill)
    else:
        metrics = EvalMetrics(episode_length=jax.numpy.ones((1, 1, 3), int), cumulative_reward=jax.numpy.ones((1, 1, 3)))
        monkeypatch.setattr(Run, "fit", lambda *_: (None, metrics))
        monkeypatch.setattr(cli, "_report", kill)
    before = signal.getsignal(signal.SIGTERM)
    got = here("train", "--resume", unfinished(folder, tmp_path / "cut"))
    assert (got[0], got[2]) == (code, "eqxrl: interrupted\n") and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc to see when the imports are under way")
@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_libraries_are_imported(tmp_path, signum, code):
    command = [sys.executable, "-m", "eqxrl.cli", "runs"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.002)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "eqxrl: interrupted\n")


def test_nobody_has_to_read_what_is_printed(folder, tmp_path):
    """A closed pipe, and a disk that is full."""
    command = [sys.executable, "-m", "eqxrl.cli"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "runs"], cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if Path("/dev/full").exists():
        run = unfinished(folder, tmp_path / "cut")
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, "train", "--resume", run], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
            assert done.returncode == 0 and Run(run).finished
            assert set(done.stderr.splitlines()) == {"eqxrl: what was to be printed is lost: [Errno 28] No space left on device"}
            done = subprocess.run([*command, "runs", tmp_path], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (2, "eqxrl: [Errno 28] No space left on device\n")


# Sweeping.


SWEEP = ["sweep", "CartPole-v1", *QUICK, "--hp.total-timesteps", "128", "--seeds", "2"]


def test_sweep_ranks_points_and_leaves_the_best_as_a_run(tmp_path):
    args = [*SWEEP, "--hp.learning-rate", "1e-4:1e-2:log:3", "--hp.gamma=0.9", "--folder", "s"]
    done = eqxrl(*args, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "Everything is in s; the best point is a run: eqxrl evaluate s/best"
    table = (tmp_path / "s/table.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table] == ["learning_rate", "0.0001", "0.001", "0.01"]
    config = json.loads((tmp_path / "s/best/config.json").read_text())
    assert config["hp"]["gamma"] == 0.9 and config["num_seeds"] == 2 and config["algorithm"] == "ppo"
    result = json.loads(eqxrl(*args, "--json", cwd=tmp_path).stdout)  # it is there already
    best = result["table"][result["best"]]
    assert config["hp"]["learning_rate"] == best["learning_rate"] and best["iqm"] == max(row["iqm"] for row in result["table"])
    played = json.loads(eqxrl("evaluate", "s/best", "--episodes", "3", "--json", cwd=tmp_path).stdout)
    assert len(played["returns"]) == 2 and played["env_steps"] == 128
    assert json.loads(eqxrl("runs", "s", "--json", cwd=tmp_path).stdout)[0]["finished"]
    refused = eqxrl(*args, "--hp.gamma=0.5", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "algorithm/hp/gamma: there 0.9, now 0.5" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args, named",
    [
        (["--hp.learning-rate", "1e-4:x"], "--hp.learning-rate got '1e-4:x': 'x' isn't a number"),
        (["--hp.learning-rate", "1e-2:1e-4:log"], "the lower one first, got 0.01 and 0.0001"),
        (["--hp.num-steps", "2:8"], "--hp.num-steps got '2:8': it sets a shape or picks a branch, so it takes a list"),
        (["--hp.gamma", "0.9,1.5"], "PPOHParams.gamma must be in [0.0, 1.0], got 1.5"),
        (["--hp.gamma", "0.9"], "name an environment and what to sweep"),
        (["--hp.gamma", "0.9,0.99", "--samples", "0"], "samples must be at least 1, got 0"),
        (["--hp.gamma", "0.9,0.99", "--chunk", "0"], "seeds and chunk must be at least 1, got seeds=2, chunk=0"),
    ],
)
def test_a_malformed_sweep_is_one_line(here, tmp_path, monkeypatch, args, named):
    monkeypatch.chdir(tmp_path)
    code, _, errors = here(*SWEEP, *args)
    assert code == 2 and named in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_annealed_preset_stays_annealed_in_a_sweep():
    chosen = Chosen(["CartPole-v1", "--hp.learning-rate", "1e-4,1e-3", "--hp.num-epochs", "4,8"], swept=True)
    algo, space = chosen.swept(chosen.HP(learning_rate="1e-4,1e-3", num_epochs="4,8", gamma="0.5"))
    assert space == {"learning_rate": [1e-4, 1e-3], "num_epochs": [4, 8]} and algo.hp.gamma == 0.5
    assert algo.hp.learning_rate.transition_steps == algo.hp.num_updates


# Going on.


def test_a_run_is_resumed_as_it_was_started(folder, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = unfinished(folder, tmp_path / "cut")
    before = (run / "config.json").read_text()
    for args, named in [
        (["--hp.gamma", "0.5"], "leave out --hp.gamma"),
        (["--hp.num_envs=8", "--hp.total-timesteps", "256"], "leave out --hp.num-envs"),
        (["--seeds", "3"], "leave out --seeds"),
        (["CartPole-v1"], "leave out environment"),
        (["--algo", "dqn", "--name", "x"], "leave out --algo, --name"),
        (["--hp.total-timesteps", "64"], "can only be extended, got 64"),
    ]:
        code, _, errors = here("train", "--resume", "cut", *args)
        assert code == 2 and named in errors
    assert (run / "config.json").read_text() == before and not (run / "policy.eqx").exists()


def test_a_finished_run_goes_on_to_more_env_steps(folder, tmp_path):
    shutil.copytree(folder / "runs/CartPole-v1-002", tmp_path / "run")
    done = eqxrl("train", "--resume", "run", "--hp.total-timesteps", "256", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["env_steps"] == 256
    rows = [json.loads(line)["env_steps"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows == [0, 64, 128, 192, 256] and Run(tmp_path / "run").finished
    assert json.loads((tmp_path / "run/config.json").read_text())["hp"]["total_timesteps"] == 256


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
    for name in ("policy.eqx", "metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "runs" / "cut" / name).read_bytes() == (tmp_path / "runs" / "whole" / name).read_bytes(), name


def test_the_commands_help_is_light(tmp_path):
    """What isn't needed to say what there is isn't imported."""
    script = "import sys\nsys.argv = ['eqxrl', '--help']\nfrom eqxrl.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    script += "print([x for x in ('gymnax', 'matplotlib', 'pandas', 'safetensors', 'torch', 'scipy') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "train" in done.stdout
