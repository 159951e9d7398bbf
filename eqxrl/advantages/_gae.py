import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl._typing import Scalar, field, typed, within
from eqxrl.advantages._base import AbstractAdvantage, next_values


@typed
class GAE(AbstractAdvantage):
    r"""Generalised advantage estimation, $\hat A_t = \sum_l (\gamma\lambda)^l \delta_{t+l}$ with
    $\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$. The sum is cut where an episode ends; where it was truncated and the MDP had
    not ended, the value of its final observation is bootstrapped. Targets are $\hat A_t + V(s_t)$,
    which are TD($\lambda$)'s returns: with $\lambda = 0$ those of TD(0), $r_t + \gamma V(s_{t+1})$; with $\lambda = 1$ Monte-Carlo's, the
    discounted rewards up to the episode's end, or to the rollout's end and the value of what follows.

    Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16; truncation after Pardo et al. 2018,
    https://arxiv.org/abs/1712.00378.
    """

    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    gae_lambda: Scalar = field(default=0.95, metadata=within(0.0, 1.0))

    def __call__(
        self, rollout: TrajectoryWithLastObs, last_value: Float[Array, " envs"]
    ) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
        t = rollout.trajectories
        delta = t.reward + self.gamma * next_values(t, last_value) - t.value
        decay = jnp.where(t.done, 0.0, self.gamma * self.gae_lambda)

        def backwards(advantage, step):
            delta, decay = step
            advantage = delta + decay * advantage
            return advantage, advantage

        _, advantages = jax.lax.scan(backwards, jnp.zeros_like(last_value), (delta, decay), reverse=True, unroll=8)
        return advantages, advantages + t.value
