"""Several actions at once, against each one by itself and against all combinations, counted."""

import itertools
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import quick_jit

from eqxrl.nn import Beta, Categorical, DiagGaussian, Joint, MultiCategorical
from eqxrl.testing import check_distribution

SIZES = [(3, 4, 2), (2, 2, 2), (5,), (1, 3), (2, 2, 4, 4, 1)]


def logits_of(nvec, *batch, seed=0):
    return 2 * jax.random.normal(jax.random.key(seed), (*batch, sum(nvec)))


def softmaxes(logits, nvec):
    """The probabilities of each choice, by hand, float64."""
    return [scipy.special.softmax(x, axis=-1) for x in np.split(np.asarray(logits, np.float64), np.cumsum(nvec)[:-1], axis=-1)]


@pytest.mark.parametrize("nvec", SIZES)
def test_multi_categorical(nvec):
    logits, others = logits_of(nvec, 3), logits_of(nvec, 3, seed=1)
    ours, other = MultiCategorical(logits, nvec), MultiCategorical(others, nvec)
    p, q = softmaxes(logits, nvec), softmaxes(others, nvec)
    actions = list(itertools.product(*map(range, nvec)))
    rows = jnp.broadcast_to(jnp.array(actions)[:, None], (len(actions), 3, len(nvec)))
    log_probs = quick_jit(lambda d, rows: jax.vmap(d.log_prob)(rows))(ours, rows)
    for action, log_prob in zip(actions, log_probs, strict=True):
        np.testing.assert_allclose(log_prob, sum(np.log(x[:, a]) for x, a in zip(p, action, strict=True)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(log_probs).sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), sum(scipy.stats.entropy(x, axis=-1) for x in p), rtol=1e-5)
    kl = sum(scipy.stats.entropy(x, y, axis=-1) for x, y in zip(p, q, strict=True))
    np.testing.assert_allclose(ours.kl(other), kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ours.mode(), np.stack([x.argmax(-1) for x in p], axis=-1))
    sample = ours.sample(jax.random.key(0))
    assert sample.shape == ours.mode().shape == (3, len(nvec)) and sample.dtype == ours.mode().dtype == jnp.int32
    per_row = jax.vmap(lambda x: MultiCategorical(x, nvec))(logits)
    np.testing.assert_array_equal(per_row.log_prob(sample), ours.log_prob(sample))
    np.testing.assert_array_equal(jax.vmap(lambda d, a: d.log_prob(a))(per_row, sample), ours.log_prob(sample))


def test_multi_categorical_samples_have_the_right_frequencies():
    nvec, n = (3, 4, 2), 20_000
    logits = logits_of(nvec)
    samples = np.asarray(MultiCategorical(jnp.broadcast_to(logits, (n, 9)), nvec).sample(jax.random.key(3)))
    p = np.einsum("i,j,k->ijk", *softmaxes(logits, nvec)).ravel()
    counts = np.bincount(np.ravel_multi_index(samples.T, nvec), minlength=24)  # which fails for what there isn't
    assert scipy.stats.chisquare(counts, n * p).pvalue > 1e-3


@pytest.mark.parametrize("action", [(0, 4, 0), (-1, 0, 0), (0, 0, 2), (2, 3, 99), (3, 0, 0)])
def test_a_choice_that_there_is_not(action):
    """Also where another choice has as many."""
    of = lambda x: MultiCategorical(x, (3, 4, 2)).log_prob(jnp.array(action))  # noqa: E731
    logits = logits_of((3, 4, 2))
    assert of(logits) == -jnp.inf
    np.testing.assert_array_equal(jax.grad(of)(logits), 0)


