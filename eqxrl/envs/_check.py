"""Does an environment keep the contract? Asked once, when it is written, not while it is trained in."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from eqxrl._typing import KeyLike, as_key, strong
from eqxrl.envs._contract import Findings, contract, first_line, raise_if, trace
from eqxrl.envs._protocol import class_name, episode_limit
from eqxrl.envs._stepper import select
from eqxrl.spaces import Box, as_space, bounds, sample

NUM_ENVS = 4
NUM_RESETS = 64


def check_env(env: Any, env_params: Any = None, *, num_steps: int = 200, key: KeyLike = 0) -> None:
    """Holds `env` to the contract of `Environment`: first by tracing it (arity, shapes and dtypes against the spaces, stable
    between reset and step), then by acting at random in it: rewards and observations finite; episodes within their time
    limit; nothing reset by `step`; the same result with the same key, each time, batched or not. It takes whatever `create`
    takes.

    **Arguments:**

    - `env_params`: `env.default_params` by default. A time limit in them is shortened for the run (to an eighth of
      `num_steps` at most), so that it is reached; an environment that doesn't read it from the parameters that it is
      given is found out by this.
    - `num_steps`: of each of 4 environments.

    **Raises:** `TypeError` for what is no environment; `EnvError`, one for all that is wrong, each with what to mend. What is
    only unusual (a dtype other than the space's, rewards that are integers) is a warning.
    """
    env, env_params, *outputs = trace(env, env_params)
    found = contract(env, env_params, *outputs)
    if not found.hard:  # what doesn't fit can't be run
        _run(env, _shorten(env_params, max(num_steps // 8, 1)), num_steps, as_key(key), found)
    raise_if(env, found.hard)
    for message in found.soft:
        warnings.warn(f"{class_name(env)}: {message}", stacklevel=2)


def _shorten(env_params: Any, limit: int) -> Any:
    """Parameters whose `max_steps_in_episode`, where there is one, is at most `limit`."""
    current = episode_limit(env_params)
    if current is None or current <= limit or not dataclasses.is_dataclass(env_params):
        return env_params
    value = env_params.max_steps_in_episode  # pyright: ignore[reportAttributeAccessIssue]
    value = jnp.full_like(value, limit) if isinstance(value, Array) else type(value)(limit)
    return dataclasses.replace(env_params, max_steps_in_episode=value)  # pyright: ignore[reportArgumentType]


def _run(env: Any, params: Any, num_steps: int, key: Any, found: Findings) -> None:
    key_reset, key_steps = jr.split(key)
    reset_keys = jr.split(key_reset, NUM_RESETS)
    step_keys = jax.vmap(lambda key: jr.split(key, (NUM_ENVS, 2)))(jr.split(key_steps, num_steps))

    def act(keys: Any, state: Any) -> Any:
        """obs, state, reward, terminated, truncated of one random step."""
        obs, state, *scalars, _ = env.step(keys[1], state, sample(env.action_space(params), keys[0]), params)
        return obs, state, *(jnp.asarray(x).reshape(()) for x in scalars)

    def begin(reset_key: Any, keys: Any) -> Any:
        first = strong(jax.tree.map(jnp.asarray, env.reset(reset_key, params)))
        return first, act(keys, first[1])

    @jax.jit
    def rollout(reset_keys: Any, step_keys: Any) -> Any:
        first = strong(jax.vmap(env.reset, in_axes=(0, None))(reset_keys, params))
        start = jax.tree.map(lambda x: x[:NUM_ENVS], first[1])

        def body(carry: Any, keys: Any) -> Any:
            out = strong(jax.vmap(act)(keys, carry))
            return select(out[3] | out[4], start, out[1]), out

        return first, jax.lax.scan(body, start, step_keys)[1]

    def elsewhere() -> Any:
        """What the second environment began with, and its first step, as the third one, all others begun and stepped otherwise."""
        resets, steps = (jax.vmap(jr.fold_in, in_axes=(0, None))(keys.ravel(), 1).reshape(keys.shape) for keys in (reset_keys, step_keys))
        first, run = rollout(resets.at[2].set(reset_keys[1]), steps.at[:, 2].set(step_keys[:, 1]))
        return jax.tree.map(lambda x: x[2], first), jax.tree.map(lambda x: x[0, 2], run)

    # Traced anew under another setting of JAX, so are also methods that jit themselves, as gymnax's do.
    setting = "warn" if jax.config.jax_numpy_rank_promotion == "allow" else "allow"  # pyright: ignore[reportAttributeAccessIssue]
    try:
        first, run = rollout(reset_keys, step_keys)
        again = rollout(reset_keys, step_keys)
        alone = jax.jit(begin)(reset_keys[1], step_keys[0, 1])
        with jax.numpy_rank_promotion(setting), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            anew = jax.jit(lambda *keys: begin(*keys))(reset_keys[1], step_keys[0, 1])
    except Exception as error:
        found.hard.append(f"running it under jit and vmap raised {type(error).__name__}: {first_line(error)}")
        return
    if not _same(((first, run), alone), (again, anew), tolerance=(0.0, 0.0)):
        found.hard.append(
            "it gives another result for the same key when it is run again, or traced anew: chance must come from the key alone, "
            "and what changes must be in the state. Python's and NumPy's random numbers, and attributes of self, keep the value "
            "that they had when it was compiled"
        )
        return  # whatever else would be found might come from this
    together = jax.tree.map(lambda x: x[1], first), jax.tree.map(lambda x: x[0, 1], run)
    if not _same(together, elsewhere()):
        found.hard.append("under vmap it does otherwise in another place, beside others: it must not mix what is batched")
    elif not _same(_seen(together), _seen(alone), tolerance=(1e-2, 1e-2)):
        found.hard.append("under vmap it differs from one environment at a time in what is seen")
    elif not _same(together, alone):
        found.soft.append("under vmap it differs from one environment at a time by more than rounding; in physics with contacts it may")
    _check_run(env, params, first, run, found)


def _arrays(tree: Any) -> list[np.ndarray]:
    """Its leaves; typed keys as their data."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [np.asarray(jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def _seen(beginning_and_step: tuple[Any, Any]) -> Any:
    """The observations, the reward and the flags."""
    (first_obs, _), (obs, _, *scalars) = beginning_and_step
    return first_obs, obs, scalars


def _same(a: Any, b: Any, *, tolerance: tuple[float, float] = (1e-4, 1e-5)) -> bool:
    """Relative and absolute; by default what programs that are fused differently may differ by."""

    def same(x: np.ndarray, y: np.ndarray) -> bool:
        inexact = np.issubdtype(x.dtype, np.inexact)
        return np.allclose(x, y, *tolerance, equal_nan=True) if inexact else np.array_equal(x, y)

    return all(map(same, _arrays(a), _arrays(b)))


def _check_run(env: Any, params: Any, first: Any, run: Any, found: Findings) -> None:
    obs, state = run[:2]
    reward, terminated, truncated = map(np.asarray, run[2:])
    done = terminated | truncated
    if not np.isfinite(reward).all():
        found.hard.append(f"the reward is not finite at {(~np.isfinite(reward)).sum()} of {reward.size} steps")
    infinite = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(obs) if not jnp.isfinite(x).all()]
    if infinite:
        found.hard.append(f"the observation{', '.join(infinite)} is not finite at some of {reward.size} steps")
    space = as_space(env.observation_space(params))
    if isinstance(space, Box) and not infinite:
        low, high = map(np.asarray, bounds(space))
        if (np.asarray(obs) < low).any() or (np.asarray(obs) > high).any():
            found.soft.append("an observation lies outside the bounds of observation_space")
    if done.any():
        whole = getattr(env, "whole_step", False)  # which does reset the state, in `Gymnax`
        at_reset, after = (first[0], obs) if whole else (first, (obs, state))
        _check_no_reset(_arrays(at_reset), _arrays(after), terminated, truncated, found)
    else:
        found.soft.append(f"no episode ended within {done.shape[0]} steps, so nothing is known about its end; raise num_steps")
    if (limit := episode_limit(params, env)) is not None:
        _check_limit(limit, terminated, truncated, found)


