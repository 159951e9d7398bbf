"""Does an environment keep the contract? Asked once, when it is written, not while it is trained in."""

import dataclasses
import math
import warnings
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from eqxrl._typing import strong
from eqxrl.envs._contract import contract, raise_all
from eqxrl.envs._spaces import bounds, episode_limit, is_box, sample

NUM_ENVS = 4
NUM_RESETS = 64


def check_env(env: Any, env_params: Any = None, *, num_steps: int = 200, key: Key[Array, ""] | None = None) -> None:
    """Holds `env` to the contract of `eqxrl.envs`: first by tracing it (arity, shapes and dtypes against the spaces, stable
    between reset and step), then by acting at random in it: rewards and observations finite; `final_observation` the
    observation wherever the episode goes on; a reset wherever it ends, to another first state each time if first states
    are random at all; episodes within `params.max_steps_in_episode`; the same result with the same key, compiled or
    not, batched or not.

    **Arguments:**

    - `env_params`: `env.default_params` by default. A time limit in them is shortened for the run (to an eighth of
      `num_steps` at most), so that it is reached; an environment that doesn't read it from the parameters that it is
      given is found out by this.
    - `num_steps`: of each of 4 environments.

    **Raises:** `EnvError`, one for all that is wrong, each with what to mend. What is only unusual (a dtype other than the
    space's, rewards that are integers) is a warning.
    """
    if env_params is None:
        env_params = getattr(env, "default_params", None)
    key = jr.key(0) if key is None else key
    hard, soft = contract(env, env_params)
    if not hard:  # what can't be traced can't be run
        hard, more = _run(env, shorten_episodes(env_params, max(num_steps // 8, 1)), num_steps, key)
        soft += more
    for message in soft:
        warnings.warn(f"{type(env).__name__}: {message}", stacklevel=2)
    if hard:
        raise_all(env, hard)


def shorten_episodes(env_params: Any, limit: int) -> Any:
    current = episode_limit(env_params)
    if current is None or current <= limit or not dataclasses.is_dataclass(env_params):
        return env_params
    value = env_params.max_steps_in_episode  # pyright: ignore[reportAttributeAccessIssue]
    value = jnp.full_like(value, limit) if isinstance(value, Array) else type(value)(limit)
    return dataclasses.replace(env_params, max_steps_in_episode=value)  # pyright: ignore[reportArgumentType]


def _run(env: Any, params: Any, num_steps: int, key: Key[Array, ""]) -> tuple[list[str], list[str]]:
    hard: list[str] = []
    soft: list[str] = []
    key_reset, key_steps = jr.split(key)
    reset_keys = jr.split(key_reset, NUM_RESETS)
    step_keys = jax.vmap(lambda key: jr.split(key, NUM_ENVS))(jr.split(key_steps, num_steps))

    def act(key: Any, state: Any) -> Any:
        """obs, state, reward, terminated, truncated, final_obs of one random step."""
        key_act, key_step = jr.split(key)
        action = sample(env.action_space(params), key_act)
        obs, state, reward, terminated, truncated, info = _python(env.step)(key_step, state, action, params)
        scalars = (jnp.asarray(x).reshape(()) for x in (reward, terminated, truncated))
        return obs, state, *scalars, info["final_observation"]

    def reset(key: Any) -> Any:
        return _python(env.reset)(key, params)

    def begin(reset_key: Any, step_key: Any) -> Any:
        first = strong(jax.tree.map(jnp.asarray, reset(reset_key)))
        return first, act(step_key, first[1])

    @jax.jit
    def rollout(reset_keys: Any, step_keys: Any) -> Any:
        first = strong(jax.vmap(reset)(reset_keys))

        def body(state: Any, keys: Any) -> Any:
            out = strong(jax.vmap(act)(keys, state))
            return out[1], out

        return first, jax.lax.scan(body, jax.tree.map(lambda x: x[:NUM_ENVS], first[1]), step_keys)[1]

    try:
        first, run = rollout(reset_keys, step_keys)
        again = rollout(reset_keys, step_keys)
        alone = jax.jit(begin)(reset_keys[1], step_keys[0, 1])
    except Exception as error:
        hard.append(f"running it under jit and vmap raised {type(error).__name__}: {_line(error)}")
        return hard, soft
    try:
        plain, plain_again = (begin(reset_keys[1], step_keys[0, 1]) for _ in range(2))
    except Exception as error:
        soft.append(f"it runs under jit only, so it was not compared with itself uncompiled: {_line(error)}")
        plain = plain_again = alone
    pure = _same((first, run), again, exact=True) and _same(plain, plain_again, exact=True)
    if not pure or not _same(plain, alone, exact=False):
        hard.append(
            "it gives another result each time for the same key, or another one uncompiled than under jit: chance must come "
            "from the key alone, and what changes must be in the state. Python's and NumPy's random numbers, and "
            "attributes of self, keep the value that they had when it was compiled"
        )
        return hard, soft  # whatever else would be found might come from this
    together = jax.tree.map(lambda x: x[1], first), jax.tree.map(lambda x: x[0, 1], run)
    if not _same(together, alone, exact=False):
        hard.append("under vmap it differs from one environment at a time: it must not mix what is batched")
    _check_run(env, params, _Leaves(first), run, hard, soft)
    return hard, soft


def _python(method: Any) -> Any:
    """The Python function of a method that jits itself: calling that one runs the Python code anew each time."""
    fn = getattr(method, "__func__", method)
    if not isinstance(fn, type(jax.jit(_line))):
        return method
    plain = getattr(fn, "__wrapped__")
    return plain if fn is method else partial(plain, method.__self__)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else ""


class _Leaves:
    """A pytree as NumPy arrays with names; typed keys as their data."""

    def __init__(self, tree: Any):
        named = [(jax.tree_util.keystr(path), x) for path, x in jax.tree.leaves_with_path(tree)]
        self.names = [name for name, _ in named]
        self.arrays = [
            np.asarray(jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in (jnp.asarray(x) for _, x in named)
        ]

    def __iter__(self):
        return iter(zip(self.names, self.arrays))


def _same(a: Any, b: Any, *, exact: bool) -> bool:
    def same(x: np.ndarray, y: np.ndarray) -> bool:
        if exact or not np.issubdtype(x.dtype, np.inexact):
            return _equal(x, y)
        return np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)  # fused differently, floats round differently

    return all(same(x, y) for x, y in zip(_Leaves(a).arrays, _Leaves(b).arrays, strict=True))


def _check_run(env: Any, params: Any, first: _Leaves, run: Any, hard: list[str], soft: list[str]) -> None:
    obs, state, reward, terminated, truncated, final = run
    reward, terminated, truncated = (np.asarray(x) for x in (reward, terminated, truncated))
    done = terminated | truncated
    obs, state, final = _Leaves(obs), _Leaves(state), _Leaves(final)

    if not np.isfinite(reward).all():
        hard.append(f"the reward is not finite at {(~np.isfinite(reward)).sum()} of {reward.size} steps")
    infinite = [name for name, x in final if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all()]
    if infinite:
        hard.append(f"the observation{', '.join(infinite)} is not finite at some of {reward.size} steps")
    space = env.observation_space(params)
    if is_box(space) and not infinite:
        low, high = (np.asarray(x) for x in bounds(space))
        if (final.arrays[0] < low).any() or (final.arrays[0] > high).any():
            soft.append("an observation lies outside the bounds of observation_space")
    if not all(_equal(a[~done], b[~done]) for a, b in zip(obs.arrays, final.arrays)):
        hard.append(
            'info["final_observation"] differs from the observation where the episode goes on: it must be what the action '
            "led to, at every step"
        )
    if done.any():
        _check_resets(first, obs, state, final, done, hard, soft)
    else:
        soft.append(f"no episode ended within {done.shape[0]} steps, so nothing is known about its end; raise num_steps")
    _check_limit(episode_limit(params, env), terminated, truncated, hard, soft)


def _check_limit(limit: int | None, terminated: Any, truncated: Any, hard: list[str], soft: list[str]) -> None:
    if limit is None:
        return
    length = np.zeros(terminated.shape[1], int)
    cut, silent = 0, 0
    for ended, cut_off in zip(terminated, truncated):
        length += 1
        at_limit = length >= limit
        if (at_limit & ~(ended | cut_off)).any():
            hard.append(
                f"an episode goes on past the limit of {limit} steps in the parameters that step is given: report truncated "
                "at params.max_steps_in_episode (and not at that of default_params)"
            )
            return
        cut += at_limit.sum()
        silent += (at_limit & ~cut_off).sum()
        length[ended | cut_off] = 0
    if cut and silent == cut:
        soft.append("a time limit is reported as terminated, not truncated: what comes after it counts for nothing")


def _check_resets(
    first: _Leaves, obs: _Leaves, state: _Leaves, final: _Leaves, done: Any, hard: list[str], soft: list[str]
) -> None:
    num_obs = len(obs.arrays)
    first_obs, first_state = first.arrays[:num_obs], first.arrays[num_obs:]
    varied = any(not _constant(x) for x in first.arrays)

    # A part of the observation that is the same after every reset must be that after the end of an episode, too.
    wrong = [
        name
        for (name, x), at_reset in zip(obs, first_obs)
        if _constant(at_reset) and not np.array_equal(x[done], np.broadcast_to(at_reset[0], x[done].shape))
    ]
    # Of the state, some may be meant to outlast the episode, as in DeepSea; but not all that has moved.
    kept, back = [], 0
    for (name, x), at_reset in zip(state, first_state):
        if _constant(at_reset) and not np.array_equal(x, np.broadcast_to(at_reset[0], x.shape)):
            if np.array_equal(x[done], np.broadcast_to(at_reset[0], x[done].shape)):
                back += 1
            else:
                kept.append(name)
    unmoved = all(np.array_equal(a[done], b[done]) for a, b in zip(obs.arrays, final.arrays))
    obs_varied = any(not _constant(x) for x in first_obs)
    if wrong or (kept and not back):
        hard.append(
            "after the end of an episode, step returns no first "
            + ("observation" if wrong else f"state ({', '.join(kept)} goes on)")
            + ": where terminated or truncated, return the obs and state of a reset"
        )
    elif unmoved and obs_varied:
        hard.append(
            'where an episode ends, info["final_observation"] is always the returned observation: either step does not reset, '
            "or final_observation is taken after the reset; it must be the one before"
        )
    elif kept:
        soft.append(f"the state's {', '.join(kept)} outlasts the episode")

    # By chance alone, all episodes of each environment begin alike with probability p ** repeats, at most.
    if varied:
        counts = Counter(tuple(x[i].tobytes() for x in first.arrays) for i in range(NUM_RESETS))
        p = counts.most_common(1)[0][1] / NUM_RESETS
        begin = [
            {tuple(x[t, i].tobytes() for x in (*obs.arrays, *state.arrays)) for t in np.flatnonzero(done[:, i])}
            for i in range(done.shape[1])
        ]
        repeats = sum(max(n - 1, 0) for n in done.sum(0))
        if all(len(b) <= 1 for b in begin) and repeats * math.log(p) < math.log(1e-6):
            hard.append(
                "every episode of an environment begins at the same state, though reset gives another for another key: "
                "step must reset with a part of its own key"
            )


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact))


def _constant(x: np.ndarray) -> bool:
    return bool((x == x[:1]).all())
