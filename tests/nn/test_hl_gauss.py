"""Numbers as distributions over bins, against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl.nn import HLGauss

KEY = jax.random.key(0)
HL = HLGauss(low=-3.0, high=7.0, num_bins=51, deviation=0.75)
WIDTH = 10 / 50


def reference(target):
    """Bin by bin, for one number."""
    target, cdf = min(max(float(target), -3.0), 7.0), lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
    edges = [-3.0 + WIDTH * (i - 0.5) for i in range(52)]
    at = [cdf((edge - target) / (0.75 * WIDTH)) for edge in edges]
    return np.diff(at) / (at[-1] - at[0])


def test_probabilities_are_those_in_numpy():
    targets = np.linspace(-5, 9, 29)
    p = HL.to_probabilities(jnp.asarray(targets, jnp.float32).reshape(29, 1))
    assert p.shape == (29, 1, 51)
    np.testing.assert_allclose(p[:, 0], [reference(x) for x in targets], atol=3e-6)
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
    assert (p >= 0).all()


def test_the_mean_is_the_value_inside_and_the_nearest_one_outside():
    targets = jnp.linspace(-3.0, 7.0, 101)
    back = HL.to_value(jnp.log(HL.to_probabilities(targets) + 1e-30))
    inside = (targets > -3 + 3 * WIDTH) & (targets < 7 - 3 * WIDTH)
    np.testing.assert_allclose(back[inside], targets[inside], atol=1e-4)
    assert np.abs(back - targets).max() < 0.4 * WIDTH  # where the normal is cut off
    for outside, end in ((-1e9, -3.0), (-3.1, -3.0), (8.0, 7.0), (1e9, 7.0)):
        np.testing.assert_array_equal(HL.to_probabilities(jnp.float32(outside)), HL.to_probabilities(jnp.float32(end)))


def test_the_loss_is_a_cross_entropy_whose_gradient_is_the_difference():
    logits, targets = 2 * jax.random.normal(KEY, (6, 51)), jnp.linspace(-4.0, 8.0, 6)
    p = np.asarray([reference(x) for x in targets])
    q = np.exp(np.asarray(logits, np.float64))
    q /= q.sum(-1, keepdims=True)
    np.testing.assert_allclose(HL.loss(logits, targets), -(p * np.log(q)).sum(-1), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(HL.loss(x, targets)))(logits)
    np.testing.assert_allclose(slope, q - p, atol=1e-5)
    np.testing.assert_allclose(HL.to_value(logits), q @ np.linspace(-3, 7, 51), rtol=1e-5, atol=1e-5)


def test_bounds_are_leaves_and_bins_are_checked():
    swept = jax.vmap(lambda high: HLGauss(low=-3.0, high=high, num_bins=51).to_probabilities(jnp.float32(1)))(jnp.array([7.0, 9.0]))
    np.testing.assert_allclose(swept[0], reference(1.0), atol=3e-6)
    assert np.abs(swept[0] - swept[1]).max() > 0.1
    with pytest.raises(ValueError, match="at least 2"):
        HLGauss(num_bins=1)
    with pytest.raises(ValueError, match=r"HLGauss.low must be below HLGauss.high, got 2 and 2"):
        HLGauss(low=2.0, high=2.0)
    with pytest.raises(ValueError, match=r"51 bins, but the logits are \[2, 50\]"):
        HL.to_value(jnp.zeros((2, 50)))
