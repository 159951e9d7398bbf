import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from eqxrl._structs import Replayed
from eqxrl._typing import Scalar
from eqxrl.nn import expected, value_of


def td_target(
    t: Replayed, next_values: Float[Array, " act *quantiles"], choice: Float[Array, " act *quantiles"]
) -> Float[Array, "*quantiles"]:
    """What the value of one transition's action should be: its reward and, unless the MDP ended, `t.discount` times the next value of the
    best action. van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461

    **Arguments:** one transition, without leading axes; the values of the actions at `t.next_obs`, or their quantiles; those which the best
    action is chosen by. In double Q-learning these are another network's.
    """
    following = _of(next_values, jnp.argmax(expected(choice)))
    return t.reward + t.discount * jnp.where(t.terminated, 0.0, following)


def td_loss(
    values: Float[Array, " act *quantiles"], action: Int[Array, ""], target: Float[Array, "*quantiles"]
) -> tuple[Scalar, Scalar]:
    """The Huber loss of the value of one observation's action; of its quantiles `quantile_huber`. And that value."""
    own = _of(values, action)
    return quantile_huber(own, target) if own.ndim else optax.huber_loss(own, target), jnp.mean(own)


def quantile_huber(quantiles: Float[Array, " quantiles"], target: Float[Array, " targets"]) -> Scalar:
    r"""The quantile Huber loss, $\sum_i E_j |\tau_i - 1_{u_{ij} < 0}| L_1(u_{ij})$ with $u_{ij} = \mathrm{target}_j - \theta_i$, where
    $\tau_i$ is the middle of the $i$-th part of $[0, 1]$ and $L_1$ is Huber's loss with $\kappa = 1$.

    Dabney et al. 2018, https://arxiv.org/abs/1710.10044, eq. 10 and algorithm 1.
    """
    n = len(quantiles)
    tau = (jnp.arange(n, dtype=quantiles.dtype) + 0.5) / n
    u = target[None, :] - quantiles[:, None]
    return jnp.sum(jnp.mean(jnp.abs(tau[:, None] - (u < 0)) * optax.huber_loss(u), axis=1))


def _of(values: Float[Array, " act *quantiles"], action: Int[Array, ""]) -> Float[Array, "*quantiles"]:
    return value_of(values.T, jnp.broadcast_to(action, values.shape[1:]))
