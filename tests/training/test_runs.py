"""Run folders: what is written suffices to make the run again, and nothing that changes elsewhere changes it."""

import dataclasses
import json
import shutil
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import arrays, same

from eqxrl import A2C, DQN, GAE, PPO, A2CHParams, DQNHParams, LinearSchedule, MakeNetwork, PPOHParams, algorithms, load, make, preset
from eqxrl._user_code import from_file
from eqxrl.training import Callback, Run, RunConfig, Trainer, hyperparameters, load_checkpoint

SIZES = dict(num_envs=3, num_steps=8, num_seeds_per_eval=2, total_timesteps=24 * 4, eval_freq=24 * 2)
PPO_SIZES = dict(SIZES, num_minibatches=2, num_epochs=1)
NETWORK = MakeNetwork("mlp", dict(hidden_sizes=(4,)))

OWN = '''
import jax
from eqxrl import GAE, PPO, AbstractOnPolicy, PPOHParams, Scalar, field, part
from eqxrl.advantages import AbstractAdvantage


class MineHParams(PPOHParams):
    trust: Scalar = field(default=0.5)
    """How far rewards are trusted."""


class Mine(AbstractOnPolicy):
    HParams = MineHParams
    collector, loss, optimizer, learner = PPO.collector, PPO.loss, PPO.optimizer, PPO.learner

    @part(AbstractAdvantage)
    def advantage(self):
        return GAE(gamma=self.hp.gamma, gae_lambda=self.hp.trust)


def network(*spaces, key):
    from eqxrl import MLPActorCritic

    return MLPActorCritic(*spaces, hidden_sizes=(3,), key=key)


def make():
    hp = PPOHParams(num_envs=3, num_steps=8, num_seeds_per_eval=2, total_timesteps=96, eval_freq=48, num_minibatches=2, num_epochs=1)
    return PPO.create("CartPole-v1", hp=hp, actor_critic=network)


def not_an_algorithm():
    return 3
'''
ENV = (Path(__file__).parents[2] / "examples/custom_env.py").read_text()


