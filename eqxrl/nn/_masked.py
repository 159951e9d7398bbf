from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from eqxrl._typing import Carry, Observation, Scalar
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import AbstractDistribution
from eqxrl.spaces import Dict, as_space, parts

ACTION_MASK = "action_mask"
"""What a mask is called in an observation that is a Dict."""


class Masked(AbstractActorCritic):
    """A policy that takes only actions which the observation allows: those where its part `action_mask` is true, or 1. The others have
    probability 0, and no gradient. Huang and Ontañón 2022, https://arxiv.org/abs/2006.14171

    The mask is `[act]` for a Discrete action and, choice after choice, for a MultiDiscrete one; for a Dict or a Tuple it has the same
    structure, and a Dict may leave out what isn't masked. Algorithms wrap the networks that they make in it where the observation has
    such a part.
    """

    actor_critic: AbstractActorCritic
    """The policy inside; it sees the mask, too."""

    def __call__(self, obs: Observation, carry: Carry) -> tuple[AbstractDistribution, Scalar, Carry]:
        distribution, value, carry = self.actor_critic(obs, carry)
        return distribution.masked(_mask(obs)), value, carry

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[AbstractDistribution, Float[Array, " steps"], Carry]:
        distribution, value, carry = self.actor_critic.sequence(obs, starts, carry)
        return distribution.masked(_mask(obs)), value, carry

    def initial_carry(self) -> Carry:
        return self.actor_critic.initial_carry()


def _mask(obs: Any) -> Any:
    mask = obs[ACTION_MASK] if isinstance(obs, Mapping) else getattr(obs, ACTION_MASK)
    return jax.tree.map(lambda x: x != 0, mask)


def has_action_mask(observation_space: Any) -> bool:
    """Whether an observation says which actions it allows.

    **Raises:** `TypeError` where the mask is of floats, which would be standardised with the rest of the observation.
    """
    space = as_space(observation_space)
    if not isinstance(space, Dict) or ACTION_MASK not in space.spaces:
        return False
    for part in jax.tree.leaves(parts(space.spaces[ACTION_MASK])):
        if jnp.issubdtype(part.dtype, jnp.floating):
            how = f"make it Box(0, 1, {part.shape}, dtype=bool)"
            raise TypeError(f"{ACTION_MASK} is {part}, of floats, which are standardised with the rest of the observation; {how}")
    return True
