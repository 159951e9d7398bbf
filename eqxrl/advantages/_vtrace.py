import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._structs import Trajectory, TrajectoryWithLastObs
from eqxrl._typing import Scalar, field, typed, within
from eqxrl.advantages._base import AbstractAdvantage, next_values


@typed
class VTrace(AbstractAdvantage):
    r"""V-trace: returns for a policy $\pi$ of steps that another one, $\mu$, has taken,
    $v_t = V(s_t) + \sum_l \gamma^l (\prod_{i<l} c_{t+i}) \delta_{t+l}$ with $\delta_t = \rho_t (r_t + \gamma V(s_{t+1}) - V(s_t))$,
    $\rho_t = \min(\bar\rho, \pi/\mu)$ and $c_t = \lambda \min(\bar c, \pi/\mu)$. Advantages are $\rho_t (q_t - V(s_t))$ with
    $q_t = r_t + \gamma ((1 - \lambda) V(s_{t+1}) + \lambda v_{t+1})$. Sums are cut where an episode
    ends; where it was cut off, the value of its final observation is bootstrapped.

    As an estimator of a rollout, whose policy is the one that acted, all ratios are 1 and, with both clips at 1 or above, it is `GAE`. The
    `VTraceLoss` corrects for the policy's moving away.

    Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, eq. 1 and section 4.2; $\lambda$ is their remark 2.
    """

    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    gae_lambda: Scalar = field(default=1.0, metadata=within(0.0, 1.0))
    """How far it trusts rewards over values; 1: as in the paper."""
    rho_clip: Scalar = field(default=1.0, metadata=within(0.0, open_low=True))
    """What a ratio counts for at most in a step's own error: it decides which policy's values are found. The paper has it no smaller than
    `c_clip`."""
    c_clip: Scalar = field(default=1.0, metadata=within(0.0))
    """What a ratio counts for at most in passing on later errors: it decides how fast they are found."""

    def __call__(
        self, rollout: TrajectoryWithLastObs, last_value: Float[Array, " envs"]
    ) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
        t = rollout.trajectories
        return self.corrected(t, last_value, t.value, jnp.zeros_like(t.value))

    def corrected(
        self, trajectory: Trajectory, last_value: Float[Array, " envs"], value: Float[Array, "steps envs"],
        log_ratio: Float[Array, "steps envs"],
    ) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
        r"""**Arguments:**

        - `trajectory`: rewards and end flags, `[steps envs]`, and values of final observations.
        - `last_value`: `[envs]`, value of the observation after the last step.
        - `value`: `[steps envs]`, the values that the critic gives now; those in `trajectory` aren't looked at.
        - `log_ratio`: `[steps envs]`, $\log \pi - \log \mu$ of each action.

        **Returns:** advantages (reward units, not standardised) and targets for the critic, each `[steps envs]`.
        """
        ratio = jnp.exp(log_ratio)
        rho, c = jnp.minimum(self.rho_clip, ratio), jnp.minimum(self.c_clip, ratio)
        delta = trajectory.reward + self.gamma * next_values(dataclasses.replace(trajectory, value=value), last_value) - value
        discount = jnp.where(trajectory.done, 0.0, self.gamma * self.gae_lambda)

        def backwards(later, step):
            delta, rho, c, discount = step
            later = discount * later  # how far the next step's target is above its value
            error = rho * delta + c * later
            return error, (rho * (delta + later), error)

        steps = (delta, rho, c, discount)
        _, (advantages, errors) = jax.lax.scan(backwards, jnp.zeros_like(last_value), steps, reverse=True, unroll=8)
        return advantages, value + errors
