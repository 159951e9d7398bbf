import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from eqxrl._typing import Carry, Observation, Scalar
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import Categorical, DiagGaussian
from eqxrl.nn._encode import Encoder
from eqxrl.nn._memory import LRU, AbstractMemory, Cell
from eqxrl.nn._mlp import apply_mlp, make_layers
from eqxrl.spaces import Discrete, as_space

MakeMemory = Callable[..., AbstractMemory]


class Tower(eqx.Module):
    """Layers, a memory, and layers."""

    before: tuple[eqx.nn.Linear, ...]
    memory: AbstractMemory
    activation: Callable = eqx.field(static=True)

    def enter(self, x: Float[Array, " obs"]) -> Float[Array, " in"]:
        for layer in self.before:
            x = self.activation(layer(x))
        return x


class RecurrentActorCritic(AbstractActorCritic):
    """An actor-critic that remembers: the observation as one vector, layers, a memory, and a multilayer perceptron for each of the policy
    and the critic. Actions and initialisation of the perceptrons are those of `MLPActorCritic`. `GRUActorCritic`, `LSTMActorCritic` and
    `LRUActorCritic` are this with a memory of that kind.
    """

    towers: tuple[Tower, ...]
    """One, if policy and critic share what they remember; else the policy's and the critic's."""
    actor: tuple[eqx.nn.Linear, ...]
    critic: tuple[eqx.nn.Linear, ...]
    log_std: Float[Array, " act"] | None
    activation: Callable = eqx.field(static=True)
    action_shape: tuple[int, ...] = eqx.field(static=True)
    encode: Encoder = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, make_memory: MakeMemory, *, memory_size: int = 64, shared: bool = False,
        sizes_before: Sequence[int] = (), hidden_sizes: Sequence[int] = (64,), activation: Callable = jax.nn.tanh,
        log_std_init: float = 0.0, key: Key[Array, ""],
    ):
        """**Arguments:** the environment's spaces; `make_memory(in_size, memory_size, key=key)`; whether policy and critic share one
        memory; the sizes of the layers before it, and of the hidden layers after it."""
        actor_key, critic_key, *keys = jax.random.split(key, 4)
        action_space = as_space(action_space)
        discrete = isinstance(action_space, Discrete)
        self.encode, self.activation, self.action_shape = Encoder.of(observation_space), activation, action_space.shape

        def tower(key: Key[Array, ""]) -> Tower:
            before_key, memory_key = jax.random.split(key)
            sizes = [self.encode.size, *sizes_before]
            before = make_layers(sizes, before_key, math.sqrt(2)) if sizes_before else ()
            return Tower(before, make_memory(sizes[-1], memory_size, key=memory_key), activation)

        self.towers = tuple(tower(key) for key in keys[: 1 if shared else 2])
        out_size = action_space.n if discrete else math.prod(self.action_shape)
        self.actor = make_layers([memory_size, *hidden_sizes, out_size], actor_key, 0.01)
        self.critic = make_layers([memory_size, *hidden_sizes, 1], critic_key, 1.0)
        self.log_std = None if discrete else jnp.full((out_size,), log_std_init, jnp.float32)

    def __call__(self, obs: Observation, carry: Carry) -> tuple[Categorical | DiagGaussian, Scalar, Carry]:
        x = self.encode(obs, self.actor[0].weight.dtype)
        remembered = [tower.memory(tower.enter(x), c) for tower, c in zip(self.towers, carry, strict=True)]
        return *self._heads(remembered[0][0], remembered[-1][0]), tuple(c for _, c in remembered)

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[Categorical | DiagGaussian, Float[Array, " steps"], Carry]:
        def outputs(tower: Tower, carry: Carry) -> tuple[Float[Array, "steps out"], Carry]:
            entering = jax.vmap(lambda obs: tower.enter(self.encode(obs, self.actor[0].weight.dtype)))(obs)
            return tower.memory.sequence(entering, starts, carry)

        remembered = [outputs(tower, c) for tower, c in zip(self.towers, carry, strict=True)]
        return *jax.vmap(self._heads)(remembered[0][0], remembered[-1][0]), tuple(c for _, c in remembered)

    def _heads(self, actor_in: Float[Array, " out"], critic_in: Float[Array, " out"]) -> tuple[Categorical | DiagGaussian, Scalar]:
        head = apply_mlp(self.actor, self.activation, actor_in)
        distribution = Categorical(head) if self.log_std is None else DiagGaussian(head, self.log_std, self.action_shape)
        return distribution, apply_mlp(self.critic, self.activation, critic_in)[0]

    def initial_carry(self) -> Carry:
        return tuple(tower.memory.initial_carry() for tower in self.towers)


def GRUActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> RecurrentActorCritic:
    """With a gated recurrent unit. Cho et al. 2014, https://arxiv.org/abs/1406.1078"""
    make = lambda in_size, size, *, key: Cell(eqx.nn.GRUCell(in_size, size, key=key))  # noqa: E731
    return RecurrentActorCritic(observation_space, action_space, make, key=key, **options)


def LSTMActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> RecurrentActorCritic:
    """With a long short-term memory. Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735"""
    make = lambda in_size, size, *, key: Cell(eqx.nn.LSTMCell(in_size, size, key=key))  # noqa: E731
    return RecurrentActorCritic(observation_space, action_space, make, key=key, **options)


def LRUActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> RecurrentActorCritic:
    """With a linear recurrent unit (`LRU`), whose sequences are computed by an associative scan."""
    return RecurrentActorCritic(observation_space, action_space, LRU, key=key, **options)
