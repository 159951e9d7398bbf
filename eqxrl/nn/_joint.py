import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from eqxrl._typing import Action, describe, typed
from eqxrl.nn._distributions import AbstractDistribution, Categorical, as_mask, check_alike, without_impossible


@typed
class MultiCategorical(AbstractDistribution):
    """Several independent choices, the i-th one of `nvec[i]`; an action is a vector of them, int32 `[*batch choices]`.

    **Raises:** `ValueError` unless there are as many logits as options.
    """

    logits: Float[Array, "*batch total"]
    """Those of the first choice, then those of the second, and so on."""
    nvec: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        total = self.logits.shape[-1]
        if not self.nvec or min(self.nvec) < 1 or sum(self.nvec) != total:
            raise ValueError(f"MultiCategorical got {total} logits, but nvec={self.nvec}: it needs one for each option of each choice")

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch choices"]:
        return self._choices().sample(key)

    def log_prob(self, action: Int[Array, "*batch choices"]) -> Float[Array, "*batch"]:
        return without_impossible(jnp.sum(self._choices().log_prob(action), axis=-1))

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(self._choices().entropy(), axis=-1)

    def kl(self, other: "MultiCategorical") -> Float[Array, "*batch"]:
        """KL(self || other), nats; +∞ where `other` never takes what this one takes."""
        check_alike(self, other)
        return jnp.sum(self._choices().kl(other._choices()), axis=-1)

    def mode(self) -> Int[Array, "*batch choices"]:
        return self._choices().mode()

    def masked(self, mask: Shaped[Array, "..."]) -> "MultiCategorical":
        """As `Categorical.masked`, choice by choice; `mask` is `[*batch total]`, in the order of the logits."""
        blocks = zip(self._blocks(self.logits), self._blocks(as_mask(mask, self.logits)), strict=True)
        logits = [Categorical(x).masked(allowed).logits.reshape(*x.shape[:-2], -1) for x, allowed in blocks]
        return MultiCategorical(jnp.concatenate(logits, axis=-1), self.nvec)

    def _blocks(self, flat: Shaped[Array, "*batch total"]) -> Iterator[Shaped[Array, "*batch choices options"]]:
        """One for each run of choices that have equally many options."""
        start = 0
        for options, run in itertools.groupby(self.nvec):
            end = start + options * len(list(run))
            yield flat[..., start:end].reshape(*flat.shape[:-1], -1, options)
            start = end

    def _choices(self) -> Categorical:
        """`[*batch choices]` of them, with as many options as the widest: those that there aren't are forbidden."""
        widest = max(self.nvec)
        padding = [(0, 0)] * self.logits.ndim
        blocks = [jnp.pad(x, [*padding, (0, widest - x.shape[-1])], constant_values=-jnp.inf) for x in self._blocks(self.logits)]
        return Categorical(jnp.concatenate(blocks, axis=-2))


@typed
class Joint(AbstractDistribution):
    """Independent distributions, in any pytree, such as `Joint({"move": Categorical(logits), "aim": DiagGaussian(mean, log_std, (2,))})`.
    An action has the same structure.

    **Raises:** `ValueError` without any part.
    """

    parts: PyTree[AbstractDistribution]
    """All with the same leading axes."""

    def __check_init__(self):
        if not jax.tree.leaves(self.parts, is_leaf=_is_distribution):
            raise ValueError(f"Joint needs at least one distribution, got parts={self.parts}")

    def sample(self, key: Key[Array, ""]) -> Action:
        """With a key for each part."""
        parts, treedef = self._flat()
        return treedef.unflatten([part.sample(k) for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True)])

    def sample_and_log_prob(self, key: Key[Array, ""]) -> tuple[Action, Float[Array, "*batch"]]:
        parts, treedef = self._flat()
        drawn = [part.sample_and_log_prob(k) for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True)]
        return treedef.unflatten([action for action, _ in drawn]), _total([log_prob for _, log_prob in drawn])

    def log_prob(self, action: Action) -> Float[Array, "*batch"]:
        parts, treedef = self._flat()
        try:
            actions = treedef.flatten_up_to(action)
        except ValueError as error:
            raise ValueError(f"Joint's parts are {treedef}, but the action is {describe(action)}: {error}") from error
        return _total([part.log_prob(a) for part, a in zip(parts, actions, strict=True)])

    def entropy(self) -> Float[Array, "*batch"]:
        return self._sum(lambda part: part.entropy())

    def kl(self, other: "Joint") -> Float[Array, "*batch"]:
        """KL(self || other), nats."""
        check_alike(self, other)
        return self._sum(lambda part, of_other: part.kl(of_other), other)

    def mode(self) -> Action:
        parts, treedef = self._flat()
        return treedef.unflatten([part.mode() for part in parts])

    def masked(self, mask: Any) -> "Joint":
        """**Arguments:** `mask`: the structure of the parts, with a mask for each, or None for one that isn't masked. A dict may leave
        out names, and None may stand for a whole branch.

        **Raises:** `ValueError` for names that no part has, or another structure; `TypeError` for a part that can't be masked.
        """
        return Joint(_masked(self.parts, mask, "parts"))

    def _flat(self) -> tuple[list[AbstractDistribution], Any]:
        return jax.tree.flatten(self.parts, is_leaf=_is_distribution)

    def _sum(self, method: Callable, *others: "Joint") -> Float[Array, "*batch"]:
        return functools.reduce(jnp.add, map(method, *(joint._flat()[0] for joint in (self, *others))))


def _total(log_probs: list[Float[Array, "*batch"]]) -> Float[Array, "*batch"]:
    return without_impossible(functools.reduce(jnp.add, log_probs))


def _is_distribution(x: Any) -> bool:
    return isinstance(x, AbstractDistribution)


def _masked(part: Any, mask: Any, where: str) -> Any:
    """`where`: what the part is called in errors."""
    if mask is None:
        return part
    if _is_distribution(part):
        return part.masked(mask)
    if type(part) is dict and isinstance(mask, Mapping):
        if unknown := sorted(map(repr, mask.keys() - part.keys())):
            raise ValueError(f"there are masks for {', '.join(unknown)}, but {where} has only {', '.join(map(repr, part))}")
        return {name: _masked(x, mask.get(name), f"{where}[{name!r}]") for name, x in part.items()}
    (parts, treedef), (masks, mask_treedef) = (jax.tree.flatten(x, is_leaf=lambda y, x=x: y is not x) for x in (part, mask))
    if treedef != mask_treedef:
        raise ValueError(f"the masks of {where}, {mask_treedef}, must have its structure, {treedef}, with None for what isn't masked")
    return treedef.unflatten([_masked(x, m, f"{where}[{i}]") for i, (x, m) in enumerate(zip(parts, masks, strict=True))])
