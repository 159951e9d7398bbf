import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._typing import Scalar, check_positive, field, typed, within
from eqxrl.buffers._base import AbstractBuffer, BufferState, Drawn
from eqxrl.buffers._uniform import empty, rows_at, written


@typed
class SumTree(eqx.Module):
    """Priorities, and the sums by which rows are found."""

    nodes: Float[Array, " nodes"]
    """Node 1 is the root, those below node `i` are `2 i` and `2 i + 1`, and each is the sum of the two below it; the second half are the
    rows' priorities, 0 where nothing was written."""
    highest: Float[Array, ""]
    """The highest priority so far, which new rows get."""


@typed
class PrioritizedBuffer(AbstractBuffer):
    r"""A ring of the newest `capacity` rows, from which `batch_size` are drawn with probabilities in proportion to their priorities
    $p_i = (|\delta_i| + 10^{-6})^\alpha$, where $\delta_i$ is how far the row's value was off its target when it was learned from last. A
    batch is stratified: one row from each of `batch_size` equal parts of the sum. Weights make up for the probabilities,
    $w_i = p_i^{-\beta} / \max_j p_j^{-\beta}$, with the maximum over the batch.

    Schaul et al. 2016, https://arxiv.org/abs/1511.05952, the proportional variant.

    What is written or drawn costs log2 of the capacity for each row. The sums are float32: a row's share is right to 2⁻²⁴ of all.
    """

    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    alpha: Scalar = field(default=0.6, metadata=within(0.0))
    """How much priorities count: 0 draws uniformly."""
    beta: Scalar = field(default=0.4, metadata=within(0.0))
    """How much of that the weights make up for: 1 all of it, 0 nothing."""

    def __check_init__(self):
        check_positive(self, "capacity", "batch_size")

    def init(self, example: PyTree) -> BufferState:
        nodes = jnp.zeros(2 << (self.capacity - 1).bit_length(), jnp.float32)
        return dataclasses.replace(empty(self.capacity, example), priorities=SumTree(nodes, jnp.ones((), jnp.float32)))

    def add(self, state: BufferState, rows: PyTree) -> BufferState:
        """**Raises:** `ValueError` for more rows at once than the buffer holds."""
        state, where = written(state, rows)
        tree: SumTree = state.priorities
        nodes = _summed(tree.nodes, where, jnp.broadcast_to(tree.highest, where.shape))
        return dataclasses.replace(state, priorities=dataclasses.replace(tree, nodes=nodes))

    def sample(self, state: BufferState, key: Key[Array, ""]) -> Drawn:
        nodes, n = state.priorities.nodes, self.batch_size
        strata = (jnp.arange(n, dtype=jnp.float32) + jax.random.uniform(key, (n,), jnp.float32)) / n

        def descend(_, found):
            node, left_over, _ = found  # of the sum, what lies to the right of the node's beginning
            left, right = (nodes.at[2 * node + i].get(mode="promise_in_bounds") for i in (0, 1))
            # Rounding may leave more over than there is: where the right sum is 0, there is no row.
            turn = (left_over >= left) & (right > 0)
            return 2 * node + turn.astype(jnp.int32), jnp.where(turn, left_over - left, left_over), jnp.where(turn, right, left)

        # The priorities come out of the loop: were they read after it, XLA would copy the tree where it is written next.
        start = jnp.ones(n, jnp.int32), strata * nodes[1], jnp.broadcast_to(nodes[1], (n,))
        leaf, _, p = jax.lax.fori_loop(0, _depth(nodes), descend, start)
        index = leaf - len(nodes) // 2
        return Drawn(rows=rows_at(state, index), index=index, weight=(jnp.min(p) / p) ** self.beta)

    def reweigh(self, state: BufferState, index: Int[Array, " batch"], errors: Float[Array, " batch"]) -> BufferState:
        """The buffer with new priorities for the rows at `index`; one that is there several times gets the highest."""
        # Whatever the errors and alpha: not 0, which would never be drawn again, and no sum of them infinite.
        p = jnp.clip((jnp.abs(errors.astype(jnp.float32)) + 1e-6) ** self.alpha, 1e-30, 1e28)
        tree: SumTree = state.priorities
        tree = SumTree(_summed(tree.nodes, index, p), jnp.maximum(tree.highest, jnp.max(p)))
        return dataclasses.replace(state, priorities=tree)


def _depth(nodes: Float[Array, " nodes"]) -> int:
    return len(nodes).bit_length() - 2


def _summed(nodes: Float[Array, " nodes"], index: Int[Array, " rows"], p: Float[Array, " rows"]) -> Float[Array, " nodes"]:
    """The tree with the priorities `p` of the rows at `index`. Sums are computed anew, not changed by differences, whose roundings would
    add up, and which rows that are there twice would change twice."""
    node = index + len(nodes) // 2
    nodes = nodes.at[node].set(0.0, mode="promise_in_bounds").at[node].max(p, mode="promise_in_bounds")

    def up(_, carried):
        nodes, node = carried
        node = node // 2
        left, right = (nodes.at[2 * node + i].get(mode="promise_in_bounds") for i in (0, 1))
        return nodes.at[node].set(left + right, mode="promise_in_bounds"), node

    return jax.lax.fori_loop(0, _depth(nodes), up, (nodes, node))[0]
