"""What can be found out about an environment by tracing it: nothing is run, and nothing compiled."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from eqxrl._typing import describe
from eqxrl.envs._protocol import EnvError
from eqxrl.envs._spaces import check_action_space, children, is_box, is_discrete, space_dtype, zeros
from eqxrl.envs._wrappers import AutoReset, FiveValueStep


def adapt(env: Any, env_params: Any) -> Any:
    """`env`, such that its `step` returns six values, as `eqxrl.envs` says. As it is, where it does; in `FiveValueStep`, where
    it returns the five of the old interface; in `AutoReset`, where it has no `step` but `step_env`, `reset_env` and
    `is_truncated`.

    **Raises:** `TypeError` where it is none of these, `EnvError` where it cannot be traced, or where it cuts episodes off
    and hides their last observation.
    """
    name = type(env).__name__
    if not hasattr(env, "step"):
        missing = [f for f in ("step_env", "reset_env", "is_truncated") if not hasattr(env, f)]
        if missing:
            raise TypeError(f"{name} has no method step, and without one it needs {', '.join(missing)} too")
        env = AutoReset(env)
    missing = [f for f in ("reset", "observation_space", "action_space") if not hasattr(env, f)]
    if missing:
        raise TypeError(f"{name} has no method {', '.join(missing)}; an environment needs reset, step and both spaces")
    values = trace_step(env, env_params)
    if len(values) == 6:
        return env
    if len(values) == 5:
        env = FiveValueStep(env)
        trace_step(env, env_params)
        return env
    raise TypeError(
        f"{name}.step returned {len(values)} values, but it must return (obs, state, reward, terminated, truncated, info), "
        "or the older (obs, state, reward, done, info)"
    )


def check_spaces(env: Any, env_params: Any) -> None:
    """Checks, by tracing alone, that what `env` returns fits its spaces: observations in structure and shape (a dtype may
    differ from the declared one: some of gymnax's do), scalar rewards and flags, a final observation, a state that keeps
    its structure, shapes and dtypes; and that a policy can act in its action space.

    **Raises:** `TypeError` for an action space that is neither discrete nor a box of floats; `EnvError` for the rest, naming
    all that is wrong.
    """
    check_action_space(env.action_space(env_params))
    hard, _ = contract(env, env_params)
    if hard:
        raise_all(env, hard)


def raise_all(env: Any, problems: list[str]) -> None:
    count = "1 place" if len(problems) == 1 else f"{len(problems)} places"
    listed = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(problems, 1))
    raise EnvError(f"{type(env).__name__} breaks the contract of an environment in {count}:{listed}")


def trace_reset(env: Any, env_params: Any) -> PyTree:
    return _trace(env, "reset", lambda key: env.reset(key, env_params))


def trace_step(env: Any, env_params: Any) -> tuple[Any, ...]:
    """What `step` returns for the first state: `jax.ShapeDtypeStruct`s in place of arrays."""

    def run(key: Any) -> Any:
        reset = env.reset(key, env_params)
        if not isinstance(reset, tuple) or len(reset) != 2:
            raise EnvError(f"{type(env).__name__}.reset must return (obs, state), not {_count(reset)}")
        return env.step(key, reset[1], zeros(env.action_space(env_params)), env_params)

    values = _trace(env, "step", run)
    if not isinstance(values, tuple):
        raise EnvError(
            f"{type(env).__name__}.step must return (obs, state, reward, terminated, truncated, info), not {_count(values)}"
        )
    return values


def contract(env: Any, env_params: Any) -> tuple[list[str], list[str]]:
    """What breaks the contract, and what is only unusual."""
    hard: list[str] = []
    soft: list[str] = []
    missing = [f for f in ("reset", "step", "observation_space", "action_space") if not hasattr(env, f)]
    if missing:
        return [f"it has no method {', '.join(missing)}"], soft
    try:
        check_action_space(env.action_space(env_params))
    except TypeError as error:
        return [str(error)], soft
    try:
        reset, values = trace_reset(env, env_params), trace_step(env, env_params)
    except EnvError as error:
        return [str(error)], soft
    if len(values) != 6:
        hint = "; eqxrl.envs.adapt makes it speak the new interface" if len(values) == 5 else ""
        return [f"step returns {len(values)} values, not (obs, state, reward, terminated, truncated, info){hint}"], soft

    (obs, state), (next_obs, next_state, reward, terminated, truncated, info) = reset, values
    _fits(env.observation_space(env_params), obs, "the observation of reset", hard, soft)
    _alike("observation", obs, "step", next_obs, hard)
    _alike("state", state, "step", next_state, hard)
    if isinstance(info, Mapping) and "final_observation" in info:
        _alike("observation", obs, 'info["final_observation"]', info["final_observation"], hard)
    else:
        hard.append('step gives no info["final_observation"]: put the observation before the reset there')
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
    return hard, soft


def _trace(env: Any, method: str, run: Any) -> Any:
    try:
        return eqx.filter_eval_shape(run, jr.key(0))
    except EnvError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise EnvError(
            f"{type(env).__name__}.{method} could not be traced ({type(error).__name__}: {line}); it is called as "
            "reset(key, params) and step(key, state, action, params), and must be jittable"
        ) from error


def _fits(space: Any, obs: Any, where: str, hard: list[str], soft: list[str]) -> None:
    if (parts := children(space)) is not None:
        names = [name for name, _ in parts]
        if isinstance(obs, Mapping):
            found = dict(obs)
        elif isinstance(obs, tuple | list) and not isinstance(space.spaces, Mapping):
            found = dict(enumerate(obs))
        else:  # a struct with a field for each space
            found = {name: getattr(obs, str(name)) for name in names if hasattr(obs, str(name))}
        if set(found) != set(names):
            hard.append(f"{where} has the parts {sorted(map(str, found))}, its space {sorted(map(str, names))}")
            return
        for name, part in parts:
            _fits(part, found[name], f"{where}, part {name!r}", hard, soft)
    elif is_box(space) or is_discrete(space):
        shape, dtype = _shape_dtype(obs)
        declared = tuple(space.shape) if is_box(space) else ()
        if shape != declared:
            hard.append(f"{where} is {_describe(obs)}, but observation_space has shape {list(declared)}: mend one of them")
        elif dtype != space_dtype(space):
            soft.append(f"{where} is {dtype.name}, observation_space says {space_dtype(space).name}")
    else:
        hard.append(f"observation_space holds {space!r}; what is known is Discrete, Box, Dict and Tuple")


def _alike(what: str, first: Any, where: str, other: Any, hard: list[str]) -> None:
    if jax.tree.structure(first) != jax.tree.structure(other):
        hard.append(
            f"the {what} of reset and of {where} differ in structure, {jax.tree.structure(first)} against "
            f"{jax.tree.structure(other)}: return the same pytree from both"
        )
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(other)):
        if _shape_dtype(a) != _shape_dtype(b) or _shape_dtype(a)[0] is None:
            hard.append(
                f"the {what}{jax.tree_util.keystr(path)} is {_describe(a)} in reset, but {_describe(b)} in {where}: "
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


def _count(x: Any) -> str:
    return f"{len(x)} values" if isinstance(x, tuple) else f"one {type(x).__name__}"
