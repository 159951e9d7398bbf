"""brax's environments beside brax used by hand: `pip install 'eqxrl[brax]'`, or these tests are left out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from scipy import stats

from eqxrl import PPO, PPOHParams, check_env, make
from eqxrl.envs import ResetFromPool, ResetWhenDone, default_stepper, episode_limit

pytestmark = pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="brax isn't installed")


def test_unknown_names():
    with pytest.raises(ValueError, match="brax has no environment 'brax/hoper'; did you mean hopper"):
        make("brax/hoper")


@pytest.mark.filterwarnings("ignore:Brax System")
def test_episodes_end_as_they_do_in_brax_and_after_the_time_limit():
    """Pushed hard, the pendulum falls after some steps, each time from another beginning."""
    import brax.envs

    env, params = make("brax/inverted_pendulum", episode_length=12)
    by_hand = brax.envs.get_environment("inverted_pendulum")
    assert episode_limit(params, env) == 12
    keys = jax.random.split(jax.random.key(0), 16)
    action = lambda t: jnp.linspace(0.0, 3.0, 16)[:, None]  # noqa: E731
    (obs, state), expected = jax.vmap(env.reset, in_axes=(0, None))(keys, params), jax.vmap(by_hand.reset)(keys)
    np.testing.assert_array_equal(obs, expected.obs)
    assert len(np.unique(np.asarray(obs)[:, 0])) == 16
    step, step_by_hand = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None))), jax.jit(jax.vmap(by_hand.step))
    ended, cut_off = np.zeros(16, bool), np.zeros(16, bool)
    for t in range(12):
        obs, state, reward, terminated, truncated, _ = step(keys, state, action(t), params)
        expected = step_by_hand(expected, action(t))
        np.testing.assert_allclose(obs, expected.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, expected.reward, rtol=1e-6)
        np.testing.assert_array_equal(terminated, expected.done)
        np.testing.assert_array_equal(truncated, np.full(16, t == 11))
        cut_off |= ~ended & np.asarray(truncated & ~terminated)
        ended |= np.asarray(terminated)
    assert ended.any() and cut_off.any()


def test_a_reset_gives_a_new_beginning_and_keeps_what_the_episode_ended_with():
    env, params = make("brax/inverted_pendulum", episode_length=3)
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(1), 4)
    obs, state, reset_state = stepper.init(env, params, keys)
    firsts = [np.asarray(obs)]
    step = jax.jit(lambda keys, state, reset_state: stepper.step(env, params, keys, state, reset_state, jnp.zeros((4, 1))))
    for t in range(6):
        out = step(jax.random.split(jax.random.key(2 + t), (2, 4)), state, reset_state)
        state, reset_state = out.env_state, out.reset_state
        if t % 3 == 2:
            assert out.truncated.all() and not np.allclose(out.obs, out.final_obs)
            firsts.append(np.asarray(out.obs))
    assert len(np.unique(np.concatenate(firsts)[:, 0])) == 12


@pytest.mark.parametrize("name", ["inverted_pendulum", "reacher"])
def test_it_keeps_to_the_contract(name):
    check_env(*make(f"brax/{name}", episode_length=20))


def test_first_states_from_the_pool_are_distributed_as_those_of_resets():
    """Episodes of three steps, by PPO's own collector; over many pools, since what opens from one is no more than a sample of it."""
    env, params = make("brax/inverted_pendulum", episode_length=3, reset_pool=32)
    ppo = PPO.create(env=env, env_params=params, hp=PPOHParams(num_envs=32, num_steps=12))
    assert ppo.collector.stepper == ResetFromPool(32)
    rollout = quick_jit(lambda ts: ppo.get_batch(ts, 0))
    ts, opened = quick_jit(ppo.init_train_state)(jax.random.key(0)), []
    for _ in range(50):
        ts, batch = rollout(ts)
        opened.append(np.asarray(batch.trajectories.obs)[1:][np.asarray(batch.trajectories.done)[:-1]])
    assert all(90 <= len(x) <= 128 and len(np.unique(x, axis=0)) <= 32 for x in opened)
    distinct = np.unique(np.concatenate(opened), axis=0)
    assert len(distinct) > 1450  # of 1,600, less those that were never drawn
    fresh = np.asarray(quick_jit(jax.vmap(lambda key: env.reset(key, params)[0]))(jax.random.split(jax.random.key(1), 4000)))
    for component in range(4):
        assert stats.ks_2samp(distinct[:, component], fresh[:, component]).pvalue > 0.001
        assert stats.ks_2samp(distinct[:, component], 1.2 * fresh[:, component]).pvalue < 0.001  # it would have been noticed


def test_the_pool_can_be_turned_off():
    assert default_stepper(make("brax/inverted_pendulum")[0]) == ResetFromPool(256)
    assert default_stepper(make("brax/inverted_pendulum", reset_pool=0)[0]) == ResetWhenDone()


@pytest.mark.filterwarnings("ignore:Brax System")
def test_pictures_show_where_the_bodies_are():
    """MuJoCo puts bodies where brax has them, and the pole leans to the side to which it is turned."""
    import mujoco

    env, params = make("brax/inverted_pendulum")
    state = quick_jit(env.reset)(jax.random.key(0), params)[1]
    for step in range(3):
        state = quick_jit(env.step)(jax.random.key(step), state, jnp.ones(1), params)[1]
    bodies, model = state.env_state.pipeline_state, env.env.env.sys.mj_model
    data = mujoco.MjData(model)
    data.qpos[:] = bodies.q
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.xpos[1:], bodies.x.pos, atol=1e-4)

    def columns(*q):
        """The mean column of the pole's upper end, and that of all bodies below it."""
        leaning = state.env_state.replace(pipeline_state=bodies.replace(q=jnp.array(q)))
        picture = env.picture(type(state)(env_state=leaning, time=state.time), params)
        assert picture.shape == (360, 480, 3) and picture.dtype == np.uint8
        rows, columns = np.nonzero(picture.max(-1) < 120)  # bodies are dark; the rail and the sky are bright
        return columns[rows < rows.min() + 10].mean(), columns[rows > rows.max() - 10].mean()

    (tip, foot), (left, _), (right, _), (_, moved) = columns(0.0, 0.0), columns(0.0, -0.3), columns(0.0, 0.3), columns(0.5, 0.0)
    assert abs(tip - foot) < 3 and left < tip - 20 and right > tip + 20 and moved > foot + 40


def test_what_has_no_bodies_has_no_picture():
    env, params = make("brax/fast")
    with pytest.raises(ValueError, match="no picture of brax/fast can be drawn"):
        env.picture(env.reset(jax.random.key(0), params)[1], params)
