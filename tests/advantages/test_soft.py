"""Soft TD(λ) returns against a loop in float64, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import Transition
from eqxrl.advantages import soft_lambda_returns

STEPS, ENVS = 9, 6


def rollout(rng):
    terminated, truncated = rng.random((2, STEPS, ENVS)) < 0.2
    zeros = jnp.zeros((STEPS, ENVS))
    reward = jnp.asarray(rng.normal(size=(STEPS, ENVS)), jnp.float32)
    return Transition(zeros, zeros, reward, zeros, jnp.asarray(terminated), jnp.asarray(truncated))


def by_loop(t, value, bonus, gamma, td_lambda):
    """Each return by itself, forwards: the reward, and what is trusted of each step after it."""
    returns = np.zeros((STEPS, ENVS))
    reward, value, bonus = (np.asarray(x, np.float64) for x in (t.reward, value, bonus))
    for env in range(ENVS):
        for first in range(STEPS):
            weight = 1.0  # of step `i`: (γλ) to the power of its distance
            for i in range(first, STEPS):
                returns[first, env] += weight * reward[i, env]
                if t.terminated[i, env]:
                    break
                cut = t.truncated[i, env] or i == STEPS - 1
                returns[first, env] += weight * gamma * (bonus[i, env] + (1.0 if cut else 1 - td_lambda) * value[i, env])
                if cut:
                    break
                weight *= gamma * td_lambda
    return returns


@pytest.mark.parametrize("gamma, td_lambda", [(0.9, 0.7), (0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_returns_are_those_of_the_loop(gamma, td_lambda):
    rng = np.random.default_rng(0)
    t = rollout(rng)
    assert np.any(t.truncated & ~t.terminated) and np.any(t.truncated & t.terminated) and np.any(t.terminated & ~t.truncated)
    value, bonus = jnp.asarray(rng.normal(size=(2, STEPS, ENVS)), jnp.float32)
    value, bonus = jnp.where(t.terminated, jnp.nan, value), jnp.where(t.terminated, jnp.inf, bonus)  # not to be looked at there
    got = soft_lambda_returns(t, value, bonus, jnp.float32(gamma), jnp.float32(td_lambda))
    expected = by_loop(t, jnp.nan_to_num(value), jnp.where(t.terminated, 0, bonus), gamma, td_lambda)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_nothing_passes_an_end():
    """What comes after an end doesn't move what came before it."""
    t = rollout(np.random.default_rng(1))
    value = bonus = jnp.ones((STEPS, ENVS))
    later = soft_lambda_returns(
        Transition(**{**vars(t), "reward": t.reward.at[5:].add(100.0)}), value, bonus, jnp.float32(0.9), jnp.float32(0.9)
    )
    before = soft_lambda_returns(t, value, bonus, jnp.float32(0.9), jnp.float32(0.9))
    reached = np.abs(later - before)[4] > 1e-3
    np.testing.assert_array_equal(reached, ~np.asarray(t.done[4]))


def test_by_hand():
    """Rewards 1, 2, 3; after the second step the episode is truncated; γ = λ = 1/2, values 4, bonuses 8."""
    shape = jnp.zeros((3, 1))
    t = Transition(shape, shape, jnp.array([[1.0], [2.0], [3.0]]), shape, shape > 0, jnp.array([[False], [True], [False]]))
    got = soft_lambda_returns(t, shape + 4, shape + 8, jnp.float32(0.5), jnp.float32(0.5))
    # third: 3 + (8 + 4) / 2 = 9; second: 2 + (8 + 4) / 2 = 8, whatever the third is; first: 1 + (8 + (4 + 8) / 2) / 2 = 8
    np.testing.assert_array_equal(got[:, 0], [8, 8, 9])
