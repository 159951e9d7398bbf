"""Stepping many environments, and resetting those whose episode ended: a part that can be replaced.

Each stepper steps `[envs]` environments at once, and returns where each goes on together with the observation that its
action led to. One whose episodes all begin as the first one of their environment did, in full:

    class ResetToFirst(AbstractStepper):
        def init(self, env, env_params, keys):
            first = jax.vmap(env.reset, in_axes=(0, None))(keys, env_params)
            return *first, first

        def step(self, env, env_params, keys, env_state, reset_state, action):
            stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[0], env_state, action, env_params)
            return vec_step(stepped, reset_state, lambda first: first, reset_state)

        def refresh(self, env, env_params, key, reset_state):
            return reset_state
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key, PyTree

from eqxrl._cond import cond_any, cond_each
from eqxrl._structs import AbstractSteps
from eqxrl._typing import Action, Observation, field, leading, strong, typed
from eqxrl.envs._protocol import AbstractWrapper, Transition, innermost_state, layers

Keys = Key[Array, " envs"]
StepKeys = Key[Array, "2 envs"]


@typed
class VecStep(AbstractSteps):
    """One step of `[envs]` environments; `[steps envs]` of them after a scan."""

    obs: Observation = field(metadata=leading("*batch"))
    """Where each goes on: a first observation where the episode ended and was reset."""
    env_state: PyTree = field(metadata=leading("*batch"))
    reset_state: PyTree
    """What the stepper keeps."""
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    final_obs: Observation = field(metadata=leading("*batch"))
    """What each action led to; `obs` where the episode goes on."""

class AbstractStepper(eqx.Module):
    """Steps `[envs]` environments. What `init` and `step` return has strong dtypes, so that it can be carried through a scan."""

    @abc.abstractmethod
    def init(self, env: Any, env_params: Any, keys: Keys) -> tuple[Observation, PyTree, PyTree]:
        """First observations and states, `[envs ...]`, and what the stepper keeps."""

    @abc.abstractmethod
    def step(
        self, env: Any, env_params: Any, keys: StepKeys, env_state: PyTree, reset_state: PyTree, action: Action
    ) -> VecStep:
        """One step of each environment; `action` (`[envs ...]`) lies in the action space. The first row of keys is for the steps, the
        second for resets."""

    @abc.abstractmethod
    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        """What the stepper keeps, for the next rollout. Called once before each."""


class ResetWhenDone(AbstractStepper):
    """Computes resets only on steps where an episode ended, of all environments then, unless these have a `reset_where`; the numbers are
    those of a reset at every step. With so many environments that an episode ends at nearly every step the two cost the same."""

    every_step: bool = eqx.field(static=True, default=False)
    """Compute them at every step, which pays where a reset costs less than a branch of the program, since that keeps XLA from fusing."""

    def init(self, env: Any, env_params: Any, keys: Keys) -> tuple[Observation, PyTree, PyTree]:
        return *_reset_all(_with_resets(env), env_params, keys), ()

    def step(
        self, env: Any, env_params: Any, keys: StepKeys, env_state: PyTree, reset_state: PyTree, action: Action
    ) -> VecStep:
        if not self.every_step:
            env = _preparing_resets(env, env_params, keys, env_state, action)
        stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[0], env_state, action, env_params)
        if self.every_step:
            after, anew = vec_step(stepped, reset_state), _reset_all(env, env_params, keys[1])
            obs, env_state = select(after.done, anew, (after.obs, after.env_state))
            return dataclasses.replace(after, obs=obs, env_state=env_state)
        ended_at = _state_to_go_on_from(env, env_params, keys, stepped[1])
        if ended_at is None:
            return vec_step(stepped, reset_state, lambda keys: _reset_all(env, env_params, keys), keys[1])

        def first(keys: Any, ended: Any, *ended_at: Any) -> Any:
            return strong(jax.vmap(lambda *each: _reset_where(env, env_params, *each))(keys, ended, *ended_at))

        return vec_step(stepped, reset_state, first, keys[1], stepped[3] | stepped[4], ended_at, stepped[5])

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        return reset_state


class ResetFromPool(AbstractStepper):
    """Where an episode ended the next one opens at one of `num_states` first states, drawn at random with replacement. The
    whole pool is renewed, by `num_states` resets, before a rollout if as many episodes as it has states have opened from it
    since the last time: an episode costs at most one reset, also where rollouts are short, and less where many end in one.
    Pays where a reset is dear (a generated level, a settled physics state), since `ResetWhenDone` resets all environments
    where one ended. Where parameters change between rollouts, first states may be of the parameters before.

    **Raises:** `ValueError` for an empty pool.
    """

    num_states: int = eqx.field(static=True)

    def __check_init__(self):
        if self.num_states < 1:
            raise ValueError(f"ResetFromPool got num_states={self.num_states}; a pool needs at least 1 state")

    def init(self, env: Any, env_params: Any, keys: Keys) -> tuple[Observation, PyTree, PyTree]:
        keys = jax.vmap(jr.split)(keys)
        return *_reset_all(env, env_params, keys[:, 0]), self._renewed(env, env_params, keys[0, 1])

    def step(
        self, env: Any, env_params: Any, keys: StepKeys, env_state: PyTree, reset_state: PyTree, action: Action
    ) -> VecStep:
        stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[0], env_state, action, env_params)

        def draw(keys: Any) -> Any:
            return jax.vmap(lambda key: jr.randint(key, (), 0, self.num_states))(keys)

        pool, num_opened = reset_state
        after = vec_step(stepped, reset_state)
        index = cond_any(after.done, draw, [keys[1]], jnp.zeros(after.done.shape, jnp.int32))
        obs, env_state = select(after.done, jax.tree.map(lambda x: x[index], pool), (after.obs, after.env_state))
        num_opened += jnp.sum(after.done, dtype=jnp.int32)
        return dataclasses.replace(after, obs=obs, env_state=env_state, reset_state=(pool, num_opened))

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        used_up = reset_state[1] >= self.num_states
        return cond_each(used_up, lambda _: self._renewed(env, env_params, key), lambda kept: kept, reset_state)

    def _renewed(self, env: Any, env_params: Any, key: Key[Array, ""]) -> PyTree:
        """The pool, and how many episodes have opened from it."""
        return _reset_all(env, env_params, jr.split(key, self.num_states)), jnp.zeros((), jnp.int32)


class NeverReset(AbstractStepper):
    """Leaves an ended episode at its last state. What further steps give there is filler, to be left out."""

    def init(self, env: Any, env_params: Any, keys: Keys) -> tuple[Observation, PyTree, PyTree]:
        return *_reset_all(env, env_params, keys), ()

    def step(
        self, env: Any, env_params: Any, keys: StepKeys, env_state: PyTree, reset_state: PyTree, action: Action
    ) -> VecStep:
        stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[0], env_state, action, env_params)
        return vec_step(stepped, reset_state)

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        return reset_state


def default_stepper(env: Any) -> AbstractStepper:
    """What steps `env` where nobody says otherwise: `ResetFromPool` where it has a `reset_pool`, else `ResetWhenDone`, at every step where
    it has a `cheap_reset`."""
    num_states = getattr(env, "reset_pool", None)
    return ResetFromPool(num_states) if num_states else ResetWhenDone(every_step=getattr(env, "cheap_reset", False))


def vec_step(stepped: Transition, reset_state: PyTree, first: Callable[..., Any] | None = None, *operands: Any) -> VecStep:
    """What a stepper returns, with rewards as float32.

    - `stepped`: what the environments' `step` returned, `[envs ...]`.
    - `first`: `first(*operands)` gives first observations and states, `[envs ...]`, which are taken where an episode ended; it
      is computed only on steps where one did. Without it, nothing is reset.
    """
    obs, env_state, reward, terminated, truncated = strong(stepped[:5])
    # Some environments give integers, or arrays of one number.
    reward, terminated, truncated = (x.reshape(len(reward)) for x in (reward.astype(jnp.float32), terminated, truncated))
    final_obs, done = obs, terminated | truncated
    if first is not None:
        goes_on = (obs, env_state)
        obs, env_state = cond_any(done, lambda *args: select(done, first(*args), goes_on), operands, goes_on)
    return VecStep(obs, env_state, reset_state, reward, terminated, truncated, final_obs)


def select(done: Bool[Array, " envs"], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where `done`, else `no`: arrays `[envs ...]`."""
    return jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (b.ndim - 1)), a, b), yes, no)


