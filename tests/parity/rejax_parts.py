"""Parts that normalise as rejax does: what eqxrl does otherwise, composed from outside."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import AbstractCollector, RolloutCollector
from eqxrl.envs import AbstractStepper, ResetWhenDone
from eqxrl.nn import RunningMoments


def zero_moments(x: jax.Array) -> RunningMoments:
    return RunningMoments(mean=jnp.zeros_like(x), var=jnp.ones_like(x), count=jnp.asarray(1e-4, x.dtype))


class NormalizeEachStep(AbstractStepper):
    """Observations are counted and then standardised step by step, all environments at once, and not clipped; the first one of
    a run is neither counted nor standardised. (eqxrl's policy carries the statistics, standardises every observation it
    sees, and counts after the rollout has been learned from.)"""

    inner: AbstractStepper = ResetWhenDone()

    def init(self, env: Any, env_params: Any, keys: Any) -> Any:
        obs, env_state, inner = self.inner.init(env, env_params, keys)
        return obs, env_state, (inner, zero_moments(obs[0]))

    def step(self, env: Any, env_params: Any, keys: Any, env_state: Any, reset_state: Any, action: Any) -> Any:
        inner, moments = reset_state
        after = self.inner.step(env, env_params, keys, env_state, inner, action)
        moments = moments.update(after.obs)
        obs = standardize(moments, after.obs)
        return dataclasses.replace(after, obs=obs, reset_state=(after.reset_state, moments))

    def refresh(self, env: Any, env_params: Any, key: Any, reset_state: Any) -> Any:
        inner, moments = reset_state
        return self.inner.refresh(env, env_params, key, inner), moments


def standardize(moments: RunningMoments, obs: jax.Array) -> jax.Array:
    return (obs - moments.mean) / jnp.sqrt(moments.var + 1e-8)


class ScaleRewardsEachStep(AbstractCollector):
    """Rewards are divided by the deviation of a running return that is counted step by step, and not clipped. An episode's last
    reward is counted without what came before it, and the next episode's first reward with it. (eqxrl counts a whole rollout
    before scaling it, and starts each episode's return from 0.)"""

    inner: RolloutCollector
    discount: jax.Array
    num_envs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def init(self, env: Any, env_params: Any, agent: Any, key: Any) -> Any:
        state = self.inner.init(env, env_params, agent, key)
        returns = jnp.zeros((self.num_envs,), self.discount.dtype)
        return dataclasses.replace(state, rms_state=(returns, zero_moments(returns[0])))

    def __call__(self, env: Any, env_params: Any, agent: Any, state: Any) -> Any:
        state, rollout = self.inner(env, env_params, agent, state)

        def step(carry, reward_and_done):
            returns, moments = carry
            reward, done = reward_and_done
            returns = reward + jnp.where(done, 0, self.discount * returns)
            moments = moments.update(returns)
            return (returns, moments), reward / jnp.sqrt(moments.var + 1e-8)

        t = rollout.trajectories
        rms_state, reward = jax.lax.scan(step, state.rms_state, (t.reward, t.done))
        rollout = eqx.tree_at(lambda r: r.trajectories.reward, rollout, reward)
        return dataclasses.replace(state, rms_state=rms_state), rollout
