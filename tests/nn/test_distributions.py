"""Distributions against scipy.stats and distrax, in the middle and at the edges."""

import re

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import quick_jit

from eqxrl.nn import AbstractDistribution, Categorical, DiagGaussian
from eqxrl.testing import check_distribution


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


@quick_jit
def everything(logits, mask, action):
    """Of a masked distribution and one beside it: log_prob, entropy and kl, and their gradients by the logits."""
    of = {
        "log_prob": lambda x: Categorical(x).masked(mask).log_prob(action),
        "entropy": lambda x: Categorical(x).masked(mask).entropy(),
        "kl": lambda x: Categorical(x).masked(mask).kl(Categorical(logits[::-1]).masked(mask)),
        "kl from": lambda x: Categorical(logits[::-1]).masked(mask).kl(Categorical(x).masked(mask)),
    }
    return {name: jax.value_and_grad(f)(logits) for name, f in of.items()}


MASK = np.array([True, False, True, True, False])
HUGE = [[0.3, 2.0, -1.0, 0.5, 9.0], [1e38, 3e38, -1e38, 1.0, 1e38], [-1e4, 1e4, -1e4, -2e4, 1e30], [0.0, np.nan, 1.0, 2.0, np.inf]]


@pytest.mark.parametrize("row", HUGE[:3])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8])
def test_what_is_forbidden_has_neither_probability_nor_gradient(row, dtype):
    """As if those that are allowed were all that there are."""
    p, q = (scipy.special.softmax(np.asarray(x, np.float64)[MASK]) for x in (row, row[::-1]))
    log_p, log_q = (scipy.special.log_softmax(np.asarray(x, np.float64)[MASK]) for x in (row, row[::-1]))
    expected = {"entropy": scipy.stats.entropy(p), "log_prob": log_p[1], "kl": np.sum(p * (log_p - log_q) * (p > 0))}
    with jax.debug_nans(True):
        got = everything(jnp.array(row), jnp.asarray(MASK, dtype), jnp.int32(2))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-5, atol=1e-6)
    for _, gradient in got.values():
        assert np.isfinite(gradient).all()
        assert (gradient[~MASK] == 0).all()
    np.testing.assert_allclose(got["log_prob"][1][MASK], np.eye(3)[1] - p, atol=1e-6)
    np.testing.assert_allclose(got["kl from"][1][MASK], p - q, atol=1e-6)
    np.testing.assert_allclose(got["entropy"][1][MASK], -p * (np.where(p > 0, log_p, 0) + expected["entropy"]), rtol=1e-4, atol=1e-6)


def test_whatever_logit_is_forbidden():
    got = everything(jnp.array(HUGE[0]), jnp.array(MASK), jnp.int32(2))
    for row in (np.where(MASK, HUGE[0], bad) for bad in (np.nan, np.inf, -np.inf, -3e38)):
        for name in ("log_prob", "entropy"):
            jax.tree.map(np.testing.assert_array_equal, everything(jnp.float32(row), jnp.array(MASK), jnp.int32(2))[name], got[name])


@pytest.mark.parametrize("row", HUGE)
def test_what_is_forbidden_is_never_taken(row):
    masked = Categorical(jnp.broadcast_to(jnp.array(row), (20_000, 5))).masked(jnp.broadcast_to(MASK, (20_000, 5)))
    assert MASK[masked.sample(jax.random.key(0))].all()
    assert MASK[masked.mode()].all()
    for action in (1, 4):
        assert (masked.log_prob(jnp.full(20_000, action)) == -jnp.inf).all()
    with jax.debug_nans(True):
        gradient = jax.grad(lambda x: Categorical(x).log_prob(jnp.int32(1)))(masked.logits[0])
    np.testing.assert_array_equal(gradient, 0)


def test_a_row_that_allows_nothing_allows_everything(logits):
    mask = jnp.ones((7, 5), bool).at[2].set(False).at[3, 1].set(False)
    masked = Categorical(logits).masked(mask)
    np.testing.assert_array_equal(masked.logits[2], logits[2])
    twice = masked.masked(jnp.zeros((7, 5), bool).at[3, 1].set(True))  # which the first mask forbids
    np.testing.assert_array_equal(twice.logits, masked.logits)
    assert masked.logits[3, 1] == -jnp.inf


def test_kl_between_masks():
    """Infinite where the other one never does what this one does; else as between what both allow."""
    logits = jnp.array([0.5, 1.0, -1.0])
    narrow, wide = Categorical(logits).masked(jnp.array([1, 0, 1])), Categorical(logits)
    p = scipy.special.softmax([0.5, -1.0])
    q = scipy.special.softmax([0.5, 1.0, -1.0])[[0, 2]]
    with jax.debug_nans(True):
        np.testing.assert_allclose(narrow.kl(wide), np.sum(p * np.log(p / q)), rtol=1e-5)
        assert wide.kl(narrow) == jnp.inf
        for gradient in jax.grad(lambda a, b: Categorical(a).kl(Categorical(b)), (0, 1))(wide.logits, narrow.logits):
            np.testing.assert_array_equal(gradient, 0)


def test_nan_stays_nan():
    """A network that broke isn't taken for one that forbids."""
    broken = Categorical(jnp.array([0.0, jnp.nan, 1.0]))
    assert jnp.isnan(broken.log_prob(jnp.int32(0))) and jnp.isnan(broken.entropy()) and jnp.isnan(broken.kl(broken))


@pytest.mark.parametrize("shape, dtype, got", [((4,), "bool", "[4]"), ((2, 3), "bool", "[2 3]"), ((3,), "float32", "[3]")])
def test_masks_that_do_not_fit(shape, dtype, got):
    mask = jnp.ones(shape, dtype)
    with pytest.raises(ValueError, match=re.escape(f"{dtype}{got} doesn't fit the logits float32[3]")):
        Categorical(jnp.zeros(3)).masked(mask)


class Fixed(AbstractDistribution):
    """What a user may write."""

    def sample(self, key):
        return jnp.zeros(())

    def log_prob(self, action):
        return jnp.where(action == 0, 3.0, -jnp.inf)

    def entropy(self):
        return jnp.full((), -jnp.inf)

    def mode(self):
        return jnp.zeros(())


def test_what_a_distribution_need_not_define():
    assert Fixed().sample_and_log_prob(jax.random.key(0)) == (0.0, 3.0)
    with pytest.raises(NotImplementedError, match="Fixed has no closed form"):
        Fixed().kl(Fixed())
    with pytest.raises(TypeError, match="Fixed can't be masked.*Categorical and MultiCategorical"):
        Fixed().masked(jnp.ones(3, bool))


def test_sample_and_log_prob(gaussians):
    """The sample that `sample` draws."""
    action, log_prob = gaussians[0].sample_and_log_prob(jax.random.key(5))
    np.testing.assert_array_equal(action, gaussians[0].sample(jax.random.key(5)))
    np.testing.assert_array_equal(log_prob, gaussians[0].log_prob(action))


def test_kl_of_different_kinds_is_refused(gaussians):
    with pytest.raises(TypeError, match="Categorical.kl compares.*got DiagGaussian"):
        Categorical(jnp.zeros(3)).kl(gaussians[0])  # pyright: ignore
    with pytest.raises(TypeError, match="DiagGaussian.kl compares"):
        gaussians[0].kl(DiagGaussian(jnp.zeros((7, 6)), jnp.zeros((7, 6)), (6,)))


def test_contract():
    check_distribution(Categorical(jnp.array([0.3, 1.0, -2.0, 0.1])).masked(jnp.array([1, 0, 1, 1])))
