"""The multilayer perceptrons and what feeds them: observations of any space as one float vector; and policies built on them."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnax.environments import spaces as gymnax_spaces
from helpers import same

from eqxrl import MLPActorCritic, spaces
from eqxrl.nn import ActorCriticPolicy, Categorical, Encoder, EpsilonGreedy, QNetwork

TWO = spaces.Discrete(2)


def one_hot(i, n):
    return np.eye(n)[i]


@pytest.mark.parametrize(
    "space, obs, expected",
    [
        (spaces.Box(-1, 1, (2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]]), [1, 2, 3, 4]),
        (spaces.Box(-1, 1, ()), jnp.array(0.5), [0.5]),
        (spaces.Box(0, 255, (2,), jnp.uint8), jnp.array([7, 255], jnp.uint8), [7, 255]),
        (spaces.Box(0, 1, (2,), jnp.bool_), jnp.array([True, False]), [1, 0]),
        (spaces.Discrete(4), jnp.int32(2), one_hot(2, 4)),
        (spaces.MultiDiscrete([3, 2]), jnp.array([2, 1]), [*one_hot(2, 3), *one_hot(1, 2)]),
        (
            spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2,))}),
            {"b": jnp.int32(2), "a": jnp.array([5.0, 6.0])},
            [5, 6, *one_hot(2, 3)],  # in the order of the leaves, which is that of the names
        ),
        (
            spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, ()), spaces.Discrete(2)]),
            (jnp.int32(0), jnp.array(9.0), jnp.int32(1)),
            [*one_hot(0, 3), 9, *one_hot(1, 2)],
        ),
        (
            spaces.Dict({"x": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), "y": spaces.Discrete(1)}),
            {"x": (jnp.int32(1), jnp.int32(1)), "y": jnp.int32(0)},
            [*one_hot(1, 2), *one_hot(1, 3), 1],
        ),
    ],
    ids=["box", "scalar", "bytes", "mask", "discrete", "multi-discrete", "dict", "tuple", "nested"],
)
def test_an_observation_as_one_vector(space, obs, expected):
    encode = Encoder(space, key=jax.random.key(0))
    for dtype in (jnp.float32, jnp.bfloat16):
        vector = encode(obs, dtype)
        assert vector.dtype == dtype and vector.shape == (encode.size,) == (len(expected),)
        np.testing.assert_array_equal(vector.astype(jnp.float32), expected)


class Struct(eqx.Module):
    place: jax.Array
    x: jax.Array


def test_an_observation_that_is_a_struct():
    space = gymnax_spaces.Dict({"place": gymnax_spaces.Discrete(3), "x": gymnax_spaces.Box(-1, 1, (2,))})
    named = collections.namedtuple("Named", ["place", "x"])
    for kind in (Struct, named, dict):
        obs = kind(place=jnp.int32(1), x=jnp.array([5.0, 6.0]))
        np.testing.assert_array_equal(Encoder(space, key=jax.random.key(0))(obs, jnp.float32), [0, 1, 0, 5, 6])


def test_a_choice_inside_a_dict_is_a_choice_for_the_policy():
    """Policy and critic see it one-hot: with nothing else to go by they still tell all of its values apart, freely."""
    space = spaces.Dict({"place": spaces.Discrete(5), "speed": spaces.Box(-1, 1, (2,))})
    agent = MLPActorCritic(space, TWO, hidden_sizes=(), key=jax.random.key(0))
    assert agent.actor[0].weight.shape == (2, 7) and agent.critic[0].weight.shape == (1, 7)
    obs = {"place": jnp.arange(5), "speed": jnp.zeros((5, 2))}
    _, value, _ = jax.vmap(agent)(obs, ())
    np.testing.assert_allclose(value, agent.critic[0].weight[0, :5], rtol=1e-6)
    assert not np.allclose(np.diff(value), np.diff(value)[0])  # as the number itself would have it
    q = QNetwork(space, TWO, hidden_sizes=(), key=jax.random.key(0))
    np.testing.assert_allclose(jax.vmap(q)(obs), q.layers[0].weight[:, :5].T + q.layers[0].bias[None], rtol=1e-5)


def test_initialisation():
    agent = MLPActorCritic(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), hidden_sizes=(16, 8), key=jax.random.key(0))
    for layers, out in ((agent.actor, 0.01), (agent.critic, 1.0)):
        for layer, scale in zip(layers, (np.sqrt(2), np.sqrt(2), out), strict=True):
            w = np.asarray(layer.weight, np.float64)
            small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            np.testing.assert_allclose(small, scale**2 * np.eye(len(small)), atol=1e-5)
            np.testing.assert_array_equal(layer.bias, 0)
    box = MLPActorCritic(spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2, 3)), log_std_init=-0.5, key=jax.random.key(0))
    np.testing.assert_array_equal(box.head.log_std, [-0.5] * 6)
    assert box(jnp.zeros(4), ())[0].mode().shape == (2, 3)
    q = QNetwork(spaces.Box(-1, 1, (4,)), TWO, hidden_sizes=(300,), key=jax.random.key(0))
    for layer, inputs in zip(q.layers, (4, 300), strict=True):
        values = np.concatenate([layer.weight.ravel(), layer.bias]) * np.sqrt(inputs)
        assert scipy.stats.kstest(values, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_vmapped_initialisation_is_that_of_each_key():
    make = lambda key: MLPActorCritic(spaces.Box(-1, 1, (4,)), TWO, hidden_sizes=(6,), key=key)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    together = eqx.filter_jit(eqx.filter_vmap(make))(keys)
    for i in range(3):
        same(jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, together), make(keys[i]), rtol=1e-5, atol=1e-6)


def test_action_values_need_a_choice():
    for space in (spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2])):
        with pytest.raises(TypeError, match="QNetwork values each action of a Discrete space, but the action space is"):
            QNetwork(spaces.Box(-1, 1, (4,)), space, key=jax.random.key(0))


class Table(eqx.Module):
    """Values of three actions for each of some states."""

    values: jax.Array

    def __call__(self, obs):
        return self.values[obs]


VALUES = jnp.array([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy(epsilon):
    n, best = 20_000, np.array([1, 0, 2])
    policy = EpsilonGreedy(Table(VALUES), jnp.float32(epsilon))
    assert policy.initial_carry() == ()
    obs = jnp.repeat(jnp.arange(3), n)
    greedy, carry, remembered = policy(obs, (), None)
    np.testing.assert_array_equal(greedy, np.repeat(best, n))
    assert carry == remembered == () and greedy.dtype == jnp.int32
    action, _, _ = policy(obs, (), jax.random.key(0))
    assert action.dtype == jnp.int32
    for state, actions in enumerate(np.asarray(action).reshape(3, n)):
        expected = np.full(3, epsilon / 3) + (1 - epsilon) * one_hot(best[state], 3)
        counts = np.bincount(actions, minlength=3)
        if epsilon == 0:
            assert counts[best[state]] == n
        else:
            assert scipy.stats.chisquare(counts, n * expected).pvalue > 1e-3


def test_epsilon_is_one_probability():
    for bad in (jnp.ones(3), 0.5, None):
        with pytest.raises(TypeError, match="epsilon"):
            EpsilonGreedy(Table(VALUES), bad)


def test_an_actor_critic_as_a_policy():
    """Many environments at once; the mode without a key, otherwise drawn; and the distribution and the value are remembered."""
    agent = MLPActorCritic(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), hidden_sizes=(5,), key=jax.random.key(0))
    agent = eqx.tree_at(lambda a: a.actor[-1].weight, agent, replace_fn=lambda w: 200 * w)
    policy, obs = ActorCriticPolicy(agent), jax.random.normal(jax.random.key(1), (9, 4))
    expected, values, _ = jax.vmap(lambda obs: agent(obs, ()))(obs)
    for key in (None, jax.random.key(2)):
        action, carry, (distribution, value) = policy(obs, (), key)
        assert carry == policy.initial_carry() == () and isinstance(distribution, Categorical)
        np.testing.assert_array_equal(action, expected.mode() if key is None else expected.sample(key))
        same((distribution, value), (expected, values), rtol=1e-6)
    assert len(np.unique(expected.mode())) > 1
