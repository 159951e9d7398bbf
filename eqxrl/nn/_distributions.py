"""Action distributions. One object may hold a whole batch of them: methods work on any leading axes, so that a vmapped policy
returns a distribution from which all actions are drawn with one key."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from eqxrl._typing import Action, describe, typed


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

    def kl(self, other: Any) -> Float[Array, "*batch"]:
        """KL(self || other), nats. `other` is of the same class, over the same actions.

        **Raises:** `NotImplementedError` where the class doesn't have it; `TypeError` for another kind of `other`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed form of the KL divergence; define its kl(other)")

    def sample_and_log_prob(self, key: Key[Array, ""]) -> tuple[Action, Float[Array, "*batch"]]:
        """What `sample` draws with this key, and its `log_prob`, which some members know more exactly than from the action alone."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def masked(self, mask: Any) -> "AbstractDistribution":
        """The same distribution without the actions that the mask, true where an action is allowed, forbids.

        **Raises:** `TypeError` where there are no choices that could be forbidden; `ValueError` for a mask that doesn't fit.
        """
        how = "Categorical and MultiCategorical can, and those among a Joint's parts; give this one no mask, or None"
        raise TypeError(f"{type(self).__name__} can't be masked, got the mask {describe(mask)}; {how}")


def check_alike(one: AbstractDistribution, other: Any) -> None:
    """For `kl`. **Raises:** `TypeError` unless both are of the same class and over the same actions."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        raise TypeError(f"{type(one).__name__}.kl compares distributions of one class over the same actions, got {other} for {one}")


def as_mask(mask: Shaped[Array, "..."], logits: Float[Array, "..."]) -> Bool[Array, "..."]:
    """**Raises:** `ValueError` unless it is of bools or integers, one for each logit."""
    if mask.shape != logits.shape or not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        how = "one bool for each, or 1 and 0 as integers: true where the action is allowed"
        raise ValueError(f"the mask {describe(mask)} doesn't fit the logits {describe(logits)}; pass {how}")
    return mask != 0


@typed
class Categorical(AbstractDistribution):
    """One of n actions, as int32."""

    logits: Float[Array, "*batch act"]
    """Any real numbers; they are normalised here. −∞: an action that is never taken; not all of them can be."""

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        log_p = jax.nn.log_softmax(self.logits)
        # A sum over a one-hot mask: its gradient is elementwise, where a gather's is a scatter, slow on every backend.
        num_actions = log_p.shape[-1]
        chosen = jax.nn.one_hot(action, num_actions, dtype=bool)
        of_chosen = jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1)
        possible = (action >= 0) & (action < num_actions) & (of_chosen != -jnp.inf)  # the others have no gradient
        return jnp.where(possible, of_chosen, -jnp.inf)

    def entropy(self) -> Float[Array, "*batch"]:
        log_p = jax.nn.log_softmax(self.logits)
        p = jnp.exp(log_p)
        return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || other), nats; +∞, with gradient 0, where `other` never takes an action that this one takes."""
        check_alike(self, other)
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        p = jnp.exp(log_p)
        taken, never = p > 0, log_q == -jnp.inf
        # What is −∞ in both is replaced before the difference, which would be NaN.
        log_p, log_q = (jnp.where(taken & ~never, x, 0.0) for x in (log_p, log_q))
        return jnp.where(jnp.any(taken & never, axis=-1), jnp.inf, jnp.sum(p * (log_p - log_q), axis=-1))

    def masked(self, mask: Shaped[Array, "..."]) -> "Categorical":
        """The same distribution without the actions where `mask`, `[*batch act]` of bools or of integers, is 0: their logits are −∞, so
        that they have probability 0 and no gradient. A row that forbids everything, as after an episode's end, counts as one that allows
        everything. Huang and Ontañón 2022, https://arxiv.org/abs/2006.14171

        **Raises:** `ValueError` for a mask of another shape, or of floats.
        """
        allowed = as_mask(mask, self.logits)
        nothing_left = ~jnp.any(allowed & (self.logits != -jnp.inf), axis=-1, keepdims=True)
        return Categorical(jnp.where(allowed | nothing_left, self.logits, -jnp.inf))

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def without_impossible(log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers; those that are −∞ have no gradient."""
    return jnp.where(log_prob == -jnp.inf, -jnp.inf, log_prob)


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
        check_alike(self, other)
        variance_ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(0.5 * (variance_ratio + shift - 1) + other.log_std - self.log_std, axis=-1)

    def mode(self) -> Float[Array, "..."]:
        return self._shaped(self.mean)
