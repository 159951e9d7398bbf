import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eqxrl._typing import Observation, Scalar
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import Categorical, DiagGaussian
from eqxrl.nn._encode import Encoder
from eqxrl.spaces import Discrete, as_space


def orthogonal_linear(in_size: int, out_size: int, *, scale: float, key: Key[Array, ""]) -> eqx.nn.Linear:
    """A linear layer with orthogonal weights times `scale` and zero bias. Saxe et al. 2014, https://arxiv.org/abs/1312.6120"""
    layer = eqx.filter_eval_shape(eqx.nn.Linear, in_size, out_size, key=key)  # its weights are replaced: no key is spent
    initialize = jax.nn.initializers.orthogonal(scale)
    # One after the other under vmap: jaxlib's batched QR waits, on a thread of XLA's pool, for other threads of that pool, and two
    # of them at once (actor and critic, on two cores) wait for good.
    weight = jax.custom_batching.sequential_vmap(lambda key: initialize(key, (out_size, in_size), jnp.float32))(key)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros(out_size, jnp.float32)))


def make_layers(sizes: Sequence[int], key: Key[Array, ""], out_scale: float | None = None) -> tuple[eqx.nn.Linear, ...]:
    """With an `out_scale`, orthogonal ones; else as Equinox initialises them."""
    keys = jax.random.split(key, len(sizes) - 1)
    if out_scale is None:
        return tuple(eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
    scales = [math.sqrt(2)] * (len(sizes) - 2) + [out_scale]
    return tuple(orthogonal_linear(i, o, scale=s, key=k) for i, o, s, k in zip(sizes[:-1], sizes[1:], scales, keys, strict=True))


class MLPActorCritic(AbstractActorCritic):
    """Two separate multilayer perceptrons, one for the policy and one for the critic. Discrete actions: a categorical
    distribution. Box actions: independent normals whose log standard deviation doesn't depend on the observation; the drawn
    action isn't squashed, the environment gets it clipped to its bounds.

    Initialisation as in Huang et al. 2022 (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/):
    orthogonal, scale √2 in hidden layers, 0.01 for the policy's output, 1 for the critic's, zero biases.

    Any observation is flattened to one float vector, its Discrete parts one-hot.
    """

    actor: tuple[eqx.nn.Linear, ...]
    critic: tuple[eqx.nn.Linear, ...]
    log_std: Float[Array, " act"] | None
    """Box actions only."""
    activation: Callable = eqx.field(static=True)
    action_shape: tuple[int, ...] = eqx.field(static=True)
    encode: Encoder = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (64, 64),
        activation: Callable = jax.nn.tanh, log_std_init: float = 0.0, key: Key[Array, ""],
    ):
        """**Arguments:** the environment's spaces; `hidden_sizes` of each of the two networks; `log_std_init` of a Box policy, in the
        action's own units."""
        actor_key, critic_key = jax.random.split(key)
        action_space = as_space(action_space)
        discrete = isinstance(action_space, Discrete)
        self.encode, self.activation, self.action_shape = Encoder.of(observation_space), activation, action_space.shape
        out_size = action_space.n if discrete else math.prod(self.action_shape)
        self.actor = make_layers([self.encode.size, *hidden_sizes, out_size], actor_key, 0.01)
        self.critic = make_layers([self.encode.size, *hidden_sizes, 1], critic_key, 1.0)
        self.log_std = None if discrete else jnp.full((out_size,), log_std_init, jnp.float32)

    def __call__(self, obs: Observation, carry: tuple[()]) -> tuple[Categorical | DiagGaussian, Scalar, tuple[()]]:
        x = self.encode(obs, self.actor[0].weight.dtype)
        head = apply_mlp(self.actor, self.activation, x)
        distribution = Categorical(head) if self.log_std is None else DiagGaussian(head, self.log_std, self.action_shape)
        return distribution, apply_mlp(self.critic, self.activation, x)[0], carry

    def initial_carry(self) -> tuple[()]:
        return ()


class MLPQNetwork(eqx.Module):
    """A multilayer perceptron that gives the value of each action of a Discrete space, `[act]`, for one observation; initialised
    uniformly within ±1/√(inputs), as PyTorch's and Equinox's layers are."""

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable = eqx.field(static=True)
    encode: Encoder = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (64, 64),
        activation: Callable = jax.nn.relu, key: Key[Array, ""],
    ):
        action_space = as_space(action_space)
        if not isinstance(action_space, Discrete):
            raise TypeError(f"MLPQNetwork values each action of a Discrete space, but the action space is {action_space}")
        self.encode, self.activation = Encoder.of(observation_space), activation
        self.layers = make_layers([self.encode.size, *hidden_sizes, action_space.n], key)

    def __call__(self, obs: Observation) -> Float[Array, " act"]:
        return apply_mlp(self.layers, self.activation, self.encode(obs, self.layers[0].weight.dtype))


def apply_mlp(layers: tuple[eqx.nn.Linear, ...], activation: Callable, x: Float[Array, " obs"]) -> Float[Array, " out"]:
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)
