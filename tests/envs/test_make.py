"""Environments by name: gymnax's, and those in a file of the user's own."""

import inspect
import pathlib
import subprocess
import sys

import gymnax
import jax
import pytest

from eqxrl.envs import Gymnax, TimeLimit, as_environment, check_env, env_ids, env_name, known_suites, make
from eqxrl.envs._make import SUITES


def test_known_names():
    env, params = make("CartPole-v1")
    assert env.name == env_name(env) == "CartPole-v1" and params == env.default_params
    assert isinstance(env, Gymnax) and as_environment(env, params) is env
    assert make("Catch-bsuite", rows=7)[0].rows == 7


def test_an_environment_tells_with_which_options_it_was_made():
    env, params = make("Catch-bsuite", rows=7)
    assert env.env_id == "Catch-bsuite" and env.options == {"rows": 7} and env_name(env) == "Catch-bsuite"
    assert as_environment(env, params) is env and hash(env) == hash(make("Catch-bsuite", rows=7)[0])
    assert jax.tree.structure(env) != jax.tree.structure(make("Catch-bsuite", rows=8)[0])


def test_the_same_name_and_arguments_give_the_same_environment():
    assert make("CartPole-v1")[0] is make("CartPole-v1")[0]
    seven = make("Catch-bsuite", rows=7, columns=5)[0]
    assert seven is make("Catch-bsuite", columns=5, rows=7)[0]
    assert seven is not make("Catch-bsuite", rows=7)[0] and seven.env is not make("Catch-bsuite")[0].env


@pytest.mark.parametrize(
    "wrong, near", [("CartPole", "CartPole-v1"), ("pendulum-v0", "Pendulum-v1"), ("breakout", "Breakout-MinAtar")]
)
def test_unknown_names_are_answered_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"no environment {wrong!r}; did you mean .*{near}"):
        make(wrong)


def test_names_that_are_near_to_nothing_get_the_list():
    with pytest.raises(ValueError, match="there are CartPole-v1, .*FrozenLake-misc"):
        make("qqqqqq")


@pytest.mark.parametrize("name", ["atari/Pong", "procgen/CoinRun", "my_env.py", "./my_env.py", "popgym/my_env.py"])
def test_other_suites_are_unknown(name):
    suites = "brax, craftax, envpool, gymnasium, jaxmarl, jumanji, navix, pgx, playground, popgym, xminigrid"
    with pytest.raises(ValueError, match=f"no environment '{name}': .*'suite/name', and the suites are {suites}; .*file.py:Name"):
        make(name)


