"""Distributions against scipy.stats and distrax, in the middle and at the edges."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from eqxrl.nn import Categorical, DiagGaussian


@pytest.fixture(scope="module")
def logits():
    return 3 * jax.random.normal(jax.random.key(0), (7, 5))


@pytest.fixture(scope="module")
def gaussians():
    keys = jax.random.split(jax.random.key(1), 4)
    a, b, log_a, log_b = (jax.random.normal(key, (7, 6)) for key in keys)
    return DiagGaussian(a, log_a, (2, 3)), DiagGaussian(b, log_b, (2, 3))


def test_categorical(logits):
    ours, theirs = Categorical(logits), distrax.Categorical(logits)
    other = jnp.roll(logits, 1, axis=0)
    for action in range(5):
        actions = jnp.full(7, action)
        p = scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
        np.testing.assert_allclose(ours.log_prob(actions), np.log(p[:, action]), rtol=1e-5)
        np.testing.assert_allclose(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-6)
    np.testing.assert_allclose(ours.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-5)
    q = scipy.special.softmax(np.asarray(other, np.float64), axis=-1)
    np.testing.assert_allclose(ours.kl(Categorical(other)), scipy.stats.entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(ours.kl(Categorical(other)), theirs.kl_divergence(distrax.Categorical(other)), rtol=1e-5)
    np.testing.assert_array_equal(ours.kl(ours), 0)
    np.testing.assert_array_equal(ours.mode(), theirs.mode())
    assert ours.mode().dtype == ours.sample(jax.random.key(0)).dtype == jnp.int32


@pytest.mark.parametrize("action", [-1, 5, 2**31 - 1])
def test_an_action_that_there_is_not_has_no_probability(logits, action):
    """Not the probability 1."""
    of = lambda logits: Categorical(logits).log_prob(jnp.full(7, action))  # noqa: E731
    assert (of(logits) == -jnp.inf).all()
    assert (jax.grad(lambda logits: of(logits).sum())(logits) == 0).all()


def test_diag_gaussian(gaussians):
    ours, other = gaussians
    theirs, their_other = (distrax.MultivariateNormalDiag(d.mean, jnp.exp(d.log_std)) for d in gaussians)
    action = jax.random.normal(jax.random.key(2), (7, 2, 3))
    std = np.exp(np.asarray(ours.log_std, np.float64))
    expected = scipy.stats.norm.logpdf(action.reshape(7, 6), ours.mean, std).sum(-1)
    np.testing.assert_allclose(ours.log_prob(action), expected, rtol=1e-5)
    np.testing.assert_allclose(ours.log_prob(action), theirs.log_prob(action.reshape(7, 6)), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), scipy.stats.norm.entropy(ours.mean, std).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-5)
    np.testing.assert_allclose(ours.kl(other), theirs.kl_divergence(their_other), rtol=2e-5)
    np.testing.assert_array_equal(ours.kl(ours), 0)
    np.testing.assert_array_equal(ours.mode(), theirs.mode().reshape(7, 2, 3))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_action_shapes(shape):
    size = int(np.prod(shape))
    one = DiagGaussian(jnp.arange(size, dtype=jnp.float32), jnp.zeros(size), shape)
    assert one.sample(jax.random.key(0)).shape == one.mode().shape == shape
    assert one.log_prob(one.mode()).shape == one.entropy().shape == ()
    many = jax.vmap(lambda mean: DiagGaussian(mean, jnp.zeros(size), shape))(jnp.zeros((4, size)))
    assert many.sample(jax.random.key(0)).shape == (4, *shape)
    assert many.log_prob(many.mode()).shape == many.entropy().shape == (4,)
    # the shape is restored in the order in which it was flattened
    np.testing.assert_array_equal(one.mode().ravel(), np.arange(size))
    np.testing.assert_allclose(one.log_prob(one.mode()), -0.5 * size * np.log(2 * np.pi), rtol=1e-6)


def test_categorical_samples_have_the_right_frequencies(logits):
    n = 20_000
    samples = Categorical(jnp.broadcast_to(logits, (n, 7, 5))).sample(jax.random.key(3))
    p = scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
    for column in range(7):
        counts = np.bincount(samples[:, column], minlength=5)
        assert scipy.stats.chisquare(counts, n * p[column] * counts.sum() / n).pvalue > 1e-3


def test_gaussian_samples_have_the_right_distribution(gaussians):
    distribution, n = gaussians[0], 20_000
    wide = DiagGaussian(*(jnp.broadcast_to(x, (n, 7, 6)) for x in (distribution.mean, distribution.log_std)), (2, 3))
    samples = np.asarray(wide.sample(jax.random.key(4))).reshape(n, 42)
    uniform = scipy.stats.norm.cdf(samples, distribution.mean.ravel(), np.exp(distribution.log_std.ravel()))
    for column in range(42):
        counts, _ = np.histogram(uniform[:, column], bins=50, range=(0, 1))
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    correlation = np.corrcoef(samples.T) - np.eye(42)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)  # drawn independently


EXTREME = [
    [1e4, -1e4, 0.0],
    [-1e4, -1e4, -1e4],
    [1e4, 1e4, 1e4],
    [0.0, -jnp.inf, 1.0],
    [-jnp.inf, 5.0, -jnp.inf],
    [-1e4, -jnp.inf, 1e4],
]


@pytest.mark.parametrize("row", EXTREME)
def test_extreme_and_masked_logits(row):
    logits = jnp.array(row)
    p = scipy.special.softmax(np.asarray(row, np.float64))
    distribution = Categorical(logits)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(p), atol=1e-6)
    np.testing.assert_array_equal(distribution.kl(distribution), 0)
    with np.errstate(divide="ignore"):
        expected = scipy.special.log_softmax(np.asarray(row, np.float64))
    for action in range(3):
        np.testing.assert_allclose(distribution.log_prob(jnp.int32(action)), expected[action], rtol=1e-6, atol=1e-6)
    samples = jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), 200))
    assert set(np.unique(samples)) <= set(np.flatnonzero(p))
    assert p[distribution.mode()] == p.max()

    action = jnp.argmax(logits)
    by_logits = [
        jax.grad(lambda x: Categorical(x).log_prob(action))(logits),
        jax.grad(lambda x: Categorical(x).entropy())(logits),
        jax.grad(lambda x: Categorical(x).kl(distribution))(logits),
    ]
    assert np.all(np.isfinite(by_logits))
    np.testing.assert_allclose(by_logits[0], np.eye(3)[action] - p, atol=1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(p > 0, -p * (np.log(p) + scipy.stats.entropy(p)), 0.0)
    np.testing.assert_allclose(by_logits[1], expected, atol=1e-6)


def test_narrow_and_wide_gaussians():
    for log_std in (-20.0, 20.0):
        distribution = DiagGaussian(jnp.zeros(2), jnp.full(2, log_std), (2,))
        action = distribution.sample(jax.random.key(0))
        expected = scipy.stats.norm.logpdf(np.asarray(action, np.float64), 0, np.exp(log_std)).sum()
        np.testing.assert_allclose(distribution.log_prob(action), expected, rtol=1e-6)
        np.testing.assert_allclose(distribution.entropy(), 2 * log_std + np.log(2 * np.pi * np.e), rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="log_std"):
        DiagGaussian(jnp.zeros((4, 3)), jnp.zeros(3), (3,))
    with pytest.raises(TypeError, match="logits"):
        Categorical(jnp.zeros(3, jnp.int32))
