"""How a policy explores while it collects. None of these does without a key."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from eqxrl._typing import Action, Carry, Observation, Scalar, Schedule, as_number, as_schedule, at_step, field, typed, within
from eqxrl.nn._distributions import AbstractDistribution
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


class AbstractActionNoise(eqx.Module):
    """What is added to actions in a Box while collecting; its unit is half of the distance between their bounds. Uniform noise, in full:

        class UniformNoise(AbstractActionNoise):
            std: Schedule = field(default=0.1, converter=as_schedule)

            def __call__(self, action, carry, key):
                return self.std * 3**0.5 * jax.random.uniform(key, action.shape, minval=-1.0, maxval=1.0), carry

            def initial_carry(self, action_space):
                return ()
    """

    std: eqx.AbstractVar[Schedule]  # pyright: ignore[reportGeneralTypeIssues]
    """A number, or a function of the number of env steps so far."""

    @abc.abstractmethod
    def __call__(self, action: Float[Array, "envs ..."], carry: Carry, key: Key[Array, ""]) -> tuple[Float[Array, "envs ..."], Carry]:
        """The noise for actions `[envs ...]`, and what it is to remember until the next step, `[envs ...]`."""

    @abc.abstractmethod
    def initial_carry(self, action_space: Any) -> Carry:
        """What it remembers in one environment at the start of an episode; `()` where each step's noise is drawn afresh."""

    def at_step(self, env_steps: Scalar) -> "AbstractActionNoise":
        """This noise with the standard deviation that holds after so many env steps."""
        return dataclasses.replace(self, std=at_step(self.std, env_steps))


@typed
class GaussianNoise(AbstractActionNoise):
    """Normal noise, of the standard deviation `std`, drawn afresh at each step."""

    std: Schedule = field(default=0.1, converter=as_schedule, metadata=within(0.0))

    def __call__(self, action: Float[Array, "envs ..."], carry: Carry, key: Key[Array, ""]) -> tuple[Float[Array, "envs ..."], Carry]:
        return as_number(self.std) * jax.random.normal(key, action.shape, action.dtype), carry

    def initial_carry(self, action_space: Any) -> tuple[()]:
        return ()


@typed
class MixedNoise(AbstractActionNoise):
    """Normal noise with a standard deviation for each environment, which is drawn uniformly between `least` and `std` at the start of each
    episode: some explore near the policy, others far from it. Li et al. 2023, https://arxiv.org/abs/2307.12983; with the numbers
    of Seo et al. 2025, https://arxiv.org/abs/2505.22642.
    """

    std: Schedule = field(default=0.4, converter=as_schedule, metadata=within(0.0))
    """The largest."""
    least: Scalar = field(default=0.001, metadata=within(0.0))

    def __call__(self, action: Float[Array, "envs ..."], carry: Carry, key: Key[Array, ""]) -> tuple[Float[Array, "envs ..."], Carry]:
        place_key, key = jax.random.split(key)
        place = jnp.where(carry < 0, jax.random.uniform(place_key, carry.shape), carry)
        std = self.least + place * (as_number(self.std) - self.least)
        return std.reshape(-1, *[1] * (action.ndim - 1)) * jax.random.normal(key, action.shape, action.dtype), place

    def initial_carry(self, action_space: Any) -> Scalar:
        """Where between the two it is; -1 before that is drawn."""
        return jnp.full((), -1.0, jnp.float32)


@typed
class OrnsteinUhlenbeckNoise(AbstractActionNoise):
    r"""Noise that goes on from step to step, $n_t = (1 - \theta) n_{t-1} + \sigma \epsilon_t$ with normal $\epsilon_t$; an episode
    begins with $n_{-1} = 0$. Its standard deviation grows to $\sigma / \sqrt{\theta (2 - \theta)}$, and that of one step correlates by
    $(1 - \theta)^k$ with that of $k$ steps later. Where $\sigma$ changes over the run, all of $n$ is scaled with it.

    Uhlenbeck and Ornstein 1930, https://doi.org/10.1103/PhysRev.36.823; in steps of 1, and with the numbers of Lillicrap et al. 2016,
    https://arxiv.org/abs/1509.02971, section 7.
    """

    std: Schedule = field(default=0.2, converter=as_schedule, metadata=within(0.0))
    r"""$\sigma$, the standard deviation of what a step adds."""
    theta: Scalar = field(default=0.15, metadata=within(0.0, 1.0))
    """Part of the noise that a step takes away: 0 is a random walk, 1 is `GaussianNoise`."""

    def __call__(self, action: Float[Array, "envs ..."], carry: Carry, key: Key[Array, ""]) -> tuple[Float[Array, "envs ..."], Carry]:
        carry = (1 - self.theta) * carry + jax.random.normal(key, carry.shape, carry.dtype)
        return as_number(self.std) * carry, carry

    def initial_carry(self, action_space: Any) -> Float[Array, "..."]:
        return jnp.zeros(action_space.shape, jnp.float32)


@typed
class Noisy(AbstractPolicy):
    """What a network gives for one observation, an action in a Box or a sample of its distribution, plus noise, clipped to the bounds."""

    actor: eqx.Module
    """`actor(obs)` gives an action, or an `AbstractDistribution`."""
    noise: AbstractActionNoise
    action_space: Any = eqx.field(static=True)

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, tuple[()]]:
        given: Any = jax.vmap(self.actor)(obs)  # pyright: ignore[reportArgumentType]
        draws = isinstance(given, AbstractDistribution)
        if key is None:
            return given.mode() if draws else given, carry, ()
        sample_key, noise_key = jax.random.split(key) if draws else (key, key)
        given = given.sample(sample_key) if draws else given
        noise, carry = self.noise(given, carry, noise_key)
        return _shifted(self.action_space, given, noise), carry, ()

    def initial_carry(self) -> Carry:
        return self.noise.initial_carry(self.action_space)


def with_noise(action_space: Any, action: Array, std: Scalar, key: Key[Array, ""], clip: Scalar | None = None) -> Array:
    """The actions `[batch ...]` plus normal noise, `std` and the noise's own bounds ±`clip` as parts of half of the distance between the
    action space's bounds, to which the sum is clipped."""
    noise = std * jax.random.normal(key, action.shape, action.dtype)
    return _shifted(action_space, action, noise if clip is None else jnp.clip(noise, -clip, clip))


def _shifted(action_space: Any, action: Array, noise: Array) -> Array:
    low, high = (jnp.broadcast_to(x, action.shape) for x in bounds(action_space))
    return jnp.clip(action + 0.5 * (high - low) * noise, low, high)


@typed
class RandomAtFirst(AbstractPolicy):
    """Another policy, whose actions are drawn from the whole action space, whatever it says, as long as `random` holds.
    What it remembers is what that one does."""

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
