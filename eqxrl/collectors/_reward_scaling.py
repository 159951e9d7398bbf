import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from eqxrl._typing import Scalar, field, typed, within
from eqxrl.nn import RunningMoments
from eqxrl.nn._normalize import zero_moments


@typed
class RewardScalingState(eqx.Module):
    """What `RewardScaling` carries from one rollout to the next."""

    returns: Float[Array, " envs"]
    """Discounted return so far of the episode under way in each environment."""
    moments: RunningMoments
    """Of all the values that `returns` has had."""


@typed
class RewardScaling(eqx.Module):
    """Divides rewards by the standard deviation of the running discounted return, $R_t = \\gamma R_{t-1} + r_t$, starting anew
    with each episode; the mean isn't subtracted, and the result is clipped to ±`clip`. That is the convention of the `VecNormalize`
    of OpenAI's baselines, except that a whole rollout is counted before it is scaled, so the scale is one number per
    rollout and the first rollout is scaled too.

    Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, appendix A.2.
    """

    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    clip: Scalar = field(default=10.0, metadata=within(0.0, open_low=True))
    epsilon: Scalar = field(default=1e-8, metadata=within(0.0, open_low=True))

    def init(self, num_envs: int) -> RewardScalingState:
        return RewardScalingState(returns=jnp.zeros((num_envs,), jnp.float32), moments=zero_moments())

    def __call__(
        self, state: RewardScalingState, reward: Float[Array, "steps envs"], done: Bool[Array, "steps envs"]
    ) -> tuple[RewardScalingState, Float[Array, "steps envs"]]:
        """**Returns:** the next state, and the scaled rewards."""

        def step(running, reward_and_done):
            reward, done = reward_and_done
            running = self.gamma * running + reward
            return jnp.where(done, 0.0, running), running

        running, returns = jax.lax.scan(step, state.returns, (reward, done), unroll=8)
        moments = state.moments.update(returns)
        scaled = jnp.clip(reward * jax.lax.rsqrt(moments.var + self.epsilon), -self.clip, self.clip)
        return RewardScalingState(returns=running, moments=moments), scaled
