import dataclasses
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._structs import TrajectoryCollectionState, Transition, Transitions
from eqxrl._typing import check_positive, typed
from eqxrl.collectors._base import AbstractCollector, acted_until, acting, init_collection
from eqxrl.collectors._reward_scaling import RewardScaling
from eqxrl.envs import AbstractStepper, ResetWhenDone
from eqxrl.nn import AbstractPolicy


@typed
class TransitionCollector(AbstractCollector[AbstractPolicy, Transitions]):
    """Steps `num_envs` environments `num_steps` times as the policy acts, and keeps each step with the observation that it led
    to and what the policy remembered. Stored is the action as chosen; the environment gets it clipped to its action space."""

    num_envs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    stepper: AbstractStepper = ResetWhenDone()
    """How environments are stepped, and start anew."""
    reward_scaling: RewardScaling | None = None
    """For what is learned from soon: a replay buffer would mix rewards of different scales."""

    def __check_init__(self):
        check_positive(self, "num_envs", "num_steps")

    def init(self, env: Any, env_params: Any, policy: AbstractPolicy, key: Key[Array, ""]) -> TrajectoryCollectionState:
        rms_state = () if self.reward_scaling is None else self.reward_scaling.init(self.num_envs)
        return init_collection(env, env_params, self.stepper, self.num_envs, policy.initial_carry(), rms_state, key)

    def __call__(
        self, env: Any, env_params: Any, policy: AbstractPolicy, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, Transitions]:
        state, loop = acting(env, env_params, policy, self.stepper, self.num_steps, state)
        end, acted = jax.lax.scan(*loop)
        state, episodes = acted_until(state, end, acted)
        transitions = Transition(
            obs=acted.obs, action=acted.action, reward=acted.reward, next_obs=acted.final_obs, terminated=acted.terminated,
            truncated=acted.truncated, remembered=acted.remembered,
        )
        if self.reward_scaling is not None:
            rms_state, reward = self.reward_scaling(state.rms_state, transitions.reward, transitions.done)
            state = dataclasses.replace(state, rms_state=rms_state)
            transitions = dataclasses.replace(transitions, reward=reward)
        return state, Transitions(transitions=transitions, episodes=episodes)
