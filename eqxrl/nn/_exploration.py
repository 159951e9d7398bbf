"""How a policy explores while it collects. None of these does without a key."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from eqxrl._typing import Action, Carry, Observation, Scalar, typed
from eqxrl.nn._policy import AbstractPolicy
from eqxrl.spaces import bounds, sample


class Sampling(AbstractPolicy):
    """Draws from the distribution that a network gives for one observation; without a key it takes the mode."""

    actor: eqx.Module
    """`actor(obs) -> AbstractDistribution`"""

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, tuple[()]]:
        distribution: Any = jax.vmap(self.actor)(obs)  # pyright: ignore[reportArgumentType]
        return distribution.mode() if key is None else distribution.sample(key), carry, ()

    def initial_carry(self) -> tuple[()]:
        return ()


@typed
class GaussianNoise(AbstractPolicy):
    """What a network gives for one observation, an action in a Box, plus normal noise of the standard deviation `std` times half of the
    distance between the bounds, clipped to them."""

    actor: eqx.Module
    """`actor(obs) -> action`"""
    std: Scalar
    action_space: Any = eqx.field(static=True)

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, tuple[()]]:
        action: Any = jax.vmap(self.actor)(obs)  # pyright: ignore[reportArgumentType]
        return action if key is None else with_noise(self.action_space, action, self.std, key), carry, ()

    def initial_carry(self) -> tuple[()]:
        return ()


def with_noise(action_space: Any, action: Array, std: Scalar, key: Key[Array, ""], clip: Scalar | None = None) -> Array:
    """The actions `[batch ...]` plus normal noise, `std` and the noise's own bounds ±`clip` as parts of half of the distance between the
    action space's bounds, to which the sum is clipped."""
    noise = std * jax.random.normal(key, action.shape, action.dtype)
    noise = noise if clip is None else jnp.clip(noise, -clip, clip)
    low, high = (jnp.broadcast_to(x, action.shape) for x in bounds(action_space))
    return jnp.clip(action + 0.5 * (high - low) * noise, low, high)


@typed
class RandomAtFirst(AbstractPolicy):
    """Another policy, whose actions are drawn from the whole action space, whatever it says, as long as `random` holds."""

    policy: AbstractPolicy
    random: Bool[Array, ""]
    action_space: Any = eqx.field(static=True)

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, Any]:
        if key is None:
            return self.policy(obs, carry, None)
        policy_key, random_key = jax.random.split(key)
        action, carry, remembered = self.policy(obs, carry, policy_key)
        num_envs = jax.tree.leaves(action)[0].shape[0]
        anything = jax.vmap(lambda key: sample(self.action_space, key))(jax.random.split(random_key, num_envs))
        action = jax.tree.map(lambda a, b: jnp.where(self.random, a.astype(b.dtype), b), anything, action)
        return action, carry, remembered

    def initial_carry(self) -> Carry:
        return self.policy.initial_carry()