def ppo(**hparams):
    return PPO.create("CartPole-v1", hp=PPOHParams(**{**PPO_SIZES, **hparams}), actor_critic=NETWORK)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two seeds."""
    run = Run.new(ppo(), tmp_path_factory.mktemp("runs"), num_seeds=2, seed=5)
    return run, *run.fit()


def strictly(text):
    def no(constant):
        raise AssertionError(f"{constant} isn't JSON")

    return json.loads(text, parse_constant=no)


@pytest.fixture
def user_files(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    (folder / "my_env.py").write_text(ENV)
    monkeypatch.chdir(folder)
    return folder


# What is written.


SCHEDULED = dict(learning_rate=LinearSchedule(1e-3, 1e-5, 77), max_grad_norm=np.inf, gamma=0.97)
ASSEMBLED = {
    "ppo": lambda: PPO.create("CartPole-v1", hp=PPOHParams(**PPO_SIZES)),
    "scheduled": lambda: ppo(**SCHEDULED),
    "part": lambda: PPO.create("Pendulum-v1", hp=PPOHParams(**PPO_SIZES), advantage=GAE(gamma=0.9, gae_lambda=0.8)),
    "preset": lambda: preset("MountainCarContinuous-v0").create(total_timesteps=5000, learning_rate=0.5),
    "a2c": lambda: A2C.create("CartPole-v1", hp=A2CHParams(**SIZES)),
    "dqn": lambda: DQN.create("CartPole-v1", hp=DQNHParams(**SIZES, epsilon_end=0.1)),
    "rainbow": lambda: preset("CartPole-v1", "dqn", "rainbow").create(batch_size=32),
    "own": lambda: from_file("own.py:Mine").create(
        str(Path("my_env.py:Grid").absolute()), hp=from_file("own.py:MineHParams")(**PPO_SIZES, trust=0.25)
    ),
}


@pytest.mark.parametrize("kind", ASSEMBLED)
def test_an_assembled_algorithm_is_made_again_from_its_folder_alone(kind, user_files, monkeypatch, tmp_path):
    algo = ASSEMBLED[kind]()
    run = Run.new(algo, tmp_path / "runs", seed=3, num_seeds=4)
    monkeypatch.chdir(tmp_path)  # what is in a file is found from anywhere
    again = Run(run.folder)
    assert again.config == run.config and (again.config.seed, again.config.num_seeds) == (3, 4)
    made = again.config.create()
    assert type(made) is type(algo) and hyperparameters(made) == hyperparameters(algo)
    same(made, algo)
    key = jax.random.key(0)
    assert eqx.filter_eval_shape(made.init_train_state, key) == eqx.filter_eval_shape(algo.init_train_state, key)
    content = strictly((run.folder / "config.json").read_text())
    assert content["hp"].keys() == {f.name for f in dataclasses.fields(algo.hp)}, "all of them"
    assert content["versions"]["jax"] == jax.__version__ and "max_steps_in_episode" in str(content) or kind == "own"


def test_what_a_config_says(user_files, tmp_path):
    run = Run.new(ASSEMBLED["scheduled"](), tmp_path, name="named", preset="zoo")
    content = strictly((tmp_path / "named/config.json").read_text())
    assert (content["algorithm"], content["env_id"], content["preset"], content["source"]) == ("ppo", "CartPole-v1", "zoo", None)
    schedule = {"type": "LinearSchedule", "init_value": 0.001, "end_value": 1e-05, "transition_steps": 77}
    assert content["hp"]["learning_rate"] == schedule and content["hp"]["max_grad_norm"] == "inf"
    assert content["parts"] == {"actor_critic": {"type": "MakeNetwork", "kind": "mlp", "options": {"hidden_sizes": [4]}}}
    assert content["environment"]["env"]["type"] == "CartPole" and content["env_params"]["max_steps_in_episode"] == 500
    assert run.config.algorithm_name == "PPO"
    own = Run.new(ASSEMBLED["own"](), tmp_path)
    assert own.config.algorithm == f"{user_files}/own.py:Mine" and own.config.env_id == f"{user_files}/my_env.py:Grid"
    assert own.folder == tmp_path / "Grid-001" and own.config.algorithm_name == "Mine" and own.config.options() == {}


def test_folders_are_numbered_and_never_overwritten(tmp_path):
    first, second = Run.new(ppo(), tmp_path / "new/runs"), Run.new(ppo(), tmp_path / "new/runs")
    assert [run.folder.name for run in (first, second)] == ["CartPole-v1-001", "CartPole-v1-002"]
    shutil.rmtree(first.folder)
    assert Run.new(ppo(), tmp_path / "new/runs").folder == first.folder
    with pytest.raises(FileExistsError, match="never overwritten; pass another name"):
        Run.new(ppo(), tmp_path / "new/runs", name="CartPole-v1-002")
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        Run.new(ppo(), tmp_path / "zero", num_seeds=0)
    assert not (tmp_path / "zero").exists()


def test_options_are_what_differs(tmp_path):
    zoo = preset("CartPole-v1", "ppo", "zoo")
    run = Run.new(zoo.create(learning_rate=0.5, total_timesteps=2048), tmp_path, preset="zoo")
    assert run.config.options() == {"total_timesteps": 2048, "learning_rate": 0.5}
    assert Run.new(zoo.create(), tmp_path, preset="zoo").config.options() == {}
    assert Run.new(DQN.create("CartPole-v1", hp=DQNHParams(epsilon_end=0.5)), tmp_path).config.options() == {"epsilon_end": 0.5}
    assert Run.new(PPO.create("CartPole-v1"), tmp_path).config.options() == {}


# What it takes to make it again.


def catch(**options):
    return PPO.create("Catch-bsuite", env_kwargs=options, hp=PPOHParams(**PPO_SIZES), actor_critic=NETWORK)


def test_options_of_the_environment_are_written_down(tmp_path):
    algo = catch(rows=7)
    by_hand = PPO.create(env=make("Catch-bsuite", rows=7)[0], hp=PPOHParams(**PPO_SIZES), actor_critic=NETWORK)
    for run in (Run.new(algo, tmp_path), Run.new(by_hand, tmp_path)):
        assert run.config.env_id == "Catch-bsuite" and run.config.env_kwargs == {"rows": 7}
        assert Run(run.folder).config.create().env.rows == 7
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"rows": 7', '"rows": 8', 1))
    with pytest.raises(ValueError, match="environment/options/rows: the run has 7, this would have 8"):
        Run(run.folder).config.create()
    assert Run.new(catch(), tmp_path).config.env_kwargs == {}
    with pytest.raises(ValueError, match="env_kwargs are options with which env_id is made; env is an environment already"):
        PPO.create(env=algo.env, env_kwargs={"rows": 7})


def test_a_training_with_other_options_of_the_environment_is_not_gone_on_with(tmp_path):
    Trainer(folder=tmp_path).fit(catch(rows=7), jax.random.key(0))
    with pytest.raises(ValueError, match="environment/options/rows"):
        Trainer(folder=tmp_path).fit(catch(rows=8), resume=True)


def limited():
    algo = ppo()
    return eqx.tree_at(lambda a: a.env_params, algo, algo.env_params.replace(max_steps_in_episode=7))


@pytest.mark.parametrize(
    "make, why",
    [
        (limited, "env_params/max_steps_in_episode: the run has 7, this would have 500"),
        (lambda: PPO.create("CartPole-v1", hp=PPOHParams(**PPO_SIZES), actor_critic=lambda *x, key: NETWORK(*x, key=key)), "actor_critic"),
        (lambda: ppo(learning_rate=lambda n: 1e-3), "learning_rate"),
        (lambda: PPO.create(env=from_file("my_env.py:Grid")(size=4), hp=PPOHParams(**PPO_SIZES)), "size: the run has 4, this would have 6"),
    ],
    ids=["env_params", "network", "schedule", "environment"],
)  # fmt: skip
def test_what_a_configuration_can_not_tell_needs_a_source(user_files, tmp_path, make, why):
    with pytest.raises(ValueError, match="(?s)can't be made again from its run's folder: .*; pass source='path/to/script.py:make'") as e:
        Run.new(make(), tmp_path / "runs")
    assert why in str(e.value) and not (tmp_path / "runs").exists()


def test_a_source_makes_it(user_files, tmp_path, monkeypatch):
    algo = from_file("own.py:make")()
    with pytest.raises(ValueError, match="actor_critic.*pass source="):
        Run.new(algo, tmp_path)
    run = Run.new(algo, tmp_path, source="own.py:make")
    assert run.config.source == f"{user_files}/own.py:make" and run.config.algorithm == "PPO" and run.config.env_id is None
    monkeypatch.chdir(tmp_path)
    run.fit()
    run.extend(24 * 6)
    state, metrics = Run(run.folder).fit()
    assert metrics.cumulative_reward.shape == (1, 4, 2) and Run(run.folder).config.create().hp.total_timesteps == 24 * 6
    assert Run(run.folder).load()[1].agent.actor[0].weight.shape == (3, 4)
    with pytest.raises(ValueError, match=r"own.py:make makes isn't the algorithm of the run(.|\n)*parts/actor_critic"):
        Run.new(ppo(), tmp_path, source=run.config.source)
    for what, error in [("missing", "has nothing called 'missing'"), ("not_an_algorithm", "returned int, which is no algorithm")]:
        with pytest.raises(ValueError, match=error):
            Run.new(ppo(), tmp_path, source=f"{user_files}/own.py:{what}")


def test_a_source_that_changes_is_refused_by_name(user_files, tmp_path, monkeypatch):
    run = Run.new(from_file("own.py:make")(), tmp_path, source="own.py:make")
    other = user_files / "other.py"
    other.write_text(OWN.replace("num_epochs=1", "num_epochs=2"))
    changed = dataclasses.replace(run.config, source=f"{other}:make")
    difference = "\n  hp/num_epochs: the run has 1, this would have 2"
    with pytest.raises(ValueError, match="other.py:make makes isn't the algorithm of the run:" + difference):
        changed.create()


def test_a_changed_preset_changes_no_old_run(tmp_path, monkeypatch):
    run = Run.new(preset("CartPole-v1", "ppo", "zoo").create(), tmp_path, preset="zoo")
    before = run.config.create()
    old = algorithms.PRESETS["CartPole-v1"]["ppo"]["zoo"]
    new = dataclasses.replace(old, hp={**old.hp, "learning_rate": 0.5, "num_envs": 2}, anneal=(), parts={"actor_critic": NETWORK})
    monkeypatch.setitem(algorithms.PRESETS["CartPole-v1"]["ppo"], "zoo", new)
    assert preset("CartPole-v1", "ppo", "zoo").create().hp.num_envs == 2
    after = Run(run.folder).config.create()
    same(after, before)
    assert hyperparameters(after) == hyperparameters(before) and after.hp.num_envs == 8
    assert Run(run.folder).config.options()["learning_rate"] == 0.001
    monkeypatch.delitem(algorithms.PRESETS, "CartPole-v1")
    assert hyperparameters(Run(run.folder).config.create()) == hyperparameters(before)


def test_an_environment_that_changes_is_refused_by_name(tmp_path):
    run = Run.new(ppo(), tmp_path)
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"gravity": 9.8', '"gravity": 1.6'))
    with pytest.raises(ValueError, match="env_params/gravity: the run has 1.6, this would have 9.8"):
        Run(run.folder).load()


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it has no config.json"):
        Run(tmp_path)
    for text in ("{", "[]", '{"algorithm": "ppo"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged"):
            Run(tmp_path)


# How it goes.


def test_a_run_leaves_what_it_promises(finished):
    run, state, metrics = finished
    names = {"config.json", "metrics.jsonl", "metrics.csv", "metrics.hyperparameters.json"}
    names |= {"learning_curve.png", "policy.eqx", "checkpoints"}
    assert {path.name for path in run.folder.iterdir()} == names and run.finished
    wanted = Trainer().fit(ppo(), jax.random.split(jax.random.key(5), 2))
    same((state, metrics), wanted)
    assert metrics.cumulative_reward.shape == (2, 3, 2)
    policies = eqx.filter_vmap(ppo().policy)(state)
    same(load(run.policy, policies), policies)
    np.testing.assert_allclose(run.curve().returns, metrics.cumulative_reward.mean(-1), rtol=1e-6)
    assert run.curve().env_steps.tolist() == [0, 48, 96]
    with pytest.raises(ValueError, match="has finished; its policy is .* larger total_timesteps"):
        Run(run.folder).fit()


def test_members_and_checkpoints(finished):
    run, state, metrics = finished
    algo, stacked = Run(run.folder).load(None)
    same(stacked, state)
    for member in (0, 1):
        algo, one = run.load(member)
        same(one, jax.tree.map(lambda x: x[member] if eqx.is_array(x) else x, state))  # noqa: B023
        action = algo.make_actor(one)(jax.numpy.zeros(4), jax.random.key(0))
        assert int(action) in (0, 1)
        assert algo.eval_callback(one, 0).cumulative_reward.shape == (2,)
    same(run.load(None, best=True)[1], load_checkpoint(run.checkpoints, algo, best=True)[0])
    best = int(np.argmax(metrics.cumulative_reward.mean((0, 2))))
    assert run.load(best=True)[1].num_iterations == (0, 2, 4)[best]
    for member in (2, -1):
        with pytest.raises(IndexError, match=f"has 2 members, counted from 0, so there is no {member}"):
            run.load(member)


class Stop(Callback):
    """Fails after so many evaluations."""

    def __init__(self, after):
        self.after = after

    def on_validation_epoch_end(self, trainer, algo, state, metrics):
        self.after -= 1
        if not self.after:
            raise ZeroDivisionError


def test_an_unfinished_run_is_served_and_goes_on(finished, tmp_path):
    run = Run.new(ppo(), tmp_path, num_seeds=2, seed=5)
    with pytest.raises(FileNotFoundError, match="no evaluations yet; go on with it: eqxrl train --resume"):
        run.curve()
    with pytest.raises(FileNotFoundError, match="no checkpoint in this folder"):
        run.load()
    with pytest.raises(ZeroDivisionError):
        run.fit([Stop(2)])
    run = Run(run.folder)
    assert not run.finished and not run.policy.exists()
    assert run.load(1)[1].num_iterations == 2 and run.load(None, best=True)[1].rng.shape == (2,)
    assert run.curve().returns.shape == (2, 2) and run.plot(tmp_path / "curve.png").stat().st_size > 10_000
    result = Run(run.folder).fit()
    same(result, finished[1:])
    for name in ("policy.eqx", "metrics.jsonl", "metrics.csv"):
        assert (run.folder / name).read_bytes() == (finished[0].folder / name).read_bytes(), name


def test_a_run_that_was_killed_before_it_had_a_checkpoint_starts(tmp_path):
    run = Run.new(ppo(), tmp_path)
    (run.folder / "metrics.jsonl").write_text('{"env_steps": 0, "eval')
    run.fit()
    assert run.curve().env_steps.tolist() == [0, 48, 96]


# Going on to more env steps.


@pytest.mark.parametrize("total", [24 * 5, 24 * 8])
def test_a_finished_run_goes_on_to_more(finished, tmp_path, total):
    """It is then what a run to there would have been."""
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    run.extend(total)
    assert not run.finished and Run(run.folder).config.hp["total_timesteps"] == total
    assert run.load()[1].num_iterations == 4  # it can be looked at in the meantime
    state, metrics = Run(run.folder).fit()
    wanted = Trainer().fit(ppo(total_timesteps=total), jax.random.split(jax.random.key(5), 2))
    same((state, metrics), wanted)
    assert run.finished and run.curve().env_steps[-1] == total and run.load()[1].num_iterations == total // 24


def test_schedules_stay_as_they_are_when_a_run_is_extended(tmp_path):
    run = Run.new(ppo(**SCHEDULED), tmp_path)
    run.extend(24 * 9)
    assert run.config.create().hp.learning_rate.transition_steps == 77
    with_more = preset("CartPole-v1", "ppo", "zoo").create()
    run = Run.new(with_more, tmp_path, preset="zoo")
    run.extend(10**6)
    same(run.config.create().hp.learning_rate, with_more.hp.learning_rate)


def test_less_is_no_extension(finished, tmp_path):
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    for total in (96, 95, -1):
        with pytest.raises(ValueError, match=f"has total_timesteps=96, which can only be extended, got {total}"):
            run.extend(total)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_configuration_is_written_whole_or_not_at_all(finished, tmp_path, monkeypatch):
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "run"))
    with monkeypatch.context() as m:
        m.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            run.extend(1000)
    assert Run(run.folder).config == finished[0].config
    assert arrays(Run(run.folder).load()[1])


def test_a_config_is_data():
    """Only public classes of the package are made of it, and nothing is imported but the files that it names."""
    rest: dict = dict(env_kwargs={}, preset=None, source=None, seed=0, num_seeds=1, hp={})
    rest |= dict(env="", environment={}, env_params=None, versions={})
    config = dict(rest, algorithm="ppo", env_id="CartPole-v1", parts={})
    with pytest.raises(TypeError, match="Popen can't be made of what is written down"):
        RunConfig(**{**config, "parts": {"learner": {"type": "Popen", "args": ["ls"]}}}).create()
    with pytest.raises(ValueError, match="there is no algorithm 'sac9'; there is .*ppo.*, or a class of your own"):
        RunConfig(**{**config, "algorithm": "sac9"}).create()
    with pytest.raises(TypeError, match="custom_env.py:Grid isn't an algorithm"):
        RunConfig(**{**config, "algorithm": f"{Path(__file__).parents[2]}/examples/custom_env.py:Grid"}).create()
