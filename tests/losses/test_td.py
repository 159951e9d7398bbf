"""Targets and losses of single transitions against rlax, and the quantile loss against what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import quick_jit

from eqxrl import Replayed
from eqxrl.losses import quantile_huber, td_loss, td_target

N = 50


@pytest.fixture(scope="module")
def transitions():
    rng = np.random.default_rng(0)
    zeros = jnp.zeros(N)
    t = Replayed(
        obs=zeros, next_obs=zeros, reward=jnp.asarray(rng.normal(size=N), jnp.float32),
        action=jnp.asarray(rng.integers(0, 3, N), jnp.int32),
        terminated=jnp.asarray(rng.random(N) < 0.3), truncated=jnp.asarray(rng.random(N) < 0.3),
        discount=jnp.asarray(rng.uniform(0.5, 1, N), jnp.float32), weight=zeros + 1,
    )  # fmt: skip
    return t, [jnp.asarray(2 * rng.normal(size=(N, 3, 7)), jnp.float32) for _ in range(3)]


def test_one_step_double_q_learning_is_rlaxs(transitions):
    t, values = transitions
    own, following, choice = (x[..., 0] for x in values)
    target = jax.vmap(td_target)(t, following, choice)
    discount = t.discount * ~t.terminated  # also where it was truncated
    error = jax.vmap(rlax.double_q_learning)(own, t.action, t.reward, discount, following, choice)
    loss, value = jax.vmap(td_loss)(own, t.action, target)
    np.testing.assert_array_equal(value, own[jnp.arange(N), t.action])
    np.testing.assert_allclose(target - value, error, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, rlax.huber_loss(error), rtol=1e-5, atol=1e-6)
    ends = {(bool(a), bool(b)) for a, b in zip(t.terminated, t.truncated)}
    assert len(ends) == 4 and (np.argmax(following, -1) != np.argmax(choice, -1)).any()


def test_quantile_regression_is_rlaxs(transitions):
    """Values and gradients; rlax has quantiles before actions."""
    t, (own, following, choice) = transitions
    tau = (jnp.arange(7) + 0.5) / 7

    def ours(own):
        target = jax.vmap(td_target)(t, following, choice)
        return jax.vmap(td_loss)(own, t.action, target)[0]

    def theirs(own):
        def one(own, action, reward, discount, following, choice):
            return rlax.quantile_q_learning(own.T, tau, action, reward, discount, choice.T, following.T, huber_param=1.0)

        return jax.vmap(one)(own, t.action, t.reward, t.discount * ~t.terminated, following, choice)

    for of in (lambda f: f, lambda f: jax.grad(lambda own: jnp.sum(f(own)))):
        np.testing.assert_allclose(quick_jit(of(ours))(own), quick_jit(of(theirs))(own), rtol=1e-5, atol=1e-6)
    _, value = jax.vmap(td_loss)(own, t.action, following[:, 0])
    np.testing.assert_allclose(value, np.asarray(own)[np.arange(N), t.action].mean(-1), rtol=1e-5, atol=1e-6)


def test_the_quantile_loss_finds_quantiles():
    """Of samples that are spread so widely that almost none is where Huber's loss is a square."""
    samples = jnp.asarray(1000 * np.random.default_rng(0).exponential(size=2001), jnp.float32)

    def step(theta, i):
        return theta - 100_000 / (50 + i) * jax.grad(quantile_huber)(theta, samples), None

    theta, _ = jax.lax.scan(step, jnp.zeros(5), jnp.arange(3000.0))
    np.testing.assert_allclose(theta, np.quantile(samples, (np.arange(5) + 0.5) / 5), rtol=0.03)


def test_one_quantile_is_half_of_hubers_loss():
    for x in (-3.0, -0.5, 0.0, 0.2, 4.0):
        want = 0.5 * rlax.huber_loss(jnp.float32(x))
        np.testing.assert_allclose(quantile_huber(jnp.array([1.0]), jnp.array([1.0 + x])), want, rtol=1e-5)
