import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Key

from eqxrl._typing import Carry, Observation, Scalar
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import AbstractDistribution
from eqxrl.nn._encode import Encoder, has_images
from eqxrl.nn._heads import AbstractHead, make_head
from eqxrl.nn._layers import Layers, apply_hidden, apply_layers, make_layers, make_orthogonal_layers, orthogonal_cell
from eqxrl.nn._memory import LRU, AbstractMemory, Cell

MakeMemory = Callable[..., AbstractMemory]


class ActorCritic(AbstractActorCritic):
    """A policy and a critic for any spaces: encoders make a vector of the observation, then come layers, perhaps a memory, and a multilayer
    perceptron for each of the policy and the critic. `MLPActorCritic`, `CNNActorCritic`, `GRUActorCritic`, `LSTMActorCritic` and
    `LRUActorCritic` are this with other defaults.

    Initialisation as in Huang et al. 2022 (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/):
    orthogonal, scale √2 in hidden layers, 0.01 for the policy's output, 1 for the critic's, zero biases; or, with `orthogonal=False`, as
    Equinox initialises linear layers and cells.
    """

    encoders: tuple[Encoder, ...]
    """One, if policy and critic share it; else the policy's and the critic's. So are the next two."""
    before: tuple[Layers, ...]
    memories: tuple[AbstractMemory, ...]
    """None, without memory."""
    actor: Layers
    critic: Layers
    head: AbstractHead
    """Makes the action's distribution of what `actor` returns."""
    activation: Callable = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, action_space: Any, *, hidden_sizes: Sequence[int] = (64, 64), sizes_before: Sequence[int] = (),
        make_memory: MakeMemory | None = None, memory_size: int = 64, shared: bool = False, activation: Callable = jax.nn.tanh,
        layer_norm: bool = False, convolve: bool = True, convolutions: Sequence[Sequence[int]] | None = None, embed: int | None = None,
        actor_sees: Sequence[str] | None = None, critic_sees: Sequence[str] | None = None, box: str = "gaussian",
        state_std: bool = False, log_std_init: float = 0.0, orthogonal: bool = True, key: Key[Array, ""],
    ):
        """**Arguments:**

        - the environment's spaces;
        - `hidden_sizes` of each of the two perceptrons at the end; `sizes_before` them, and before a memory;
        - `make_memory(in_size, memory_size, key=key)`;
        - `shared`: policy and critic share the encoder, the layers before and the memory;
        - `layer_norm` in hidden layers, and in what an image goes through;
        - `convolve`: parts of the observation with three axes are images `[height width channels]`, and go through `convolutions`
          (channels, kernel and stride of each; see `nn.Convolve`); else they are flattened. `embed`: see `nn.Encoder`;
        - `actor_sees`, `critic_sees`: names of the parts of a Dict observation that each of them is shown; by default all;
        - `box`, `state_std`, `log_std_init`: how actions in a Box are distributed; see `nn.make_head`;
        - `orthogonal`: how linear layers and cells are initialised; convolutions are orthogonal, `LRU` has an initialisation of its own.
        """
        keys = jax.random.split(key, 8)
        if shared and actor_sees != critic_sees:
            raise ValueError(f"shared=True, but actor_sees={actor_sees} and critic_sees={critic_sees}; what is shared sees the same")

        def perceptrons(sizes: Sequence[Sequence[int]], out_scales: Sequence[float], keys: Key[Array, " networks"]) -> Sequence[Layers]:
            if orthogonal:
                return make_orthogonal_layers(sizes, out_scales, keys, layer_norm)
            return [make_layers(*x, layer_norm=layer_norm) for x in zip(sizes, keys)]

        def tower(keys: Key[Array, " 3"], sees: Sequence[str] | None) -> tuple[Encoder, Layers, tuple[AbstractMemory, ...], int]:
            encoder_key, before_key, memory_key = keys
            encoder = Encoder(
                observation_space, only=sees, convolve=convolve, layers=convolutions, layer_norm=layer_norm, embed=embed, key=encoder_key
            )
            sizes = [encoder.size, *sizes_before]
            # One more, so that the norms come after all of them.
            before = perceptrons([[*sizes, 1]], [1.0], before_key[None])[0][:-1] if sizes_before else ()
            if make_memory is None:
                return encoder, before, (), sizes[-1]
            return encoder, before, (make_memory(sizes[-1], memory_size, key=memory_key),), memory_size

        towers = [tower(keys[2:5], actor_sees)]
        if not shared and (actor_sees != critic_sees or jax.tree.leaves(eqx.filter(towers, eqx.is_array))):
            towers.append(tower(keys[5:], critic_sees))  # else there is nothing in it to be learned
        self.encoders, self.before, memories, sizes = zip(*towers)
        self.memories = tuple(memory for of_tower in memories for memory in of_tower)
        self.head = make_head(action_space, box=box, state_std=state_std, log_std_init=log_std_init)
        ends = [[sizes[0], *hidden_sizes, self.head.size], [sizes[-1], *hidden_sizes, 1]]
        self.actor, self.critic = perceptrons(ends, [0.01, 1.0], keys[:2])
        self.activation = activation

    def __call__(self, obs: Observation, carry: Carry) -> tuple[AbstractDistribution, Scalar, Carry]:
        vectors = self._enter(obs)
        if self.memories:
            vectors, carry = zip(*(memory(x, c) for memory, x, c in zip(self.memories, vectors, carry, strict=True)))
        return *self._leave(vectors[0], vectors[-1]), carry

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[AbstractDistribution, Float[Array, " steps"], Carry]:
        vectors = jax.vmap(self._enter)(obs)
        if self.memories:
            vectors, carry = zip(*(memory.sequence(x, starts, c) for memory, x, c in zip(self.memories, vectors, carry, strict=True)))
        return *jax.vmap(self._leave)(vectors[0], vectors[-1]), carry

    def initial_carry(self) -> Carry:
        return tuple(memory.initial_carry() for memory in self.memories)

    def _enter(self, obs: Observation) -> tuple[Float[Array, " in"], ...]:
        vectors = [encoder(obs, self.actor[0].weight.dtype) for encoder in self.encoders]
        for i, layers in enumerate(self.before):
            for layer in layers:
                vectors[i] = apply_hidden(layer, self.activation, vectors[i])
        return tuple(vectors)

    def _leave(self, for_actor: Float[Array, " actor"], for_critic: Float[Array, " critic"]) -> tuple[AbstractDistribution, Scalar]:
        distribution = self.head(apply_layers(self.actor, self.activation, for_actor))
        return distribution, apply_layers(self.critic, self.activation, for_critic)[0]


def MLPActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> ActorCritic:
    """Two multilayer perceptrons, which see any observation flattened; options are those of `ActorCritic`."""
    return ActorCritic(observation_space, action_space, **{"convolve": False, **options}, key=key)


def CNNActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> ActorCritic:
    """Convolutions, which policy and critic share. Mnih et al. 2015, https://doi.org/10.1038/nature14236"""
    defaults = {"shared": True, "hidden_sizes": (), "activation": jax.nn.relu}
    return ActorCritic(observation_space, action_space, **{**defaults, **options}, key=key)


def GRUActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> ActorCritic:
    """With a gated recurrent unit. Cho et al. 2014, https://arxiv.org/abs/1406.1078"""
    return _recurrent(observation_space, action_space, functools.partial(_gru, orthogonal=options.get("orthogonal", True)), key, options)


def _gru(in_size: int, size: int, *, orthogonal: bool, key: Key[Array, ""]) -> Cell:
    return Cell(orthogonal_cell(eqx.nn.GRUCell, in_size, size, key=key) if orthogonal else eqx.nn.GRUCell(in_size, size, key=key))


def LSTMActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> ActorCritic:
    """With a long short-term memory, which forgets little at first: the forget gates' biases are 1, unless `orthogonal=False`.
    Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; Jozefowicz et al. 2015,
    https://proceedings.mlr.press/v37/jozefowicz15.html"""
    return _recurrent(observation_space, action_space, functools.partial(_lstm, orthogonal=options.get("orthogonal", True)), key, options)


def _lstm(in_size: int, size: int, *, orthogonal: bool, key: Key[Array, ""]) -> Cell:
    if not orthogonal:
        return Cell(eqx.nn.LSTMCell(in_size, size, key=key))
    cell: Any = orthogonal_cell(eqx.nn.LSTMCell, in_size, size, key=key)
    forget = slice(size, 2 * size)  # of the gates, in Equinox's order
    return Cell(eqx.tree_at(lambda cell: cell.bias, cell, cell.bias.at[forget].set(1.0)))


def LRUActorCritic(observation_space: Any, action_space: Any, *, key: Key[Array, ""], **options: Any) -> ActorCritic:
    """With a linear recurrent unit (`LRU`), whose sequences are computed by an associative scan."""
    return _recurrent(observation_space, action_space, LRU, key, options)


def default_actor_critic(observation_space: Any, action_space: Any, *, key: Key[Array, ""]) -> ActorCritic:
    """Convolutions where there are images, else perceptrons."""
    make = CNNActorCritic if has_images(observation_space) else MLPActorCritic
    return make(observation_space, action_space, key=key)


def _recurrent(observation_space: Any, action_space: Any, make_memory: MakeMemory, key: Key[Array, ""], options: Any) -> ActorCritic:
    return ActorCritic(observation_space, action_space, **{"make_memory": make_memory, "hidden_sizes": (64,), **options}, key=key)
