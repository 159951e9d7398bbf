"""What parts are tried on: an environment that compiles in no time and of which everything is known, and a policy for it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from eqxrl._structs import AdvantageMinibatch, Trajectory, TrajectoryWithLastObs
from eqxrl.envs import AutoReset, is_discrete
from eqxrl.nn import AbstractActorCritic, MLPActorCritic, NormalizedActorCritic

LIMIT = 7


@dataclasses.dataclass(frozen=True)
class Discrete:
    """`n` choices."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = np.int32


@dataclasses.dataclass(frozen=True)
class Box:
    """Floats between two bounds."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = np.float32


@dataclasses.dataclass(frozen=True)
class CorridorParams:
    """A time limit."""

    max_steps_in_episode: int = LIMIT


class CorridorState(eqx.Module):
    """Where one stands, and since when."""

    position: Float[Array, "2"]
    time: Int[Array, ""]


class Corridor(eqx.Module):
    """One walks in the plane and is paid 1 for each step, until one leaves the square of ±1, or takes too long: so an episode's
    return is its length. The observation is the position and how much of the time is over; chance is in the first position
    only."""

    action: Discrete | Box = eqx.field(static=True)
    ends_at: int | None = eqx.field(static=True, default=None)
    """The step at which the episode terminates, wherever one stands; `None`: where the square ends."""

    @property
    def name(self) -> str:
        return "Corridor"

    def observation_space(self, params: CorridorParams) -> Box:
        return Box(-2.0, 2.0, (3,))

    def action_space(self, params: CorridorParams) -> Discrete | Box:
        return self.action

    def reset_env(self, key: Key[Array, ""], params: CorridorParams) -> tuple[Float[Array, "3"], CorridorState]:
        position = jax.random.uniform(key, (2,), jnp.float32, -0.8, 0.8)
        state = CorridorState(position=position, time=jnp.zeros((), jnp.int32))
        return self._see(state, params), state

    def step_env(
        self, key: Key[Array, ""], state: CorridorState, action: Any, params: CorridorParams
    ) -> tuple[Float[Array, "3"], CorridorState, Float[Array, ""], Any, dict[str, Any]]:
        push = jnp.stack([action - 1, 1 - action]).astype(jnp.float32) if is_discrete(self.action) else action
        state = CorridorState(position=state.position + 0.3 * push, time=state.time + 1)
        left = jnp.any(jnp.abs(state.position) > 1) if self.ends_at is None else state.time >= self.ends_at
        return self._see(state, params), state, jnp.ones((), jnp.float32), left, {}

    def is_truncated(self, state: CorridorState, params: CorridorParams) -> Any:
        return state.time >= params.max_steps_in_episode

    def _see(self, state: CorridorState, params: CorridorParams) -> Float[Array, "3"]:
        elapsed = state.time / jnp.float32(params.max_steps_in_episode)
        return jnp.concatenate([state.position, elapsed[None]])


ACTIONS = {"discrete": Discrete(3), "box": Box(-1.0, 1.0, (2,))}


def probe(kind: str, ends_at: int | None = None) -> tuple[AutoReset, CorridorParams]:
    """The environment and its parameters, with "discrete" actions or a "box" of them."""
    return AutoReset(Corridor(ACTIONS[kind], ends_at)), CorridorParams()


@eqx.filter_jit
def probe_agent(kind: str) -> MLPActorCritic:
    """A small policy for it."""
    env, params = probe(kind)
    spaces = env.observation_space(params), env.action_space(params)
    return MLPActorCritic(*spaces, hidden_sizes=(8,), key=jax.random.key(0))


@eqx.filter_jit
def normalized(agent: AbstractActorCritic, num_obs: int = 3) -> NormalizedActorCritic:
    """The policy with statistics that have counted something."""
    obs = jax.random.normal(jax.random.key(7), (64, num_obs)) + 1
    return NormalizedActorCritic(agent, obs[0]).observe(obs)


@eqx.filter_jit
def _act(agent: AbstractActorCritic, obs: Any, key: Key[Array, ""]) -> Any:
    distribution, value, _ = jax.vmap(jax.vmap(lambda o: agent(o, agent.initial_carry())))(obs)
    action = distribution.sample(key)
    return action, distribution.log_prob(action), value


def probe_rollout(agent: AbstractActorCritic, steps: int, envs: int, seed: int = 0) -> TrajectoryWithLastObs:
    """What the policy would do at random observations; rewards and ends are random too."""
    rng = np.random.default_rng(seed)
    floats = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    obs = floats(steps, envs, 3)
    action, log_prob, value = _act(agent, obs, jax.random.key(seed))
    terminated, truncated = rng.random((2, steps, envs)) < 0.15
    trajectories = Trajectory(
        obs=obs,
        action=action,
        log_prob=log_prob,
        reward=floats(steps, envs),
        value=value,
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        final_value=jnp.where(truncated & ~terminated, floats(steps, envs), 0.0),
    )
    return TrajectoryWithLastObs(trajectories=trajectories, last_done=trajectories.done[-1], last_obs=floats(envs, 3))


def probe_estimate(agent: AbstractActorCritic, steps: int, envs: int, seed: int = 0) -> AdvantageMinibatch:
    """The same with advantages and targets, no two of them alike, near the values."""
    trajectories = probe_rollout(agent, steps, envs, seed).trajectories
    advantages = jnp.asarray(np.random.default_rng(seed).normal(size=(steps, envs)), jnp.float32)
    return AdvantageMinibatch(trajectories=trajectories, advantages=advantages, targets=trajectories.value + advantages)
