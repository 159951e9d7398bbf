"""Batch renormalisation, alone and in critics."""

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import same

from eqxrl import spaces
from eqxrl.nn import ActionValue, BatchRenorm, Ensemble, has_batch_renorm, trainable, with_statistics

OBS, BOX, KEY = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-2.0, 2.0, (2,)), jax.random.key(0)
SEEN, ACTION = jax.random.normal(jax.random.key(1), (7, 3)), jax.random.uniform(jax.random.key(2), (7, 2), minval=-2.0, maxval=2.0)


def batches(n=6, size=4):
    rng = np.random.default_rng(0)
    return [rng.normal(rng.normal(size=size) * 4, rng.uniform(0.05, 9, size), (11, size)) for _ in range(n)]


def with_affine(layer):
    size = layer.weight.shape[0]
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (jnp.arange(1.0, size + 1), jnp.linspace(-1, 1, size)))


def renormed(x, mean, var, corrected, weight, bias, max_scale, max_shift):
    """Algorithm 1 of the paper, number by number, in float64."""
    y = np.zeros_like(x)
    for j in range(x.shape[1]):
        m = sum(x[:, j]) / len(x)
        std = np.sqrt(sum((v - m) ** 2 for v in x[:, j]) / len(x) + 1e-3)
        r, d = 1.0, 0.0
        if corrected:
            sigma = np.sqrt(var[j] + 1e-3)
            r = min(max(std / sigma, 1 / max_scale), max_scale)
            d = min(max((m - mean[j]) / sigma, -max_shift), max_shift)
        for i in range(len(x)):
            y[i, j] = weight[j] * ((x[i, j] - m) / std * r + d) + bias[j]
    return y


@pytest.mark.parametrize("warmup", [0, 3])
def test_equals_the_papers_algorithm(warmup):
    layer = with_affine(BatchRenorm(4, momentum=0.7, max_scale=1.5, max_shift=0.5, warmup=warmup))
    mean, var, clipped = np.zeros(4), np.ones(4), 0
    for i, x in enumerate(batches()):
        want = renormed(x, mean, var, i >= warmup, np.asarray(layer.weight), np.asarray(layer.bias), 1.5, 0.5)
        clipped += np.sum(np.abs(x.mean(0) - mean) / np.sqrt(var + 1e-3) > 0.5)
        got, layer = layer.on_batch(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        mean, var = 0.7 * mean + 0.3 * x.mean(0), 0.7 * var + 0.3 * x.var(0)
        np.testing.assert_allclose(layer.statistics.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.statistics.var, var, rtol=1e-4)
        assert layer.statistics.count == i + 1
        one = (x[0] - mean) / np.sqrt(var + 1e-3) * np.asarray(layer.weight) + np.asarray(layer.bias)
        np.testing.assert_allclose(layer(jnp.asarray(x[0], jnp.float32)), one, rtol=1e-3, atol=1e-4)
    assert 0 < clipped < 24


def test_what_is_not_clipped_is_what_running_statistics_give():
    """The point of the paper: then a batch is standardised in learning as in acting; but the gradient is that of the batch."""
    layer = with_affine(BatchRenorm(4, max_scale=1e6, max_shift=1e6, warmup=0))
    for x in batches():
        x = jnp.asarray(x, jnp.float32)
        as_acting = jax.vmap(layer)(x)
        got, after = layer.on_batch(x)
        np.testing.assert_allclose(got, as_acting, rtol=1e-3, atol=1e-3)
        layer = after


def flax_norm(x, statistics, training):
    norm = flax.linen.BatchNorm(use_running_average=not training, momentum=0.9, epsilon=1e-3, use_fast_variance=False)
    params = {"scale": jnp.arange(1.0, 5), "bias": jnp.linspace(-1, 1, 4)}
    with jax.numpy_rank_promotion("allow"):
        return norm.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])


