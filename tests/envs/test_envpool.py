"""envpool's environments beside envpool used by hand: `pip install 'eqxrl[envpool]'`, or these tests are left out."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, episode_limit
from eqxrl.spaces import Box

envpool = pytest.importorskip("envpool")
LAST = 2**31 - 1
CARTPOLE, PENDULUM, BREAKOUT = "envpool/CartPole-v1", "envpool/Pendulum-v1", "envpool/Breakout-v5"


def by_hand(name, states, **options):
    """envpool's own instances, of the seeds of states."""
    return born(name, [int(seed) % LAST + 1 for seed in np.asarray(states.on_host).reshape(-1, 3)[:, 0]], **options)


def born(name, seeds, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, of bounds in float64
        envs = envpool.make_gymnasium(name.partition("/")[2], num_envs=len(seeds), seed=seeds, **options)
        assert envs.observation_space is not None
    return envs


def as_seen(obs):
    return np.moveaxis(obs, 0, -1) if obs.dtype == np.uint8 else obs


@pytest.mark.parametrize(
    "name, options",
    [
        (CARTPOLE, {}), (CARTPOLE, {"max_episode_steps": 9}), (PENDULUM, {"max_episode_steps": 9}), ("envpool/FrozenLake-v1", {}),
        ("envpool/LunarLander-v3", {}),
    ],
)
def test_each_step_is_that_of_envpool_in_one_episode_after_the_other(name, options):
    env, params = make(name, **options)
    step, rng = jax.jit(env.step), np.random.default_rng(0)
    obs, state = jax.jit(env.reset)(jax.random.key(3))
    theirs = by_hand(name, state, **options)
    assert episode_limit(params, env) == theirs.config["max_episode_steps"]
    expected = theirs.reset()[0]
    for episode in range(3):
        np.testing.assert_allclose(obs, expected[0], rtol=1e-6)
        done = False
        while not done:
            action = rng.uniform(-2, 2, 1).astype(np.float32) if name == PENDULUM else np.int32(rng.integers(theirs.action_space.n))
            obs, state, reward, terminated, truncated, info = step(jax.random.key(0), state, jnp.asarray(action))
            expected, *numbers, _ = theirs.step(action[None])
            np.testing.assert_allclose(obs, expected[0], rtol=1e-6)
            np.testing.assert_allclose([reward, terminated, truncated], np.ravel(numbers), rtol=1e-6)
            done = bool(terminated | truncated)
        assert info == {} and (truncated if options else terminated)
        obs, state = env.reset_where(jax.random.key(7), jnp.array(True), state)
        expected = theirs.step(action[None])[0]  # envpool's own reset, of which the action is left out


@pytest.mark.parametrize("options, seen", [({}, (84, 84, 4)), ({"stack_num": 2, "gray_scale": False, "img_height": 40}, (40, 84, 6))])
def test_atari_is_seen_channels_last_and_ends_with_a_life_or_the_limit(options, seen):
    options = {"episodic_life": True, "max_episode_steps": 60, "num_threads": 1} | options
    env, _ = make(BREAKOUT, **options)
    assert env.observation_space() == Box(0, 255, seen, jnp.uint8) and env.max_steps == 60
    step = jax.jit(env.step)
    obs, state = env.reset(jax.random.key(0))
    theirs, ends = by_hand(BREAKOUT, state, **options), []
    expected = theirs.reset()[0]
    while len(ends) < 3:
        np.testing.assert_array_equal(obs, np.moveaxis(expected[0], 0, -1))
        action = np.int32(1)  # a ball that nobody catches
        obs, state, reward, terminated, truncated, _ = step(jax.random.key(0), state, jnp.asarray(action))
        expected, *numbers, info = theirs.step(action[None])
        np.testing.assert_array_equal([reward, terminated, truncated], np.ravel(numbers))
        if terminated | truncated:
            np.testing.assert_array_equal(obs, np.moveaxis(expected[0], 0, -1))
            ends.append((bool(terminated), int(info["lives"][0])))
            obs, state = env.env.reset_where(jax.random.key(7), jnp.array(True), state)
            obs, expected = np.moveaxis(obs, 0, -1), theirs.step(action[None])[0]
    assert (True, 4) in ends and False in dict(ends)
    assert len(np.unique(obs)) > 3


@pytest.mark.parametrize("name", [CARTPOLE, BREAKOUT])
def test_two_play_in_turns_where_episodes_follow_each_other(name):
    """The one whose episode ended begins the next but one."""
    options = {"max_episode_steps": 9, "num_threads": 1} | ({"noop_max": 5} if name == BREAKOUT else {})
    env, n = make(name, **options)[0], 3
    stepper, actions = ResetWhenDone(), np.random.default_rng(0).integers(2, size=(40, n)).astype(np.int32)
    obs, state, _ = stepper.init(env, None, jax.random.split(jax.random.key(0), n))
    seeds = np.asarray(state.on_host)[:, 0].tolist()
    theirs = [[born(name, [x % LAST + 1], **options), born(name, [x * 48271 % LAST + 1], **options)] for x in seeds]
    waiting = [[one.reset()[0][0] for one in pair] for pair in theirs]
    expected, ends = [first.pop(0) for first in waiting], 0
    step = jax.jit(lambda keys, state, action: stepper.step(env, None, keys, state, (), action))
    for t in range(40):
        np.testing.assert_allclose(obs, np.stack(list(map(as_seen, expected))), rtol=1e-6)
        out = step(jax.random.split(jax.random.key(t), (2, n)), state, actions[t])
        for i, pair in enumerate(theirs):
            seen, reward, terminated, truncated, _ = pair[0].step(actions[t, i : i + 1])
            np.testing.assert_allclose(out.final_obs[i], as_seen(seen[0]), rtol=1e-6)
            assert (out.reward[i], out.terminated[i], out.truncated[i]) == (reward[0], terminated[0], truncated[0])
            expected[i] = seen[0]
            if terminated[0] or truncated[0]:
                waiting[i].append(pair[0].step(actions[:1, 0])[0][0])  # its own reset
                expected[i], ends = waiting[i].pop(0), ends + 1
                pair.reverse()
        obs, state = out.obs, out.env_state
    assert ends >= 4 * n


def test_the_one_that_plays_is_drawn():
    env = make(CARTPOLE, max_episode_steps=2)[0]
    stepper = ResetWhenDone()
    _, state, _ = stepper.init(env, None, jax.random.split(jax.random.key(0), 1))
    for t in range(2):
        state = stepper.step(env, None, jax.random.split(jax.random.key(t), (2, 1)), state, (), jnp.array([t])).env_state
    state = jax.tree.map(lambda x: x[0], state)
    drawn, other = env.picture(state), int(state.on_host[0]) * 48271 % LAST
    np.testing.assert_array_equal(drawn, env.host.picture((other, 0, 0)))
    assert state.on_host[1] == 3 and (drawn != env.host.picture((int(state.on_host[0]), 0, 0))).any()


def test_spaces_and_the_contract():
    check_env(*make(CARTPOLE, max_episode_steps=20))
    check_env(*make("envpool/MiniGrid-Empty-5x5-v0", max_episode_steps=20), num_steps=40)
    env, _ = make("envpool/MiniGrid-Empty-5x5-v0")
    assert env.observation_space().spaces["image"].shape == (7, 7, 3)
    assert np.isinf(make("envpool/LunarLander-v3")[0].observation_space().low).all()
    assert make("envpool/Catch-v0")[0].max_steps is None


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="envpool has no environment 'envpool/CartPole'; did you mean .*CartPole-v"):
        make("envpool/CartPole")
    with pytest.raises(TypeError, match="CartPole-v1 has no option 'max_steps'; there are .*max_episode_steps"):
        make(CARTPOLE, max_steps=3)
    with pytest.raises(TypeError, match="CartPole-v1 has no option 'seed'; it follows from what is trained"):
        make(CARTPOLE, seed=3)
