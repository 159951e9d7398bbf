"""Policies without a critic beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._typing import Observation
from eqxrl.nn._distributions import AbstractDistribution
from eqxrl.nn._encode import Encoder
from eqxrl.nn._heads import AbstractHead, make_head
from eqxrl.nn._layers import Layers, apply_layers, make_layers


class StochasticActor(eqx.Module):
    """Gives the distribution of the action for one observation: a multilayer perceptron after an encoder, initialised as `QNetwork` is. In
    a Box it is a normal squashed by tanh, whose standard deviation depends on the observation.

    **Raises:** `ValueError` for a Box with infinite bounds.
    """

    encoder: Encoder
    layers: Layers
    head: AbstractHead
    activation: Callable = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (256, 256), activation: Callable = jax.nn.relu,
        layer_norm: bool = False, convolve: bool = True, key: Key[Array, ""],
    ):
        """**Arguments:** the spaces; `layer_norm` in hidden layers; `convolve`: see `nn.Encoder`."""
        self.encoder, self.activation = Encoder(observation_space, convolve=convolve, key=jax.random.fold_in(key, 1)), activation
        self.head = make_head(action_space, box="squashed", state_std=True)
        self.layers = make_layers([self.encoder.size, *hidden_sizes, self.head.size], key, layer_norm=layer_norm)

    def __call__(self, obs: Observation) -> AbstractDistribution:
        return self.head(apply_layers(self.layers, self.activation, self.encoder(obs, self.layers[0].weight.dtype)))
