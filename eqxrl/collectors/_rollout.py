import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from eqxrl._structs import Trajectory, TrajectoryCollectionState, TrajectoryWithLastObs
from eqxrl._typing import Carry, Observation, check_positive, typed
from eqxrl.collectors._base import AbstractCollector, acted_until, acting, init_collection
from eqxrl.collectors._reward_scaling import RewardScaling
from eqxrl.envs import AbstractStepper, ResetWhenDone, VecStep, cond_any
from eqxrl.nn import AbstractActorCritic, ActorCriticPolicy, has_memory


@typed
class RolloutCollector(AbstractCollector[AbstractActorCritic, TrajectoryWithLastObs]):
    """Steps `num_envs` environments `num_steps` times with actions drawn from the policy. Stored is the action as drawn; the
    environment gets it clipped to its action space."""

    num_envs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    stepper: AbstractStepper = ResetWhenDone()
    """How environments are stepped, and start anew."""
    reward_scaling: RewardScaling | None = None

    def __check_init__(self):
        check_positive(self, "num_envs", "num_steps")

    def init(self, env: Any, env_params: Any, policy: AbstractActorCritic, key: Key[Array, ""]) -> TrajectoryCollectionState:
        rms_state = () if self.reward_scaling is None else self.reward_scaling.init(self.num_envs)
        return init_collection(env, env_params, self.stepper, self.num_envs, policy.initial_carry(), rms_state, key)

    def __call__(
        self, env: Any, env_params: Any, policy: AbstractActorCritic, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TrajectoryWithLastObs]:
        initial_carry = state.carry

        def note(after: VecStep, carry: Carry) -> Any:
            return _final_values(policy, after.final_obs, carry, after.truncated & ~after.terminated)

        state, loop = acting(env, env_params, ActorCriticPolicy(policy), self.stepper, self.num_steps, state, note)
        end, acted = jax.lax.scan(*loop)
        state, episodes = acted_until(state, end, acted)
        distribution, value = acted.remembered
        # All at once is cheaper than step by step, except for images: their layers fill the memory, and mostly serve policy and critic.
        if not has_memory(policy) and all(x.ndim <= 3 for x in jax.tree.leaves(acted.obs)):
            value = jax.vmap(jax.vmap(lambda obs: policy(obs, ())[1]))(acted.obs)
        trajectories = Trajectory(
            obs=acted.obs, action=acted.action, log_prob=distribution.log_prob(acted.action), value=value, reward=acted.reward,
            terminated=acted.terminated, truncated=acted.truncated, final_value=acted.noted,
        )
        if self.reward_scaling is not None:
            rms_state, reward = self.reward_scaling(state.rms_state, trajectories.reward, trajectories.done)
            state = dataclasses.replace(state, rms_state=rms_state)
            trajectories = dataclasses.replace(trajectories, reward=reward)
        return state, TrajectoryWithLastObs(trajectories, state.last_done, state.last_obs, initial_carry, episodes)


def _final_values(
    agent: AbstractActorCritic, final_obs: Observation, carry: Carry, needed: Bool[Array, " envs"]
) -> Float[Array, " envs"]:
    """The critic's values of final observations where they are needed, else 0; on a step that needs none, nothing is computed."""
    arrays, static = eqx.partition(agent, eqx.is_array)

    def values(arrays, final_obs, carry):
        return jax.vmap(eqx.combine(arrays, static))(final_obs, carry)[1]

    otherwise = jnp.zeros(needed.shape, jax.eval_shape(values, arrays, final_obs, carry).dtype)
    return jnp.where(needed, cond_any(needed, values, (arrays, final_obs, carry), otherwise), 0.0)
