"""brax's environments beside brax used by hand: `pip install 'eqxrl[brax]'`, or these tests are left out."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, episode_limit

needs_brax = pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="brax isn't installed")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    monkeypatch.setitem(sys.modules, "brax.envs", None)
    with pytest.raises(ImportError, match=r"brax/hopper needs brax: pip install 'eqxrl\[brax\]'"):
        make("brax/hopper", backend="spring")


@needs_brax
def test_unknown_names():
    with pytest.raises(ValueError, match="brax has no environment 'brax/hoper'; did you mean hopper"):
        make("brax/hoper")


@needs_brax
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


@needs_brax
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


@needs_brax
@pytest.mark.parametrize("name", ["inverted_pendulum", "reacher"])
def test_it_keeps_to_the_contract(name):
    check_env(*make(f"brax/{name}", episode_length=20))