@pytest.mark.parametrize("suite", [suite for suite, module in SUITES.items() if module.PACKAGE])
def test_a_suite_that_is_missing_is_named_with_the_command_that_installs_it(suite, monkeypatch):
    package = SUITES[suite].PACKAGE
    for module in [package, *(module for module in sys.modules if module.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    how = rf"pip install 'eqxrl\[{suite}\]'"
    for asked, name in ((lambda: make(f"{suite}/Any-v0", size=3), f"{suite}/Any-v0"), (lambda: env_ids(suite), f"the suite {suite}")):
        with pytest.raises(ImportError, match=f"{name} needs {package}: {how}"):
            asked()
    assert known_suites()[suite] == how.replace("\\", "")


@pytest.mark.parametrize("wrong", [None, 3, gymnax.make])
def test_names_are_strings(wrong):
    with pytest.raises(TypeError, match="name of an environment"):
        inspect.unwrap(make)(wrong)  # the check of types, in the tests, would speak first


def test_mnist_without_a_network(monkeypatch, tmp_path):
    import urllib.error

    from gymnax.utils import load_mnist

    def offline(url, path):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load_mnist, "urlretrieve", offline)
    monkeypatch.setattr(load_mnist.load_mnist, "__defaults__", (str(tmp_path),))
    with pytest.raises(ConnectionError, match=f"no route to host.*t10k-labels-idx1-ubyte.gz.*into {tmp_path}") as error:
        make("MNISTBandit-bsuite")
    assert not isinstance(error.value, urllib.error.URLError)


@pytest.mark.parametrize("content", [b"half a file", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03half"])
def test_mnist_with_a_broken_download(monkeypatch, tmp_path, content):
    from gymnax.utils import load_mnist

    monkeypatch.setattr(load_mnist, "urlretrieve", lambda url, path: pathlib.Path(path).write_bytes(content))
    monkeypatch.setattr(load_mnist.load_mnist, "__defaults__", (str(tmp_path),))
    with pytest.raises(ConnectionError, match="in place of what a broken download left there"):
        make("MNISTBandit-bsuite")


def test_environments_registered_with_gymnax(monkeypatch):
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    monkeypatch.setattr(gymnax.registration, "registered_envs", [])
    cartpole = type(gymnax.make("CartPole-v1")[0])
    gymnax.register("Mine-v0", cartpole)
    monkeypatch.setattr(gymnax, "registered_envs", gymnax.registration.registered_envs)
    assert type(make("Mine-v0")[0].env) is cartpole


MINE = """
import gymnax
import equinox as eqx
import jax.numpy as jnp
from eqxrl.envs import TimeLimit
from eqxrl.spaces import Box, Discrete

class Mine(eqx.Module):
    goal: float = 1.0
    max_steps: int = eqx.field(static=True, default=20)
    @property
    def default_params(self):
        return {"speed": 0.1}
    def reset(self, key, params):
        return jnp.zeros(1), (jnp.zeros(1), jnp.array(0))
    def step(self, key, state, action, params):
        x, time = state[0] + params["speed"] * (action - 1), state[1] + 1
        return x, (x, time), -jnp.abs(x[0] - self.goal), x[0] > self.goal, time >= self.max_steps, {}
    def observation_space(self, params):
        return Box(-3, 3, (1,))
    def action_space(self, params):
        return Discrete(3)

def short(max_steps):
    return TimeLimit(Mine(), max_steps)

def of_gymnax():
    return gymnax.make("CartPole-v1")[0]

def with_params():
    return gymnax.make("CartPole-v1")

number = 3
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path}/mine.py"


def test_environments_in_a_file_of_ones_own(mine):
    env, params = make(f"{mine}:Mine", goal=2.0)
    assert env.goal == 2.0 and params == {"speed": 0.1} and env_name(env) == "Mine"
    check_env(env, params)
    assert make(f"{mine}:Mine", goal=2.0)[0] is env and type(make(f"{mine}:Mine")[0]) is type(env.env)
    short, params = make(f"{mine}:short", max_steps=5)
    assert isinstance(short.env, TimeLimit) and short.max_steps == 5 and params == {"speed": 0.1}
    assert isinstance(make(f"{mine}:of_gymnax")[0], Gymnax)


def test_what_a_file_holds_that_is_no_environment(mine):
    with pytest.raises(TypeError, match="mine.py:number is a int; name a class, or a function that returns an environment"):
        make(f"{mine}:number")
    with pytest.raises(TypeError, match="got a tuple of 2 as env"):
        make(f"{mine}:with_params")
    with pytest.raises(ImportError, match="has nothing called 'Min'; did you mean 'Mine'"):
        make(f"{mine}:Min")


def test_gymnax_is_imported_only_where_it_is_used(mine):
    script = f"""
import sys
import eqxrl.envs as envs
from eqxrl.spaces import Box, Discrete
source = open({mine!r}).read().replace("import gymnax", "")
exec(source)
envs.check_env(envs.TimeLimit(Mine(), 5), num_steps=20)
assert "gymnax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_gymnax_draws_with_is_imported_only_where_it_draws():
    script = """
import sys
from eqxrl import make
env, env_params = make("Catch-bsuite")
assert "gymnax" in sys.modules and not {"seaborn", "pandas", "matplotlib.pyplot"} & set(sys.modules)
import jax
_, state = env.reset(jax.random.key(0), env_params)
figure, _ = env.env.render(state, env_params)
assert type(figure).__module__ == "matplotlib.figure"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
