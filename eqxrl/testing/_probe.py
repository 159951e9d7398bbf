"""What parts are tried on: an environment that compiles in no time and of which everything is known, and a policy for it."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl.collectors import RolloutCollector
from eqxrl.envs import TimeLimit
from eqxrl.nn import MLPActorCritic, NormalizedActorCritic
from eqxrl.spaces import Box, Discrete
from eqxrl.verification._collectors import CollectorLaws
from eqxrl.verification._laws import quick_jit

ACTIONS = {"discrete": Discrete(3), "box": Box(-1.0, 1.0, (2,))}


class Corridor(eqx.Module):
    """One walks in the plane until one leaves the square of ±1. The observation, which is the state, is where one stands."""

    action: Discrete | Box = eqx.field(static=True)

    def observation_space(self, params: Any) -> Box:
        return Box(-2.0, 2.0, (2,))

    def action_space(self, params: Any) -> Discrete | Box:
        return self.action

    def reset(self, key: Any, params: Any) -> Any:
        return (position := jax.random.uniform(key, (2,), jnp.float32, -0.8, 0.8)), position

    def step(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        push = jnp.stack([action - 1, 1 - action]).astype(jnp.float32) if isinstance(self.action, Discrete) else action
        position = state + 0.3 * push
        return position, position, jnp.float32(1), jnp.any(jnp.abs(position) > 1), jnp.asarray(False), {}


def probe(kind: str) -> tuple[TimeLimit, None]:
    """The environment, with a time limit, and its parameters. `kind`: of actions, "discrete" or "box"."""
    return TimeLimit(Corridor(ACTIONS[kind]), 7), None


@functools.cache
def probe_agent(kind: str) -> NormalizedActorCritic:
    """A small policy for it, with statistics that have counted something."""
    obs = jnp.linspace(-1.0, 2.0, 64).reshape(32, 2)
    make = quick_jit(lambda key: MLPActorCritic(Box(-2.0, 2.0, (2,)), ACTIONS[kind], hidden_sizes=(8,), key=key))
    return NormalizedActorCritic(make(jax.random.key(0)), obs[0]).observe(obs)


@functools.cache
def probe_rollouts(kind: str, steps: int, envs: int) -> list[TrajectoryWithLastObs]:
    """Two rollouts of that policy, one after the other."""
    return CollectorLaws(RolloutCollector(envs, steps), *probe(kind), probe_agent(kind)).run[1][:2]
