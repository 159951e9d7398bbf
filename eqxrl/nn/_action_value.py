import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from eqxrl._typing import Observation
from eqxrl.nn._encode import Encoder, encoder_key
from eqxrl.nn._layers import Layers, apply_layers, layers_on_batch, make_layers
from eqxrl.spaces import Box, as_space, known_bounds


class ActionValue(eqx.Module):
    """Values one action of a Box space for one observation: a multilayer perceptron sees the encoded observation and, after it, the action
    flattened. Numbers of the action with finite bounds are scaled from these to [-1, 1]; the others stay as they are. The layers are
    initialised as those of `QNetwork`.

    **Raises:** `TypeError` for another action space, or for one whose bounds are traced.
    """

    encoder: Encoder
    layers: Layers
    activation: Callable = eqx.field(static=True)
    center: tuple[float, ...] = eqx.field(static=True)
    """Of the bounds of each number of an action; 0 where they aren't finite."""
    half_width: tuple[float, ...] = eqx.field(static=True)
    """The same, half of the distance between them; 1 where they aren't finite."""
    shape: tuple[int, ...] = eqx.field(static=True)
    """Of one action."""

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (64, 64), activation: Callable = jax.nn.relu,
        layer_norm: bool = False, residual: bool = False, batch_renorm: bool = False, convolve: bool = True, out_size: int = 1,
        key: Key[Array, ""],
    ):
        """**Arguments:** the spaces; `layer_norm` in hidden layers and, as `convolve`, see `nn.Encoder`, or `residual` blocks, see
        `QNetwork`, or a `BatchRenorm` before each layer, see `SAC`; `out_size`: how many numbers say what the action is worth, such as the
        logits of a distribution of its value."""
        space = as_space(action_space)
        if not isinstance(space, Box):
            raise TypeError(f"ActionValue values actions of a Box, but the action space is {space}; nn.QNetwork does Discrete ones")
        low, high = (np.ravel(x).astype(np.float64) for x in known_bounds(space, "ActionValue"))
        finite = np.isfinite(low) & np.isfinite(high) & (low < high)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        self.center, self.half_width = tuple((0.5 * (low + high)).tolist()), tuple((0.5 * (high - low)).tolist())
        self.encoder = Encoder(observation_space, convolve=convolve, layer_norm=layer_norm, key=encoder_key(key))
        self.shape, self.activation = space.shape, activation
        sizes = [self.encoder.size + math.prod(space.shape), *hidden_sizes, out_size]
        self.layers = make_layers(sizes, key, layer_norm=layer_norm, residual=residual, batch_renorm=batch_renorm)

    def __call__(self, obs: Observation, action: Float[Array, "..."]) -> Float[Array, " outputs"]:
        return apply_layers(self.layers, self.activation, self._inputs(obs, action))

    def on_batch(self, obs: Observation, action: Float[Array, "batch ..."]) -> tuple[Float[Array, "batch outputs"], "ActionValue"]:
        """With `batch_renorm`: what it makes of a batch by the batch's own statistics, and the network with its running ones moved."""
        values, layers = layers_on_batch(self.layers, self.activation, jax.vmap(self._inputs)(obs, action))
        return values, eqx.tree_at(lambda network: network.layers, self, layers)

    def _inputs(self, obs: Observation, action: Float[Array, "..."]) -> Float[Array, " in"]:
        dtype = self.layers[0].weight.dtype
        if action.shape != self.shape:
            raise ValueError(f"the action is {list(action.shape)}, but one action of this space is {list(self.shape)}")
        center, half_width = (jnp.asarray(x, dtype) for x in (self.center, self.half_width))
        scaled = (jnp.ravel(action).astype(dtype) - center) / half_width
        return jnp.concatenate([self.encoder(obs, dtype), scaled])
