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
    """The Huber loss of the value of one observation's action; of its quantiles `quantile_huber`, as a sum over them. And that value."""
    own = _of(values, action)
    return own.size * quantile_huber(own, target) if own.ndim else optax.huber_loss(own, target), jnp.mean(own)


def quantile_huber(values: Float[Array, " quantiles"], targets: Float[Array, " targets"]) -> Scalar:
    r"""How far quantiles of a distribution, at the middles $\tau_i$ of as many equal parts of $[0, 1]$, are from that of `targets`, which
    are equally likely: the mean over both of $|\tau_i - 1_{u_{ij} < 0}| L_1(u_{ij})$, with $u_{ij} = \mathrm{target}_j - \theta_i$ and
    Huber's loss $L_1$. Dabney et al. 2018, https://arxiv.org/abs/1710.10044, eq. 10, with κ = 1."""
    n = len(values)
    tau = (jnp.arange(n, dtype=values.dtype) + 0.5) / n
    u = targets[None, :] - values[:, None]
    return jnp.mean(jnp.abs(tau[:, None] - (u < 0)) * optax.huber_loss(u))


def _of(values: Float[Array, " act *quantiles"], action: Int[Array, ""]) -> Float[Array, "*quantiles"]:
    return value_of(values.T, jnp.broadcast_to(action, values.shape[1:]))
