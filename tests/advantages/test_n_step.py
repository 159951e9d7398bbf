"""n-step returns against rlax and against a plain loop; GAE's targets as TD(λ)'s returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import quick_jit, rollout_with_every_end

from eqxrl import GAE
from eqxrl.advantages import NStep
from eqxrl.testing import check_advantage

STEPS, ENVS = 9, 40


@pytest.fixture(scope="module")
def case():
    return rollout_with_every_end(STEPS, ENVS)


def n_step_by_hand(rollout, last_value, gamma, n):
    t = rollout.trajectories
    reward, value, final_value, last_value = (np.asarray(x, np.float64) for x in (t.reward, t.value, t.final_value, last_value))
    returns = np.zeros((STEPS, ENVS))
    for env in range(ENVS):
        for start in range(STEPS):
            discount, i = 1.0, start
            while True:
                returns[start, env] += discount * reward[i, env]
                discount *= gamma
                if t.terminated[i, env]:
                    break
                if t.truncated[i, env]:
                    returns[start, env] += discount * final_value[i, env]
                    break
                i += 1
                if i == STEPS:
                    returns[start, env] += discount * last_value[env]
                    break
                if i == start + n:
                    returns[start, env] += discount * value[i, env]
                    break
    return returns


@pytest.mark.parametrize("n", [1, 2, 5, STEPS, 100])
def test_equals_a_loop(case, n):
    advantages, targets = quick_jit(NStep(gamma=0.9, num_steps=n))(*case)
    expected = n_step_by_hand(*case, 0.9, n)
    np.testing.assert_allclose(targets, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(advantages, expected - np.asarray(case[0].trajectories.value), rtol=1e-5, atol=1e-5)


def following(case):
    """Of the environments without ends: rewards, and values of what each step led to, `[steps envs]`."""
    t, last_value = case[0].trajectories, case[1]
    return t.reward[:, :4], jnp.concatenate([t.value[1:], last_value[None]])[:, :4]


@pytest.mark.parametrize("n", [1, 3, STEPS])
def test_equals_rlax(case, n):
    reward, after = following(case)
    expected = jax.vmap(lambda r, v: rlax.n_step_bootstrapped_returns(r, jnp.full(STEPS, 0.9), v, n), in_axes=1, out_axes=1)(reward, after)
    _, targets = quick_jit(NStep(gamma=0.9, num_steps=n))(*case)
    np.testing.assert_allclose(targets[:, :4], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_gaes_targets_are_lambda_returns(case, gae_lambda):
    reward, after = following(case)
    discount = jnp.full(STEPS, 0.9)
    expected = jax.vmap(lambda r, v: rlax.lambda_returns(r, discount, v, gae_lambda), in_axes=1, out_axes=1)(reward, after)
    _, targets = quick_jit(GAE(gamma=0.9, gae_lambda=gae_lambda))(*case)
    np.testing.assert_allclose(targets[:, :4], expected, rtol=1e-5, atol=1e-5)
    if gae_lambda == 0:
        np.testing.assert_allclose(targets, n_step_by_hand(*case, 0.9, 1), rtol=1e-5, atol=1e-5)
    if gae_lambda == 1:
        returns = jax.vmap(lambda r, v: rlax.discounted_returns(r, discount, v), in_axes=1, out_axes=1)(reward, after)
        np.testing.assert_allclose(targets[:, :4], returns, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(targets, n_step_by_hand(*case, 0.9, STEPS), rtol=1e-5, atol=1e-5)


def test_contract():
    check_advantage(NStep(gamma=0.9, num_steps=3))


def test_wrong_numbers():
    with pytest.raises(ValueError, match="NStep.num_steps must be at least 1, got 0"):
        NStep(num_steps=0)
    with pytest.raises(ValueError, match=r"NStep.gamma must be in \[0.0, 1.0\], got 1.5"):
        NStep(gamma=1.5)