@pytest.mark.parametrize("nvec", [(3, 4, 2), (3, 3, 2)])
def test_masked_choices(nvec):
    """Each choice as if what is allowed were all that there is; where nothing is, everything."""
    logits, others = logits_of(nvec, 2), logits_of(nvec, 2, seed=1)
    mask = np.ones((2, sum(nvec)), bool)
    mask[0, [0, 2]] = mask[1, 1] = mask[0, -1] = False
    mask[0, 3 : 3 + nvec[1]] = False
    allowed = mask.copy()
    allowed[0, 3 : 3 + nvec[1]] = True

    def ours(logits):
        d = MultiCategorical(logits, nvec).masked(jnp.asarray(mask, jnp.int32))
        return d.entropy(), d.kl(MultiCategorical(others, nvec).masked(jnp.asarray(mask)))

    entropy, kl = quick_jit(ours)(logits)
    for row in range(2):
        keep = np.split(allowed[row], np.cumsum(nvec)[:-1])
        p = [scipy.special.softmax(np.log(x[row])[k]) for x, k in zip(softmaxes(logits, nvec), keep, strict=True)]
        q = [scipy.special.softmax(np.log(x[row])[k]) for x, k in zip(softmaxes(others, nvec), keep, strict=True)]
        np.testing.assert_allclose(entropy[row], sum(map(scipy.stats.entropy, p)), rtol=1e-5)
        np.testing.assert_allclose(kl[row], sum(map(scipy.stats.entropy, p, q)), rtol=1e-5)
    with jax.debug_nans(True):
        gradients = quick_jit(jax.jacrev(lambda x: jax.tree.map(jnp.sum, ours(x))))(logits)
    for gradient in map(np.asarray, gradients):
        assert np.isfinite(gradient).all() and (gradient[~allowed] == 0).all() and (gradient[allowed] != 0).sum() > 8
    masked = MultiCategorical(logits, nvec).masked(jnp.asarray(mask))
    samples = jax.vmap(masked.sample)(jax.random.split(jax.random.key(0), 2000))
    for row, column in itertools.product(range(2), range(3)):
        ok = np.flatnonzero(np.split(allowed[row], np.cumsum(nvec)[:-1])[column])
        assert set(np.unique(samples[:, row, column])) <= set(ok) and masked.mode()[row, column] in ok


def test_logits_that_do_not_fit():
    for nvec in ((3, 4), (3, 4, 2, 1), (), (9, 0)):
        with pytest.raises(ValueError, match="9 logits, but nvec"):
            MultiCategorical(jnp.zeros((2, 9)), nvec)
    with pytest.raises(ValueError, match=r"bool\[8\] doesn't fit"):
        MultiCategorical(jnp.zeros(9), (3, 4, 2)).masked(jnp.ones(8, bool))
    with pytest.raises(TypeError, match="MultiCategorical.kl"):
        MultiCategorical(jnp.zeros(4), (2, 2)).kl(MultiCategorical(jnp.zeros(4), (1, 3)))


class Pair(NamedTuple):
    left: Categorical
    right: MultiCategorical


def joint(seed, batch=(5,)):
    keys = jax.random.split(jax.random.key(seed), 5)
    draw = lambda i, n: jax.random.normal(keys[i], (*batch, n))  # noqa: E731
    pair = Pair(Categorical(draw(0, 3)), MultiCategorical(draw(1, 5), (2, 3)))
    return Joint({"b": pair, "a": (DiagGaussian(draw(2, 2), draw(3, 2), (2,)), Joint([Categorical(draw(4, 4))]))})


def distraxes(d):
    """Of each part, in the order of the names."""
    normal, inner = d.parts["a"]
    (two, three), pair = np.split(d.parts["b"].right.logits, [2], axis=-1), d.parts["b"]
    return [
        distrax.MultivariateNormalDiag(normal.mean, jnp.exp(normal.log_std)),
        *(distrax.Categorical(x) for x in (inner.parts[0].logits, pair.left.logits, two, three)),
    ]


def test_joint():
    ours, other, key = joint(0), joint(1), jax.random.key(2)
    action, mode, drawn, log_prob = quick_jit(lambda d: (d.sample(key), d.mode(), *d.sample_and_log_prob(key)))(ours)
    right = action["b"].right
    actions = [action["a"][0], action["a"][1][0], action["b"].left, right[..., 0], right[..., 1]]
    theirs, their_others = distraxes(ours), distraxes(other)
    np.testing.assert_allclose(ours.log_prob(action), sum(d.log_prob(a) for d, a in zip(theirs, actions, strict=True)), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), sum(d.entropy() for d in theirs), rtol=1e-5)
    kl = sum(d.kl_divergence(e) for d, e in zip(theirs, their_others, strict=True))
    np.testing.assert_allclose(ours.kl(other), kl, rtol=1e-5)
    assert jax.tree.structure(mode) == jax.tree.structure(action) and isinstance(action["b"], Pair)
    np.testing.assert_array_equal(mode["b"].left, theirs[2].mode())
    np.testing.assert_array_equal(mode["a"][0], theirs[0].mode())
    jax.tree.map(np.testing.assert_array_equal, drawn, action)
    np.testing.assert_allclose(log_prob, ours.log_prob(action), rtol=1e-6)
    many = quick_jit(jax.vmap(lambda d, a: (d.log_prob(a), d.entropy())))(ours, action)
    np.testing.assert_allclose(many, (ours.log_prob(action), ours.entropy()), rtol=1e-6)


