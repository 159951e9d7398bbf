"""Distributions between bounds against scipy, distrax, numerical integration and finite differences."""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import quick_jit
from scipy.integrate import quad

from eqxrl.nn import Beta, SquashedGaussian
from eqxrl.testing import check_distribution

LOW, HIGH = (-2.0, 0.0, 5.0), (2.0, 1.0, 9.5)
BOUNDS = (LOW, HIGH, (3,))
KINDS = [SquashedGaussian, Beta]
WIDTH = np.subtract(HIGH, LOW)


def squashed(seed, *batch):
    mean, log_std = jax.random.normal(jax.random.key(seed), (2, *batch, 3))
    return SquashedGaussian(mean, 0.5 * log_std - 0.5, *BOUNDS)


def beta(seed, *batch):
    a, b = 1 + 2 * jax.random.exponential(jax.random.key(seed), (2, *batch, 3))
    return Beta(a, b, *BOUNDS)


def density(mean, std, low, high):
    """Of a squashed normal's action, as textbooks have it, float64."""
    middle, half = (high + low) / 2, (high - low) / 2

    def of(action):
        y = (action - middle) / half
        return scipy.stats.norm.pdf(np.arctanh(y), mean, std) / (half * (1 - y**2))

    return of


def test_squashed_gaussian_log_prob():
    ours = squashed(0, 50)
    action, log_prob = quick_jit(lambda d: d.sample_and_log_prob(jax.random.key(1)))(ours)
    np.testing.assert_allclose(action, ours.sample(jax.random.key(1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(quick_jit(ours.log_prob)(action), log_prob, rtol=1e-4, atol=2e-4)
    mean, std = np.asarray(ours.mean, np.float64), np.exp(np.asarray(ours.log_std, np.float64))
    expected = np.log(density(mean, std, np.array(LOW), np.array(HIGH))(np.asarray(action, np.float64))).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=2e-4)
    squash = distrax.Chain([distrax.ScalarAffine(jnp.add(*map(jnp.array, (LOW, HIGH)))[None] / 2, WIDTH[None] / 2), distrax.Tanh()])
    theirs = distrax.Transformed(distrax.Normal(ours.mean, jnp.exp(ours.log_std)), squash).log_prob(action).sum(-1)
    np.testing.assert_allclose(log_prob, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("mean", [-5.0, -3.0, 0.0, 4.0, 5.0])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 2.0), (0.0, 1.0), (-1e3, 3e3)])  # of the last, rounding leaves less
def test_an_action_says_what_was_squashed(mean, bounds):
    low, high = ((x,) for x in bounds)
    ours = SquashedGaussian(jnp.full((200, 1), mean), jnp.zeros((200, 1)), low, high, (1,))
    action, log_prob = ours.sample_and_log_prob(jax.random.key(0))
    near = (jnp.abs(mean + jax.random.normal(jax.random.key(0), (200, 1))) < 5)[:, 0]
    assert near.sum() > 50
    error = np.abs(ours.log_prob(action) - log_prob) / (1 + np.abs(log_prob))
    assert error[near].max() < (3e-3 if bounds[1] == 3e3 else 2e-4)


@pytest.mark.parametrize("mean", [-30.0, 0.0, 12.0, 1e4])
@pytest.mark.parametrize("log_std", [-8.0, 0.0, 5.0])
def test_squashed_gaussian_far_out(mean, log_std):
    """Finite, with finite gradients, where tanh is 1; sampled with its exact log_prob there."""

    def of(mean, log_std):
        d = SquashedGaussian(mean, log_std, *BOUNDS)
        action, log_prob = d.sample_and_log_prob(jax.random.key(0))
        edges = [d.log_prob(jnp.array(x)) for x in (LOW, HIGH, [-9.0, 9.0, 4.0])]
        return jnp.stack([log_prob, d.log_prob(action), d.entropy(), action.sum(), d.kl(squashed(0)), *edges])

    given = jnp.full(3, mean), jnp.full(3, log_std)
    with jax.debug_nans(True):
        values, gradients = quick_jit(lambda *x: (of(*x), jax.jacrev(of, (0, 1))(*x)))(*given)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    z = np.asarray(jax.random.normal(jax.random.key(0), (3,)), np.float64)
    u = np.abs(mean + np.exp(log_std) * z)
    slope = 2 * (np.log(2) - u - np.log1p(np.exp(-2 * u))) + np.log(WIDTH / 2)
    np.testing.assert_allclose(values[0], (scipy.stats.norm.logpdf(z) - log_std - slope).sum(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 2.0])
