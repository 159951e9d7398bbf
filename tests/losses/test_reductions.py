"""Ensembles of critics as one, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from eqxrl.losses import HistogramMinimum, Mean, Minimum, TruncatedQuantiles, values_chosen, values_taken
from eqxrl.nn import Categorical, Ensemble, HLGauss, QNetwork, SquashedGaussian
from eqxrl.spaces import Box, Discrete

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("reduction, reduce", [(Minimum(), np.min), (Mean(), np.mean)])
def test_scalar_values(reduction, reduce):
    values, targets = RNG.normal(size=(3, 7, 1)), RNG.normal(size=(7, 1))
    given = jnp.asarray(values, jnp.float32)
    assert reduction.outputs == 1
    np.testing.assert_allclose(reduction.value(given), reduce(values[..., 0], axis=0), rtol=1e-6)
    np.testing.assert_allclose(reduction.following(given), reduce(values, axis=0), rtol=1e-6)
    squares = ((values - targets[None]) ** 2).sum((0, 2))
    np.testing.assert_allclose(reduction.loss(given, jnp.asarray(targets, jnp.float32)), squares, rtol=1e-5)


def pinball(values, targets):
    """One critic, one state, in a loop: how far quantiles `[n]` are from targets `[m]`."""
    total = 0.0
    for i, value in enumerate(values):
        for target in targets:
            error = target - value
            huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
            total += abs((i + 0.5) / len(values) - (error < 0)) * huber
    return total / (len(values) * len(targets))


def test_quantiles_that_are_cut_off():
    reduction, values = TruncatedQuantiles(quantiles=5, dropped=2), 3 * RNG.normal(size=(3, 4, 5))
    given = jnp.asarray(values, jnp.float32)
    following = np.stack([np.sort(values[:, i].ravel())[: 15 - 6] for i in range(4)])
    np.testing.assert_allclose(reduction.following(given), following, rtol=1e-6)
    np.testing.assert_allclose(reduction.value(given), values.mean((0, 2)), rtol=1e-5)
    expected = [sum(pinball(critic[i], following[i]) for critic in values) for i in range(4)]
    np.testing.assert_allclose(reduction.loss(given, jnp.asarray(following, jnp.float32)), expected, rtol=1e-5)


def test_histograms():
    """The bins' middles are -2, -1 ... 2; the targets' distributions are differences of a normal's cumulative one, cut to the bins."""
    reduction = HistogramMinimum(HLGauss(-2.0, 2.0, 5, 0.75))
    logits, targets = 2 * RNG.normal(size=(3, 7, 5)), RNG.normal(size=(7, 1)).clip(-2, 2)
    given, p = jnp.asarray(logits, jnp.float32), scipy.special.softmax(logits, axis=-1)
    assert reduction.outputs == 5
    lowest = (p @ np.arange(-2, 3)).min(0)
    np.testing.assert_allclose(reduction.value(given), lowest, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reduction.following(given), lowest[:, None], rtol=1e-4, atol=1e-6)
    edges = scipy.stats.norm.cdf(np.arange(-2.5, 3), loc=targets, scale=0.75)
    wanted = np.diff(edges, axis=-1) / (edges[:, -1:] - edges[:, :1])
    expected = -(wanted * np.log(p)).sum((0, 2))
    np.testing.assert_allclose(reduction.loss(given, jnp.asarray(targets, jnp.float32)), expected, rtol=1e-4)


@pytest.mark.parametrize("quantiles, dropped, why", [(0, 0, "at least 1"), (5, 5, "0 to quantiles - 1 = 4, got 5"), (5, -1, "got -1")])
def test_sizes_that_make_no_sense(quantiles, dropped, why):
    with pytest.raises(ValueError, match=why):
        TruncatedQuantiles(quantiles, dropped)


def test_discrete_actions_are_taken_and_expected():
    box, space = Box(-jnp.ones(2), jnp.ones(2)), Discrete(3)
    critics = Ensemble(lambda key: QNetwork(box, space, hidden_sizes=(8,), key=key), 2, key=jax.random.key(0))
    obs, action = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32), jnp.array([0, 1, 2, 2, 1, 0])
    values = np.stack([np.asarray(critics(x)) for x in obs], axis=1).astype(np.float64)  # [members batch act]
    assert values.shape == (2, 6, 3) and np.abs(values[0] - values[1]).max() > 0.01
    taken = values_taken(critics, space, obs, action)
    np.testing.assert_allclose(taken[..., 0], values[:, np.arange(6), action], rtol=1e-6)
    logits = RNG.normal(size=(6, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    policy = Categorical(jnp.asarray(logits, jnp.float32))
    value, log_prob = values_chosen(policy, critics, obs, jax.random.key(0), Minimum().value)
    np.testing.assert_allclose(value, (p * values.min(0)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(log_prob, (p * np.log(p)).sum(-1), rtol=1e-5)
    following, _ = values_chosen(policy, critics, obs, jax.random.key(0), Minimum().following)
    np.testing.assert_allclose(following[:, 0], value, rtol=1e-6)


def test_continuous_actions_are_drawn_once():
    """The value and the log-prob belong to the same action."""
    policy = SquashedGaussian(jnp.zeros((5, 1)), jnp.zeros((5, 1)), (-2.0,), (2.0,), (1,))
    critics = Ensemble(lambda key: lambda obs, action: action, 1, key=jax.random.key(0))
    key = jax.random.key(3)
    action, log_prob = values_chosen(policy, critics, jnp.zeros((5, 1)), key, Minimum().value)
    np.testing.assert_allclose(policy.log_prob(action[:, None]), log_prob, rtol=1e-4)
    assert np.unique(action).size == 5
