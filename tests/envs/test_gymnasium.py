"""gymnasium's environments beside gymnasium used by hand: `pip install 'eqxrl[gymnasium]'`, or these tests are left out."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import NeverReset, ResetWhenDone, episode_limit
from eqxrl.envs.suites._host import Host

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


def test_what_follows_the_end_is_filler():
    env, _ = make(CARTPOLE, max_episode_steps=3)
    obs, state = env.reset(jax.random.key(0))
    for _ in range(3):
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.array(0))
    again, after, reward, terminated, truncated, _ = env.step(jax.random.key(0), state, jnp.array(0))
    np.testing.assert_array_equal(again, obs)
    np.testing.assert_array_equal(after.on_host, state.on_host)
    assert reward == 0 and truncated and not terminated


def test_a_state_can_be_stepped_again_and_otherwise():
    """The episode is played anew up to there, also if it has gone on or ended since."""
    env, _ = make(CARTPOLE)
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action)[:3])
    _, start = env.reset(jax.random.key(1))
    states = [start]
    for t in range(30):  # it falls to one side before
        states.append(step(states[-1], jnp.array(0))[1])
    middle = states[4]
    left, right = (step(middle, jnp.array(a)) for a in (0, 1))
    assert eqx.tree_equal(left[1], states[5])
    by_hand = gymnasium.make("CartPole-v1")
    by_hand.reset(seed=seed_of(start))
    for action in (0, 0, 0, 0, 1):
        expected = by_hand.step(action)[0]
    np.testing.assert_array_equal(right[0], expected)
    np.testing.assert_array_equal(step(right[1], jnp.array(1))[0], by_hand.step(1)[0])


def test_a_state_of_another_process_is_cut_off():
    env, _ = make(CARTPOLE)
    obs, state = env.reset(jax.random.key(5))
    for _ in range(2):
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.array(1))
    other = dataclasses.replace(env, host=Host(lambda **options: gymnasium.make("CartPole-v1", **options)))
    after, _, reward, terminated, truncated, _ = other.step(jax.random.key(0), state, jnp.array(1))
    np.testing.assert_array_equal(after, obs)
    assert reward == 0 and truncated and not terminated
    with pytest.raises(ValueError, match="can't be drawn: another process played its episode"):
        other.picture(state)


@pytest.mark.parametrize("stepper", [ResetWhenDone(), NeverReset()])
def test_many_at_once_and_seeds_of_many_are_each_as_if_alone(stepper):
    env, params = make(PENDULUM, max_episode_steps=5)

    def play(key):
        obs, state, kept = stepper.init(env, params, jax.random.split(key, 3))

        def body(carry, key):
            action = jnp.sin(jnp.arange(3.0))[:, None]
            out = stepper.step(env, params, jax.random.split(key, (2, 3)), *carry, action)
            return (out.env_state, out.reset_state), (out.obs, out.final_obs, out.reward, out.truncated)

        return jax.lax.scan(body, (state, kept), jax.random.split(key, 12))[1]

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(play))(keys)
    for i, key in enumerate(keys):
        alone = jax.jit(play)(key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[i], rtol=1e-6), alone, together)
    assert np.asarray(together[3])[:, 4].all()
    obs, final_obs = (np.asarray(x)[:, 4] for x in together[:2])
    assert (obs != final_obs).any(-1).all() == isinstance(stepper, ResetWhenDone)


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


def test_what_is_left_alone_is_played_anew_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("eqxrl.envs.suites._host.KEPT_STEPS", 50)
    env = dataclasses.replace(make(CARTPOLE)[0], host=Host(lambda **options: gymnasium.make("CartPole-v1", **options)))
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action)[:2])
    middles = []
    for i in range(8):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(4):
            state = step(state, jnp.array(i % 2))[1]
        middles.append(state)
    assert len(env.host.going) == 4 and len(env.host.left) == 4  # one at a time, and four times that
    obs, _ = step(middles[0], jnp.array(1))
    by_hand = gymnasium.make("CartPole-v1")
    by_hand.reset(seed=seed_of(middles[0]))
    for action in (0, 0, 0, 0, 1):
        expected = by_hand.step(action)[0]
    np.testing.assert_array_equal(obs, expected)
    for i in range(8, 40):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(15):
            state = step(state, jnp.array(1))[1]
    assert env.host.kept_steps <= 50 and len(env.host.episodes) <= 50 + 40 + 15 * 4 and len(env.host.spare) < 20


def test_only_what_ended_is_reset(monkeypatch):
    resets = []
    reset = Host._reset
    monkeypatch.setattr(Host, "_reset", lambda self, *args: resets.append(args) or reset(self, *args))
    env, params = make(CARTPOLE, max_episode_steps=50)
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(0), 4)
    _, state, kept = stepper.init(env, params, keys)
    step = jax.jit(lambda keys, state: stepper.step(env, params, keys, state, kept, jnp.array([0, 1, 0, 1])))
    ends = 0
    for t in range(40):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        state, ends = out.env_state, ends + int(out.done.sum())
    assert ends > 4 and len(resets) <= 4 + ends + 4 + ends  # the first observation, and the first step


def test_first_states_are_drawn_each_as_its_own():
    env, _ = make(CARTPOLE, max_episode_steps=7)
    one, other = (env.picture(env.reset(jax.random.key(i))[1]) for i in (0, 3))
    assert one.dtype == np.uint8 and (one != other).any()
