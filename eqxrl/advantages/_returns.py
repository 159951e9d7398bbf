"""Returns of sequences of transitions, which may be another policy's, as targets for values of actions. In all of them what follows a step
whose MDP ended is 0, and nothing later is trusted where a step was truncated or is the last one: there the value of the observation that
it led to stands for all that follows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._structs import Transition
from eqxrl._typing import Scalar


def soft_lambda_returns(
    t: Transition, value: Float[Array, " steps *envs"], bonus: Float[Array, " steps *envs"], gamma: Scalar, td_lambda: Scalar
) -> Float[Array, " steps *envs"]:
    r"""TD(λ)'s returns with a bonus on each step after the first, $G_t = r_t + \gamma (b_t + (1 - \lambda) Q_t + \lambda G_{t+1})$.
    Voelcker et al. 2025, https://arxiv.org/abs/2507.11019, where the bonus is the temperature times -log π.

    **Arguments:**

    - `t`: steps `[steps envs]` or `[steps]`, of which rewards and ends are looked at.
    - `value`: $Q_t$, of the observation that each step led to and of an action of the policy there.
    - `bonus`: $b_t$, for that action. Both may be anything where the MDP ended.
    """
    return _returns(t, bonus + value, value, jnp.broadcast_to(td_lambda, t.reward.shape), gamma)


def q_lambda_returns(
    t: Transition, next_value: Float[Array, " steps *envs"], gamma: Scalar, q_lambda: Scalar
) -> Float[Array, " steps *envs"]:
    r"""Peng's Q(λ): $G_t = r_t + \gamma ((1 - \lambda) \max_a Q(s_{t+1}, a) + \lambda G_{t+1})$, whatever policy acted. Peng and Williams
    1996, https://doi.org/10.1007/BF00114731; on rollouts, Gallici et al. 2024, https://arxiv.org/abs/2407.04811.

    **Arguments:**

    - `t`: steps `[steps envs]` or `[steps]`, of which rewards and ends are looked at.
    - `next_value`: $\max_a Q(s_{t+1}, a)$, of the observation that each step led to; anything where the MDP ended.
    - `q_lambda`: how far rewards are trusted over values: 0 one step, 1 the whole sequence.
    """
    return _returns(t, next_value, next_value, jnp.broadcast_to(q_lambda, t.reward.shape), gamma)


def retrace_returns(
    t: Transition, value: Float[Array, " steps *envs"], next_value: Float[Array, " steps *envs"],
    log_ratio: Float[Array, " steps *envs"], gamma: Scalar, retrace_lambda: Scalar,
) -> Float[Array, " steps *envs"]:
    r"""Retrace(λ), for a policy $\pi$ of steps that another one, $\mu$, has taken:
    $G_t = r_t + \gamma (E_\pi Q(s_{t+1}, \cdot) + c_{t+1} (G_{t+1} - Q(s_{t+1}, a_{t+1})))$ with $c_t = \lambda \min(1, \pi/\mu)$. Munos et
    al. 2016, https://arxiv.org/abs/1606.02647.

    **Arguments:**

    - `t`: steps `[steps envs]` or `[steps]`, of which rewards and ends are looked at.
    - `value`: $Q(s_t, a_t)$ of the action that was taken.
    - `next_value`: $E_\pi Q(s_{t+1}, \cdot)$, of the observation that each step led to; anything where the MDP ended.
    - `log_ratio`: $\log \pi(a_t|s_t) - \log \mu(a_t|s_t)$.
    - `retrace_lambda`: how far rewards are trusted over values: 0 one step.

    Of sequences from a replay buffer the last steps may be missing: where the next one isn't there, call a step truncated.

        rows, there = sequences(buffer_state, drawn.index, length)
        next_there = jnp.pad(there[:, 1:], ((0, 0), (0, 1)))
        rows = dataclasses.replace(rows, truncated=rows.truncated | ~next_there)
    """
    trusted = retrace_lambda * jnp.minimum(1.0, jnp.exp(log_ratio))
    value, trusted = (jnp.roll(x, -1, axis=0) for x in (value, trusted))  # those of the next step, which the last one hasn't
    return _returns(t, next_value, value, trusted, gamma)


def _returns(
    t: Transition, next_value: Float[Array, " steps *envs"], baseline: Float[Array, " steps *envs"],
    trusted: Float[Array, " steps *envs"], gamma: Scalar,
) -> Float[Array, " steps *envs"]:
    r"""$G_t = r_t + \gamma (v_t + c_t (G_{t+1} - b_t))$, with `next_value` v, `baseline` b and `trusted` c."""
    trusted = jnp.where(t.done.at[-1].set(True), 0.0, trusted)

    def backwards(following, step):
        reward, next_value, baseline, terminated, trusted = step
        later = next_value + jnp.where(trusted > 0, trusted * (following - baseline), 0.0)
        returned = reward + gamma * jnp.where(terminated, 0.0, later)
        return returned, returned

    steps = t.reward, next_value, baseline, t.terminated, trusted
    return jax.lax.scan(backwards, jnp.zeros_like(t.reward[0]), steps, reverse=True, unroll=8)[1]
