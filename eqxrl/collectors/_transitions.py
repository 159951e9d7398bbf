from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._structs import TrajectoryCollectionState, Transition, Transitions, no_episodes
from eqxrl._typing import Carry, check_positive, typed
from eqxrl.collectors._base import AbstractCollector, acting, init_collection, refreshed
from eqxrl.envs import AbstractStepper, ResetWhenDone, VecStep
from eqxrl.nn import AbstractPolicy


@typed
class TransitionCollector(AbstractCollector[AbstractPolicy, Transitions]):
    """Steps `num_envs` environments `num_steps` times as the policy acts, and keeps each step with the observation that it led
    to. Stored is the action as chosen; the environment gets it clipped to its action space."""

    num_envs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    stepper: AbstractStepper = ResetWhenDone()
    """How environments are stepped, and start anew."""

    def __check_init__(self):
        check_positive(self, "num_envs", "num_steps")

    def init(self, env: Any, env_params: Any, policy: AbstractPolicy, key: Key[Array, ""]) -> TrajectoryCollectionState:
        return init_collection(env, env_params, self.stepper, self.num_envs, policy.initial_carry(), (), key)

    def __call__(
        self, env: Any, env_params: Any, policy: AbstractPolicy, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, Transitions]:
        def record(before: TrajectoryCollectionState, action: Any, remembered: Any, carry: Carry, after: VecStep) -> Transition:
            return Transition(
                obs=before.last_obs, action=action, reward=after.reward, next_obs=after.final_obs,
                terminated=after.terminated, truncated=after.truncated,
            )

        state = refreshed(env, env_params, self.stepper, state)
        step = acting(env, env_params, policy, self.stepper, record)
        (state, episodes), transitions = jax.lax.scan(step, (state, no_episodes()), length=self.num_steps)
        return state, Transitions(transitions=transitions, episodes=episodes)
