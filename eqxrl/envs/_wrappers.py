"""Environments around environments."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Int, Key, PyTree

from eqxrl._typing import typed
from eqxrl.envs._protocol import (
    AbstractWrapper,
    EnvError,
    Transition,
    advance,
    as_flag,
    final_observation,
    select,
    separable,
    step_with_reset,
)


class TimeLimitIsTerminal(AbstractWrapper):
    """Reports an episode that was cut off as one that terminated; `truncated` is always false, so nothing is bootstrapped at
    a time limit. This biases the values (Pardo et al. 2018, https://arxiv.org/abs/1712.00378); it is here to reproduce
    code that does so."""

    env: Any

    @property
    def separable(self) -> bool:
        return separable(self.env)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self._merge(*advance(self.env, key, state, action, params))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self._merge(*self.env.step(key, state, action, params))

    def _merge(self, obs: Any, state: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> Transition:
        return obs, state, reward, as_flag(terminated) | as_flag(truncated), jnp.zeros((), jnp.bool_), info


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

    env: Any
    max_steps: int = eqx.field(static=True)

    def __check_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"TimeLimit got max_steps={self.max_steps}; an episode has at least 1 step")

    @property
    def separable(self) -> bool:
        return separable(self.env)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, TimeLimitState]:
        obs, state = self.env.reset(key, params)
        return obs, TimeLimitState(env_state=state, time=jnp.zeros((), jnp.int32))

    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, env_state, reward, terminated, truncated, info = advance(self.env, key, state.env_state, action, params)
        time = state.time + 1
        truncated = as_flag(truncated) | (time >= self.max_steps)
        return obs, TimeLimitState(env_state=env_state, time=time), reward, terminated, truncated, info

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        if self.separable:
            return step_with_reset(self, key, state, action, params)
        # The inner environment resets by itself when it is done, and only then; elsewhere our own limit must.
        key_step, key_reset = jr.split(key)
        obs, inner, reward, terminated, truncated, info = self.env.step(key_step, state.env_state, action, params)
        inner_done = as_flag(terminated) | as_flag(truncated)
        time = state.time + 1
        cut = time >= self.max_steps
        obs, inner = select(cut & ~inner_done, self.env.reset(key_reset, params), (obs, inner))
        time = jnp.where(cut | inner_done, 0, time)
        info = {**info, "final_observation": final_observation(self.env, info)}
        return obs, TimeLimitState(env_state=inner, time=time), reward, terminated, as_flag(truncated) | cut, info


class AutoReset(AbstractWrapper):
    """An environment from its parts: `reset_env(key, params) -> (obs, state)`, `step_env(key, state, action, params) -> (obs,
    state, reward, terminated, info)` and `is_truncated(state, params)`. Always separable."""

    env: Any

    @property
    def separable(self) -> bool:
        return True

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset_env(key, params)

    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        return obs, state, reward, terminated, self.env.is_truncated(state, params), {**info, "final_observation": obs}

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return step_with_reset(self, key, state, action, params)


class FiveValueStep(AbstractWrapper):
    """An environment of the old interface, `step(...) -> (obs, state, reward, done, info)`, with the new one.

    - `truncated` is `info["truncated"]`, `info["truncation"]` or `info["TimeLimit.truncated"]`, the first that there is, else
      false; it counts where `done`. `terminated` is `done` and not `truncated`. An environment that folds its time limit
      into `done` and says nothing in `info` has its time limits taken for terminations: nothing else can be known.
    - The final observation is what `step_env` returns, for an environment that *inherits* `step` and `reset` from a base of
      the class that defines `step_env` and `reset_env`, as all of gymnax before 1.0 did: `step` is then not called, and
      the wrapper is separable. Where a class defines its own `step`, that one is called, and the final observation is
      `info["final_observation"]` or `info["terminal_observation"]`, else `step_env`'s for the same state, action and
      first half of the key, as gymnax splits it (`check_env` finds out if that isn't so).
    - With neither, a *truncated* episode is an error: the observation after the reset would be bootstrapped in place of the
      last one, silently. If nothing is ever truncated the observation after the reset stands in, since after a
      termination no value is looked up.

    **Raises:** `EnvError` on a step, when truncation is reported but no final observation can be had.
    """

    env: Any

    @property
    def separable(self) -> bool:
        return _inherits(self.env, "step", "step_env") and _inherits(self.env, "reset", "reset_env")

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, state, reward, done, info = self.env.step_env(key, state, action, params)
        terminated, truncated, _ = _flags(done, info)
        return obs, state, reward, terminated, truncated, {**info, "final_observation": obs}

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        if self.separable:
            return step_with_reset(self, key, state, action, params)
        obs, next_state, reward, done, info = self.env.step(key, state, action, params)
        terminated, truncated, told = _flags(done, info)
        final = _first(info, ("final_observation", "terminal_observation"))
        if final is None and _owner(self.env, "step_env") is not None:
            final = self.env.step_env(jr.split(key)[0], state, action, params)[0]
        if final is None and told:
            raise EnvError(
                f"{type(self.env).__name__}.step reports truncation but not the observation before the reset, so the value "
                'of an episode that was cut off cannot be bootstrapped; put it into info["final_observation"], or give '
                "the class a step_env"
            )
        final = obs if final is None else final
        return obs, next_state, reward, terminated, truncated, {**info, "final_observation": final}


def _owner(env: Any, name: str) -> int | None:
    """How far up among the bases of its class `env` gets `name` from, 0 for its own class and -1 for the object itself. What
    `__getattr__` delegates to a wrapped environment doesn't count: that one has another state."""
    if name in getattr(env, "__dict__", {}):
        return -1
    return next((i for i, cls in enumerate(type(env).__mro__) if name in vars(cls)), None)


def _inherits(env: Any, method: str, hook: str) -> bool:
    """`method` comes from a base of the class that defines `hook`, so it can't do more than the base's."""
    method_owner, hook_owner = _owner(env, method), _owner(env, hook)
    return method_owner is not None and hook_owner is not None and method_owner > hook_owner


def _first(info: Any, names: tuple[str, ...]) -> Any:
    return next((info[name] for name in names if name in info), None) if isinstance(info, Mapping) else None


def _flags(done: Any, info: Any) -> tuple[Bool[Array, ""], Bool[Array, ""], bool]:
    """terminated, truncated, and whether `info` says anything about truncation."""
    done = _to_bool(done)
    truncated = _first(info, ("truncated", "truncation", "TimeLimit.truncated"))
    if truncated is None:
        return done, jnp.zeros((), jnp.bool_), False
    truncated = _to_bool(truncated) & done  # without `done` the environment has not reset itself
    return done & ~truncated, truncated, True


def _to_bool(flag: Any) -> Bool[Array, ""]:
    """Old environments also give their flags as numbers."""
    return as_flag(jnp.asarray(flag).astype(jnp.bool_))
