from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._structs import TrajectoryCollectionState, Transition, Transitions
from eqxrl._typing import check_positive, typed
from eqxrl.collectors._base import AbstractCollector, acted_until, acting, init_collection
from eqxrl.envs import AbstractStepper, ResetWhenDone
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
        state, loop = acting(env, env_params, policy, self.stepper, self.num_steps, state)
        end, acted = jax.lax.scan(*loop)
        state, episodes = acted_until(state, end, acted)
        transitions = Transition(
            obs=acted.obs, action=acted.action, reward=acted.reward, next_obs=acted.final_obs, terminated=acted.terminated,
            truncated=acted.truncated,
        )
        return state, Transitions(transitions=transitions, episodes=episodes)
