"""Action distributions. One object may hold a whole batch of them: methods work on any leading axes, so that a vmapped policy
returns a distribution from which all actions are drawn with one key."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eqxrl._typing import Action, typed


class AbstractDistribution(eqx.Module):
    """What a policy returns."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""]) -> Action:
        """One action for each distribution in the batch."""

    @abc.abstractmethod
    def log_prob(self, action: Action) -> Float[Array, "*batch"]:
        """Nats. `action` is one that `sample` could have returned, not a clipped one; of any other it is −∞."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, "*batch"]:
        """Nats."""

    @abc.abstractmethod
    def mode(self) -> Action:
        """The likeliest action."""


@typed
class Categorical(AbstractDistribution):
    """One of n actions, as int32."""

    logits: Float[Array, "*batch act"]
    """Any real numbers; they are normalised here."""

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        log_p = jax.nn.log_softmax(self.logits)
        # A sum over a one-hot mask: its gradient is elementwise, where a gather's is a scatter, slow on every backend.
        num_actions = log_p.shape[-1]
        chosen = jax.nn.one_hot(action, num_actions, dtype=bool)
        return jnp.where((action >= 0) & (action < num_actions), jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1), -jnp.inf)

    def entropy(self) -> Float[Array, "*batch"]:
        log_p = jax.nn.log_softmax(self.logits)
        p = jnp.exp(log_p)
        return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || other), nats."""
        log_p = jax.nn.log_softmax(self.logits)
        p = jnp.exp(log_p)
        return jnp.sum(p * jnp.where(p > 0, log_p - jax.nn.log_softmax(other.logits), 0.0), axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


@typed
class DiagGaussian(AbstractDistribution):
    """Independent normals; the action has the shape of the mean without its batch axes, here any `*act` flattened to one axis
    and shaped back by `shape`."""

    mean: Float[Array, "*batch act"]
    log_std: Float[Array, "*batch act"]
    shape: tuple[int, ...] = eqx.field(static=True)
    """Of one action."""

    def _shaped(self, flat: Float[Array, "..."]) -> Float[Array, "..."]:
        return flat.reshape(*self.mean.shape[:-1], *self.shape)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "..."]:
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self._shaped(self.mean + jnp.exp(self.log_std) * noise)

    def log_prob(self, action: Float[Array, "..."]) -> Float[Array, "*batch"]:
        z = (action.reshape(self.mean.shape) - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z**2 + self.log_std + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagGaussian") -> Float[Array, "*batch"]:
        """KL(self || other), nats."""
        variance_ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(0.5 * (variance_ratio + shift - 1) + other.log_std - self.log_std, axis=-1)

    def mode(self) -> Float[Array, "..."]:
        return self._shaped(self.mean)
