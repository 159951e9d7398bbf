"""GAE against rlax episode by episode, and against the double sum that defines it."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import rlax

from eqxrl import GAE, ShapeError, Trajectory, TrajectoryWithLastObs

STEPS, ENVS = 7, 3
GAMMAS = np.array([0.0, 0.9, 0.99, 1.0], np.float32)
LAMBDAS = np.array([0.0, 0.5, 0.95, 1.0], np.float32)


def rollout(reward, value, terminated, truncated, final_value):
    zeros = jnp.zeros_like(reward)
    return TrajectoryWithLastObs(
        trajectories=Trajectory(
            obs=zeros,
            action=zeros,
            log_prob=zeros,
            reward=reward,
            value=value,
            terminated=terminated,
            truncated=truncated,
            final_value=final_value,
        ),
        last_done=jnp.zeros(reward.shape[1:], bool),
        last_obs=zeros[0],
    )


@jax.jit
def gae(case, gamma, gae_lambda):
    *fields, last_value = case
    return GAE(gamma=gamma, gae_lambda=gae_lambda)(rollout(*fields), last_value)


one_by_rlax = jax.jit(jax.vmap(rlax.truncated_generalized_advantage_estimation))


def cases(rng, number, steps, envs, terminated=None, truncated=None):
    """Random rollouts `[cases steps envs]`; ends are frequent, and each of them may be on the last step."""
    shape = (number, steps, envs)
    rate = rng.choice([0.0, 0.1, 0.4], (2, number, 1, 1))
    terminated = rng.random(shape) < rate[0] if terminated is None else terminated
    truncated = rng.random(shape) < rate[1] if truncated is None else truncated
    reward, value, last_value = (rng.uniform(-1, 1, s).astype(np.float32) for s in (shape, shape, (number, envs)))
    # where nothing was cut off the final value must not be looked at, so it is absurd there
    final_value = np.where(truncated & ~terminated, rng.uniform(-1, 1, shape), 1e9).astype(np.float32)
    return reward, value, terminated, truncated, final_value, last_value


@pytest.fixture(scope="module")
def thousand():
    """1000 cases with their discounts, and what GAE makes of them."""
    rng = np.random.default_rng(0)
    case = cases(rng, 1000, STEPS, ENVS)
    gamma, gae_lambda = rng.choice(GAMMAS, 1000), rng.choice(LAMBDAS, 1000)
    return case, gamma, gae_lambda, jax.device_get(jax.vmap(gae)(case, gamma, gae_lambda))


def test_equals_rlax_on_every_episode(thousand):
    (reward, value, terminated, truncated, final_value, last_value), gamma, gae_lambda, (advantages, targets) = thousand
    by_length = {}
    for i in range(len(reward)):
        for env, first, last in oracles.segments(terminated[i], truncated[i]):
            at = slice(first, last + 1)
            if truncated[i, last, env] and not terminated[i, last, env]:
                end = final_value[i, last, env]
            else:
                end = value[i, last + 1, env] if last + 1 < STEPS else last_value[i, env]
            discount = np.full(last + 1 - first, gamma[i])
            discount[-1] *= not terminated[i, last, env]
            one = reward[i, at, env], discount, gae_lambda[i], np.append(value[i, at, env], end)
            by_length.setdefault(last + 1 - first, []).append((one, advantages[i, at, env], targets[i, at, env]))
    assert set(by_length) == set(range(1, STEPS + 1))
    for same_length in by_length.values():
        args = [np.stack(x) for x in zip(*(one for one, _, _ in same_length), strict=True)]
        args[1], args[3] = args[1].astype(np.float32), args[3].astype(np.float32)
        expected = one_by_rlax(*args)
        np.testing.assert_allclose(np.stack([a for _, a, _ in same_length]), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            np.stack([t for _, _, t in same_length]), expected + args[3][:, :-1], rtol=1e-6, atol=1e-6
        )


def test_equals_the_double_sum(thousand):
    case, gamma, gae_lambda, (advantages, targets) = thousand
    for i in range(len(gamma)):
        expected = oracles.gae_by_sum(*(x[i] for x in case), float(gamma[i]), float(gae_lambda[i]))
        np.testing.assert_allclose(advantages[i], expected[0], rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(targets[i], expected[1], rtol=1e-6, atol=2e-6)


def test_every_pattern_of_ends():
    """All 4^4 ways in which 4 steps can go on, terminate, be truncated or both: one environment each."""
    flags = np.array(list(itertools.product([(0, 0), (1, 0), (0, 1), (1, 1)], repeat=4)), bool)  # [patterns steps 2]
    terminated, truncated = flags[..., 0].T, flags[..., 1].T
    case = [x[0] for x in cases(np.random.default_rng(1), 1, 4, 256, terminated[None], truncated[None])]
    for gae_lambda in LAMBDAS:
        advantages, targets = gae(case, jnp.float32(0.9), gae_lambda)
        expected = oracles.gae_by_sum(*case, 0.9, float(gae_lambda))
        np.testing.assert_allclose(advantages, expected[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(targets, expected[1], rtol=1e-6, atol=1e-6)


def test_lambda_0_is_one_step_and_lambda_1_is_monte_carlo():
    reward = jnp.array([[1.0], [2.0], [3.0]])
    value = jnp.array([[10.0], [20.0], [30.0]])
    no = jnp.zeros((3, 1), bool)
    case = (reward, value, no, no, jnp.zeros((3, 1)), jnp.array([40.0]))
    one_step, _ = gae(case, jnp.float32(0.5), jnp.float32(0.0))
    np.testing.assert_array_equal(one_step[:, 0], [1 + 10 - 10, 2 + 15 - 20, 3 + 20 - 30])
    _, returns = gae(case, jnp.float32(0.5), jnp.float32(1.0))
    np.testing.assert_array_equal(returns[:, 0], [1 + 1 + 0.75 + 5, 2 + 1.5 + 10, 3 + 20])


def test_equivariance(thousand):
    """Permuting environments permutes advantages; scaling rewards and values by a power of 2 scales them, exactly."""
    case = [x[7] for x in thousand[0]]
    advantages, _ = gae(case, jnp.float32(0.9), jnp.float32(0.95))
    order = np.array([2, 0, 1])
    permuted, _ = gae([x[..., order] for x in case], jnp.float32(0.9), jnp.float32(0.95))
    np.testing.assert_array_equal(permuted, advantages[:, order])
    reward, value, terminated, truncated, final_value, last_value = case
    larger = (4 * reward, 4 * value, terminated, truncated, 4 * final_value, 4 * last_value)
    scaled, _ = gae(larger, jnp.float32(0.9), jnp.float32(0.95))
    np.testing.assert_array_equal(scaled, 4 * advantages)


def test_wrong_shapes_are_refused(thousand):
    case = [x[0] for x in thousand[0]]
    with pytest.raises(TypeError, match="value"):
        rollout(case[0], case[1][:, 0], *case[2:5])
    with pytest.raises(TypeError):
        gae((*case[:5], case[5][:2]), 0.9, 0.95)


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
def test_a_discount_for_each_environment_is_refused(name):
    """It would broadcast over `[envs]` without a word, and over `[steps]` where there are as many."""
    for several in (jnp.ones(ENVS), np.ones((STEPS, 1)), jnp.ones(1)):
        with pytest.raises(ShapeError, match=rf"GAE\.{name} must be one number, got float\d\d\[.*vmap over them"):
            GAE(**{name: several})
    with pytest.raises(ShapeError, match="must be one number"):
        jax.jit(lambda several: GAE(**{name: several}))(jnp.ones(ENVS))
    swept = eqx.filter_vmap(lambda x: getattr(GAE(**{name: x}), name))(jnp.array([0.5, 0.9]))
    np.testing.assert_array_equal(swept, np.float32([0.5, 0.9]))
