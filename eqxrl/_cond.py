from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, PyTree

from eqxrl._typing import T, describe

TMade = TypeVar("TMade")


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
    dynamic, static = eqx.partition(tuple(operands), eqx.is_array)
    otherwise = jax.tree.map(jnp.asarray, otherwise)

    def needed(dynamic: Any) -> PyTree:
        made = true_fn(*eqx.combine(dynamic, static))
        _check_alike(made, otherwise)
        return made

    return jax.lax.cond(_anywhere(jnp.any(pred)), needed, lambda _: otherwise, dynamic)


def cond_each(pred: Bool[Array, ""], true_fn: Callable[[T], TMade], false_fn: Callable[[T], TMade], operand: T) -> TMade:
    """`lax.cond`, of which `vmap` at any depth leaves the true branch out of the run where no member needs it. Each member gets what its
    own predicate says."""
    return jax.lax.cond(_anywhere(pred), lambda x: jax.lax.cond(pred, true_fn, false_fn, x), false_fn, operand)


@custom_vmap
def _anywhere(pred: Bool[Array, ""]) -> Bool[Array, ""]:
    """Under `vmap` at any depth, whether it is true of any member, and the same for all of them: a `lax.cond` of it stays a `lax.cond`."""
    return pred


@_anywhere.def_vmap
def _(axis_size: int, is_batched: Any, pred: Any) -> tuple[Any, bool]:
    return _anywhere(jnp.any(pred, axis=0)), False


def _check_alike(made: PyTree, otherwise: PyTree) -> None:
    named = [[f"{jax.tree_util.keystr(path)} {describe(x)}" for path, x in jax.tree.leaves_with_path(tree)] for tree in (made, otherwise)]
    structures = tuple(jax.tree.structure(tree) for tree in (made, otherwise))
    if differ := [f"{a} against {b}" for a, b in [structures, *zip(*named)] if a != b]:
        raise TypeError(
            "cond_any needs an `otherwise` of the same structure, shapes and dtypes as true_fn returns; they differ in "
            + "; ".join(differ)
        )
