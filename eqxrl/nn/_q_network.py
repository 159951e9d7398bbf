from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eqxrl._typing import Carry, Observation, Scalar, typed
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import AbstractDistribution, Categorical
from eqxrl.nn._encode import Encoder, encoder_key
from eqxrl.nn._layers import Layers, apply_hidden, apply_layers, make_layers
from eqxrl.spaces import Discrete, as_space


class QNetwork(eqx.Module):
    """Gives the value of each action of a Discrete space, `[act]`, for one observation: a multilayer perceptron after an encoder. Its
    layers are initialised uniformly within ±1/√(inputs), as PyTorch's and Equinox's are.

    - `dueling`: the value of the observation and the advantages of the actions, less their mean, are added; each has the last hidden layer
      to itself. Wang et al. 2016, https://arxiv.org/abs/1511.06581
    - `quantiles`: as many of each action's return, `[act quantiles]`, whose mean is its value. Dabney et al. 2018,
      https://arxiv.org/abs/1710.10044
    - `residual`: each of the `hidden_sizes` is a block that adds to what it sees, a layer norm and two layers with four times the width
      between them; a linear layer comes before one whose input has another width, and a layer norm after the last. This is SimBa, Lee et
      al. 2024, https://arxiv.org/abs/2410.09754, but for its running statistics of observations and its initialisation; not with
      `layer_norm`.
    - `noisy`: all layers are `NoisyLinear`, which `perturbed` draws. Fortunato et al. 2018, https://arxiv.org/abs/1706.10295

    **Raises:** `TypeError` for another action space.
    """

    encoder: Encoder
    layers: Layers
    """Those of the advantages, if the network is dueling."""
    value: Layers
    """Those that only the value of the observation goes through, after the first of `layers`; none unless the network is dueling."""
    activation: Callable = eqx.field(static=True)
    quantiles: int | None = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (64, 64), activation: Callable = jax.nn.relu,
        layer_norm: bool = False, residual: bool = False, convolve: bool = True, dueling: bool = False, quantiles: int | None = None,
        noisy: bool = False, key: Key[Array, ""],
    ):
        """**Arguments:** the spaces; `layer_norm` in hidden layers and, as `convolve`, see `nn.Encoder`; the others as above."""
        action_space = as_space(action_space)
        if not isinstance(action_space, Discrete):
            raise TypeError(f"QNetwork values each action of a Discrete space, but the action space is {action_space}")
        if quantiles is not None and quantiles < 1:
            raise ValueError(f"QNetwork.quantiles must be at least 1, got {quantiles}")
        self.encoder = Encoder(observation_space, convolve=convolve, layer_norm=layer_norm, key=encoder_key(key))
        self.activation, self.quantiles = activation, quantiles
        sizes, each = [self.encoder.size, *hidden_sizes], quantiles or 1
        options = dict(layer_norm=layer_norm, residual=residual, noisy=noisy)
        self.layers = make_layers([*sizes, action_space.n * each], key, **options)
        value_key = jax.random.fold_in(key, len(sizes) + 1)  # `split` gives the keys that `fold_in` gives for 0, 1, 2 ...
        self.value = make_layers([*sizes[-2:], each], value_key, **options) if dueling else ()

    def __call__(self, obs: Observation) -> Float[Array, " act *quantiles"]:
        x = self.encoder(obs, self.layers[0].weight.dtype)
        shared = len(self.layers) - len(self.value) if self.value else 0
        for layer in self.layers[:shared]:
            x = apply_hidden(layer, self.activation, x)
        shape = (-1,) if self.quantiles is None else (-1, self.quantiles)
        values = apply_layers(self.layers[shared:], self.activation, x).reshape(shape)
        if not self.value:
            return values
        return apply_layers(self.value, self.activation, x).reshape(shape) + values - jnp.mean(values, axis=0, keepdims=True)


def expected(values: Float[Array, " act *quantiles"]) -> Float[Array, " act"]:
    """The value of each action, from what a Q-network gives for one observation: values, or quantiles."""
    return values if values.ndim == 1 else jnp.mean(values, axis=1)


def value_of(values: Float[Array, "*batch act"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The value of an action, among those of all actions. A sum over a mask, since a gather's gradient is a scatter, which is slow."""
    return jnp.sum(jnp.where(jax.nn.one_hot(action, values.shape[-1], dtype=bool), values, 0.0), axis=-1)


@typed
class Greedy(AbstractDistribution):
    """The action of the highest value, as int32, or with probability `epsilon` one drawn uniformly from all of them."""

    values: Float[Array, "*batch act"]
    epsilon: Float[Array, "*batch"]

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        return self._categorical().sample(key)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return self._categorical().log_prob(action)

    def entropy(self) -> Float[Array, "*batch"]:
        return self._categorical().entropy()

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.values, axis=-1).astype(jnp.int32)

    def value_of(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The value of an action."""
        return value_of(self.values, action)

    def _categorical(self) -> Categorical:
        n = self.values.shape[-1]
        epsilon = self.epsilon[..., None]
        p = epsilon / n + (1 - epsilon) * jax.nn.one_hot(self.mode(), n)
        return Categorical(jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf))


class QActorCritic(AbstractActorCritic):
    """Action values as a policy: it takes the best action, whose value is the observation's."""

    deviates: ClassVar[dict[str, str]] = {"every number is used": "which value is the highest has no gradient"}

    q: QNetwork

    def __call__(self, obs: Observation, carry: tuple[()]) -> tuple[Greedy, Scalar, tuple[()]]:
        values = expected(self.q(obs))
        return Greedy(values, jnp.zeros((), values.dtype)), jnp.max(values), carry

    def initial_carry(self) -> tuple[()]:
        return ()


class Exploring(AbstractActorCritic):
    """A policy whose distribution is `Greedy`, with another `epsilon`.

    **Raises:** `TypeError` where it is another one.
    """

    actor_critic: AbstractActorCritic
    epsilon: Scalar

    def __call__(self, obs: Observation, carry: Carry) -> tuple[Greedy, Scalar, Carry]:
        distribution, value, carry = self.actor_critic(obs, carry)
        if not isinstance(distribution, Greedy):
            raise TypeError(f"Exploring needs a policy that has the actions' values, an nn.Greedy, got {type(distribution).__name__}")
        return Greedy(distribution.values, self.epsilon), value, carry

    def initial_carry(self) -> Carry:
        return self.actor_critic.initial_carry()
