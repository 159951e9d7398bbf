"""What can be found out about an environment by tracing it: nothing is run, and nothing compiled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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


class Findings(NamedTuple):
    """What breaks the contract, and what is only unusual."""

    hard: list[str]
    soft: list[str]


def as_environment(env: Any, env_params: Any = None) -> Any:
    """`env` as an `Environment`: one of gymnax in `Gymnax`, any other as it is.

    - `env_params`: `env.default_params` by default, or `None` where it has none.

    **Raises:** `TypeError` for what is no environment, or has an action space in which no policy can act; `EnvError` where
    its `step` can't be traced, doesn't return six values, or resets by itself.
    """
    return trace(env, env_params)[0]


def trace(env: Any, env_params: Any) -> tuple[Any, Any, tuple[Any, ...], tuple[Any, ...]]:
    """What `as_environment` gives, the parameters, and what `reset` and, for the first state, `step` return:
    `jax.ShapeDtypeStruct`s in place of arrays and numbers."""
    if isinstance(env, tuple):
        how = "env, env_params = make(...), then env=env, env_params=env_params"
        raise TypeError(f"got a tuple of {len(env)} as env; pass its parts, as in: {how}")
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
    first, stepped = _outputs(env, env_params)
    if len(stepped) != 6:
        hint = ": tell the end of the task (terminated) from a time limit (truncated), in place of one done. gymnax's "
        hint = f"{hint}LegacyStepAPIWrapper can be left out" if len(stepped) == 5 else ""
        raise EnvError(f"{name}.step returns {len(stepped)} values, but must return {SIX}{hint}")
    if is_gymnax(env):
        env = without_reset(env)
        first, stepped = _outputs(env, env_params)
    elif isinstance(stepped[5], Mapping) and "final_observation" in stepped[5]:
        raise EnvError(
            f'{name}.step gives info["final_observation"], as a step does that resets by itself; never reset in step: return '
            "the observation and the state that the action led to, and leave final_observation out (around an environment of "
            "gymnax, wrap eqxrl.envs.Gymnax(env))"
        )
    return env, env_params, first, stepped


def check_spaces(env: Any, env_params: Any = None) -> None:
    """Checks, by tracing alone, that what `env` returns fits its spaces: observations in structure and shape (a dtype may
    differ from the declared one: some of gymnax's do), scalar rewards and flags, a state that keeps its structure,
    shapes and dtypes.

    **Raises:** what `as_environment` does; `EnvError` for the rest, naming all that is wrong.
    """
    raise_if(env, contract(*trace(env, env_params)).hard)


def raise_if(env: Any, problems: list[str]) -> None:
    if problems:
        count = "1 place" if len(problems) == 1 else f"{len(problems)} places"
        listed = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(problems, 1))
        raise EnvError(f"{class_name(env)} breaks the contract of an environment in {count}:{listed}")


def _outputs(env: Any, env_params: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    first = _call(env, "reset", "(obs, state)", lambda key: env.reset(key, env_params))
    if len(first) != 2:
        raise EnvError(f"{class_name(env)}.reset must return (obs, state), not {len(first)} values")
    action = jax.eval_shape(lambda: zeros(env.action_space(env_params)))
    return first, _call(env, "step", SIX, lambda key, *args: env.step(key, *args, env_params), first[1], action)


def _call(env: Any, method: str, values: str, run: Any, *args: Any) -> tuple[Any, ...]:
    name = f"{class_name(env)}.{method}"
    try:
        out = eqx.filter_eval_shape(run, jax.eval_shape(jr.key, 0), *args)
    except EnvError:
        raise
    except Exception as error:
        raise EnvError(
            f"{name} could not be traced ({type(error).__name__}: {first_line(error)}); it is called as "
            "reset(key, params) and step(key, state, action, params), and must be jittable"
        ) from error
    if not isinstance(out, tuple):
        raise EnvError(f"{name} must return {values}, not one {type(out).__name__}")
    return tuple(jax.tree.map(_shape, out))


def _shape(x: Any) -> Any:
    """Without a weak type, which a stepper takes away as well."""
    if isinstance(x, bool | int | float | complex):
        return jax.ShapeDtypeStruct((), jnp.result_type(x))
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") and hasattr(x, "dtype") else x


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def contract(env: Any, env_params: Any, first: tuple[Any, ...], stepped: tuple[Any, ...]) -> Findings:
    """How what `trace` gives fits the environment's spaces, and itself."""
    found = Findings([], [])
    obs, state = first
    next_obs, next_state, *scalars, info = stepped
    _fits(env.observation_space(env_params), obs, "the observation of reset", found)
    _alike("observation", obs, next_obs, found)
    _alike("state", state, next_state, found)
    for what, x in zip(("reward", "terminated", "truncated"), scalars, strict=True):
        if any(n != 1 for n in getattr(x, "shape", [None])):
            found.hard.append(f"{what} must be a scalar, but is {describe(x)}: one environment is stepped at a time")
            continue
        if x.shape:
            found.soft.append(f"{what} is {describe(x)}, an array of one number; it is made a scalar")
        if what != "reward" and x.dtype != jnp.bool_:
            found.hard.append(f"{what} must be a bool, but is {describe(x)}: return {what}.astype(bool)")
        if what == "reward" and not jnp.issubdtype(x.dtype, jnp.floating):
            found.soft.append(f"reward is {describe(x)}; it is made a float32")
    others = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(info) if not hasattr(x, "shape")]
    if not isinstance(info, Mapping) or others:
        found.hard.append(f"info must be a dict of arrays, but {f'info{others[0]} is none' if others else f'is {describe(info)}'}")
    return found


def _fits(space: Any, obs: Any, where: str, found: Findings) -> None:
    try:
        space = as_space(space)
    except (TypeError, ValueError) as error:
        found.hard.append(f"observation_space: {error}")
        return
    if isinstance(space, Dict | Tuple):
        wanted = space.spaces if isinstance(space, Dict) else dict(enumerate(space.spaces))
        if isinstance(obs, Mapping):
            parts = dict(obs)
        elif isinstance(obs, tuple | list) and isinstance(space, Tuple):
            parts = dict(enumerate(obs))
        else:  # a struct with a field for each space
            parts = {name: getattr(obs, str(name)) for name in wanted if hasattr(obs, str(name))}
        if set(parts) != set(wanted):
            found.hard.append(f"{where} has the parts {sorted(map(str, parts))}, its space {sorted(map(str, wanted))}")
            return
        for name, part in wanted.items():
            _fits(part, parts[name], f"{where}, part {name!r}", found)
    elif getattr(obs, "shape", None) != space.shape:
        found.hard.append(f"{where} is {describe(obs)}, but observation_space has shape {list(space.shape)}: mend one of them")
    elif obs.dtype != space.dtype:
        found.soft.append(f"{where} is {obs.dtype.name}, observation_space says {space.dtype.name}")


def _alike(what: str, first: Any, other: Any, found: Findings) -> None:
    structures = jax.tree.structure(first), jax.tree.structure(other)
    if structures[0] != structures[1]:
        found.hard.append(
            f"the {what} of reset and of step differ in structure, {structures[0]} against {structures[1]}: "
            "return the same pytree from both"
        )
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(other)):
        if describe(a) != describe(b) or not hasattr(a, "shape"):
            found.hard.append(
                f"the {what}{jax.tree_util.keystr(path)} is {describe(a)} in reset, but {describe(b)} in step: "
                "return arrays of one shape and dtype"
            )
