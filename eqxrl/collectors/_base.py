"""What a collector is: it owns the environments' side of the training state (`TrajectoryCollectionState`) and turns a policy
into a rollout. It knows nothing of losses. A collector that halves the reward of another one, in full:

    class HalfReward(AbstractCollector):
        inner: AbstractCollector
        num_envs: int = eqx.field(static=True)
        num_steps: int = eqx.field(static=True)

        def init(self, env, env_params, agent, key):
            return self.inner.init(env, env_params, agent, key)

        def __call__(self, env, env_params, agent, state):
            state, rollout = self.inner(env, env_params, agent, state)
            return state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, replace_fn=lambda r: r / 2)
"""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Key

from eqxrl._structs import TrajectoryCollectionState, TrajectoryWithLastObs
from eqxrl.nn import AbstractActorCritic


class AbstractCollector(eqx.Module):
    """Collects rollouts of `num_steps` steps in each of `num_envs` environments."""

    num_envs: eqx.AbstractVar[int]
    num_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, env: Any, env_params: Any, agent: AbstractActorCritic, key: Key[Array, ""]) -> TrajectoryCollectionState:
        """Freshly reset environments. Of the policy only the shape of its hidden state is needed."""

    @abc.abstractmethod
    def __call__(
        self, env: Any, env_params: Any, agent: AbstractActorCritic, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TrajectoryWithLastObs]:
        """One rollout `[steps envs]` from where `state` stands, and where it stands then."""
