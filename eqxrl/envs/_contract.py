"""What can be found out about an environment by tracing it: nothing is run, and nothing compiled."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from eqxrl._typing import describe
from eqxrl.envs._protocol import AbstractWrapper, EnvError, class_name
from eqxrl.envs.suites._gymnax import Gymnax, is_gymnax, without_reset
from eqxrl.spaces import Dict, Tuple, as_space, check_action_space, zeros

METHODS = ("reset", "step", "observation_space", "action_space")
SIX = "(obs, state, reward, terminated, truncated, info)"


def as_environment(env: Any, env_params: Any = None) -> Any:
    """`env` as an `Environment`: one of gymnax in `Gymnax`, any other as it is.

    - `env_params`: `env.default_params` by default, or `None` where it has none.

    **Raises:** `TypeError` for what is no environment, or has an action space in which no policy can act; `EnvError` where
    its `step` can't be traced, doesn't return six values, or resets by itself.
    """
    if isinstance(env, tuple):
        raise TypeError(
            f"got a tuple of {len(env)} as env; pass its parts, as in: env, env_params = make(...), then env=env, env_params=env_params"
        )
    if isinstance(env, type | str):
        what = f"the class {env.__name__}; pass an instance of it" if isinstance(env, type) else f"{env!r}; pass it as env_id"
        raise TypeError(f"env must be an environment, but is {what}")
    name = class_name(env)
    missing = [method for method in METHODS if not callable(getattr(env, method, None))]
    if missing:
        raise TypeError(f"{name} has no method {', '.join(missing)}; an environment needs {', '.join(METHODS)}")
    if isinstance(env, AbstractWrapper) and not isinstance(env, Gymnax) and is_gymnax(env.env):
        raise EnvError(
            f"{type(env).__name__} wraps {type(env.env).__name__} of gymnax, which resets itself; wrap eqxrl.envs.Gymnax(env) "
            "around it first, or what eqxrl.make returns"
        )
    env_params = getattr(env, "default_params", None) if env_params is None else env_params
    if isinstance(env, AbstractWrapper):
        as_environment(env.env, env_params)  # what is wrong there is told as it is
    try:
        check_action_space(env.action_space(env_params))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}.action_space: {error}") from error
    values = trace_step(env, env_params)
    if len(values) != 6:
        hint = (
            ": tell the end of the task (terminated) from a time limit (truncated), in place of one done. gymnax's "
            "LegacyStepAPIWrapper can be left out"
        )
        raise EnvError(f"{name}.step returns {len(values)} values, but must return {SIX}{hint if len(values) == 5 else ''}")
    if is_gymnax(env):
        env = without_reset(env)
        trace_step(env, env_params)
    elif isinstance(values[5], Mapping) and "final_observation" in values[5]:
        raise EnvError(
            f'{name}.step gives info["final_observation"], as a step does that resets by itself; never reset in step: return '
            "the observation and the state that the action led to, and leave final_observation out (around an environment of "
            "gymnax, wrap eqxrl.envs.Gymnax(env))"
        )
    return env


def check_spaces(env: Any, env_params: Any = None) -> None:
    """Checks, by tracing alone, that what `env` returns fits its spaces: observations in structure and shape (a dtype may
    differ from the declared one: some of gymnax's do), scalar rewards and flags, a state that keeps its structure,
    shapes and dtypes.

    **Raises:** what `as_environment` does; `EnvError` for the rest, naming all that is wrong.
    """
    env = as_environment(env, env_params)
    env_params = getattr(env, "default_params", None) if env_params is None else env_params
    raise_if(env, contract(env, env_params)[0])


def raise_if(env: Any, problems: list[str]) -> None:
    if problems:
        count = "1 place" if len(problems) == 1 else f"{len(problems)} places"
        listed = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(problems, 1))
        raise EnvError(f"{class_name(env)} breaks the contract of an environment in {count}:{listed}")


def trace_reset(env: Any, env_params: Any) -> tuple[Any, Any]:
    return _trace(env, "reset", 2, "(obs, state)", lambda key: env.reset(key, env_params))


def trace_step(env: Any, env_params: Any) -> tuple[Any, ...]:
    """What `step` returns for the first state: `jax.ShapeDtypeStruct`s in place of arrays."""
    _, state = trace_reset(env, env_params)
    state = jax.tree.map(lambda x: x if _shape_dtype(x)[0] is None else jax.ShapeDtypeStruct(*_shape_dtype(x)), state)
    action = jax.eval_shape(lambda: zeros(env.action_space(env_params)))
    return _trace(env, "step", None, SIX, lambda key, *args: env.step(key, *args, env_params), state, action)


def _trace(env: Any, method: str, num_values: int | None, values: str, run: Any, *args: Any) -> Any:
    name = f"{class_name(env)}.{method}"
    try:
        out = eqx.filter_eval_shape(run, jr.key(0), *args)
    except EnvError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise EnvError(
            f"{name} could not be traced ({type(error).__name__}: {line}); it is called as "
            "reset(key, params) and step(key, state, action, params), and must be jittable"
        ) from error
    if not isinstance(out, tuple) or len(out) != (num_values or len(out)):
        got = f"{len(out)} values" if isinstance(out, tuple) else f"one {type(out).__name__}"
        raise EnvError(f"{name} must return {values}, not {got}")
    return out


def contract(env: Any, env_params: Any) -> tuple[list[str], list[str]]:
    """What breaks the contract in an environment that `as_environment` let pass, and what is only unusual."""
    hard: list[str] = []
    soft: list[str] = []
    obs, state = trace_reset(env, env_params)
    next_obs, next_state, reward, terminated, truncated, info = trace_step(env, env_params)
    _fits(env.observation_space(env_params), obs, "the observation of reset", hard, soft)
    _alike("observation", obs, next_obs, hard)
    _alike("state", state, next_state, hard)
    for what, x in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        shape, dtype = _shape_dtype(x)
        if shape is None or any(n != 1 for n in shape):
            hard.append(f"{what} must be a scalar, but is {_describe(x)}: one environment is stepped at a time")
            continue
        if shape:
            soft.append(f"{what} is {_describe(x)}, an array of one number; it is made a scalar")
        if what != "reward" and dtype != jnp.bool_:
            hard.append(f"{what} must be a bool, but is {_describe(x)}: return {what}.astype(bool)")
        if what == "reward" and not jnp.issubdtype(dtype, jnp.floating):
            soft.append(f"reward is {_describe(x)}; it is made a float32")
    others = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(info) if _shape_dtype(x)[0] is None]
    if not isinstance(info, Mapping) or others:
        hard.append(f"info must be a dict of arrays, but {f'info{others[0]} is none' if others else f'is {_describe(info)}'}")
    return hard, soft


def _fits(space: Any, obs: Any, where: str, hard: list[str], soft: list[str]) -> None:
    try:
        space = as_space(space)
    except (TypeError, ValueError) as error:
        hard.append(f"observation_space: {error}")
        return
    if isinstance(space, Dict | Tuple):
        parts = space.spaces if isinstance(space, Dict) else dict(enumerate(space.spaces))
        if isinstance(obs, Mapping):
            found = dict(obs)
        elif isinstance(obs, tuple | list) and isinstance(space, Tuple):
            found = dict(enumerate(obs))
        else:  # a struct with a field for each space
            found = {name: getattr(obs, str(name)) for name in parts if hasattr(obs, str(name))}
        if set(found) != set(parts):
            hard.append(f"{where} has the parts {sorted(map(str, found))}, its space {sorted(map(str, parts))}")
            return
        for name, part in parts.items():
            _fits(part, found[name], f"{where}, part {name!r}", hard, soft)
        return
    shape, dtype = _shape_dtype(obs)
    if shape != space.shape:
        hard.append(f"{where} is {_describe(obs)}, but observation_space has shape {list(space.shape)}: mend one of them")
    elif dtype != space.dtype:
        soft.append(f"{where} is {dtype.name}, observation_space says {space.dtype.name}")


def _alike(what: str, first: Any, other: Any, hard: list[str]) -> None:
    if jax.tree.structure(first) != jax.tree.structure(other):
        hard.append(
            f"the {what} of reset and of step differ in structure, {jax.tree.structure(first)} against "
            f"{jax.tree.structure(other)}: return the same pytree from both"
        )
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(other)):
        if _shape_dtype(a) != _shape_dtype(b) or _shape_dtype(a)[0] is None:
            hard.append(
                f"the {what}{jax.tree_util.keystr(path)} is {_describe(a)} in reset, but {_describe(b)} in step: "
                "return arrays of one shape and dtype"
            )


def _shape_dtype(x: Any) -> tuple[tuple[int, ...] | None, Any]:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return tuple(x.shape), x.dtype
    if isinstance(x, bool | int | float | complex):
        return (), jnp.result_type(x)
    return None, None


def _describe(x: Any) -> str:
    shape, dtype = _shape_dtype(x)
    return describe(x) if shape is None else f"{dtype.name}[{' '.join(map(str, shape))}]"
