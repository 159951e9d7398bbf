"""Networks whose hidden layers are residual blocks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import spaces
from eqxrl.nn import ActionValue, DeterministicActor, NoisyLinear, QNetwork, StochasticActor, perturbed

OBS, BOX, KEY = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-2.0, 2.0, (2,)), jax.random.key(0)
SEEN, ACTION = jax.random.normal(jax.random.key(1), (7, 3)), jax.random.uniform(jax.random.key(2), (7, 2), minval=-2.0, maxval=2.0)


def linear(layer, x):
    return x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias, np.float64)


def normed(norm, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(norm.weight, np.float64) + np.asarray(norm.bias, np.float64)


def blocks(layers, x):
    """`[batch in]` through blocks, the layer norm after them and the last layer, in float64."""
    *hidden, last = layers
    for block in hidden:
        x = x if block.resize is None else linear(block.resize, x)
        x = x + linear(block.outer, np.maximum(linear(block.inner.linear, normed(block.inner.norm, x)), 0))
    return linear(last.linear, normed(last.norm, x))


def moved(network):
    """With numbers of layer norms that aren't 1 and 0."""
    leaves, structure = jax.tree.flatten(eqx.filter(network, eqx.is_inexact_array))
    rng = np.random.default_rng(0)
    leaves = [x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return eqx.combine(jax.tree.unflatten(structure, leaves), network)


@pytest.mark.parametrize("hidden_sizes", [(8, 8), (8,), (8, 6), (5, 5)])
def test_blocks_in_numpy(hidden_sizes):
    network = moved(ActionValue(OBS, BOX, hidden_sizes=hidden_sizes, residual=True, out_size=2, key=KEY))
    assert [x.inner.weight.shape for x in network.layers[:-1]] == [(4 * n, n) for n in hidden_sizes]
    assert [x.resize is not None for x in network.layers[:-1]] == [a != b for a, b in zip((5, *hidden_sizes), hidden_sizes)]
    want = blocks(network.layers, np.concatenate([SEEN, np.asarray(ACTION) / 2], axis=1))
    np.testing.assert_allclose(jax.vmap(network)(SEEN, ACTION), want, rtol=1e-4, atol=1e-5)
    actor = moved(DeterministicActor(OBS, BOX, hidden_sizes=hidden_sizes, residual=True, key=KEY))
    np.testing.assert_allclose(jax.vmap(actor)(SEEN), 2 * np.tanh(blocks(actor.layers, np.asarray(SEEN))), rtol=1e-4, atol=1e-5)
    actor = moved(StochasticActor(OBS, spaces.Discrete(3), hidden_sizes=hidden_sizes, residual=True, key=KEY))
    logits = jax.vmap(actor)(SEEN).logits
    want = blocks(actor.layers, np.asarray(SEEN))
    np.testing.assert_allclose(logits - logits[:, :1], want - want[:, :1], rtol=1e-4, atol=1e-5)


def test_a_block_without_weights_is_the_identity():
    q = QNetwork(OBS, spaces.Discrete(4), hidden_sizes=(8, 8, 8), residual=True, key=KEY)
    idle = eqx.tree_at(lambda q: [x.outer for x in q.layers[:-1]], q, replace_fn=lambda x: jax.tree.map(jnp.zeros_like, x))
    first, last = q.layers[0].resize, q.layers[-1]
    want = linear(last.linear, normed(last.norm, linear(first, np.asarray(SEEN))))
    np.testing.assert_allclose(jax.vmap(idle)(SEEN), want, rtol=1e-4, atol=1e-5)


def test_dueling_shares_all_blocks_but_the_last():
    q = moved(QNetwork(OBS, spaces.Discrete(4), hidden_sizes=(8, 8), residual=True, dueling=True, key=KEY))
    x, first = np.asarray(SEEN, np.float64), q.layers[0]
    x = linear(first.resize, x)
    x = x + linear(first.outer, np.maximum(linear(first.inner.linear, normed(first.inner.norm, x)), 0))
    advantage, value = blocks(q.layers[1:], x), blocks(q.value, x)
    assert value.shape == (7, 1)
    np.testing.assert_allclose(jax.vmap(q)(SEEN), value + advantage - advantage.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_noisy_blocks_are_drawn():
    q = QNetwork(OBS, spaces.Discrete(4), hidden_sizes=(8, 8), residual=True, noisy=True, key=KEY)
    is_noisy = lambda x: isinstance(x, NoisyLinear)  # noqa: E731
    assert sum(map(is_noisy, jax.tree.leaves(q, is_leaf=is_noisy))) == 1 + 2 * 2 + 1
    one, other = (jax.vmap(perturbed(q, jax.random.key(i)))(SEEN) for i in (1, 2))
    assert not np.allclose(one, other)


def test_every_number_has_a_gradient_and_a_start_of_its_own():
    network = ActionValue(OBS, BOX, hidden_sizes=(8, 8), residual=True, key=KEY)
    gradient = jax.grad(lambda p: jnp.sum(jax.vmap(eqx.combine(p, network))(SEEN, ACTION) ** 2))(eqx.filter(network, eqx.is_inexact_array))
    assert all(np.any(x) for x in jax.tree.leaves(gradient))
    a, b = network.layers[:-1]
    weights = a.inner.weight, a.outer.weight, b.inner.weight, b.outer.weight
    assert np.abs(np.corrcoef([np.ravel(x) for x in weights]) - np.eye(4)).max() < 0.5


def test_without_hidden_layers_there_is_no_block():
    network = ActionValue(OBS, BOX, hidden_sizes=(), residual=True, key=KEY)
    assert len(network.layers) == 1 and isinstance(network.layers[0], eqx.nn.Linear)


@pytest.mark.parametrize("options", [dict(layer_norm=True, residual=True), dict(residual=True, batch_renorm=True)])
def test_one_kind_of_layers(options):
    with pytest.raises(ValueError, match="residual=True.*choose one of them"):
        ActionValue(OBS, BOX, key=KEY, **options)
