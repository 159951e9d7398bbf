import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._structs import Transition
from eqxrl._typing import Scalar


def soft_lambda_returns(
    t: Transition, value: Float[Array, "steps envs"], bonus: Float[Array, "steps envs"], gamma: Scalar, td_lambda: Scalar
) -> Float[Array, "steps envs"]:
    r"""TD(λ)'s returns with a bonus on each step after the first, $G_t = r_t + \gamma (b_t + (1 - \lambda) Q_t + \lambda G_{t+1})$, where
    what follows a step whose MDP ended is 0, and λ is 0 where a step was truncated or is the last one. Voelcker et al. 2025,
    https://arxiv.org/abs/2507.11019, where the bonus is the temperature times -log π.

    **Arguments:**

    - `t`: steps `[steps envs]`, of which rewards and ends are looked at.
    - `value`: $Q_t$, `[steps envs]`, of the observation that each step led to and of an action of the policy there.
    - `bonus`: $b_t$, `[steps envs]`, for that action. Both may be anything where the MDP ended.
    """
    trusted = jnp.where(t.truncated.at[-1].set(True), 0.0, td_lambda)

    def backwards(following, step):
        reward, value, bonus, terminated, trusted = step
        later = bonus + value + jnp.where(trusted > 0, trusted * (following - value), 0.0)
        returned = reward + gamma * jnp.where(terminated, 0.0, later)
        return returned, returned

    steps = t.reward, value, bonus, t.terminated, trusted
    return jax.lax.scan(backwards, jnp.zeros_like(value[0]), steps, reverse=True, unroll=8)[1]
