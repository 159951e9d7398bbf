"""A small environment that keeps the contract, and those that break it, each in one way."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.custom_batching import custom_vmap


@dataclasses.dataclass(frozen=True)
class Params:
    max_steps_in_episode: Any = 60
    noise: Any = 0.01


jax.tree_util.register_dataclass(Params, ["max_steps_in_episode", "noise"], [])


class State(eqx.Module):
    x: Any
    time: Any


def discrete(n):
    return SimpleNamespace(n=n, shape=(), dtype=jnp.int32)


def box(low, high, shape, dtype=jnp.float32):
    return SimpleNamespace(low=low, high=high, shape=shape, dtype=dtype)


class Hooks:
    """A walk on a line from a random start, as its parts: no `step`, no `reset`."""

    default_params = Params()

    def reset_env(self, key, params):
        state = State(jr.uniform(key, (), jnp.float32, -0.5, 0.5), jnp.zeros((), jnp.int32))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        x = state.x + 0.2 * (action - 1) + params.noise * jr.normal(key, (), jnp.float32)
        state = State(x, state.time + 1)
        return self.observe(state), state, -jnp.abs(x), jnp.abs(x) > 1, {}

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def observe(self, state):
        return jnp.stack([state.x, 0.01 * state.time])

    def observation_space(self, params):
        return box(-1e3, 1e3, (2,))

    def action_space(self, params):
        return discrete(3)


class Walk(Hooks):
    """The same with a whole step of six values, which the broken ones spoil."""

    def reset(self, key, params):
        return self.reset_env(key, params)

    def step(self, key, state, action, params):
        key_step, key_reset = jr.split(key)
        obs, state, reward, terminated, info = self.step_env(key_step, state, action, params)
        truncated = self.is_truncated(state, params)
        first = self.first(key_reset, params)
        next_obs, next_state = jax.tree.map(lambda a, b: jnp.where(terminated | truncated, a, b), first, (obs, state))
        return self.spoil(next_obs, next_state, reward, terminated, truncated, {**info, "final_observation": obs})

    def first(self, key, params):
        return self.reset(key, params)

    def spoil(self, *values):
        return values


class FiveValues(Walk):
    def spoil(self, obs, state, reward, terminated, truncated, info):
        return obs, state, reward, terminated | truncated, info


class NoReset(Walk):
    reset = property()


class WrongShape(Walk):
    def observation_space(self, params):
        return box(-3, 3, (3,))


class NoFinalObservation(Walk):
    def spoil(self, *values):
        return *values[:5], {}


class FloatFlag(Walk):
    def spoil(self, obs, state, reward, terminated, truncated, info):
        return obs, state, reward, terminated.astype(jnp.float32), truncated, info


class VectorReward(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, jnp.stack([reward, reward]), *rest


class NaNReward(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, jnp.where(state.time == 7, jnp.nan, reward), *rest


class InfiniteObs(Walk):
    def observe(self, state):
        return jnp.stack([jnp.where(state.time == 7, jnp.inf, state.x), 0.01 * state.time])


class DriftingState(Walk):
    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs, State(state.x, state.time.astype(jnp.int16))

    def spoil(self, obs, state, *rest):
        return obs, State(state.x, state.time.astype(jnp.int32)), *rest


class OtherStructure(Walk):
    def spoil(self, obs, state, *rest):
        return obs, (state.x, state.time), *rest


class StaleFinalObservation(Walk):
    def spoil(self, *values):
        return *values[:5], {"final_observation": jnp.zeros_like(values[0])}


class FinalObservationAfterReset(Walk):
    def observe(self, state):
        return jnp.stack([state.x, state.x])

    def spoil(self, *values):
        return *values[:5], {"final_observation": values[0]}


class NeverResets(Walk):
    def step(self, key, state, action, params):
        obs, state, reward, terminated, info = self.step_env(key, state, action, params)
        return obs, state, reward, terminated, self.is_truncated(state, params), {"final_observation": obs}


class KeepsState(Walk):
    """Returns a first observation, but goes on with the old state."""

    def observe(self, state):
        return jnp.stack([state.x, state.x])

    def step(self, key, state, action, params):
        values = super().step(key, state, action, params)
        return values[0], self.step_env(jr.split(key)[0], state, action, params)[1], *values[2:]


class KeepsObservation(Walk):
    """Starts at 0, but returns the last observation with the first state."""

    def reset_env(self, key, params):
        state = State(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
        return self.observe(state), state

    def spoil(self, obs, state, *rest):
        return rest[-1]["final_observation"], state, *rest


class SameStart(Walk):
    def first(self, key, params):
        return self.reset(jr.key(0), params)


class IgnoresParams(Walk):
    def is_truncated(self, state, params):
        return state.time >= self.default_params.max_steps_in_episode

    def step_env(self, *args):  # never terminates, so only the limit ends an episode
        obs, state, reward, _, info = super().step_env(*args)
        return obs, state, reward, jnp.zeros((), bool), info


class NumpyRandom(Walk):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset_env(self, key, params):
        state = State(jnp.float32(self.rng.uniform(-0.5, 0.5)), jnp.zeros((), jnp.int32))
        return self.observe(state), state


class Counts(Walk):
    def __init__(self):
        self.calls = itertools.count()

    def spoil(self, obs, state, reward, *rest):
        return obs, state, reward + next(self.calls), *rest


class NotJittable(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, reward if reward > -0.5 else 2 * reward, *rest


@custom_vmap
def _mixed(x):
    return x


@_mixed.def_vmap
def _(axis_size, in_batched, x):
    return x + jnp.arange(axis_size), True


class MixesBatch(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, _mixed(reward), *rest


class IntegerActions(Walk):
    def action_space(self, params):
        return box(0, 1, (2,), jnp.int32)
