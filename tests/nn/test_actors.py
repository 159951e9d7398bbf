"""Actors without critics, how they explore, and ensembles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from helpers import quick_jit

from eqxrl import LinearSchedule
from eqxrl.nn import (
    Categorical,
    DeterministicActor,
    Ensemble,
    GaussianNoise,
    MixedNoise,
    Noisy,
    OrnsteinUhlenbeckNoise,
    QNetwork,
    RandomAtFirst,
    Sampling,
    SquashedGaussian,
    StochasticActor,
)
from eqxrl.spaces import Box, Discrete

OBS, BOX, KEY = Box(-jnp.ones(3), jnp.ones(3)), Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0])), jax.random.key(0)
SEEN = jax.random.normal(jax.random.key(9), (4000, 3))


@pytest.mark.parametrize("space, kind", [(BOX, SquashedGaussian), (Discrete(4), Categorical), (Box(-1.0, 1.0, (1,)), SquashedGaussian)])
def test_a_distribution_for_each_kind_of_action(space, kind):
    make = eqx.filter_jit(lambda key: StochasticActor(OBS, space, hidden_sizes=(8,), key=key))  # also within a program
    distribution = jax.vmap(make(KEY))(SEEN[:5])
    assert type(distribution) is kind
    action = distribution.sample(KEY)
    assert action.shape == (5, *space.shape)


def test_actions_lie_within_the_bounds():
    actor = DeterministicActor(OBS, BOX, hidden_sizes=(8,), key=KEY)
    big = eqx.tree_at(lambda a: a.layers[-1].weight, actor, replace_fn=lambda w: 100 * w)
    action = np.asarray(jax.vmap(big)(SEEN))
    np.testing.assert_allclose(action.min(0), [-2, 0], atol=1e-5)
    np.testing.assert_allclose(action.max(0), [2, 1], atol=1e-5)
    middle = eqx.tree_at(lambda a: (a.layers[-1].weight, a.layers[-1].bias), actor, replace_fn=jnp.zeros_like)
    np.testing.assert_allclose(middle(SEEN[0]), [0, 0.5])


@pytest.mark.parametrize(
    "space, error, why",
    [(Discrete(3), TypeError, "acts in a Box of floats.*Discrete"), (Box(-jnp.inf, jnp.inf, (2,)), ValueError, "needs finite bounds")],
)
def test_spaces_that_it_does_not_act_in(space, error, why):
    with pytest.raises(error, match=why):
        DeterministicActor(OBS, space, key=KEY)


def test_noise_in_the_unit_of_the_bounds():
    actor = DeterministicActor(OBS, BOX, hidden_sizes=(8,), key=KEY)
    actor = eqx.tree_at(lambda a: (a.layers[-1].weight, a.layers[-1].bias), actor, replace_fn=jnp.zeros_like)
    policy = Noisy(actor, GaussianNoise(0.1), BOX)
    quiet, _, _ = policy(SEEN, (), None)
    np.testing.assert_allclose(quiet, np.broadcast_to([0, 0.5], (4000, 2)))
    drawn, carry, _ = policy(SEEN, (), KEY)
    assert carry == ()
    np.testing.assert_allclose(np.std(drawn, axis=0), [0.2, 0.05], rtol=0.05)
    for column, std in zip(np.asarray(drawn - quiet).T, (0.2, 0.05), strict=True):
        assert scipy.stats.kstest(column / std, "norm").pvalue > 1e-3
    loud, _, _ = eqx.tree_at(lambda p: p.noise.std, policy, jnp.float32(10.0))(SEEN, (), KEY)
    assert BOX.low.tolist() == np.min(loud, axis=0).tolist() and BOX.high.tolist() == np.max(loud, axis=0).tolist()


def steps_of(noise, num_steps, num_envs):
    """The noise `[steps envs act]`, and the normal numbers that it is made of."""
    keys, action = jax.random.split(KEY, num_steps), jnp.zeros((num_envs, 2))
    carry = jnp.repeat(noise.initial_carry(BOX)[None], num_envs, axis=0)

    def step(carry, key):
        drawn, carry = noise(action, carry, key)
        return carry, drawn

    return jax.lax.scan(step, carry, keys)[1], jax.vmap(lambda key: jax.random.normal(key, action.shape))(keys)


@pytest.mark.parametrize("theta", [0.0, 0.15, 1.0])
def test_ornstein_uhlenbeck_noise_is_a_filter_of_normal_noise(theta):
    drawn, normal = steps_of(OrnsteinUhlenbeckNoise(0.3, theta), 40, 5)
    np.testing.assert_allclose(drawn, scipy.signal.lfilter([0.3], [1, theta - 1], normal, axis=0), rtol=1e-4, atol=1e-5)


def test_deviation_and_correlation_of_ornstein_uhlenbeck_noise():
    """By default as in the paper on DDPG: θ = 0.15, σ = 0.2."""
    drawn = np.asarray(steps_of(OrnsteinUhlenbeckNoise(), 60, 4000)[0])[..., 0]
    np.testing.assert_allclose(drawn[0].std(), 0.2, rtol=0.05)
    np.testing.assert_allclose(drawn[-1].std(), 0.2 / np.sqrt(0.15 * 1.85), rtol=0.05)
    for k in (1, 5):
        np.testing.assert_allclose(np.corrcoef(drawn[-1], drawn[-1 - k])[0, 1], 0.85**k, atol=0.04)


def test_mixed_noise_has_a_deviation_for_each_environment_and_episode():
    noise, action = MixedNoise(0.4, 0.1), jnp.zeros((2000, 2))
    carry = jnp.full(2000, noise.initial_carry(BOX))
    steps = []
    for key in jax.random.split(KEY, 100):
        drawn, carry = noise(action, carry, key)
        steps.append(np.asarray(drawn))
    assert scipy.stats.kstest(carry, "uniform").pvalue > 1e-3
    np.testing.assert_allclose(np.std(steps, axis=(0, 2)), 0.1 + 0.3 * np.asarray(carry), rtol=0.25)  # four deviations of 200 numbers
    again, after = noise(action, carry.at[:1000].set(-1.0), KEY)
    assert np.array_equal(after[1000:], carry[1000:]) and not np.isclose(after[:1000], carry[:1000], atol=1e-6).any()


def test_ornstein_uhlenbeck_noise_in_a_policy():
    actor = DeterministicActor(OBS, BOX, hidden_sizes=(8,), key=KEY)
    policy = Noisy(actor, OrnsteinUhlenbeckNoise(0.1), BOX)
    before = 0.3 * jnp.ones((3, 2))
    quiet, carry, _ = policy(SEEN[:3], before, None)
    np.testing.assert_array_equal(carry, before)
    action, carry, _ = policy(SEEN[:3], before, KEY)
    np.testing.assert_allclose(action, np.clip(quiet + 0.1 * np.asarray(carry) * [2, 0.5], BOX.low, BOX.high), rtol=1e-5)
    np.testing.assert_array_equal(policy.initial_carry(), [0, 0])


def test_noise_on_the_samples_of_a_distribution():
    policy = Noisy(StochasticActor(OBS, BOX, hidden_sizes=(8,), key=KEY), OrnsteinUhlenbeckNoise(0.1), BOX)
    distribution = jax.vmap(policy.actor)(SEEN)
    quiet, carry, _ = policy(SEEN, jnp.zeros((4000, 2)), None)
    np.testing.assert_array_equal(quiet, distribution.mode())
    drawn, carry, _ = policy(SEEN, carry, KEY)
    own_key, noise_key = jax.random.split(KEY)  # so that what is added doesn't hang on what is drawn
    np.testing.assert_allclose(carry, jax.random.normal(noise_key, (4000, 2)), rtol=1e-6)
    sampled = np.asarray(distribution.sample(own_key)) + 0.1 * np.asarray(carry) * [2, 0.5]  # half of the distance between the bounds
    np.testing.assert_allclose(drawn, np.clip(sampled, BOX.low, BOX.high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [GaussianNoise, OrnsteinUhlenbeckNoise])
def test_the_deviation_of_noise_may_be_a_schedule(kind):
    noise, shape = kind(LinearSchedule(0.4, 0.1, 1000)), jnp.zeros((4, 2))
    now = noise.at_step(jnp.float32(500))
    np.testing.assert_allclose(now.std, 0.25)
    carry = jnp.zeros((4, 2)) if kind is OrnsteinUhlenbeckNoise else ()
    np.testing.assert_allclose(now(shape, carry, KEY)[0], 0.25 * jax.random.normal(KEY, (4, 2)), rtol=1e-5)
    with pytest.raises(TypeError, match="is a schedule; take its value first"):
        noise(shape, carry, KEY)
    with pytest.raises(ValueError, match=f"{kind.__name__}.std must be in"):
        kind(-0.1)


@pytest.mark.parametrize("space", [BOX, Discrete(4)])
def test_random_at_first(space):
    inner = Sampling(StochasticActor(OBS, space, hidden_sizes=(8,), key=KEY))
    policy = RandomAtFirst(inner, jnp.array(True), space)
    drawn, _, _ = policy(SEEN, (), KEY)
    if space is BOX:
        for column, low, high in zip(np.asarray(drawn).T, BOX.low, BOX.high, strict=True):
            assert scipy.stats.kstest((column - low) / (high - low), "uniform").pvalue > 1e-3
    else:
        assert scipy.stats.chisquare(np.bincount(drawn, minlength=4)).pvalue > 1e-3
    greedy, *_ = inner(SEEN, (), None)
    np.testing.assert_array_equal(policy(SEEN, (), None)[0], greedy)  # evaluation doesn't explore
    later = eqx.tree_at(lambda p: p.random, policy, jnp.array(False))
    np.testing.assert_array_equal(later(SEEN, (), KEY)[0], inner(SEEN, (), jax.random.split(KEY)[0])[0])


def test_members_of_an_ensemble_are_networks_of_their_own():
    ensemble = Ensemble(lambda key: eqx.nn.Linear(3, 2, key=key), 4, key=KEY)
    out = ensemble(SEEN[0])
    assert out.shape == (4, 2) and ensemble.size == 4
    for i, key in enumerate(jax.random.split(KEY, 4)):
        np.testing.assert_allclose(out[i], eqx.nn.Linear(3, 2, key=key)(SEEN[0]), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (6, 6, 2)], ids=["vector", "image"])
def test_members_of_an_ensemble_see_the_same_batch(shape):
    """Of images no copies are made for them."""
    batch = jax.random.uniform(KEY, (5, *shape))
    ensemble = Ensemble(lambda key: QNetwork(Box(0.0, 1.0, shape), Discrete(2), key=key), 3, key=KEY)
    assert "[3,5,6,6,2]" not in str(jax.make_jaxpr(lambda x: ensemble.on_batch(x)[0])(batch))
    each = [QNetwork(Box(0.0, 1.0, shape), Discrete(2), key=key) for key in jax.random.split(KEY, 3)]
    expected = quick_jit(lambda x: jnp.stack([jax.vmap(network)(x) for network in each]))(batch)
    np.testing.assert_allclose(quick_jit(lambda x: ensemble.on_batch(x)[0])(batch), expected, atol=1e-6)
    np.testing.assert_allclose(quick_jit(lambda x: jax.vmap(ensemble, out_axes=1)(x))(batch), expected, atol=1e-6)