def test_squashed_gaussian_entropy(std):
    means = np.array([-4.0, -1.0, 0.0, 0.4, 2.5])

    def entropy(mean, std, low, high):
        """∫ p(u) (log |da/du| - log p(u)) du"""
        slope = lambda u: np.log((high - low) / 2) + 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))  # noqa: E731
        of = lambda u: scipy.stats.norm.pdf(u, mean, std) * (slope(u) - scipy.stats.norm.logpdf(u, mean, std))  # noqa: E731
        return quad(of, mean - 9 * std, mean + 9 * std, limit=500, epsabs=1e-10)[0]

    def ours(means, log_std):
        return jax.vmap(lambda m: SquashedGaussian(m[None], log_std[None], (-2.0,), (6.0,), ()).entropy())(means)

    got = quick_jit(ours)(jnp.array(means), jnp.log(std))
    np.testing.assert_allclose(got, [entropy(m, std, -2.0, 6.0) for m in means], atol=1e-4)
    by_mean = quick_jit(jax.grad(lambda m: ours(m, jnp.log(std)).sum()))(jnp.array(means))
    by_std = quick_jit(jax.jacfwd(lambda s: ours(jnp.array(means), s)))(jnp.log(std))
    step = 1e-3
    expected = [(entropy(m + step, std, -2.0, 6.0) - entropy(m - step, std, -2.0, 6.0)) / (2 * step) for m in means]
    np.testing.assert_allclose(by_mean, expected, atol=2e-4)
    expected = [(entropy(m, std * np.exp(step), -2.0, 6.0) - entropy(m, std * np.exp(-step), -2.0, 6.0)) / (2 * step) for m in means]
    np.testing.assert_allclose(by_std, expected, atol=2e-4)


def test_squashed_gaussian_kl():
    """∫ p log(p / q) over the actions."""
    one, other = (SquashedGaussian(jnp.array([m]), jnp.log(jnp.array([s])), (-2.0,), (6.0,), ()) for m, s in ((0.3, 0.6), (-0.4, 0.9)))
    p, q = density(0.3, 0.6, -2.0, 6.0), density(-0.4, 0.9, -2.0, 6.0)
    expected = quad(lambda a: p(a) * np.log(p(a) / q(a)), -1.9999, 5.9999, limit=500)[0]
    np.testing.assert_allclose(one.kl(other), expected, rtol=1e-4)
    with pytest.raises(TypeError, match="SquashedGaussian.kl"):
        one.kl(SquashedGaussian(one.mean, one.log_std, (-1.0,), (6.0,), ()))


def test_beta():
    ours, other = beta(0, 20), beta(1, 20)
    (a, b), (c, d) = ((np.asarray(x.alpha, np.float64), np.asarray(x.beta, np.float64)) for x in (ours, other))
    action = ours.sample(jax.random.key(2))
    exact = scipy.stats.beta(a, b, loc=LOW, scale=WIDTH)
    np.testing.assert_allclose(ours.log_prob(action), exact.logpdf(np.asarray(action, np.float64)).sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.entropy(), exact.entropy().sum(-1), rtol=1e-4, atol=1e-5)
    theirs, their_other = distrax.Beta(ours.alpha, ours.beta), distrax.Beta(other.alpha, other.beta)
    unit = (action - jnp.array([LOW])) / WIDTH[None]
    np.testing.assert_allclose(ours.log_prob(action), theirs.log_prob(unit).sum(-1) - np.log(WIDTH).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy().sum(-1) + np.log(WIDTH).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.kl(other), theirs.kl_divergence(their_other).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.kl(ours), 0, atol=1e-6)
    np.testing.assert_allclose(ours.mode(), np.add(LOW, WIDTH * (a - 1) / (a + b - 2)), rtol=1e-5)
    p, q = scipy.stats.beta(a[0, 0], b[0, 0]), scipy.stats.beta(c[0, 0], d[0, 0])
    expected = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), 1e-9, 1 - 1e-9, limit=500)[0]
    first, second = (Beta(x.alpha[0, :1], x.beta[0, :1], (3.0,), (7.0,), ()) for x in (ours, other))
    np.testing.assert_allclose(first.kl(second), expected, rtol=1e-4)


