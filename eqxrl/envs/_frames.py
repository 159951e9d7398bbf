"""Environments that show several observations at once, or at times none."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, PyTree, Shaped

from eqxrl._typing import Observation, Scalar, check_positive, field, typed, within
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs._wrappers import inner_picture
from eqxrl.envs.suites._gymnax import without_reset
from eqxrl.spaces import Box, Discrete, MultiDiscrete, Space, bounds, map_parts


@typed
class FrameStackState(eqx.Module):
    env_state: PyTree
    frames: Observation
    """The last observations, joined."""


class FrameStack(AbstractWrapper):
    """Shows the last `num_frames` observations, the newest last, joined along `axis`: images `[H W C]` become `[H W C*frames]`, vectors
    `[n]` become `[n*frames]`. At the start of an episode all are the first one. Dtypes are kept. Of a dict or tuple each array is
    joined by itself. A scalar counts as a vector of one, so that a choice (`Discrete`) becomes a vector of choices.

    Mnih et al. 2015, https://doi.org/10.1038/nature14236

    **Raises:** `ValueError` if `num_frames` is less than 1; when the observation space is asked for, for an axis that an array hasn't.
    """

    env: Any = eqx.field(converter=without_reset)
    num_frames: int = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=-1)

    def __check_init__(self):
        check_positive(self, "num_frames")

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, FrameStackState]:
        self.observation_space(params)  # which says what doesn't fit
        obs, state = self.env.reset(key, params)
        frames = jax.tree.map(self._repeated, obs)
        return frames, FrameStackState(env_state=state, frames=frames)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, env_state, *rest = self.env.step(key, state.env_state, action, params)
        frames = jax.tree.map(self._appended, state.frames, obs)
        return frames, FrameStackState(env_state=env_state, frames=frames), *rest

    def observation_space(self, params: Any = None) -> Space:
        return map_parts(self._stacked, self.env.observation_space(params))

    def _repeated(self, x: Any) -> Shaped[Array, "..."]:
        return jnp.concatenate(self.num_frames * [jnp.atleast_1d(x)], self.axis)

    def _appended(self, frames: Shaped[Array, "..."], x: Any) -> Shaped[Array, "..."]:
        newest = jnp.atleast_1d(jnp.asarray(x, frames.dtype))
        kept = jax.lax.slice_in_dim(frames, newest.shape[self.axis], None, axis=self.axis)
        return jnp.concatenate([kept, newest], self.axis)

    def _stacked(self, space: Box | Discrete | MultiDiscrete) -> Box | MultiDiscrete:
        num_axes = max(len(space.shape), 1)
        if not -num_axes <= self.axis < num_axes:
            raise ValueError(
                f"FrameStack got axis={self.axis}, but an observation of {space} has {num_axes}: pass an axis from {-num_axes} to "
                f"{num_axes - 1}"
            )
        if isinstance(space, Discrete):
            return MultiDiscrete(self.num_frames * (space.n,), space.dtype)
        if isinstance(space, MultiDiscrete):
            return MultiDiscrete(self.num_frames * space.nvec, space.dtype)
        low, high = map(self._repeated, bounds(space))
        return Box(low, high, low.shape, space.dtype)

    picture = property(inner_picture)


@typed
class HideObservation(AbstractWrapper):
    """With `probability`, at each step and at the start of an episode, the whole observation is zeros: what was to be seen then has to be
    remembered. Chance falls anew each time. The bounds of the observation space include 0.

    Hausknecht and Stone 2015, https://arxiv.org/abs/1507.06527, where the probability is 0.5.
    """

    env: Any = eqx.field(converter=without_reset)
    probability: Scalar = field(default=0.5, metadata=within(0.0, 1.0))

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        reset_key, hide_key = jr.split(key)
        obs, state = self.env.reset(reset_key, params)
        return self._hidden(obs, hide_key), state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        step_key, hide_key = jr.split(key)
        obs, *rest = self.env.step(step_key, state, action, params)
        return self._hidden(obs, hide_key), *rest

    def observation_space(self, params: Any = None) -> Space:
        return map_parts(_with_zero, self.env.observation_space(params))

    def _hidden(self, obs: Any, key: Key[Array, ""]) -> Any:
        hide = jr.bernoulli(key, self.probability)
        return jax.tree.map(lambda x: jnp.where(hide, jnp.zeros_like(x), x), obs)


def _with_zero(space: Box | Discrete | MultiDiscrete) -> Box | Discrete | MultiDiscrete:
    if not isinstance(space, Box):
        return space
    low, high = bounds(space)
    return Box(jnp.minimum(low, 0), jnp.maximum(high, 0), space.shape, space.dtype)