def test_parts_are_drawn_independently():
    one = Categorical(jnp.zeros((4000, 4)))
    a, b, (c, d) = Joint((one, one, [one, one])).sample(jax.random.key(0))
    for x, y in itertools.combinations((a, b, c, d), 2):
        assert scipy.stats.chi2_contingency(np.histogram2d(x, y, 4)[0]).pvalue > 1e-3


def test_a_part_that_cannot_be():
    both = lambda x: Joint((Categorical(x[:3]), Categorical(x[3:]))).log_prob((jnp.int32(7), jnp.int32(1)))  # noqa: E731
    assert both(jnp.zeros(5)) == -jnp.inf
    np.testing.assert_array_equal(jax.grad(both)(jnp.zeros(5)), 0)


def test_masks_of_parts():
    ours = joint(0, batch=())
    three, five = jnp.array([0, 1, 1]), jnp.array([True, False, True, True, False])
    masked = ours.masked({"b": Pair(three, five)})
    np.testing.assert_array_equal(masked.parts["b"].left.logits, ours.parts["b"].left.masked(three).logits)
    np.testing.assert_array_equal(masked.parts["b"].right.logits, ours.parts["b"].right.masked(five).logits)
    assert masked.parts["a"] is ours.parts["a"] and masked.parts["b"].left.logits[0] == -jnp.inf
    masked = ours.masked({"a": (None, [jnp.array([1, 0, 0, 0])]), "b": Pair(None, five)})
    assert masked.parts["a"][1].mode()[0] == 0 and masked.parts["b"].left is ours.parts["b"].left
    assert jax.tree.structure(masked) == jax.tree.structure(ours) == jax.tree.structure(ours.masked(None))


@pytest.mark.parametrize(
    "mask, error, said",
    [
        ({"c": None, "b": None, "d": None}, ValueError, "masks for 'c', 'd', but parts has only 'b', 'a'"),
        ({"b": (jnp.ones(3, bool), None)}, ValueError, r"masks of parts\['b'\], .*must have its structure"),
        ({"a": (None,)}, ValueError, r"masks of parts\['a'\], .*must have its structure"),
        ({"b": Pair(jnp.ones(4, bool), None)}, ValueError, r"bool\[4\] doesn't fit"),
        ({"a": (jnp.ones(2, bool), None)}, TypeError, "DiagGaussian can't be masked"),
        (jnp.ones(3, bool), ValueError, "masks of parts, .*must have its structure"),
    ],
)
def test_masks_that_do_not_fit(mask, error, said):
    with pytest.raises(error, match=said):
        joint(0, batch=()).masked(mask)


def test_what_is_no_joint():
    with pytest.raises(ValueError, match="at least one distribution"):
        Joint({})
    with pytest.raises(TypeError, match="parts"):
        Joint({"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"Joint's parts are .*'left'.*, but the action is \(int32"):
        Joint({"left": Categorical(jnp.zeros(3))}).log_prob({"right": jnp.int32(0)})
    with pytest.raises(TypeError, match="Joint.kl"):
        Joint([Categorical(jnp.zeros(3))]).kl(Joint((Categorical(jnp.zeros(3)),)))


BOUNDED = Beta(jnp.array([2.0]), jnp.array([3.0]), (-1.0,), (1.0,), ())
JOINTS = [
    MultiCategorical(logits_of((3, 2)), (3, 2)).masked(jnp.array([1, 0, 1, 1, 1])),
    Joint({"a": Categorical(logits_of((3,))), "b": [MultiCategorical(logits_of((2, 2)), (2, 2))]}),
    pytest.param(Joint((DiagGaussian(jnp.zeros(2), jnp.zeros(2), (2,)), BOUNDED)), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("distribution", JOINTS, ids=["choices", "joint", "boxes"])
def test_contract(distribution):
    check_distribution(distribution)
