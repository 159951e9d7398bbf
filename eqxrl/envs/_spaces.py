"""What the package needs to know of a space. Spaces are told apart by their attributes, so gymnax's, gymnasium's and a
user's own all do, and none of these packages is imported."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key, Num, PyTree, Shaped

from eqxrl.envs._protocol import AbstractWrapper
from eqxrl.envs._wrappers import TimeLimit


def is_discrete(space: Any) -> bool:
    """A choice among `space.n` numbers, from 0 on."""
    return hasattr(space, "n") and not hasattr(space, "spaces")


def is_box(space: Any) -> bool:
    """An array of shape `space.shape` between `space.low` and `space.high`."""
    return hasattr(space, "low") and hasattr(space, "high") and hasattr(space, "shape")


def children(space: Any) -> list[tuple[Any, Any]] | None:
    """`[(key, space)]` of a space that is made of others; `None` for any other."""
    if not hasattr(space, "spaces"):
        return None
    return list(space.spaces.items() if isinstance(space.spaces, Mapping) else enumerate(space.spaces))


def space_dtype(space: Any) -> Any:
    return jnp.dtype(getattr(space, "dtype", jnp.int32))


def check_action_space(space: Any) -> None:
    """**Raises:** `TypeError` unless `space` is discrete, or a box of floats."""
    if is_discrete(space):
        return
    if is_box(space) and jnp.issubdtype(space_dtype(space), jnp.floating):
        return
    raise TypeError(
        f"the action space is {space!r}, but policies act in a discrete space (with an `n`) or a box of floats (with "
        "`low`, `high`, `shape` and a floating `dtype`); wrap the environment so that it takes one of these"
    )


def bounds(space: Any) -> tuple[Num[Array, "..."], Num[Array, "..."]]:
    """`low` and `high` of a box, each of its own shape; they may be given as numbers."""
    low, high = (jnp.asarray(x, space_dtype(space)) for x in (space.low, space.high))
    return jnp.broadcast_to(low, space.shape), jnp.broadcast_to(high, space.shape)


def to_env_action(action_space: Any, action: Num[Array, "..."]) -> Num[Array, "..."]:
    """What the environment is given for a policy's `action`: a box action is clipped to `[low, high]`, a discrete one is
    left as it is; both get the space's dtype. Leading axes are free. Store and score the policy's own action, not this one.

    **Raises:** `ValueError` where the trailing axes are not those of the space, `TypeError` for an unsupported space.
    """
    check_action_space(action_space)
    if is_discrete(action_space):
        return action.astype(space_dtype(action_space))
    shape = tuple(action_space.shape)
    if action.shape[action.ndim - len(shape) :] != shape:
        raise ValueError(f"actions are {list(action.shape)}, but must end in the action space's shape, {list(shape)}")
    low, high = (jnp.broadcast_to(x, action.shape) for x in bounds(action_space))
    return jnp.clip(action.astype(low.dtype), low, high)


def zeros(space: Any) -> PyTree[Shaped[Array, "..."]]:
    """An array of the space's structure, for tracing: its value may lie outside."""
    if (parts := children(space)) is not None:
        if isinstance(space.spaces, Mapping):
            return {name: zeros(part) for name, part in parts}
        return tuple(zeros(part) for _, part in parts)
    return jnp.zeros(getattr(space, "shape", ()), space_dtype(space))


def sample(space: Any, key: Key[Array, ""]) -> Num[Array, "..."]:
    """A random action: uniform where there are bounds, standard normal in a dimension without."""
    check_action_space(space)
    if is_discrete(space):
        return jr.randint(key, (), 0, space.n, space_dtype(space))
    low, high = bounds(space)
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    key_uniform, key_normal = jr.split(key)
    uniform = jr.uniform(key_uniform, space.shape, low.dtype, jnp.where(finite, low, 0), jnp.where(finite, high, 1))
    return jnp.where(finite, uniform, jnp.clip(jr.normal(key_normal, space.shape, low.dtype), low, high))


def episode_limit(env_params: Any, env: Any = None) -> Any:
    """The most steps that an episode takes: `env_params.max_steps_in_episode`, rounded up to a whole number (it may be a
    float), or the `max_steps` of a `TimeLimit` around `env` where that is less. `None` where there is none or it is
    infinite. A traced value, such as a limit that `vmap` sweeps, comes back as it is.

    **Raises:** `ValueError` for a limit that is an array of several numbers.
    """
    limits = list(_time_limits(env))
    limit = getattr(env_params, "max_steps_in_episode", None)
    if isinstance(limit, Tracer):
        return jnp.minimum(limit, min(limits)) if limits else limit
    if limit is not None and np.size(limit) != 1:
        raise ValueError(
            f"max_steps_in_episode is an array of shape {list(np.shape(limit))}, so there is no one limit; "
            "vmap over the environment's parameters, so that each member sees its own"
        )
    if limit is not None and np.isfinite(limit):
        limits.append(math.ceil(np.asarray(limit).item()))
    return min(limits, default=None)


def _time_limits(env: Any) -> Iterator[int]:
    while isinstance(env, AbstractWrapper):
        if isinstance(env, TimeLimit):
            yield env.max_steps
        env = env.env
