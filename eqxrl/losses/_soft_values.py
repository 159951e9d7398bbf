"""Values of actions under critics, for actions in a Box and in a Discrete space."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import Replayed
from eqxrl._typing import Action, Observation, T
from eqxrl.nn import AbstractDistribution, Categorical, Ensemble, value_of
from eqxrl.spaces import Discrete


def values_taken(critics: Ensemble, action_space: Any, obs: Observation, action: Action) -> Float[Array, "members batch outputs"]:
    """The critics' values of the actions that were taken, `[batch]`. For Discrete actions the critics give one for each, `[act]`."""
    if not isinstance(action_space, Discrete):
        return jax.vmap(critics, out_axes=1)(obs, action)
    return _of_taken(jax.vmap(critics, out_axes=1)(obs), action)


def values_chosen(
    distribution: AbstractDistribution, critics: Ensemble, obs: Observation, key: Key[Array, ""], reduce: Callable[[Array], Array]
) -> tuple[Float[Array, "..."], Float[Array, " batch"]]:
    """What `reduce` makes of the critics' values `[members batch outputs]` of actions that are drawn from the distribution, and their
    log-probs; of Discrete actions the expectations of both, with no need to draw any. Christodoulou 2019, https://arxiv.org/abs/1910.07207
    """
    if not isinstance(distribution, Categorical):
        action, log_prob = distribution.sample_and_log_prob(key)
        return reduce(jax.vmap(critics, out_axes=1)(obs, action)), log_prob
    return _expected(jax.vmap(critics, out_axes=1)(obs), distribution, reduce)


def values_of_both(
    critics: Ensemble, batch: Replayed, distribution: AbstractDistribution, key: Key[Array, ""], reduce: Callable[[Array], Array]
) -> tuple[Float[Array, "members batch outputs"], Float[Array, "..."], Float[Array, " batch"], Ensemble]:
    """`values_taken` of a batch, `values_chosen` of what it led to, through which no gradient goes, and the critics after it: one pass over
    both, so that a `BatchRenorm` in the critics standardises them by the same statistics. Bhatt et al. 2024,
    https://arxiv.org/abs/1902.05605, figure 2"""

    def valued(now: PyTree, then: PyTree) -> tuple[Array, Array, Ensemble]:
        values, after = critics.on_batch(*jax.tree.map(lambda *x: jnp.concatenate(x), now, then))
        values, following = jnp.split(values, 2, axis=1)
        return values, fixed(following), after

    if isinstance(distribution, Categorical):
        values, following, after = valued((batch.obs,), (batch.next_obs,))
        return _of_taken(values, batch.action), *_expected(following, distribution, reduce), after
    action, log_prob = distribution.sample_and_log_prob(key)
    values, following, after = valued((batch.obs, batch.action), (batch.next_obs, action))
    return values, reduce(following), log_prob, after


def _of_taken(values: Float[Array, "members batch act"], action: Int[Array, " batch"]) -> Float[Array, "members batch 1"]:
    return value_of(values, jnp.broadcast_to(action, values.shape[:2]))[..., None]


def _expected(
    values: Float[Array, "members batch act"], distribution: Categorical, reduce: Callable[[Array], Array]
) -> tuple[Float[Array, "..."], Float[Array, " batch"]]:
    values = jax.vmap(reduce, in_axes=2, out_axes=1)(values[..., None])
    p = jax.nn.softmax(distribution.logits)
    return jnp.sum(p.reshape(*p.shape, *[1] * (values.ndim - 2)) * values, axis=1), -distribution.entropy()


def fixed(network: T) -> T:
    """That no gradient flows to, but through."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, network)