@pytest.mark.parametrize("a, b", [(1e-2, 1e-2), (300.0, 0.02), (5000.0, 200.0), (1.0, 1.0)])
def test_extreme_beta(a, b):
    """Narrow ones, and those whose samples round to the bounds."""

    def of(a, b):
        d = Beta(a[None], b[None], (0.0,), (1.0,), ())
        action = d.sample(jax.random.key(0))
        edges = [d.log_prob(jnp.array(x)) for x in (0.0, 1.0, -1.0, 2.0)]
        return jnp.stack([d.log_prob(action), d.entropy(), action, d.kl(Beta(b[None], a[None], (0.0,), (1.0,), ())), d.mode(), *edges])

    with jax.debug_nans(True):
        values, gradients = quick_jit(lambda *x: (of(*x), jax.jacrev(of, (0, 1))(*x)))(jnp.float32(a), jnp.float32(b))
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    assert 0 < values[2] < 1 and 0 < values[4] < 1
    np.testing.assert_allclose(values[1], scipy.stats.beta.entropy(a, b), rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize(
    "a, b, at", [(3.0, 2.0, 2 / 3), (0.5, 2.0, 0.0), (2.0, 0.5, 1.0), (1.0, 2.0, 0.0), (0.4, 0.6, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 0.5)]
)
def test_beta_mode(a, b, at):
    """Where the density is highest on a grid, if it is higher somewhere."""
    ours = Beta(jnp.array([a]), jnp.array([b]), (-1.0,), (3.0,), ())
    np.testing.assert_allclose(ours.mode(), -1 + 4 * at, atol=1e-5)
    grid = np.linspace(1e-4, 1 - 1e-4, 2001)
    pdf = scipy.stats.beta.pdf(grid, a, b)
    if pdf.max() > pdf[::-1][np.argmax(pdf)] + 1e-6:
        assert abs(grid[np.argmax(pdf)] - at) < 1e-3


@pytest.mark.parametrize("make", [squashed, beta])
def test_samples_have_the_right_distribution(make):
    n, one = 20_000, make(3)
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, 3)), one)
    samples = np.asarray(quick_jit(wide.sample)(jax.random.key(4)), np.float64)
    assert (samples > LOW).all() and (samples < HIGH).all()
    for i in range(3):
        unit = (samples[:, i] - LOW[i]) / WIDTH[i]
        if make is beta:
            cdf = scipy.stats.beta(float(one.alpha[i]), float(one.beta[i])).cdf
        else:
            mean, std = float(one.mean[i]), math.exp(float(one.log_std[i]))
            cdf = lambda x: scipy.stats.norm.cdf(scipy.special.logit(x) / 2, mean, std)  # noqa: B023, E731
        assert scipy.stats.kstest(unit, cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(samples.T) - np.eye(3)).max() < 5 / np.sqrt(n)


