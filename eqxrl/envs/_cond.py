from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, PyTree, Shaped

from eqxrl._typing import describe


def cond_any(pred: Bool[Array, "..."], true_fn: Callable[..., PyTree], operands: Sequence[Any], otherwise: PyTree) -> PyTree:
    """`true_fn(*operands)` if any element of `pred` is true, else `otherwise`; what isn't needed is not computed.

    Under `vmap` a `lax.cond` with a batched predicate becomes a `select`, and both branches are paid for. Here `vmap`, at
    any depth, reduces the predicate over the mapped axis as well, so that a true branch is left in the program. The price:
    a member of the batch that did not need it gets the computed values too, as soon as one member needs it. So the
    result is *where it is needed* `true_fn(*operands)`, and elsewhere either: select per element afterwards.

    **Arguments:**

    - `pred`: any shape.
    - `true_fn`: a pure function of `operands`; it may close over arrays, batched ones too.
    - `operands`: any pytrees; leaves that are not JAX arrays stay as they are.
    - `otherwise`: arrays of the same structure, shapes and dtypes as `true_fn(*operands)`.

    **Raises:** `TypeError` where `otherwise` differs from what `true_fn` returns.
    """
    # What true_fn closes over must become an explicit argument: custom_vmap sees only those.
    fn = eqx.filter_closure_convert(true_fn, *operands)
    dynamic, static = eqx.partition((fn, tuple(operands)), eqx.is_array)
    leaves, treedef = jax.tree.flatten(dynamic)

    def compute(leaves: list[Any]) -> PyTree:
        fn, operands = eqx.combine(jax.tree.unflatten(treedef, leaves), static)
        return fn(*operands)

    otherwise = jax.tree.map(jnp.asarray, otherwise)
    trees = jax.eval_shape(compute, leaves), jax.eval_shape(lambda: otherwise)
    named = [[f"{jax.tree_util.keystr(path)} {describe(x)}" for path, x in jax.tree.leaves_with_path(tree)] for tree in trees]
    differ = [f"{a} against {b}" for a, b in [tuple(map(jax.tree.structure, trees)), *zip(*named)] if a != b]
    if differ:
        raise TypeError(
            "cond_any needs an `otherwise` of the same structure, shapes and dtypes as true_fn returns; they differ in "
            + "; ".join(differ)
        )
    return _cond(compute, jnp.any(pred), leaves, otherwise)


def _cond(compute: Callable[[list[Any]], PyTree], needed: Bool[Array, ""], leaves: list[Any], otherwise: PyTree) -> PyTree:
    @custom_vmap
    def run(needed: Bool[Array, ""], leaves: list[Any], otherwise: PyTree) -> PyTree:
        return jax.lax.cond(needed, lambda leaves, _: compute(leaves), lambda _, otherwise: otherwise, leaves, otherwise)

    @run.def_vmap
    def batched(axis_size: int, is_batched: Any, needed: Any, leaves: Any, otherwise: Any) -> tuple[PyTree, PyTree]:
        needed_batched, leaves_batched, otherwise_batched = is_batched
        over_axis = jax.vmap(compute, in_axes=([0 if b else None for b in leaves_batched],), axis_size=axis_size)

        def spread(x: Shaped[Array, "..."], b: bool) -> Shaped[Array, "..."]:
            return x if b else jnp.broadcast_to(x, (axis_size, *x.shape))

        needed = jnp.any(needed) if needed_batched else needed
        out = _cond(over_axis, needed, leaves, jax.tree.map(spread, otherwise, otherwise_batched))
        return out, jax.tree.map(lambda _: True, out)

    return run(needed, leaves, otherwise)
