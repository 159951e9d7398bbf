"""`swap_or_not` is a permutation, and as good as any other: judged by chi-square at fixed seeds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import quick_jit

from eqxrl.learners import swap_or_not


def many(n, number, seed=0):
    """Permutations `[number n]`, each under its own key."""
    keys = jax.random.split(jax.random.key(seed), number)
    permutations = np.asarray(quick_jit(jax.vmap(lambda key: swap_or_not(key, n)))(keys))
    assert permutations.dtype == np.int32
    np.testing.assert_array_equal(np.sort(permutations, axis=1), np.broadcast_to(np.arange(n), (number, n)))
    return permutations


@pytest.mark.parametrize("n", [0, 1, 4095, 10_007, 2**17])
def test_a_permutation(n):
    many(n, 3)


@pytest.mark.slow
def test_a_permutation_for_every_size():
    for n in range(301):
        many(n, 10)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 17, 23, 64])
def test_every_element_is_everywhere_equally_often(n):
    number = 200 * n
    permutations = many(n, number)
    counts = np.zeros((n, n))
    for position in range(n):
        counts[position] = np.bincount(permutations[:, position], minlength=n)
    # rows and columns sum to the number of permutations, which leaves (n - 1)^2 degrees of freedom
    statistic = ((counts - 200) ** 2 / 200).sum()
    assert scipy.stats.chi2.sf(statistic, (n - 1) ** 2) > 1e-4


@pytest.mark.parametrize("n, number", [(2, 200_000), (3, 300_000), (4, 2_400_000)])
def test_all_permutations_of_few_are_equally_likely(n, number):
    """Without a sort, 4 elements are 0.6 % from it, which as many as here would show."""
    codes = many(n, number) @ n ** np.arange(n)
    expected = {np.dot(p, n ** np.arange(n)) for p in itertools.permutations(range(n))}
    found, counts = np.unique(codes, return_counts=True)
    assert set(found) == expected
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [6, 17, 22])
def test_where_two_elements_go_is_uniform(n):
    """All ordered pairs of places are equally likely for the first two elements, for two that are swap partners under a
    pivot of 0, and for two far apart."""
    inverse = np.argsort(many(n, 600 * n), axis=1)
    for a, b in [(0, 1), (1, n - 1), (0, n // 2)]:
        pairs = inverse[:, a] * n + inverse[:, b]
        counts = np.bincount(pairs, minlength=n * n).reshape(n, n)
        assert np.all(np.diag(counts) == 0)
        assert scipy.stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4


def test_a_minibatch_is_a_fair_sample():
    """How many of the first quarter of the samples are in the first of four minibatches is hypergeometric."""
    n, number = 64, 20_000
    hits = (many(n, number)[:, :16] < 16).sum(1)
    support = np.arange(17)
    expected = number * scipy.stats.hypergeom.pmf(support, n, 16, 16)
    enough = expected > 5
    observed = np.bincount(hits, minlength=17)
    observed = np.append(observed[enough], observed[~enough].sum())
    expected = np.append(expected[enough], expected[~enough].sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_other_keys_other_permutations():
    permutations = many(100, 500)
    assert len(np.unique(permutations, axis=0)) == 500
    fixed = (permutations == np.arange(100)).sum(1)  # of the identity, and of another permutation, one place on average
    assert abs(fixed.mean() - 1) < 5 / np.sqrt(500)
    agree = (permutations[1:] == permutations[:-1]).sum(1)
    assert abs(agree.mean() - 1) < 5 / np.sqrt(500)


def test_the_same_under_vmap_and_jit():
    key = jax.random.key(5)
    np.testing.assert_array_equal(many(33, 3, seed=5)[1], swap_or_not(jax.random.split(key, 3)[1], 33))
    assert jax.eval_shape(lambda key: swap_or_not(key, 33), key) == jax.ShapeDtypeStruct((33,), jnp.int32)
