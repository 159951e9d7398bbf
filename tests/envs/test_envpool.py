"""envpool's environments beside envpool used by hand: `pip install 'eqxrl[envpool]'`, or these tests are left out."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import NeverReset, ResetWhenDone, episode_limit
from eqxrl.envs.suites._envpool import Pools
from eqxrl.spaces import Box

envpool = pytest.importorskip("envpool")
CARTPOLE, PENDULUM, BREAKOUT = "envpool/CartPole-v1", "envpool/Pendulum-v1", "envpool/Breakout-v5"


def by_hand(name, states, **options):
    """envpool's own instances, of the seeds of states."""
    seeds = [int(seed) % (2**31 - 1) + 1 for seed in np.asarray(states.on_host).reshape(-1, 3)[:, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, of bounds in float64
        envs = envpool.make_gymnasium(name.partition("/")[2], num_envs=len(seeds), seed=seeds, **options)
        assert envs.observation_space is not None
    return envs


def anew(env):
    """The same environments, as another process has them."""
    host = env.host
    return dataclasses.replace(env, host=Pools(host.make, host.observation_space, host.action_space))


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
            obs, state = env.reset_where(jax.random.key(7), jnp.array(True), state)
            expected = theirs.step(action[None])[0]
    assert (True, 4) in ends and False in dict(ends)
    assert len(np.unique(obs)) > 3


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
    """All is done anew up to there, also in a later episode."""
    env, _ = make(CARTPOLE, max_episode_steps=6)
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action)[:2])
    obs, state = env.reset(jax.random.key(1))
    theirs = by_hand(CARTPOLE, state, max_episode_steps=6)
    theirs.reset()
    for action in (0, 1, 0, 0, 1, 1):
        state = step(state, jnp.array(action))[1]
        theirs.step(np.array([action]))
    middle = env.reset_where(jax.random.key(2), jnp.array(True), state)[1]
    theirs.reset()
    left, right = (step(middle, jnp.array(a)) for a in (0, 1))
    assert eqx.tree_equal(step(middle, jnp.array(0)), left)
    np.testing.assert_array_equal(right[0], theirs.step(np.array([1]))[0][0])
    np.testing.assert_array_equal(step(right[1], jnp.array(1))[0], theirs.step(np.array([1]))[0][0])
    same = jax.vmap(step)(jax.tree.map(lambda x: jnp.stack([x, x]), middle), jnp.array([1, 0]))
    jax.tree.map(lambda x, a, b: np.testing.assert_array_equal(x, jnp.stack([a, b])), same, right, left)


def test_a_state_of_another_process_is_cut_off_and_a_new_life_begins():
    env, _ = make(CARTPOLE)
    obs, state = env.reset(jax.random.key(5))
    for _ in range(2):
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.array(1))
    other = anew(env)
    after, same, reward, terminated, truncated, _ = other.step(jax.random.key(0), state, jnp.array(1))
    np.testing.assert_array_equal(after, obs)
    assert reward == 0 and truncated and not terminated
    with pytest.raises(ValueError, match="can't be drawn: another process played its episode"):
        other.picture(state)
    assert eqx.tree_equal(other.reset_where(jax.random.key(6), jnp.array(True), same), env.reset(jax.random.key(6)))


def test_states_in_another_order_and_episodes_that_still_go_on():
    env, _ = make(CARTPOLE, max_episode_steps=2)
    step = jax.jit(jax.vmap(lambda state, action: env.step(jax.random.key(0), state, action)[:2]))
    obs, state = jax.vmap(env.reset)(jax.random.split(jax.random.key(8), 3))
    theirs = by_hand(CARTPOLE, state, max_episode_steps=2)
    theirs.reset()
    turned = jax.tree.map(lambda x: x[::-1], state)
    obs, after = step(turned, jnp.array([0, 1, 1]))
    np.testing.assert_array_equal(obs[::-1], theirs.step(np.array([1, 1, 0]))[0])
    obs, ended = step(after, jnp.array([0, 1, 0]))
    np.testing.assert_array_equal(obs[::-1], theirs.step(np.array([0, 1, 0]))[0])
    mixed = jax.tree.map(lambda x, y: x.at[1].set(y[1]), ended, after)  # the middle one still goes on: a life of its own begins
    keys = jax.random.split(jax.random.key(9), 3)
    first, new = jax.vmap(env.reset_where, in_axes=(0, None, 0))(keys, jnp.array(True), mixed)
    expected = theirs.step(np.array([0, 0, 0]))[0]
    np.testing.assert_array_equal(first[::2][::-1], expected[::2])
    np.testing.assert_array_equal(first[1], env.reset(keys[1])[0])
    assert new.on_host[:, 1].tolist() == [3, 0, 3]


