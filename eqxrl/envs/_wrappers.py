from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._typing import typed
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs.suites._gymnax import without_reset
from eqxrl.spaces import Box, Dict, as_space, bounds, zeros


def inner_picture(wrapper: AbstractWrapper) -> Callable[[Any, Any], Any]:
    """The `picture` of a wrapper whose state keeps the inner one in `env_state`: that of the environment inside, if it has one."""
    draw = wrapper.env.picture
    return lambda state, params: draw(state.env_state, params)


class Options(dict[str, Any]):
    """Arguments by name, which can be a static field."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self))


class WithOptions(AbstractWrapper):
    """An environment that `make` made with options. It changes nothing: a run's folder tells them by it."""

    env: Any
    env_id: str = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self.env.step(key, state, action, params)


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


class SelectObservation(AbstractWrapper):
    """Shows some components of a Box observation that is a vector: what is hidden then has to be remembered or inferred.

    **Raises:** `TypeError` for another observation space, `ValueError` for components that it hasn't.
    """

    env: Any = eqx.field(converter=without_reset)
    components: tuple[int, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True, default="")
    """What this environment is called, if not as the one inside."""

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        self.observation_space(params)  # which says what doesn't fit
        obs, state = self.env.reset(key, params)
        return jnp.stack([obs[i] for i in self.components]), state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, *rest = self.env.step(key, state, action, params)
        return jnp.stack([obs[i] for i in self.components]), *rest

    def observation_space(self, params: Any = None) -> Box:
        space = as_space(self.env.observation_space(params))
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise TypeError(f"SelectObservation takes components of a vector, but the observation space is {space}")
        if not self.components or not all(0 <= i < space.shape[0] for i in self.components):
            raise ValueError(f"SelectObservation got components={self.components} of an observation of {space.shape[0]}")
        low, high = (jnp.stack([x[i] for i in self.components]) for x in bounds(space))
        return Box(low, high, (len(self.components),), space.dtype)


@typed
class LastStepState(eqx.Module):
    env_state: PyTree
    action: PyTree
    reward: Float[Array, ""]


class ShowLastStep(AbstractWrapper):
    """Adds to the observation what a policy with a hidden state may need besides: the last action and its reward, zeros at the start of an
    episode, and whether this is the start. The observation is a dict of `obs`, `action`, `reward` and `start`."""

    env: Any = eqx.field(converter=without_reset)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, LastStepState]:
        obs, state = self.env.reset(key, params)
        last = LastStepState(env_state=state, action=zeros(self.env.action_space(params)), reward=jnp.zeros((), jnp.float32))
        return self._shown(obs, last, 1.0), last

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, env_state, reward, *rest = self.env.step(key, state.env_state, action, params)
        action = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), action, state.action)
        last = LastStepState(env_state=env_state, action=action, reward=jnp.asarray(reward, jnp.float32).reshape(()))
        return self._shown(obs, last, 0.0), last, reward, *rest

    def _shown(self, obs: Any, last: LastStepState, start: float) -> dict[str, Any]:
        return {"obs": obs, "action": last.action, "reward": last.reward, "start": jnp.float32(start)}

    def observation_space(self, params: Any = None) -> Dict:
        spaces = {"obs": self.env.observation_space(params), "action": self.env.action_space(params)}
        return Dict(spaces | {"reward": Box(-jnp.inf, jnp.inf, ()), "start": Box(0.0, 1.0, ())})

    picture = property(inner_picture)


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

    picture = property(inner_picture)
