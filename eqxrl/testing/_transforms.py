"""Laws that any pure function of arrays keeps, whatever it computes."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law


def transforms(call: Callable[..., Any], *members: tuple[Any, ...]) -> list[Law]:
    """Does `call` give the same twice, compiled or not, and alone or as one of a batch? `members`: arguments for it, two of
    each, with arrays of the same shapes."""

    def arrays_of(*args: Any) -> Any:
        return eqx.filter(call(*args), eqx.is_array)

    @functools.cache
    def compiled() -> list[Any]:
        jitted = eqx.filter_jit(arrays_of)
        return [jitted(*args) for args in members]

    def pure() -> str:
        first, second = (laws.program_text(call, *members[0]) for _ in range(2))
        assert first == second, "traced twice with the same arguments, it does something else the second time"
        return "the same twice"

    def jit() -> str:
        return laws.close(compiled()[0], arrays_of(*members[0]), "under jit, the result")

    def vmap() -> str:
        split = [eqx.partition(args, eqx.is_array) for args in members]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(arrays for arrays, _ in split))
        together = jax.jit(jax.vmap(lambda arrays: arrays_of(*eqx.combine(arrays, split[0][1]))))(stacked)
        for i, alone in enumerate(compiled()):
            laws.close(jax.tree.map(lambda x: x[i], together), alone, f"under vmap, member {i} of {len(members)}: the result")
        return f"{len(members)} members"

    return [
        Law("pure", pure, "Python's or NumPy's random numbers, and attributes that a call changes"),
        Law("jit = no jit", jit, "`if` on a value, and Python state: compiled, they keep what they were when traced"),
        Law("vmap[i] = alone", vmap, "reductions and reshapes over axes that aren't yours"),
    ]


def gradient_is_finite(objective: Callable[[Any], Any], of: Any, what: str) -> str:
    """The gradient of a scalar `objective` by every float array in `of`."""
    gradient = eqx.filter_grad(objective)(of)
    return laws.finite(**{f"the gradient by {what}": gradient})
