"""Actors without critics, how they explore, and ensembles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from eqxrl.nn import Categorical, DeterministicActor, Ensemble, GaussianNoise, RandomAtFirst, Sampling, SquashedGaussian, StochasticActor
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
    policy = GaussianNoise(actor, jnp.float32(0.1), BOX)
    quiet, _, _ = policy(SEEN, (), None)
    np.testing.assert_allclose(quiet, np.broadcast_to([0, 0.5], (4000, 2)))
    drawn, carry, _ = policy(SEEN, (), KEY)
    assert carry == ()
    np.testing.assert_allclose(np.std(drawn, axis=0), [0.2, 0.05], rtol=0.05)
    for column, std in zip(np.asarray(drawn - quiet).T, (0.2, 0.05), strict=True):
        assert scipy.stats.kstest(column / std, "norm").pvalue > 1e-3
    loud, _, _ = eqx.tree_at(lambda p: p.std, policy, jnp.float32(10.0))(SEEN, (), KEY)
    assert BOX.low.tolist() == np.min(loud, axis=0).tolist() and BOX.high.tolist() == np.max(loud, axis=0).tolist()


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