@pytest.mark.parametrize("stepper", [ResetWhenDone(), NeverReset()])
def test_many_at_once_and_seeds_of_many_are_each_as_if_alone(stepper):
    env, params = make(CARTPOLE, max_episode_steps=12)

    def play(key):
        obs, state, kept = stepper.init(env, params, jax.random.split(key, 3))

        def body(carry, key):
            out = stepper.step(env, params, jax.random.split(key, (2, 3)), *carry, jnp.array([0, 1, 0]))
            return (out.env_state, out.reset_state), (out.obs, out.final_obs, out.reward, out.terminated, out.truncated)

        return jax.lax.scan(body, (state, kept), jax.random.split(key, 40))[1]

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(play))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[i]), jax.jit(play)(key), together)
    obs, final_obs, reward, terminated, _ = (np.asarray(x) for x in together)
    assert terminated.any((0, 1)).all() and (obs != final_obs).any() == isinstance(stepper, ResetWhenDone)
    assert len(np.unique(obs[terminated], axis=0)) > 5  # each episode begins elsewhere


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


def test_what_is_left_alone_is_dropped_and_what_is_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr("eqxrl.envs.suites._envpool.KEPT_STEPS", 50)
    env = anew(make(CARTPOLE)[0])
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action))
    middles = []
    for i in range(8):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(4):
            state = step(state, jnp.array(i % 2))[1]
        middles.append(state)
    assert len(env.host.pools) == 4 and len(env.host.logged) == 8
    obs = step(middles[0], jnp.array(1))[0]
    theirs = by_hand(CARTPOLE, middles[0])
    theirs.reset()
    for action in (0, 0, 0, 0, 1):
        expected = theirs.step(np.array([action]))[0]
    np.testing.assert_array_equal(obs, expected[0])
    for i in range(8, 40):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(6):
            state = step(state, jnp.array(i % 2))[1]
    host = env.host
    assert host.kept_steps <= 50 and len(host.logged) <= 10 and len(host.born) <= 10 and len(host.pools) <= 4
    cut = step(middles[1], jnp.array(1))
    assert bool(cut[4]) and float(cut[2]) == 0.0


def test_only_what_ended_is_reset(monkeypatch):
    resets = []
    play = Pools._play
    monkeypatch.setattr(Pools, "_play", lambda self, envs, ids, x: resets.extend([] if x else ids) or play(self, envs, ids, x))
    env, params = make(CARTPOLE, max_episode_steps=50)
    env = anew(env)
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(0), 4)
    _, state, kept = stepper.init(env, params, keys)
    step = jax.jit(lambda keys, state: stepper.step(env, params, keys, state, kept, jnp.array([0, 1, 0, 1])))
    ends = 0
    for t in range(40):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        state, ends = out.env_state, ends + int(out.done.sum())
    assert ends > 4 and len(resets) == ends and len(env.host.pools) == 1


def test_states_are_drawn_each_as_its_own():
    env, _ = make(CARTPOLE, max_episode_steps=7)
    states = [env.reset(jax.random.key(i))[1] for i in (0, 3)]
    one, other = map(env.picture, states)
    assert one.dtype == np.uint8 and (one != other).any()
    moved = states[0]
    for _ in range(3):
        moved = env.step(jax.random.key(0), moved, jnp.array(1))[1]
    later = env.picture(moved)
    assert (later != one).any() and (env.picture(moved) == later).all() and (env.picture(states[0]) == one).all()