def _check_no_reset(first: list[np.ndarray], after: list[np.ndarray], terminated: Any, truncated: Any, found: Findings) -> None:
    """Numbers that are the same after every reset, are others while an episode goes on, and are back wherever it ends: that is
    a reset, unless it may be chance (`rarest` to the power of the number of ends)."""
    done, rarest = terminated | truncated, 1.0
    for x, at_reset in zip(after, first):
        x, at_reset = x.reshape(*done.shape, -1), at_reset.reshape(len(at_reset), -1)
        back = (x == at_reset[0])[..., (at_reset == at_reset[:1]).all(0)]
        if not back[done].all():
            return
        rarest = np.min((1 + back[~done].sum(0)) / (1 + (~done).sum()), initial=rarest)
    # A task may end where it began, but what cuts it off does so anywhere.
    for ends, findings in (((truncated & ~terminated).sum(), found.hard), (done.sum(), found.soft)):
        if ends * math.log(rarest) < math.log(1e-6):
            findings.append(
                "where an episode ends, step returns what reset does; never reset in step: return the observation and the state "
                "that the action led to"
            )
            return


def _check_limit(limit: int, terminated: Any, truncated: Any, found: Findings) -> None:
    length = np.zeros(terminated.shape[1], int)
    reported: list[bool] = []
    for ended, cut_off in zip(terminated, truncated):
        length += 1
        at_limit = length >= limit
        if (at_limit & ~(ended | cut_off)).any():
            found.hard.append(
                f"an episode goes on past the limit of {limit} steps: report truncated at max_steps, and at "
                "params.max_steps_in_episode of the parameters that step is given (and not of default_params)"
            )
            return
        reported += cut_off[at_limit].tolist()
        length[ended | cut_off] = 0
    if reported and not any(reported):
        found.soft.append("a time limit is reported as terminated, not truncated: what comes after it counts for nothing")
