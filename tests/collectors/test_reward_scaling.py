"""RewardScaling against the VecNormalize of OpenAI's baselines, one step after another."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from eqxrl.collectors import RewardScaling

STEPS, ENVS = 40, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    reward = (rng.normal(2.0, 3.0, (STEPS, ENVS)) * np.linspace(1, 20, STEPS)[:, None]).astype(np.float32)
    return reward, rng.random((STEPS, ENVS)) < 0.2


def test_rollouts_of_one_step_are_vecnormalize(case):
    reward, done = case
    scaling = RewardScaling(gamma=0.9)
    call, state, scaled = jax.jit(scaling.__call__), scaling.init(ENVS), []
    for t in range(STEPS):
        state, one = call(state, jnp.asarray(reward[t : t + 1]), jnp.asarray(done[t : t + 1]))
        scaled.append(one[0])
    np.testing.assert_allclose(scaled, oracles.scale_rewards(reward, done, 0.9), rtol=1e-4)


def test_longer_rollouts_have_one_scale_each_of_all_counted_by_then(case):
    """The convention of the docstring, with the same values of the running return: those that VecNormalize has counted when the
    rollout ends."""
    reward, done = case
    scaling, rollouts = RewardScaling(gamma=0.9), 4
    state, scaled = scaling.init(ENVS), []
    for r, d in zip(np.split(reward, rollouts), np.split(done, rollouts), strict=True):
        state, one = scaling(state, jnp.asarray(r), jnp.asarray(d))
        scaled.append(one)
    steps = STEPS // rollouts
    stepwise = oracles.scale_rewards(reward, done, 0.9, clip=np.inf)
    for i in range(rollouts):
        last = slice((i + 1) * steps - 1, (i + 1) * steps)
        scale = stepwise[last] / reward[last]
        expected = np.clip(reward[i * steps : (i + 1) * steps] * scale[0, 0], -10, 10)
        np.testing.assert_allclose(scaled[i], expected, rtol=1e-4)
    assert np.ptp(stepwise[-1] / reward[-1]) < 1e-6  # one scale for all environments


def test_clip_and_sign_and_mean(case):
    reward, done = case
    _, scaled = RewardScaling(gamma=0.9, clip=0.5)(RewardScaling().init(ENVS), jnp.asarray(reward), jnp.asarray(done))
    assert np.abs(scaled).max() == 0.5
    np.testing.assert_array_equal(np.sign(scaled), np.sign(reward))  # no mean was subtracted


@pytest.mark.parametrize("wrong", [{"gamma": 1.1}, {"gamma": -0.1}, {"clip": 0.0}, {"epsilon": 0.0}, {"epsilon": float("nan")}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=rf"RewardScaling.{next(iter(wrong))} must be in"):
        RewardScaling(**wrong)


def test_scale_invariance(case):
    reward, done = case
    scale = lambda factor: RewardScaling()(RewardScaling().init(ENVS), factor * jnp.asarray(reward), jnp.asarray(done))[1]  # noqa: E731
    np.testing.assert_allclose(scale(1.0), scale(100.0), rtol=1e-5)
