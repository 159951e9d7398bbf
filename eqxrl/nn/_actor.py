"""Policies without a critic beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eqxrl._typing import Observation
from eqxrl.nn._distributions import AbstractDistribution
from eqxrl.nn._encode import Encoder, encoder_key
from eqxrl.nn._heads import AbstractHead, finite_bounds, make_head
from eqxrl.nn._layers import Layers, apply_layers, make_layers
from eqxrl.spaces import Box, as_space


class StochasticActor(eqx.Module):
    """Gives the distribution of the action for one observation: a multilayer perceptron after an encoder, initialised as `QNetwork` is. It
    is a normal squashed by tanh in a Box, whose standard deviation depends on the observation.

    **Raises:** `ValueError` for a Box with infinite bounds.
    """

    encoder: Encoder
    layers: Layers
    head: AbstractHead
    activation: Callable = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (256, 256), activation: Callable = jax.nn.relu,
        layer_norm: bool = False, residual: bool = False, convolve: bool = True, key: Key[Array, ""],
    ):
        """**Arguments:** the spaces; `layer_norm` in hidden layers and, as `convolve`, see `nn.Encoder`; `residual`: see `QNetwork`."""
        self.encoder = Encoder(observation_space, convolve=convolve, layer_norm=layer_norm, key=encoder_key(key))
        self.activation = activation
        self.head = make_head(action_space, box="squashed", state_std=True)
        self.layers = make_layers([self.encoder.size, *hidden_sizes, self.head.size], key, layer_norm=layer_norm, residual=residual)

    def __call__(self, obs: Observation) -> AbstractDistribution:
        return self.head(apply_layers(self.layers, self.activation, self.encoder(obs, self.layers[0].weight.dtype)))


class DeterministicActor(eqx.Module):
    """Gives an action in a Box for one observation: a multilayer perceptron after an encoder, whose outputs tanh brings between the
    bounds. Initialised as `QNetwork` is.

    **Raises:** `TypeError` for another action space; `ValueError` for infinite bounds.
    """

    encoder: Encoder
    layers: Layers
    activation: Callable = eqx.field(static=True)
    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    """Of an action."""

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (256, 256), activation: Callable = jax.nn.relu,
        layer_norm: bool = False, residual: bool = False, convolve: bool = True, key: Key[Array, ""],
    ):
        """**Arguments:** the spaces; `layer_norm` in hidden layers and, as `convolve`, see `nn.Encoder`; `residual`: see `QNetwork`."""
        box = as_space(action_space)
        if not isinstance(box, Box):
            raise TypeError(f"DeterministicActor acts in a Box of floats, but the action space is {box}")
        self.low, self.high = finite_bounds(box, "DeterministicActor", "wrap the environment so that it takes bounded actions")
        self.shape, self.activation = box.shape, activation
        self.encoder = Encoder(observation_space, convolve=convolve, layer_norm=layer_norm, key=encoder_key(key))
        self.layers = make_layers([self.encoder.size, *hidden_sizes, len(self.low)], key, layer_norm=layer_norm, residual=residual)

    def __call__(self, obs: Observation) -> Float[Array, "..."]:
        x = jnp.tanh(apply_layers(self.layers, self.activation, self.encoder(obs, self.layers[0].weight.dtype)))
        low, high = (jnp.asarray(bounds, x.dtype) for bounds in (self.low, self.high))
        return (0.5 * (low + high) + 0.5 * (high - low) * x).reshape(self.shape)
