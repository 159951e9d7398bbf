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

from eqxrl.envs import AbstractStepper, vec_step


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


class Walk:
    """A walk on a line from a random start. `spoil` changes the six values of a step."""

    default_params = Params()

    def reset(self, key, params):
        state = State(jr.uniform(key, (), jnp.float32, -0.5, 0.5), jnp.zeros((), jnp.int32))
        return self.observe(state), state

    def step(self, key, state, action, params):
        x = state.x + 0.2 * (action - 1) + params.noise * jr.normal(key, (), jnp.float32)
        state = State(x, state.time + 1)
        return self.spoil(self.observe(state), state, -jnp.abs(x), jnp.abs(x) > 1, self.is_truncated(state, params), {})

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def spoil(self, *values):
        return values

    def observe(self, state):
        return jnp.stack([state.x, 0.01 * state.time])

    def observation_space(self, params):
        return box(-1e3, 1e3, (2,))

    def action_space(self, params):
        return discrete(3)


class ResetEveryStep(AbstractStepper):
    """A reset computed at every step, as gymnax's environments do: what the package's steppers are held against."""

    def init(self, env, env_params, keys):
        return *jax.vmap(lambda key: env.reset(key, env_params))(keys), ()

    def step(self, env, env_params, keys, env_state, reset_state, action):
        def one(key_step, key_reset, state, action):
            return env.step(key_step, state, action, env_params), env.reset(key_reset, env_params)

        stepped, first = jax.vmap(one)(*keys, env_state, action)
        out = vec_step(stepped, reset_state)
        obs, env_state = jax.vmap(lambda done, *trees: jax.tree.map(lambda a, b: jax.lax.select(done, a, b), *trees))(
            out.done, first, (out.obs, out.env_state)
        )
        return dataclasses.replace(out, obs=obs, env_state=env_state)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


class FiveValues(Walk):
    def spoil(self, obs, state, reward, terminated, truncated, info):
        return obs, state, reward, terminated | truncated, info


class FourValues(Walk):
    def spoil(self, *values):
        return values[:4]


class NoReset(Walk):
    reset = property()


class ThreeValuesOfReset(Walk):
    def reset(self, key, params):
        return *super().reset(key, params), {}


class WrongShape(Walk):
    def observation_space(self, params):
        return box(-3, 3, (3,))


class UnknownSpace(Walk):
    def observation_space(self, params):
        return SimpleNamespace(what="is this")


class FloatFlag(Walk):
    def spoil(self, obs, state, reward, terminated, truncated, info):
        return obs, state, reward, terminated.astype(jnp.float32), truncated, info


class VectorReward(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, jnp.stack([reward, reward]), *rest


class TextInfo(Walk):
    def spoil(self, *values):
        return *values[:5], {"event": "fell"}


class NoInfo(Walk):
    def spoil(self, *values):
        return *values[:5], None


class NaNReward(Walk):
    def spoil(self, obs, state, reward, *rest):
        return obs, state, jnp.where(state.time == 7, jnp.nan, reward), *rest


class InfiniteObs(Walk):
    def observe(self, state):
        return jnp.stack([jnp.where(state.time == 7, jnp.inf, state.x), 0.01 * state.time])


class DriftingState(Walk):
    def reset(self, key, params):
        obs, state = super().reset(key, params)
        return obs, State(state.x, state.time.astype(jnp.int16))

    def spoil(self, obs, state, *rest):
        return obs, State(state.x, state.time.astype(jnp.int32)), *rest


class OtherStructure(Walk):
    def spoil(self, obs, state, *rest):
        return obs, (state.x, state.time), *rest


class ResetsItself(Walk):
    """As gymnax does, without a word."""

    def step(self, key, state, action, params):
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        first = self.reset(key, params)
        obs, state = jax.tree.map(lambda a, b: jnp.where(terminated | truncated, a, b), first, (obs, state))
        return obs, state, reward, terminated, truncated, info


class KeepsTheLastObservation(ResetsItself):
    """As gymnax does."""

    def step(self, key, state, action, params):
        values = super().step(key, state, action, params)
        return *values[:5], {"final_observation": Walk.step(self, key, state, action, params)[0]}


class IgnoresParams(Walk):
    def is_truncated(self, state, params):
        return state.time >= self.default_params.max_steps_in_episode

    def spoil(self, obs, state, reward, terminated, truncated, info):  # only the limit ends an episode
        return obs, state, reward, jnp.zeros((), bool), truncated, info


class ForgetsItsLimit(IgnoresParams):
    """Says so, but goes on."""

    max_steps = 20
    default_params = Params(max_steps_in_episode=None)

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)


class NumpyRandom(Walk):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset(self, key, params):
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


def batched_as(f):
    """A function that returns its argument, and under vmap `f` of `[batch]` of them."""
    same = custom_vmap(lambda x: x)
    same.def_vmap(lambda axis_size, in_batched, x: (f(x), True))
    return same


class MixesBatch(Walk):
    mixed = staticmethod(batched_as(lambda x: x + x.mean()))

    def spoil(self, obs, state, reward, *rest):
        return obs, state, self.mixed(reward), *rest


class CountsItsNeighbours(MixesBatch):
    mixed = staticmethod(batched_as(lambda x: x + jnp.arange(x.size)))


class IsOtherAlone(MixesBatch):
    mixed = staticmethod(batched_as(lambda x: x - 0.1))


class RoundsOtherwise(MixesBatch):
    """Alone it differs by a thousandth."""

    mixed = staticmethod(batched_as(lambda x: x * 1.001))


class IntegerActions(Walk):
    def action_space(self, params):
        return box(0, 1, (2,), jnp.int32)


class BinaryActions(Walk):
    """gymnasium's MultiBinary, by its attributes: as many bits as its `n`."""

    def action_space(self, params):
        return SimpleNamespace(n=3, shape=(3,), dtype=jnp.int8)
