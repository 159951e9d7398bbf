from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._typing import typed
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs.suites._gymnax import without_reset


class TimeLimitIsTerminal(AbstractWrapper):
    """Reports an episode that was cut off as one that terminated; `truncated` is always false, so nothing is bootstrapped at
    a time limit. This biases the values (Pardo et al. 2018, https://arxiv.org/abs/1712.00378); it is here to reproduce
    code that does so."""

    env: Any = eqx.field(converter=without_reset)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward, jnp.logical_or(terminated, truncated), jnp.zeros((), jnp.bool_), info


@typed
class TimeLimitState(eqx.Module):
    env_state: PyTree
    time: Int[Array, ""]
    """Steps taken in this episode."""


class TimeLimit(AbstractWrapper):
    """Cuts episodes off after `max_steps`, for an environment without a limit of its own; where it has one, the shorter
    counts. `episode_limit(params, env)` knows of it.

    **Raises:** `ValueError` if `max_steps` is less than 1.
    """

    env: Any = eqx.field(converter=without_reset)
    max_steps: int = eqx.field(static=True)

    def __check_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"TimeLimit got max_steps={self.max_steps}; an episode has at least 1 step")

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, TimeLimitState]:
        obs, state = self.env.reset(key, params)
        return obs, TimeLimitState(env_state=state, time=jnp.zeros((), jnp.int32))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, env_state, reward, terminated, truncated, info = self.env.step(key, state.env_state, action, params)
        time = state.time + 1
        return obs, TimeLimitState(env_state=env_state, time=time), reward, terminated, truncated | (time >= self.max_steps), info

    @property
    def picture(self) -> Callable[[TimeLimitState, Any], Any]:
        """That of the environment inside, if it has one."""
        draw = self.env.picture
        return lambda state, params: draw(state.env_state, params)
