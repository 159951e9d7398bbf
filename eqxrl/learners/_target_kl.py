import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from eqxrl._cond import cond_each
from eqxrl._typing import Scalar, one_more
from eqxrl.learners._base import LearnerState


def until_kl(target_kl: Scalar, update: Callable) -> Callable:
    """Turns `update`, from `(learned, indices)` to `(learned, metrics)` where `learned` is the policy's arrays and a `LearnerState`, into
    one that carries whether updates are left out by now as well: `((learned, over), indices)` to `((learned, over), metrics)`. Metrics
    are 0 where the update is left out, and have `updates_made` (1 or 0) among them.

    **Raises:** `ValueError` where there is no metric `approx_kl`.
    """

    def minibatch(carry: Any, indices: Any) -> Any:
        learned, over = carry
        _, shapes = jax.eval_shape(update, learned, indices)
        if "approx_kl" not in shapes:
            raise ValueError(
                f"target_kl needs a loss that reports approx_kl, and it reports {', '.join(shapes)}; add approx_kl to its metrics, or "
                "leave target_kl out"
            )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes | {"updates_made": jax.ShapeDtypeStruct((), jnp.float32)})
        left_out = jax.tree.map(jnp.asarray, ((learned[0], _left_out(learned[1])), True, zeros))

        def attempt(left_out: Any) -> Any:
            new, metrics = update(learned, indices)
            too_far = metrics["approx_kl"] > 1.5 * target_kl  # not so if it is NaN, which shall be seen
            made = new, False, metrics | {"updates_made": jnp.ones((), jnp.float32)}
            return jax.tree.map(lambda a, b: jnp.where(too_far, a, b), left_out, made)

        learned, over, metrics = cond_each(~jnp.asarray(over), attempt, lambda left_out: left_out, left_out)
        return (learned, over), metrics

    return minibatch


_COUNTS = (optax.ScaleByScheduleState, optax.schedules.InjectStatefulHyperparamsState)


def _left_out(state: LearnerState) -> LearnerState:
    """The state after an update that wasn't made: it is counted where schedules look."""

    def counted(x: Any) -> Any:
        if isinstance(x, optax.ScaleByScheduleState):
            return x._replace(count=one_more(jnp.asarray(x.count)))
        if isinstance(x, optax.schedules.InjectStatefulHyperparamsState):
            counts = jax.tree.map(lambda n: one_more(n) if jnp.issubdtype(n.dtype, jnp.integer) else n, x.hyperparams_states)
            return x._replace(count=one_more(jnp.asarray(x.count)), hyperparams_states=counts, inner_state=schedules(x.inner_state))
        return x

    def schedules(opt_state: PyTree) -> PyTree:
        return jax.tree.map(counted, opt_state, is_leaf=lambda x: isinstance(x, _COUNTS))

    return dataclasses.replace(state, opt_state=schedules(state.opt_state), num_updates=one_more(state.num_updates))
