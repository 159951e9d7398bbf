"""Dueling, quantiles and noise of a Q-network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

from eqxrl import spaces
from eqxrl.nn import EpsilonGreedy, NoisyLinear, QActorCritic, QNetwork, expected, perturbed

BOX, THREE, KEY = spaces.Box(-1, 1, (4,)), spaces.Discrete(3), jax.random.key(0)
OBS = jax.random.normal(jax.random.key(1), (9, 4))


def linear(layer, x):
    return x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias, np.float64)


@pytest.mark.parametrize("hidden_sizes", [(), (6,), (8, 6, 5)])
@pytest.mark.parametrize("quantiles", [None, 1, 7])
def test_dueling_adds_a_value_to_advantages_without_their_mean(hidden_sizes, quantiles):
    q = QNetwork(BOX, THREE, hidden_sizes=hidden_sizes, dueling=True, quantiles=quantiles, key=KEY)
    x = np.asarray(OBS, np.float64)
    for layer in q.layers[: len(hidden_sizes[:-1])]:
        x = np.maximum(linear(layer, x), 0)
    streams = []
    for layers in (q.layers[-len(q.value) :], q.value):
        y = x
        for layer in layers[:-1]:
            y = np.maximum(linear(layer, y), 0)
        streams.append(linear(layers[-1], y).reshape(9, -1, quantiles or 1))
    advantage, value = streams
    assert len(q.value) == (2 if hidden_sizes else 1) and value.shape[1] == 1
    want = value + advantage - advantage.mean(1, keepdims=True)
    got = jax.vmap(q)(OBS)
    assert got.shape == ((9, 3) if quantiles is None else (9, 3, quantiles))
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-5)


def test_what_is_not_chosen_changes_nothing():
    """With the options as they are by default the network is the one without them, number by number."""
    plain, options = QNetwork(BOX, THREE, key=KEY), QNetwork(BOX, THREE, dueling=False, quantiles=None, noisy=False, key=KEY)
    same(plain, options)
    noisy = QNetwork(BOX, THREE, noisy=True, key=KEY)
    np.testing.assert_array_equal(jax.vmap(noisy)(OBS), jax.vmap(plain)(OBS))
    assert perturbed(plain, KEY) is not plain and jax.tree.structure(perturbed(plain, KEY)) == jax.tree.structure(plain)
    same(perturbed(plain, KEY), plain)
    with pytest.raises(ValueError, match="QNetwork.quantiles must be at least 1, got 0"):
        QNetwork(BOX, THREE, quantiles=0, key=KEY)


def test_the_value_of_quantiles_is_their_mean():
    q = QNetwork(BOX, THREE, quantiles=5, key=KEY)
    quantiles = np.asarray(jax.vmap(q)(OBS))
    assert quantiles.shape == (9, 3, 5)
    means = quantiles.mean(-1)
    np.testing.assert_allclose(jax.vmap(lambda obs: expected(q(obs)))(OBS), means, rtol=1e-5)
    action, _, _ = EpsilonGreedy(q, jnp.float32(0.0))(OBS, (), KEY)
    np.testing.assert_array_equal(action, means.argmax(-1))
    distribution, value, _ = jax.vmap(lambda obs: QActorCritic(q)(obs, ()))(OBS)
    np.testing.assert_allclose(distribution.values, means, rtol=1e-5)
    np.testing.assert_allclose(value, means.max(-1), rtol=1e-5)


def test_noise_is_factorised():
    """A product of a number for each output and one for each input, f(x) = sign(x) √|x| of normal ones; the bias has the outputs'."""
    layer = NoisyLinear(eqx.nn.Linear(200, 300, key=KEY))
    np.testing.assert_allclose(layer.deviation.weight, 0.5 / np.sqrt(200), rtol=1e-6)
    np.testing.assert_allclose(layer.deviation.bias, 0.5 / np.sqrt(200), rtol=1e-6)
    drawn = [layer.drawn(key) for key in jax.random.split(KEY, 2)]
    for x in drawn:
        noise = np.asarray((x.weight - layer.linear.weight) / layer.deviation.weight, np.float64)
        of_output = np.asarray((x.bias - layer.linear.bias) / layer.deviation.bias, np.float64)
        of_input = noise[0] / of_output[0]
        np.testing.assert_allclose(noise, of_output[:, None] * of_input[None], atol=1e-4)
        for f in (of_input, of_output):
            normal = np.sign(f) * f**2
            assert abs(normal.mean()) < 0.25 and abs(normal.std() - 1) < 0.2
    assert not np.allclose(drawn[0].weight, drawn[1].weight)
    np.testing.assert_allclose(layer(jnp.ones(200)), layer.linear(jnp.ones(200)), rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_layer_has_noise_of_its_own_and_learns_how_much(layer_norm):
    q = QNetwork(BOX, THREE, hidden_sizes=(8, 8), noisy=True, dueling=True, layer_norm=layer_norm, key=KEY)
    is_noisy = lambda x: isinstance(x, NoisyLinear)  # noqa: E731
    assert sum(map(is_noisy, jax.tree.leaves(q, is_leaf=is_noisy))) == 5
    one, other = perturbed(q, jax.random.key(1)), perturbed(q, jax.random.key(2))
    assert not any(map(is_noisy, jax.tree.leaves(one, is_leaf=is_noisy)))
    values = [jax.vmap(net)(OBS) for net in (q, one, other)]
    assert not np.allclose(values[0], values[1]) and not np.allclose(values[1], values[2])
    noise = [new.weight - old.weight for new, old in ((one.layers[1], q.layers[1]), (one.value[0], q.value[0]))]
    assert not np.allclose(noise[0] / noise[0].std(), noise[1] / noise[1].std())
    gradient = eqx.filter_grad(lambda q: jnp.sum(jax.vmap(perturbed(q, KEY))(OBS) ** 2))(q)
    assert all(np.any(x) for x in jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array)))


def test_a_noisy_network_explores_with_a_key_only():
    q = QNetwork(BOX, THREE, hidden_sizes=(8,), noisy=True, key=KEY)
    policy, many = EpsilonGreedy(q, jnp.float32(0.0)), jnp.tile(OBS, (2, 1))
    greedy = jax.vmap(q)(many).argmax(-1)
    np.testing.assert_array_equal(policy(many, (), None)[0], greedy)
    actions = jax.vmap(lambda key: policy(many, (), key)[0])(jax.random.split(KEY, 200))
    np.testing.assert_array_equal(actions[:, :9], actions[:, 9:])  # one draw for all environments
    assert (actions != greedy[None]).mean() > 0.01 and len(np.unique(actions, axis=0)) > 5
