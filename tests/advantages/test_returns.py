"""Q(λ) and Retrace(λ) against rlax, against sums in float64, at the limits of λ, and on sequences from a replay buffer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import quick_jit

from eqxrl import Transition, UniformBuffer
from eqxrl.advantages import q_lambda_returns, retrace_returns
from eqxrl.buffers import sequences

STEPS, ENVS = 9, 6
NUMBERS = [(0.9, 0.7), (0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)]


def transitions(steps=STEPS, seed=0):
    """Transitions `[steps envs]` with every kind of end, and random values, values of what follows, and logarithms of ratios. The value of
    what follows an end of the MDP is NaN: it isn't to be looked at."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, steps, ENVS)) < 0.2
    assert np.any(truncated & ~terminated) and np.any(truncated & terminated) and np.any(terminated & ~truncated)
    zeros, reward = jnp.zeros((steps, ENVS)), jnp.asarray(rng.normal(size=(steps, ENVS)), jnp.float32)
    value, next_value, log_ratio = jnp.asarray(rng.normal(size=(3, steps, ENVS)), jnp.float32)
    t = Transition(zeros, zeros, reward, zeros, jnp.asarray(terminated), jnp.asarray(truncated))
    return t, (value, jnp.where(t.terminated, jnp.nan, next_value), log_ratio)


def f32(*numbers):
    return [jnp.float32(x) for x in numbers]


def each_env(function, *args):
    return jax.vmap(function, in_axes=1, out_axes=1)(*args)


@pytest.mark.parametrize("gamma, q_lambda", NUMBERS)
def test_q_lambda_is_rlaxs(gamma, q_lambda):
    t, (_, next_value, _) = transitions()
    got = q_lambda_returns(t, next_value, *f32(gamma, q_lambda))
    discount, trusted = gamma * ~t.terminated.astype(bool), jnp.where(t.truncated, 0.0, q_lambda)
    expected = each_env(rlax.lambda_returns, t.reward, discount, jnp.nan_to_num(next_value), trusted)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma, retrace_lambda", NUMBERS)
def test_retrace_is_rlaxs(gamma, retrace_lambda):
    t, (value, next_value, log_ratio) = transitions()
    got = retrace_returns(t, value, next_value, log_ratio, *f32(gamma, retrace_lambda))
    trusted = jnp.where(t.done[:-1], 0.0, retrace_lambda)
    discount = gamma * ~t.terminated.astype(bool)
    errors = each_env(
        rlax.retrace_continuous, value, value[1:], jnp.nan_to_num(next_value), t.reward, discount, log_ratio[1:], trusted
    )
    np.testing.assert_allclose(got, errors + value, rtol=1e-4, atol=1e-5)
    assert np.any(log_ratio > 0) and np.any(log_ratio < 0)


@pytest.mark.parametrize("gamma, retrace_lambda", NUMBERS)
def test_retrace_is_the_papers_sum_of_errors(gamma, retrace_lambda):
    """Each by itself, forwards: the value, and the discounted errors of this step and of those after it, weighted by the trace."""
    t, given = transitions(seed=1)
    got = retrace_returns(t, *given, *f32(gamma, retrace_lambda))
    reward, value, next_value, log_ratio = (np.asarray(x, np.float64) for x in (t.reward, *given))
    expected = value.copy()
    for env in range(ENVS):
        for first in range(STEPS):
            weight = 1.0
            for i in range(first, STEPS):
                if i > first:
                    weight *= gamma * retrace_lambda * min(1.0, np.exp(log_ratio[i, env]))
                following = 0.0 if t.terminated[i, env] else next_value[i, env]
                expected[first, env] += weight * (reward[i, env] + gamma * following - value[i, env])
                if t.terminated[i, env] or t.truncated[i, env]:
                    break
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_lambda_zero_is_one_step():
    t, (value, next_value, log_ratio) = transitions()
    one_step = t.reward + 0.9 * np.where(t.terminated, 0.0, next_value)
    np.testing.assert_allclose(q_lambda_returns(t, next_value, *f32(0.9, 0.0)), one_step, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(retrace_returns(t, value, next_value, log_ratio, *f32(0.9, 0.0)), one_step, rtol=1e-5, atol=1e-6)
    never = jnp.full_like(log_ratio, -jnp.inf)  # the policy would have done otherwise at each step
    np.testing.assert_allclose(retrace_returns(t, value, next_value, never, *f32(0.9, 1.0)), one_step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trust", [0.6, 1.0])
def test_on_policy_retrace(trust):
    """Where the policy that acted is the one that is valued, and has no choice: Q(λ); with λ = 1 the discounted rewards up to an end."""
    t, (value, next_value, _) = transitions()
    goes_on = np.append(~np.asarray(t.done[:-1]), np.zeros((1, ENVS), bool), axis=0)
    next_value = jnp.where(goes_on, jnp.roll(value, -1, axis=0), next_value)
    got = retrace_returns(t, value, next_value, jnp.zeros_like(value), *f32(0.9, trust))
    np.testing.assert_allclose(got, q_lambda_returns(t, next_value, *f32(0.9, trust)), rtol=1e-4, atol=1e-5)
    if trust == 1:
        returns, after = np.zeros((STEPS, ENVS)), np.zeros(ENVS)
        for i in reversed(range(STEPS)):
            after = np.where(goes_on[i], after, np.where(t.terminated[i], 0.0, next_value[i]))
            returns[i] = after = t.reward[i] + 0.9 * after
        np.testing.assert_allclose(got, returns, rtol=1e-4, atol=1e-5)


def test_one_sequence_is_one_of_many():
    t, given = transitions()
    one, few = jax.tree.map(lambda x: x[:, 2], (t, given))
    np.testing.assert_array_equal(retrace_returns(one, *few, *f32(0.9, 0.8)), retrace_returns(t, *given, *f32(0.9, 0.8))[:, 2])
    np.testing.assert_array_equal(q_lambda_returns(one, few[1], *f32(0.9, 0.8)), q_lambda_returns(t, given[1], *f32(0.9, 0.8))[:, 2])


def test_sequences_from_a_buffer_whose_last_steps_are_not_there():
    """As the docstring says: what a step that is there gets is what it gets in the history, cut where that ends."""
    length, (t, given) = 4, transitions(7)
    buffer, rows = UniformBuffer(60, 4), (t, *given)
    state = quick_jit(buffer.add)(buffer.init(jax.tree.map(lambda x: x[0, 0], rows)), rows)
    (found, *values), there = sequences(state, jnp.arange(7 * ENVS), length)
    next_there = jnp.pad(there[:, 1:], ((0, 0), (0, 1)))
    found = dataclasses.replace(found, truncated=found.truncated | ~next_there)
    returns = lambda *sequence: retrace_returns(*sequence, *f32(0.9, 0.8))  # noqa: E731
    got, alone = quick_jit(jax.vmap(returns))(found, *values), quick_jit(returns)
    assert not there.all()
    for i, (step, env) in enumerate(np.ndindex(7, ENVS)):
        history = jax.tree.map(lambda x, step=step, env=env: np.asarray(x)[step : step + length, env], rows)
        np.testing.assert_allclose(got[i][there[i]], alone(*history), rtol=1e-5, atol=1e-6)