@pytest.mark.parametrize("bounds", [dict(warmup=100), dict(warmup=0, max_scale=1.0, max_shift=0.0)])
def test_uncorrected_it_is_flaxs_batch_norm(bounds):
    layer, statistics = with_affine(BatchRenorm(4, momentum=0.9, **bounds)), {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    target = jnp.asarray(np.random.default_rng(1).normal(size=(11, 4)), jnp.float32)
    for x in batches():
        x = jnp.asarray(x, jnp.float32)
        np.testing.assert_allclose(jax.vmap(layer)(x), flax_norm(x, statistics, False)[0], rtol=1e-4, atol=1e-4)
        slope = jax.grad(lambda x: jnp.sum((layer.on_batch(x)[0] - target) ** 2))(x)  # noqa: B023
        want = jax.grad(lambda x: jnp.sum((flax_norm(x, statistics, True)[0] - target) ** 2))(x)  # noqa: B023
        np.testing.assert_allclose(slope, want, rtol=1e-3, atol=1e-3)
        (want, state), (got, layer) = flax_norm(x, statistics, True), layer.on_batch(x)
        statistics = state["batch_stats"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.statistics.mean, statistics["mean"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.statistics.var, statistics["var"], rtol=1e-4, atol=1e-5)


def test_the_correction_has_no_gradient():
    """r and d are constants: the gradient by the inputs is r times that of batch normalisation."""
    x = jnp.asarray(batches()[0], jnp.float32)
    statistics = dict(mean=jnp.array([1.0, 2.0, -1.0, 0.0]), var=jnp.array([2.0, 9.0, 1.0, 30.0]))
    given = eqx.tree_at(lambda s: (s.mean, s.var), BatchRenorm(4).statistics, tuple(statistics.values()))
    norm, renorm = (eqx.tree_at(lambda x: x.statistics, BatchRenorm(4, max_scale=100.0, warmup=n), given) for n in (100, 0))
    target = jnp.asarray(np.random.default_rng(1).normal(size=(11, 4)), jnp.float32)
    slope = lambda layer: jax.grad(lambda x: jnp.sum(layer.on_batch(x)[0] * target))(x)  # noqa: E731
    r = np.sqrt(np.var(x, axis=0) + 1e-3) / np.sqrt(statistics["var"] + 1e-3)
    np.testing.assert_allclose(slope(renorm), r * np.asarray(slope(norm)), rtol=1e-3, atol=1e-5)


def test_running_statistics_are_moved_but_not_trained():
    layer = BatchRenorm(4, warmup=0)
    x = jnp.asarray(batches()[0], jnp.float32)
    moved = layer.on_batch(x)[1]
    for call in (lambda s: s.on_batch(x)[0], lambda s: jax.vmap(s)(x), lambda s: s.on_batch(x)[1].statistics.mean):
        gradient = eqx.filter_grad(lambda s: jnp.sum(call(s) ** 2))(moved)  # noqa: B023
        assert not any(np.any(g) for g in jax.tree.leaves(gradient.statistics))
    assert not np.any(jax.grad(lambda x: jnp.sum(layer.on_batch(x)[1].statistics.var))(x))
    params = eqx.filter(moved, trainable(moved))
    assert len(jax.tree.leaves(params)) == 2
    decay = optax.adamw(0.1, weight_decay=0.5)
    updates, _ = decay.update(params, decay.init(params), params)
    after = eqx.apply_updates(moved, updates)
    same(after.statistics, moved.statistics)
    assert not np.allclose(after.weight, moved.weight)
    same(with_statistics(layer, moved), moved)  # the weights are the same in both
    same(with_statistics(after, layer).statistics, layer.statistics)


def critic(**options):
    return ActionValue(OBS, BOX, hidden_sizes=(8, 6), batch_renorm=True, out_size=2, key=KEY, **options)


def test_a_critic_standardises_before_each_layer():
    network = critic()
    assert has_batch_renorm(network) and not has_batch_renorm(ActionValue(OBS, BOX, key=KEY))
    x = np.concatenate([SEEN, np.asarray(ACTION) / 2], axis=1).astype(np.float64)
    values, after = network.on_batch(SEEN, ACTION)
    for i, (layer, new) in enumerate(zip(network.layers, after.layers, strict=True)):
        x = np.maximum(x, 0) if i else x
        np.testing.assert_allclose(new.norm.statistics.mean, 0.01 * x.mean(0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(new.norm.statistics.var, 0.99 + 0.01 * x.var(0), rtol=1e-4)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
        x = x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.linear.bias)
    assert values.shape == (7, 2)
    np.testing.assert_allclose(values, x, rtol=1e-3, atol=1e-4)
    same(eqx.filter(after, trainable(after)), eqx.filter(network, trainable(network)))
    acting = jax.vmap(network)(SEEN, ACTION)  # with means of 0 and variances of 1
    plain = eqx.tree_at(lambda n: n.layers, network, tuple(x.linear for x in network.layers))
    np.testing.assert_allclose(acting, jax.vmap(plain)(SEEN, ACTION), rtol=1e-2, atol=1e-3)


def test_members_of_an_ensemble_have_statistics_of_their_own():
    make = lambda key: ActionValue(OBS, BOX, hidden_sizes=(8,), batch_renorm=True, key=key)  # noqa: E731
    ensemble = Ensemble(make, 3, key=KEY)
    values, after = eqx.filter_jit(lambda e: e.on_batch(SEEN, ACTION))(ensemble)
    assert values.shape == (3, 7, 1) and after.size == 3
    for i, key in enumerate(jax.random.split(KEY, 3)):
        want, member = make(key).on_batch(SEEN, ACTION)
        np.testing.assert_allclose(values[i], want, rtol=1e-4, atol=1e-5)
        ours = jax.tree.map(lambda x, i=i: x[i], eqx.filter(after.members, eqx.is_array))
        same(ours, eqx.filter(member, eqx.is_array), rtol=1e-4, atol=1e-6)
    plain = Ensemble(lambda key: ActionValue(OBS, BOX, key=key), 2, key=KEY)
    values, after = plain.on_batch(SEEN, ACTION)
    np.testing.assert_allclose(values, jax.vmap(plain, out_axes=1)(SEEN, ACTION), rtol=1e-5, atol=1e-6)
    same(after, plain)


@pytest.mark.parametrize("wrong", [dict(momentum=1.0), dict(max_scale=0.5), dict(max_shift=-1.0), dict(warmup=-1), dict(epsilon=0.0)])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=f"BatchRenorm got .*{next(iter(wrong))}={next(iter(wrong.values()))}.*it takes momentum in"):
        BatchRenorm(4, **wrong)
