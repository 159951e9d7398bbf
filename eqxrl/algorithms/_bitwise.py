"""What keeps a run the same, bit for bit, however it is cut into programs.

The law: `train`, `Trainer.fit` (with or without callbacks), a run that goes on from a checkpoint, and a member of a vmapped run end in
the same numbers. All of them run the same JAX operations; but XLA rounds an operation differently when it fuses it with
others, knows an operand to be constant, or knows how often a loop runs. So the programs must look alike to XLA where rounding
could differ. Each trick below removes one difference that was seen.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from eqxrl._typing import T


def tied_to(rng: Key[Array, ""], tree: T) -> T:
    """The same values, each of which depends on `rng`. Under vmap over seeds a counter that starts at a constant would otherwise be
    one number for all seeds in a new run, and one for each in a run that goes on from a checkpoint: XLA takes powers of a
    number and of an array by different routines (Adam's bias correction has one)."""
    bit = jnp.ravel(jax.random.key_data(rng))[0] == 0
    numbers, rest = eqx.partition(tree, lambda x: eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    return eqx.combine(jax.tree.map(lambda x: jnp.where(bit, x, x), numbers), rest)


def traced_bounds(n: int | Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The bounds of a loop of `n` trips, traced values even where the number is known: XLA compiles a loop of one trip, or of any
    number that it knows, differently, and chunks of different length would not add up."""
    n = jnp.asarray(n, jnp.int32)
    return jnp.zeros_like(n), n


def all_outputs(*outputs: Any) -> Any:
    """What a compiled whole run returns: everything that a chunk of it returns in the trainer, although `train` itself discards the
    training metrics. Without them as outputs, the learning would be fused into other kernels than in the trainer."""
    return outputs
