"""How a policy explores while it collects. None of these does without a key."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._typing import Action, Carry, Observation
from eqxrl.nn._policy import AbstractPolicy


class Sampling(AbstractPolicy):
    """Draws from the distribution that a network gives for one observation; without a key it takes the mode."""

    actor: eqx.Module
    """`actor(obs) -> AbstractDistribution`"""

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, tuple[()]]:
        distribution: Any = jax.vmap(self.actor)(obs)  # pyright: ignore[reportArgumentType]
        return distribution.mode() if key is None else distribution.sample(key), carry, ()

    def initial_carry(self) -> tuple[()]:
        return ()
