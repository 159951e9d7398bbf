"""What the package asks of an environment, and how it takes a step in one.

An environment has

- `reset(key, params) -> (obs, state)`
- `step(key, state, action, params) -> (obs, state, reward, terminated, truncated, info)`, which resets by itself when the
  episode ends: `obs` and `state` then open the next one, and `info["final_observation"]` is what the action led to. Both
  flags may be true at once.
- `observation_space(params)`, `action_space(params)`, and `params.max_steps_in_episode` where there is a time limit.

as in gymnax 1.x. Every gymnax environment is one; so is an `eqx.Module` with these methods:

```python
class Walk(eqx.Module):
    goal: Float[Array, ""]                      # a leaf: can be swept by vmap

    def reset(self, key, params): ...
    def step(self, key, state, action, params): ...
    def observation_space(self, params): return gymnax.environments.spaces.Box(-1, 1, (2,))
    def action_space(self, params): return gymnax.environments.spaces.Discrete(2)
```

`step` computes a reset at every step and nearly always throws it away. An environment whose step comes apart from its
reset (`separable`) is spared that.
"""

import abc
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

from eqxrl._typing import Observation, describe, typed

Transition = tuple[Any, Any, Any, Any, Any, Any]
"""obs, state, reward, terminated, truncated, info"""


class EnvError(ValueError):
    """An environment that does not keep to the contract."""


class AbstractWrapper(eqx.Module):
    """An environment around another one, `env`, to which every attribute that it has not itself is delegated.

    A pytree: the arrays of an inner environment that is an `eqx.Module` stay leaves. Two wrappers are equal, and hash
    alike, when they wrap the same object with the same settings, so that wrapping anew does not compile anew.
    """

    env: eqx.AbstractVar[Any]

    @property
    @abc.abstractmethod
    def separable(self) -> bool:
        """Whether `transition` may be called."""

    @abc.abstractmethod
    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        """A first observation and state."""

    @abc.abstractmethod
    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        """One step, with no reset after it: what `step` does with the first half of its key, split in two. Only for a
        wrapper that is `separable`."""

    @abc.abstractmethod
    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        """One step, and a reset where the episode ended."""

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for dunders, and for `env` before it is set: delegating these would recurse for ever.
        if name == "env" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.env, name)


def separable(env: Any) -> bool:
    """Whether a step can be taken in `env` without computing a reset. True for a gymnax environment that overrides neither
    `Environment.step` nor `Environment.reset`, and for this package's wrappers around what can be taken apart. Never for
    gymnax's wrappers, which have only the whole step, nor for DeepSea, whose step carries counts over the reset. An
    environment that has `step_env`, `reset_env` and `is_truncated` but no `step` becomes separable through `adapt`.
    """
    if isinstance(env, AbstractWrapper):
        return env.separable
    module = sys.modules.get("gymnax.environments.environment")  # if it isn't imported, env is none of its environments
    if module is None:
        return False
    # Looked up without __getattr__ and on the instance too, where a function may have been put in the place of a method.
    return all(inspect.getattr_static(env, f, None) is getattr(module.Environment, f) for f in ("step", "reset"))


def advance(env: Any, key: Key[Array, ""], state: Any, action: Any, params: Any) -> Transition:
    """The six values of one step, not reset if `env` is separable and reset otherwise. `key` is then the one that `env`'s own
    `step` steps with, not the one that it splits."""
    if isinstance(env, AbstractWrapper) and env.separable:
        return env.transition(key, state, action, params)
    if separable(env):
        return _gymnax_transition(env, key, state, action, params)
    return env.step(key, state, action, params)


# jit for the same reason and with the same arguments as gymnax's own step: in there a Python float among the parameters is
# a traced float32, out here it would be computed with in double precision, and the two would differ in the last bit.
@partial(jax.jit, static_argnames=("env",))
def _gymnax_transition(env: Any, key: Key[Array, ""], state: Any, action: Any, params: Any) -> Transition:
    params = env.default_params if params is None else params
    obs, state, reward, terminated, info = env.step_env(key, state, action, params)
    return obs, state, reward, terminated, env.is_truncated(state, params), {**info, "final_observation": obs}


def step_with_reset(env: AbstractWrapper, key: Key[Array, ""], state: Any, action: Any, params: Any) -> Transition:
    """The `step` of a separable wrapper: as in gymnax's, one half of the key for the transition, the other for the reset."""
    key_step, key_reset = jr.split(key)
    obs, state, reward, terminated, truncated, info = env.transition(key_step, state, action, params)
    first = env.reset(key_reset, params)
    next_obs, next_state = select(as_flag(terminated) | as_flag(truncated), first, (obs, state))
    return next_obs, next_state, reward, terminated, truncated, {**info, "final_observation": obs}


def select(mask: Bool[Array, "*batch"], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leaf by leaf, the values of `on_true` where `mask`, else those of `on_false`, in their own dtype. The leaves start with
    the axes of `mask`."""

    def pick(path: Any, a: Any, b: Any) -> Shaped[Array, "..."]:
        a, b = jnp.asarray(a), jnp.asarray(b)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise EnvError(
                f"reset gives {describe(a)} and step {describe(b)} in (obs, state){jax.tree_util.keystr(path)}; "
                "both must give the same shape and dtype"
            )
        return jnp.where(mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim)), a, b)

    return jax.tree.map_with_path(pick, on_true, on_false)


def as_reward(reward: Any) -> Float[Array, ""]:
    """A float32 scalar; some environments give integers, or an array of one number."""
    return jnp.asarray(reward).reshape(()).astype(jnp.float32)


def as_flag(flag: Any) -> Bool[Array, ""]:
    return jnp.asarray(flag).reshape(())


def final_observation(env: Any, info: Any) -> Any:
    if not isinstance(info, Mapping) or "final_observation" not in info:
        raise EnvError(
            f'{type(env).__name__}.step gives no info["final_observation"], the observation before the reset; without it '
            "the value of an episode that was cut off cannot be bootstrapped"
        )
    return info["final_observation"]


@typed
class Step(eqx.Module):
    """One step of one environment."""

    obs: Observation
    """What the action led to; never a first observation of the next episode."""
    env_state: PyTree
    """Where the episode goes on. Where it ended there is nothing to go on from (an environment that is not separable has
    already been reset): reset before the next step."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]

    @property
    def done(self) -> Bool[Array, ""]:
        return self.terminated | self.truncated


def step(env: Any, key: Key[Array, ""], state: PyTree, action: Any, env_params: Any) -> Step:
    """One step of one environment. If `env` is `separable` no reset is computed; the transition is bit for bit the one of
    `env.step` with the same key."""
    if separable(env):
        key, _ = jr.split(key)
    _, state, reward, terminated, truncated, info = advance(env, key, state, action, env_params)
    obs = final_observation(env, info)
    return Step(
        obs=obs, env_state=state, reward=as_reward(reward), terminated=as_flag(terminated), truncated=as_flag(truncated)
    )