def test_samples_carry_gradients():
    """The squashed normal's by finite differences; beta's, which are right in the mean only, by its moments."""

    def sample(mean, log_std):
        return SquashedGaussian(mean, log_std, *BOUNDS).sample(jax.random.key(0))

    d = squashed(5)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (3,)), np.float64)
    at, std = np.asarray(d.mean, np.float64) + np.exp(np.asarray(d.log_std, np.float64)) * noise, np.exp(d.log_std)
    by_mean, by_std = quick_jit(jax.jacfwd(sample, (0, 1)))(d.mean, d.log_std)
    np.testing.assert_allclose(np.diag(by_mean), WIDTH / 2 / np.cosh(at) ** 2, rtol=1e-3)
    np.testing.assert_allclose(np.diag(by_std), WIDTH / 2 / np.cosh(at) ** 2 * std * noise, rtol=1e-3)

    def moments(a, b):
        x = Beta(jnp.broadcast_to(a, (20_000, 1)), jnp.broadcast_to(b, (20_000, 1)), (0.0,), (2.0,), ()).sample(jax.random.key(0))
        return jnp.stack([x.mean(), (x**2).mean()])

    got = quick_jit(jax.jacfwd(moments, (0, 1)))(jnp.float32(2.5), jnp.float32(1.7))
    exact = lambda a, b: np.array([2 * a / (a + b), 4 * a * (a + 1) / ((a + b) * (a + b + 1))])  # noqa: E731
    step = 1e-5
    np.testing.assert_allclose(got[0], (exact(2.5 + step, 1.7) - exact(2.5 - step, 1.7)) / (2 * step), rtol=0.05)
    np.testing.assert_allclose(got[1], (exact(2.5, 1.7 + step) - exact(2.5, 1.7 - step)) / (2 * step), rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    """By finite differences, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        first, second = rng.uniform(1.2, 3.0, (2, 4, 3)) if kind is Beta else rng.normal(0, 0.6, (2, 4, 3))
        action = jnp.asarray(rng.uniform(np.add(LOW, 0.1), np.subtract(HIGH, 0.1), (4, 3)))

        def of(x):
            d, other = kind(x[0], x[1], *BOUNDS), kind(x[1] + 0.3, x[0] + 0.1, *BOUNDS)
            return jnp.stack([d.log_prob(x[2]).sum(), d.entropy().sum(), d.kl(other).sum(), jnp.sin(d.mode()).sum()])

        x = jnp.stack([jnp.asarray(first), jnp.asarray(second), action])
        got, of = quick_jit(jax.jacfwd(of))(x), quick_jit(of)
        assert got.dtype == jnp.float64
        for i in np.ndindex(3, 4, 3):
            step = np.zeros(x.shape)
            step[i] = 1e-6
            numeric = (of(x + step) - of(x - step)) / 2e-6
            np.testing.assert_allclose(got[(slice(None), *i)], numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_action_shapes(kind, shape):
    size = math.prod(shape)
    bounds = tuple(float(-i - 1) for i in range(size)), tuple(float(i + 2) for i in range(size)), shape
    make = lambda x: kind(x, jnp.full_like(x, 1.5), *bounds)  # noqa: E731

    def results(d):
        action = d.sample(jax.random.key(0))
        assert action.shape == d.mode().shape
        return d.mode(), d.log_prob(action), d.entropy(), d.kl(d)

    x = jnp.linspace(1.1, 2.0, 3 * size).reshape(3, size)
    mode, *numbers = quick_jit(lambda x: results(make(x)))(x)
    assert mode.shape == (3, *shape) and {n.shape for n in numbers} == {(3,)}
    one_by_one = quick_jit(jax.vmap(lambda x: results(make(x))[::2]))(x)
    np.testing.assert_allclose(one_by_one[0], mode, rtol=1e-6)
    np.testing.assert_allclose(one_by_one[1], numbers[1], rtol=1e-5)
    np.testing.assert_allclose(mode[1].ravel(), [make(x[1]).mode().ravel()[i] for i in range(size)], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_that_do_not_fit(kind):
    x = jnp.ones((4, 2))
    for low, high in [((0.0, -np.inf), (1.0, 1.0)), ((0.0, 1.0), (1.0, 1.0)), ((0.0, 2.0), (1.0, 1.0)), ((0.0, -3e38), (1.0, 3e38))]:
        with pytest.raises(ValueError, match=f"{kind.__name__} got bounds .*must be finite, low below high"):
            kind(x, x, low, high, (2,))
    with pytest.raises(ValueError, match="low below high"):
        kind(x, x, (0.0, 1e8), (1.0, 1e8 + 1), (2,))  # which float32 can't tell apart
    for low, high, shape in [((0.0,), (1.0,), (2,)), ((0.0, 0.0), (1.0, 1.0), (3,)), ((0.0, 0.0, 0.0), (1.0, 1.0), (2,))]:
        with pytest.raises(ValueError, match=f"{kind.__name__} has actions of shape"):
            kind(x, x, low, high, shape)
    kind(x, x, (0, -1), (1, 1), (2,))  # whole numbers are numbers


@pytest.mark.parametrize("make", [squashed, pytest.param(beta, marks=pytest.mark.slow)])
def test_contract(make):
    check_distribution(make(6))
