"""What came after a row of a buffer, and transitions over several steps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from eqxrl._structs import Replayed, Transition
from eqxrl._typing import Scalar
from eqxrl.buffers._base import BufferState, Drawn
from eqxrl.buffers._uniform import rows_at


def sequences(state: BufferState, index: Int[Array, " batch"], length: int) -> tuple[PyTree, Bool[Array, "batch length"]]:
    """The rows at `index` and those of the next steps of the same environments, `[batch length ...]`, across ends of episodes, and which
    of them there are: the newest rows have no next ones yet. What isn't there is a row all the same, of another time.

    All rows must have been added by equally many environments.
    """
    newest = (state.num_added - 1) % state.capacity
    num_newer = (newest - index) % state.capacity
    later = state.stride * jnp.arange(length, dtype=jnp.int32)[None]
    return rows_at(state, (index[:, None] + later) % state.capacity), num_newer[:, None] >= later


def replayed(state: BufferState, drawn: Drawn, gamma: Scalar, n_step: int = 1) -> Replayed:
    """Transitions over `n_step` steps from those that were drawn; fewer where an episode ends before, or where the newest rows have no
    next ones yet. Sutton 1988, https://doi.org/10.1007/BF00115009"""
    if n_step == 1:
        t: Transition = drawn.rows
        return _replayed(t, t.reward, t, jnp.broadcast_to(gamma, t.reward.shape), drawn.weight)
    t, there = sequences(state, drawn.index, n_step)
    # A step counts if it is there and no episode ended before it.
    goes_on = jnp.concatenate([jnp.ones_like(there[:, :1]), ~t.done[:, :-1]], axis=1)
    counts = jnp.cumprod(there & goes_on, axis=1, dtype=jnp.int32).astype(bool)
    num_steps = jnp.sum(counts, axis=1, dtype=jnp.int32)
    reward = jnp.sum(jnp.where(counts, gamma ** jnp.arange(n_step)[None] * t.reward, 0.0), axis=1)
    rows = jnp.arange(len(num_steps))
    last = jax.tree.map(lambda x: x[rows, num_steps - 1], t)
    return _replayed(drawn.rows, reward, last, gamma**num_steps, drawn.weight)


def _replayed(
    first: Transition, reward: Float[Array, " batch"], last: Transition, discount: Float[Array, " batch"], weight: Float[Array, " batch"]
) -> Replayed:
    return Replayed(
        obs=first.obs, action=first.action, reward=reward, next_obs=last.next_obs, terminated=last.terminated, truncated=last.truncated,
        discount=discount, weight=weight,
    )
