from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eqxrl._devices import num_shares
from eqxrl._structs import TrajectoryCollectionState
from eqxrl._typing import typed
from eqxrl.collectors._base import AbstractCollector
from eqxrl.envs._randomize import check_params


@typed
class Curriculum(AbstractCollector):
    """Collects with `inner`, in environments whose parameters change in the course of the run: `schedule(env_params, env_steps)` gives
    those of the next rollout. CartPole's pole, which grows from half of its length over the first 100 000 steps:

        def schedule(env_params, env_steps):
            return env_params.replace(length=env_params.length * jnp.clip(env_steps / 100_000, 0.5, 1.0))

        ppo = PPO.create("CartPole-v1", collector=lambda hp: Curriculum(RolloutCollector(hp.num_envs, hp.num_steps), schedule))

    An episode that is under way goes on with the new parameters. Evaluations don't know of the schedule: they are of the task that is to
    be learned, with the algorithm's own `env_params`, and so are the spaces that the policy is made for.

    - `schedule`: a function, or an `eqx.Module`, whose arrays are leaves. `env_params` are the algorithm's own; `env_steps`, a float32
      scalar, is how many steps were made before this rollout, over all environments.

    **Raises:** `TypeError` where the schedule changes the structure, a shape or a dtype of the parameters.
    """

    inner: AbstractCollector
    schedule: Callable[[Any, Float[Array, ""]], Any]

    def init(self, env: Any, env_params: Any, policy: Any, key: Key[Array, ""]) -> TrajectoryCollectionState:
        return self.inner.init(env, self._params(env_params, jnp.zeros((), jnp.int32)), policy, key)

    def __call__(
        self, env: Any, env_params: Any, policy: Any, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, Any]:
        return self.inner(env, self._params(env_params, state.global_step), policy, state)

    def _params(self, env_params: Any, num_rollouts: Int[Array, ""]) -> Any:
        made = self.schedule(env_params, num_rollouts.astype(jnp.float32) * (self.num_steps * self.num_envs * num_shares()))
        check_params("Curriculum's schedule", env_params, made)
        return made

    @property
    def num_envs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.num_envs

    @property
    def num_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.num_steps
