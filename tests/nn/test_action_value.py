"""The network that values one action of a box."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import spaces
from eqxrl.nn import ActionValue, Encoder

KEY = jax.random.key(0)
OBS = spaces.Dict({"at": spaces.Box(-1.0, 1.0, (3,)), "which": spaces.Discrete(2)})
SEEN = {"at": jnp.array([1.0, -2.0, 0.5]), "which": jnp.int32(1)}


@pytest.mark.parametrize("layer_norm", [False, True])
def test_it_is_a_perceptron_of_the_observation_and_the_scaled_action(layer_norm):
    space = spaces.Box(np.array([[-2.0, 0.0]]), np.array([[2.0, 10.0]]), (1, 2))
    network = ActionValue(OBS, space, hidden_sizes=(5, 4), layer_norm=layer_norm, out_size=3, key=KEY)
    x = np.concatenate([np.asarray(Encoder(OBS, key=KEY)(SEEN, jnp.float32)), [0.5, -0.8]])
    for layer in network.layers[:-1]:
        linear = layer.linear if layer_norm else layer
        x = np.asarray(linear.weight, np.float64) @ x + np.asarray(linear.bias)
        x = np.maximum((x - x.mean()) / np.sqrt(x.var() + 1e-5) if layer_norm else x, 0.0)
    expected = np.asarray(network.layers[-1].weight) @ x + np.asarray(network.layers[-1].bias)
    outputs = network(SEEN, jnp.array([[1.0, 1.0]]))
    assert outputs.shape == (3,)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_one_output_by_default_and_under_transforms():
    network = ActionValue(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), key=KEY)
    obs, action = jnp.ones((6, 3)), jax.random.normal(KEY, (6, 2))
    values = eqx.filter_jit(lambda network: jax.vmap(network)(obs, action))(network)
    assert values.shape == (6, 1)
    slopes = jax.vmap(jax.grad(lambda a, o: network(o, a)[0]))(action, obs)
    assert slopes.shape == (6, 2) and jnp.any(slopes != 0)


def test_numbers_without_finite_bounds_stay_as_they_are():
    space = spaces.Box(np.array([0.0, -np.inf, 0.0]), np.array([4.0, np.inf, np.inf]), (3,))
    network = ActionValue(spaces.Box(-1.0, 1.0, ()), space, key=KEY)
    assert (network.center, network.half_width) == ((2.0, 0.0, 0.0), (2.0, 1.0, 1.0))
    scalar = ActionValue(spaces.Box(-1.0, 1.0, ()), spaces.Box(-1.0, 1.0, ()), key=KEY)
    assert scalar(jnp.zeros(()), jnp.zeros(())).shape == (1,)


def test_spaces_and_actions_that_do_not_fit():
    obs = spaces.Box(-1.0, 1.0, (3,))
    with pytest.raises(TypeError, match="values actions of a Box.*QNetwork"):
        ActionValue(obs, spaces.Discrete(2), key=KEY)
    with pytest.raises(TypeError, match="are traced"):
        jax.eval_shape(lambda high: jnp.zeros(()) * ActionValue(obs, spaces.Box(0.0, high, (1,)), key=KEY).center[0], 2.0)
    with pytest.raises(ValueError, match=r"the action is \[3\], but one action of this space is \[2\]"):
        ActionValue(obs, spaces.Box(-1.0, 1.0, (2,)), key=KEY)(jnp.zeros(3), jnp.zeros(3))
