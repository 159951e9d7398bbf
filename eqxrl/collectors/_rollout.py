import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from eqxrl._structs import EpisodeStats, Trajectory, TrajectoryCollectionState, TrajectoryWithLastObs, no_episodes
from eqxrl._typing import Carry, Observation, check_positive, strong, typed
from eqxrl.collectors._base import AbstractCollector
from eqxrl.collectors._reward_scaling import RewardScaling
from eqxrl.envs import AbstractReset, cond_any, default_reset, to_env_action
from eqxrl.nn import AbstractActorCritic


@typed
class RolloutCollector(AbstractCollector):
    """Steps `num_envs` environments `num_steps` times with actions drawn from the policy. Stored is the action as drawn; the
    environment gets it clipped to its action space."""

    num_envs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    reset: AbstractReset | None = None
    """How environments start anew; `None`: the cheapest way that the environment allows, `envs.default_reset`."""
    reward_scaling: RewardScaling | None = None

    def __check_init__(self):
        check_positive(self, "num_envs", "num_steps")

    def init(self, env: Any, env_params: Any, agent: AbstractActorCritic, key: Key[Array, ""]) -> TrajectoryCollectionState:
        reset_key, rng = jax.random.split(key)
        keys = jax.random.split(reset_key, self.num_envs)
        obs, env_state, reset_state = (self.reset or default_reset(env)).init(env, env_params, keys)
        return TrajectoryCollectionState(
            # jnp.copy: the state may hold the very buffer of the observation, and a buffer can be donated only once
            last_obs=jax.tree.map(jnp.copy, strong(obs)),
            env_state=strong(env_state),
            rms_state=() if self.reward_scaling is None else self.reward_scaling.init(self.num_envs),
            last_done=jnp.zeros((self.num_envs,), bool),
            global_step=jnp.zeros((), jnp.int32),
            rng=rng,
            reset_state=strong(reset_state),
            carry=strong(_fresh_carries(agent, self.num_envs)),
            episode_return=jnp.zeros((self.num_envs,), jnp.float32),
            episode_length=jnp.zeros((self.num_envs,), jnp.int32),
        )

    def __call__(
        self, env: Any, env_params: Any, agent: AbstractActorCritic, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TrajectoryWithLastObs]:
        reset = self.reset or default_reset(env)
        action_space = env.action_space(env_params)
        rng, refresh_key = jax.random.split(state.rng)
        reset_state = reset.refresh(env, env_params, refresh_key, state.reset_state)
        state = dataclasses.replace(state, rng=rng, reset_state=reset_state)

        def step(
            carried: tuple[TrajectoryCollectionState, EpisodeStats], _: None
        ) -> tuple[tuple[TrajectoryCollectionState, EpisodeStats], Trajectory]:
            state, episodes = carried
            rng, step_rng = jax.random.split(state.rng)
            step_key, action_key = jax.random.split(step_rng)
            carry = _reset_carries(agent, state.carry, state.last_done)
            distribution, value, carry = jax.vmap(agent)(state.last_obs, carry)
            action = distribution.sample(action_key)
            after = reset.step(
                env,
                env_params,
                jax.random.split(step_key, self.num_envs),
                state.env_state,
                state.reset_state,
                to_env_action(action_space, action),
            )
            transition = Trajectory(
                obs=state.last_obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=after.reward,
                value=value,
                terminated=after.terminated,
                truncated=after.truncated,
                final_value=_final_values(agent, after.final_obs, carry, after.truncated & ~after.terminated),
            )
            done = after.terminated | after.truncated
            episode_return = state.episode_return + after.reward
            episode_length = state.episode_length + 1
            episodes = EpisodeStats(
                count=episodes.count + jnp.sum(done, dtype=jnp.float32),
                total_return=episodes.total_return + jnp.sum(jnp.where(done, episode_return, 0.0)),
                total_length=episodes.total_length + jnp.sum(jnp.where(done, episode_length, 0), dtype=jnp.float32),
            )
            state = dataclasses.replace(
                state,
                last_obs=after.obs,
                env_state=after.env_state,
                last_done=done,
                rng=rng,
                reset_state=after.reset_state,
                carry=carry,
                episode_return=jnp.where(done, 0.0, episode_return),
                episode_length=jnp.where(done, 0, episode_length),
            )
            return (state, episodes), transition

        initial_carry = _reset_carries(agent, state.carry, state.last_done)
        (state, episodes), trajectories = jax.lax.scan(step, (state, no_episodes()), length=self.num_steps)
        if self.reward_scaling is not None:
            rms_state, reward = self.reward_scaling(state.rms_state, trajectories.reward, trajectories.done)
            state = dataclasses.replace(state, rms_state=rms_state)
            trajectories = dataclasses.replace(trajectories, reward=reward)
        state = dataclasses.replace(state, global_step=state.global_step + 1)
        return state, TrajectoryWithLastObs(
            trajectories=trajectories,
            last_done=state.last_done,
            last_obs=state.last_obs,
            initial_carry=initial_carry,
            episodes=episodes,
        )


def _final_values(
    agent: AbstractActorCritic, final_obs: Observation, carry: Carry, needed: Bool[Array, " envs"]
) -> Float[Array, " envs"]:
    """The critic's values of final observations where they are needed, else 0; on a step that needs none, nothing is computed."""
    arrays, static = eqx.partition(agent, eqx.is_array)

    def values(arrays, final_obs, carry):
        return jax.vmap(eqx.combine(arrays, static))(final_obs, carry)[1]

    otherwise = jnp.zeros(needed.shape, jax.eval_shape(values, arrays, final_obs, carry).dtype)
    return jnp.where(needed, cond_any(needed, values, (arrays, final_obs, carry), otherwise), 0.0)


def _fresh_carries(agent: AbstractActorCritic, num_envs: int) -> Carry:
    return jax.tree.map(lambda x: jnp.repeat(x[None], num_envs, axis=0), agent.initial_carry())


def _reset_carries(agent: AbstractActorCritic, carry: Carry, done: Bool[Array, " envs"]) -> Carry:
    def leaf(fresh, x):
        return jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), fresh, x)

    return jax.tree.map(leaf, agent.initial_carry(), carry)