class _ResetsWhere(AbstractWrapper):
    """An environment whose `reset` is its `reset_where`."""

    env: Any
    needed: Bool[Array, ""]
    state: PyTree
    info: PyTree

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset_where(key, self.needed, self.state, params, self.info)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self.env.step(key, state, action, params)


def _with_resets(env: Any) -> Any:
    """The same environment, whose innermost one is its `with_resets()`, if it has that."""
    inner = list(layers(env))[-1]
    return _around(inner.with_resets(), env) if hasattr(type(inner), "with_resets") else env


def _preparing_resets(env: Any, env_params: Any, keys: StepKeys, env_state: PyTree, action: Action) -> Any:
    """`env`, whose steps prepare for resets where it can do so and its wrappers leave to it what that takes."""
    prepares = _with_resets(env)
    if prepares is env:
        return env
    step, of_step = jax.vmap(prepares.step, in_axes=(0, 0, 0, None)), jax.ShapeDtypeStruct(keys.shape[1:], keys.dtype)
    _, state, *_, info = eqx.filter_eval_shape(step, of_step, env_state, action, env_params)
    return prepares if "next" in info and _state_to_go_on_from(env, env_params, keys, state) is not None else env


def _state_to_go_on_from(env: Any, env_params: Any, keys: StepKeys, state: PyTree) -> PyTree | None:
    """The innermost environment's, for its `reset_where`; `None` where it has none, or a wrapper keeps the state somewhere else."""
    inner = list(layers(env))[-1]
    if not hasattr(type(inner), "reset_where"):
        return None
    state = state if inner is env else innermost_state(state)
    like = eqx.filter_eval_shape(inner.reset, jax.ShapeDtypeStruct((), keys.dtype), env_params)[1]
    return state if jax.tree.structure(state) == jax.tree.structure(like) else None


def _reset_where(
    env: Any, env_params: Any, key: Key[Array, ""], needed: Bool[Array, ""], state: PyTree, info: PyTree
) -> tuple[Any, Any]:
    """`env.reset`, in which that of the innermost environment is its `reset_where`."""
    resets = _ResetsWhere(list(layers(env))[-1], needed, state, info)
    return _around(resets, env).reset(key, env_params)


def _around(inner: Any, env: Any) -> Any:
    """The wrappers of `env`, around another innermost environment."""
    if not isinstance(env, AbstractWrapper):
        return inner
    wrapper = object.__new__(type(env))
    for name, x in vars(env).items():
        object.__setattr__(wrapper, name, _around(inner, x) if name == "env" else x)
    return wrapper


def _reset_all(env: Any, env_params: Any, keys: Key[Array, "..."]) -> tuple[Any, Any]:
    return strong(jax.vmap(env.reset, in_axes=(0, None))(keys, env_params))
