"""From the numbers that a network ends in to a distribution of actions, for any action space."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from eqxrl.nn._bounded import Beta, SquashedGaussian
from eqxrl.nn._distributions import AbstractDistribution, Categorical, DiagGaussian
from eqxrl.nn._joint import Joint, MultiCategorical
from eqxrl.spaces import Box, Discrete, MultiDiscrete, check_action_space, known_bounds, parts

BOX_POLICIES = ("gaussian", "squashed", "beta")


class AbstractHead(eqx.Module):
    """Makes a distribution of `size` numbers."""

    size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, outputs: Float[Array, " size"]) -> AbstractDistribution:
        """The distribution of one action."""


class ChoiceHead(AbstractHead):
    """A logit for each action of a Discrete space, or for each choice of a MultiDiscrete one."""

    space: Discrete | MultiDiscrete = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, space: Discrete | MultiDiscrete):
        self.space, self.size = space, space.n if isinstance(space, Discrete) else sum(space.nvec)

    def __call__(self, outputs: Float[Array, " size"]) -> Categorical | MultiCategorical:
        return Categorical(outputs) if isinstance(self.space, Discrete) else MultiCategorical(outputs, self.space.nvec)


class BoxHead(AbstractHead):
    """Means, and what else the distribution needs of each number of a Box."""

    log_std: Float[Array, " act"] | None
    """The same for every observation; `None` where it is among the outputs, or there is none."""
    kind: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)
    log_std_init: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, space: Box, kind: str, state_std: bool, log_std_init: float):
        self.kind, self.shape, self.log_std_init, act = kind, space.shape, log_std_init, math.prod(space.shape)
        both = kind == "beta" or state_std
        self.size, self.log_std = (2 if both else 1) * act, None if both else jnp.full((act,), log_std_init, jnp.float32)
        self.low, self.high = ((), ()) if kind == "gaussian" else finite_bounds(space, f"box={kind!r}", "use box='gaussian'")

    def __call__(self, outputs: Float[Array, " size"]) -> DiagGaussian | SquashedGaussian | Beta:
        act = math.prod(self.shape)
        first, second = outputs[:act], outputs[act:]
        if self.kind == "beta":
            alpha, beta = (1 + jax.nn.softplus(x) for x in (first, second))
            return Beta(alpha, beta, self.low, self.high, self.shape)
        log_std = jnp.clip(self.log_std_init + second, -5.0, 2.0) if self.log_std is None else self.log_std
        if self.kind == "squashed":
            return SquashedGaussian(first, log_std, self.low, self.high, self.shape)
        return DiagGaussian(first, log_std, self.shape)


class JointHead(AbstractHead):
    """Independent distributions, one for each part of a Dict or a Tuple."""

    heads: PyTree[AbstractHead]
    size: int = eqx.field(static=True)

    def __init__(self, heads: PyTree[AbstractHead]):
        self.heads, self.size = heads, sum(head.size for head in jax.tree.leaves(heads, is_leaf=_is_head))

    def __call__(self, outputs: Float[Array, " size"]) -> Joint:
        heads, treedef = jax.tree.flatten(self.heads, is_leaf=_is_head)
        outputs_of = jnp.split(outputs, np.cumsum([head.size for head in heads])[:-1])
        return Joint(jax.tree.unflatten(treedef, [head(x) for head, x in zip(heads, outputs_of, strict=True)]))


def make_head(action_space: Any, *, box: str = "gaussian", state_std: bool = False, log_std_init: float = 0.0) -> AbstractHead:
    """**Arguments:**

    - `box`: the distribution in a Box: `gaussian`, clipped to the bounds on the way to the environment; `squashed`, a normal through tanh;
      or `beta`. The latter two need finite bounds.
    - `state_std`: the standard deviation depends on the observation.
    - `log_std_init`: its logarithm at first, in the action's own units, or before squashing.

    **Raises:** `ValueError` for an unknown `box`, or for infinite bounds where finite ones are needed; `TypeError` for a space that
    policies don't act in.
    """
    if box not in BOX_POLICIES:
        raise ValueError(f"box must be one of {', '.join(BOX_POLICIES)}, got {box!r}")

    def make(space: Any) -> AbstractHead:
        return BoxHead(space, box, state_std, log_std_init) if isinstance(space, Box) else ChoiceHead(space)

    heads = jax.tree.map(make, parts(check_action_space(action_space)))
    return heads if isinstance(heads, AbstractHead) else JointHead(heads)


def finite_bounds(space: Box, who: str, instead: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each number of a box. **Raises:** `ValueError` where one is infinite, `TypeError` where they are traced."""
    low, high = (tuple(np.ravel(x).tolist()) for x in known_bounds(space, who))
    if not np.isfinite([*low, *high]).all():
        raise ValueError(f"{who} needs finite bounds, but the action space is {space}; {instead}")
    return low, high


def _is_head(x: Any) -> bool:
    return isinstance(x, AbstractHead)
