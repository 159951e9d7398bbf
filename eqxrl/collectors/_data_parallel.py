from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._devices import on_each, sum_over_devices
from eqxrl._structs import TrajectoryCollectionState, TrajectoryWithLastObs
from eqxrl._typing import check_positive, typed
from eqxrl.collectors._base import AbstractCollector
from eqxrl.collectors._reward_scaling import RewardScalingState
from eqxrl.nn import AbstractActorCritic


@typed
class DataParallelCollector(AbstractCollector[AbstractActorCritic, TrajectoryWithLastObs]):
    """Collects with `inner` on each of `num_devices` devices, from keys of its own, and puts what these have collected side by side: the
    first `inner.num_envs` environments are the first device's. What the stepper keeps (`reset_state`) has an axis of devices in front;
    rewards are scaled by the statistics of all. Where there are fewer devices, one collects for all."""

    inner: AbstractCollector
    num_devices: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(self, "num_devices")

    def init(self, env: Any, env_params: Any, policy: AbstractActorCritic, key: Key[Array, ""]) -> TrajectoryCollectionState:
        keys = jax.random.split(key, self.num_devices + 1)
        envs, reset_state, common = jax.vmap(lambda key: _apart(self.inner.init(env, env_params, policy, key)))(keys[1:])
        envs, common = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), envs), jax.tree.map(lambda x: x[0], common)
        return _together(envs, reset_state, common, keys[0])

    def __call__(
        self, env: Any, env_params: Any, policy: AbstractActorCritic, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TrajectoryWithLastObs]:
        keys = jax.random.split(state.rng, self.num_devices + 1)

        def share(envs: Any, reset_state: Any, keys: Any, common: Any) -> Any:
            reset_state, key = jax.tree.map(lambda x: x[0], (reset_state, keys))
            state, rollout = self.inner(env, env_params, policy, _together(envs, reset_state, common, key))
            envs, reset_state, common = _apart(state)
            last = rollout.last_done, rollout.last_obs, rollout.initial_carry
            reset_state = jax.tree.map(lambda x: x[None], reset_state)
            return envs, reset_state, last, rollout.trajectories, (common, sum_over_devices(rollout.episodes))

        envs, reset_state, common = _apart(state)
        each = on_each(share, self.num_devices, in_axes=(0, 0, 0, None), out_axes=(0, 0, 0, 1, None))
        envs, reset_state, last, trajectories, (common, episodes) = each(envs, reset_state, keys[1:], common)
        last_done, last_obs, initial_carry = last
        rollout = TrajectoryWithLastObs(trajectories, last_done, last_obs, initial_carry, episodes)
        return _together(envs, reset_state, common, keys[0]), rollout

    @property
    def num_envs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Over all devices."""
        return self.inner.num_envs * self.num_devices

    @property
    def num_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.num_steps


def _apart(state: TrajectoryCollectionState) -> tuple[Any, Any, Any]:
    """What a state has of each environment, of each device, and of all devices in common; without its key."""
    scaling = state.rms_state
    returns, moments = (scaling.returns, scaling.moments) if isinstance(scaling, RewardScalingState) else ((), scaling)
    envs = state.last_obs, state.env_state, returns, state.last_done, state.episode_return, state.episode_length, state.carry
    return envs, state.reset_state, (state.global_step, moments)


def _together(envs: Any, reset_state: Any, common: Any, rng: Key[Array, ""]) -> TrajectoryCollectionState:
    last_obs, env_state, returns, last_done, episode_return, episode_length, carry = envs
    global_step, moments = common
    return TrajectoryCollectionState(
        last_obs=last_obs, env_state=env_state, rms_state=moments if isinstance(returns, tuple) else RewardScalingState(returns, moments),
        last_done=last_done, global_step=global_step, rng=rng, episode_return=episode_return, episode_length=episode_length,
        reset_state=reset_state, carry=carry,
    )
