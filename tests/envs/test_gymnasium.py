"""gymnasium's environments beside gymnasium used by hand: `pip install 'eqxrl[gymnasium]'`, or these tests are left out."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import episode_limit

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces
CARTPOLE, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1"


def seed_of(state):
    return int(state.on_host[0])


@pytest.mark.parametrize("name, options", [(CARTPOLE, {}), (CARTPOLE, {"max_episode_steps": 9}), (PENDULUM, {"max_episode_steps": 9})])
def test_each_step_is_that_of_gymnasium(name, options):
    env, params = make(name, **options)
    by_hand = gymnasium.make(name.partition("/")[2], **options)
    assert episode_limit(params, env) == by_hand.spec.max_episode_steps
    step, rng = jax.jit(env.step), np.random.default_rng(0)
    obs, state = jax.jit(env.reset)(jax.random.key(3))
    np.testing.assert_array_equal(obs, by_hand.reset(seed=seed_of(state))[0])
    done = False
    while not done:
        action = rng.integers(2) if name == CARTPOLE else rng.uniform(-2, 2, 1).astype(np.float32)
        obs, state, reward, terminated, truncated, info = step(jax.random.key(0), state, jnp.asarray(action))
        expected = by_hand.step(action)
        np.testing.assert_allclose(obs, expected[0], rtol=1e-6)
        np.testing.assert_allclose(reward, expected[1], rtol=1e-6)
        assert (bool(terminated), bool(truncated), info) == (*expected[2:4], {})
        done = bool(terminated | truncated)
    assert truncated if options else terminated


def test_atari_with_its_options():
    pytest.importorskip("ale_py")
    env, _ = make("gymnasium/ALE/Pong-v5", frameskip=2, max_num_frames_per_episode=400)
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    by_hand = gymnasium.make("ALE/Pong-v5", frameskip=2, max_num_frames_per_episode=400)
    np.testing.assert_array_equal(obs, by_hand.reset(seed=seed_of(state))[0])
    step, done = jax.jit(env.step), False
    while not done:
        obs, state, reward, terminated, truncated, _ = step(jax.random.key(0), state, jnp.array(3))
        expected = by_hand.step(3)
        np.testing.assert_array_equal(obs, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        done = bool(terminated | truncated)
    assert truncated and obs.shape == (210, 160, 3)


class Nested(gymnasium.Env):
    """Dict and Tuple spaces, and a limit that it doesn't tell of."""

    observation_space = spaces.Dict({"z": spaces.Discrete(4), "a": spaces.Tuple([spaces.Box(-9, 9, (2,)), spaces.MultiDiscrete([3, 5])])})
    action_space = spaces.Dict({"n": spaces.MultiDiscrete([2, 2]), "b": spaces.Box(-1, 1, (2,))})

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.x = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen(), {}

    def seen(self):
        return {"z": self.time % 4, "a": (self.x, np.array([self.time % 3, self.time % 5]))}

    def step(self, action):
        assert action["n"].shape == (2,) and action["b"].dtype == np.float32
        self.time, self.x = self.time + 1, self.x + action["b"]
        return self.seen(), float(action["n"].sum()), self.time == 7, False, {}


def test_nested_spaces_and_the_contract(monkeypatch):
    gymnasium.register("Nested-v0", entry_point=Nested)
    try:
        env, params = make("gymnasium/Nested-v0", max_episode_steps=20)
        check_env(env, params, num_steps=40)
        obs, state = env.reset(jax.random.key(0))
        action = {"n": jnp.array([1, 0]), "b": jnp.array([0.5, -0.25])}
        after, _, reward, *_ = env.step(jax.random.key(0), state, action)
        assert reward == 1 and after["z"] == 1 and after["a"][1].tolist() == [1, 1]
        np.testing.assert_allclose(after["a"][0] - obs["a"][0], [0.5, -0.25], rtol=1e-5)
    finally:
        del gymnasium.registry["Nested-v0"]


def test_unknown_names():
    with pytest.raises(ValueError, match="gymnasium has no environment 'gymnasium/CartPole'; did you mean CartPole-v1"):
        make("gymnasium/CartPole")


def test_what_draws_may_be_missing(monkeypatch):
    env, _ = make("gymnasium/CartPole-v1", max_episode_steps=11)
    state = env.reset(jax.random.key(0))[1]
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match="pygame is not installed, run `pip install"):
        env.picture(state)
