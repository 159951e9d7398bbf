import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from eqxrl._structs import EpisodeStats, TrajectoryCollectionState
from eqxrl._typing import Carry, one_more, strong
from eqxrl.envs import AbstractStepper, VecStep
from eqxrl.envs._stepper import select
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import to_env_action

TPolicy = TypeVar("TPolicy", bound=eqx.Module)
TBatch = TypeVar("TBatch", bound=eqx.Module)


class AbstractCollector(eqx.Module, Generic[TPolicy, TBatch]):
    """Collects `num_steps` steps in each of `num_envs` environments. It owns the environments' side of the training state
    (`TrajectoryCollectionState`) and knows nothing of losses. One that halves the rewards of another one, in full:

        class HalfReward(AbstractCollector):
            inner: AbstractCollector
            num_envs: int = eqx.field(static=True)
            num_steps: int = eqx.field(static=True)

            def init(self, env, env_params, policy, key):
                return self.inner.init(env, env_params, policy, key)

            def __call__(self, env, env_params, policy, state):
                state, rollout = self.inner(env, env_params, policy, state)
                return state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, replace_fn=lambda r: r / 2)

    On-policy algorithms give it an `AbstractActorCritic` and want a `TrajectoryWithLastObs`; off-policy ones give it an
    `AbstractPolicy` and want `Transitions`.
    """

    num_envs: eqx.AbstractVar[int]
    num_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, env: Any, env_params: Any, policy: TPolicy, key: Key[Array, ""]) -> TrajectoryCollectionState:
        """Freshly reset environments. Of the policy only the shape of its hidden state is needed."""

    @abc.abstractmethod
    def __call__(
        self, env: Any, env_params: Any, policy: TPolicy, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TBatch]:
        """What was collected, `[steps envs]`, from where `state` stands, and where it stands then."""


def init_collection(
    env: Any, env_params: Any, stepper: AbstractStepper, num_envs: int, initial_carry: Carry, rms_state: Any, key: Key[Array, ""]
) -> TrajectoryCollectionState:
    """The state of freshly reset environments."""
    reset_key, rng = jax.random.split(key)
    obs, env_state, reset_state = stepper.init(env, env_params, jax.random.split(reset_key, num_envs))
    return TrajectoryCollectionState(
        # jnp.copy: the state may hold the very buffer of the observation, and a buffer can be donated only once
        last_obs=jax.tree.map(jnp.copy, strong(obs)), env_state=strong(env_state), rms_state=rms_state,
        last_done=jnp.zeros((num_envs,), bool), global_step=jnp.zeros((), jnp.int32), rng=rng, reset_state=strong(reset_state),
        carry=strong(jax.tree.map(lambda x: jnp.repeat(x[None], num_envs, axis=0), initial_carry)),
        episode_return=jnp.zeros((num_envs,), jnp.float32), episode_length=jnp.zeros((num_envs,), jnp.int32),
    )


def refreshed(env: Any, env_params: Any, stepper: AbstractStepper, state: TrajectoryCollectionState) -> TrajectoryCollectionState:
    """The state with what the stepper keeps made ready for the next rollout, and the rollout counted."""
    rng, refresh_key = jax.random.split(state.rng)
    reset_state = stepper.refresh(env, env_params, refresh_key, state.reset_state)
    return dataclasses.replace(state, rng=rng, reset_state=reset_state, global_step=one_more(state.global_step))


def acting(
    env: Any, env_params: Any, policy: AbstractPolicy, stepper: AbstractStepper,
    record: Callable[[TrajectoryCollectionState, Any, Any, Carry, VecStep], Any],
) -> Callable[[tuple[TrajectoryCollectionState, EpisodeStats], None], tuple[tuple[TrajectoryCollectionState, EpisodeStats], Any]]:
    """One step of all environments, as the body of a scan; every collector's loop.

    **Arguments:** `record(state before, action, remembered, carry after, what the step led to)`: what is kept of it.
    """
    action_space = env.action_space(env_params)

    def step(carried, _):
        state, episodes = carried
        rng, step_rng = jax.random.split(state.rng)
        step_key, action_key = jax.random.split(step_rng)
        carry = reset_carries(policy, state.carry, state.last_done)
        action, carry, remembered = policy(state.last_obs, carry, action_key)
        keys = jax.random.split(step_key, state.last_done.size)
        env_action = to_env_action(action_space, action)
        after = stepper.step(env, env_params, keys, state.env_state, state.reset_state, env_action)
        kept = record(state, action, remembered, carry, after)
        done = after.done
        episode_return = state.episode_return + after.reward
        episode_length = state.episode_length + 1
        episodes = EpisodeStats(
            count=episodes.count + jnp.sum(done, dtype=jnp.float32),
            total_return=episodes.total_return + jnp.sum(jnp.where(done, episode_return, 0.0)),
            total_length=episodes.total_length + jnp.sum(jnp.where(done, episode_length, 0), dtype=jnp.float32),
        )
        state = dataclasses.replace(
            state, last_obs=after.obs, env_state=after.env_state, last_done=done, rng=rng, reset_state=after.reset_state, carry=carry,
            episode_return=jnp.where(done, 0.0, episode_return), episode_length=jnp.where(done, 0, episode_length),
        )
        return (state, episodes), kept

    return step


def reset_carries(policy: Any, carry: Carry, done: Bool[Array, " envs"]) -> Carry:
    """Hidden states `[envs ...]`, fresh where an episode ended."""
    return select(done, policy.initial_carry(), carry)
