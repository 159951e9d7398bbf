"""Environments that take other actions, or do something else with them."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Key, PyTree

from eqxrl._typing import Scalar, field, typed, within
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs._wrappers import inner_picture
from eqxrl.envs.suites._gymnax import without_reset
from eqxrl.spaces import Box, as_space, bounds, zeros


class RescaleAction(AbstractWrapper):
    """Takes actions in `[low, high]`, a box of the same shape, which are mapped linearly to the bounds of the environment's own actions:
    `low` to the lower, `high` to the upper bound of each dimension.

    **Raises:** `ValueError` if `low` isn't below `high`, or one of them isn't finite. When the action space is asked for: `TypeError` where
    it is no box of floats, `ValueError` where its bounds are not finite.
    """

    env: Any = eqx.field(converter=without_reset)
    low: float = eqx.field(static=True, default=-1.0)
    high: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"RescaleAction got low={self.low} and high={self.high}; both must be finite, and low below high")

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        low, high = bounds(self._inner(params))
        share = (jnp.asarray(action, low.dtype) - self.low) / (self.high - self.low)
        # Clipped, since rounding may lead out of the bounds by a hair.
        return self.env.step(key, state, jnp.clip(low + share * (high - low), low, high), params)

    def action_space(self, params: Any = None) -> Box:
        space = self._inner(params)
        return Box(self.low, self.high, space.shape, space.dtype)

    def _inner(self, params: Any) -> Box:
        space = as_space(self.env.action_space(params))
        if not isinstance(space, Box) or not jnp.issubdtype(space.dtype, jnp.floating):
            raise TypeError(f"RescaleAction maps to the bounds of a Box of floats, but the action space is {space}; leave it out")
        known = [x for x in (space.low, space.high) if not isinstance(x, Tracer)]
        if not all(np.isfinite(x).all() for x in known):
            raise ValueError(
                f"RescaleAction maps to the bounds of the action space, but those of {space} are not finite; leave it out, or have "
                "action_space say what is of use, as a Box with finite bounds"
            )
        return space


@typed
class StickyState(eqx.Module):
    env_state: PyTree
    action: PyTree
    """What the environment executed last; zeros before the first step."""
    started: Bool[Array, ""]
    """Whether there was a step in this episode."""


@typed
class StickyActions(AbstractWrapper):
    """With `probability`, at each step, the environment executes the action once more that it executed last, and not the one that it is
    given; the first action of an episode is always executed. What collectors store is the action that was chosen.

    Machado et al. 2018, https://arxiv.org/abs/1709.06009, where the probability is 0.25.
    """

    env: Any = eqx.field(converter=without_reset)
    probability: Scalar = field(default=0.25, metadata=within(0.0, 1.0))

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, StickyState]:
        obs, state = self.env.reset(key, params)
        return obs, StickyState(env_state=state, action=zeros(self.env.action_space(params)), started=jnp.asarray(False))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        step_key, sticky_key = jr.split(key)
        repeat = state.started & jr.bernoulli(sticky_key, self.probability)
        action = jax.tree.map(lambda last, new: jnp.where(repeat, last, jnp.asarray(new, last.dtype)), state.action, action)
        obs, env_state, *rest = self.env.step(step_key, state.env_state, action, params)
        return obs, StickyState(env_state=env_state, action=action, started=jnp.asarray(True)), *rest

    picture = property(inner_picture)
