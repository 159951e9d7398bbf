"""JAX's default keys, whose numbers come out of a loop of many small operations on CPU, as keys that give the same numbers without one.
Within a loop that draws little at each step that is much faster; elsewhere it only takes longer to compile."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Key, UInt32

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_UINTS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
_NAME = "threefry2x32"
_FEW = 64
"""Up to so many keys are split off without a loop."""


def unrolled(key: Key[Array, "..."]) -> Key[Array, "..."]:
    """A key for what `jax.random` draws with this one; itself, if it is of another kind than JAX's default."""
    if str(jax.random.key_impl(key)) != _NAME or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def split(key: Key[Array, ""], num: int = 2) -> Key[Array, " num"]:
    """`jax.random.split`, without a loop where that pays."""
    keys = jax.random.split(unrolled(key) if num <= _FEW else key, num)
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=jax.random.key_impl(key))


def computed_once(x: Any) -> Any:
    """The same array of numbers, for several kernels to read. XLA computes what it holds for cheap, such as the hundred operations of a
    hash, or those that make a number normal, anew in every kernel that reads it; not a division of integers, here by a 1 that it doesn't
    know to be one."""
    bits = lax.bitcast_convert_type(x, _UINTS[8 * x.dtype.itemsize])
    one = jnp.ones_like(bits)
    return lax.bitcast_convert_type(lax.div(bits, jnp.maximum(bits & one, one)), x.dtype)


def _hash(key: UInt32[Array, "2"], high: UInt32[Array, "..."], low: UInt32[Array, "..."]) -> tuple[UInt32[Array, "..."], ...]:
    """Threefry-2x32 with 20 rounds. Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405"""
    words = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    a, b = high + words[0], low + words[1]
    for i in range(5):
        for r in map(np.uint32, _ROTATIONS[i % 2]):  # by `lax`, which is traced in a third of the time of operators
            a = lax.add(a, b)
            b = lax.bitwise_xor(a, lax.bitwise_or(lax.shift_left(b, r), lax.shift_right_logical(b, 32 - r)))
        a, b = a + words[(i + 1) % 3], b + (words[(i + 2) % 3] + jnp.uint32(i + 1))
    return a, b


def _many(shape: tuple[int, ...]) -> bool:
    """More than one word counts: JAX's own loop draws them, which is no longer dear then."""
    return math.prod(shape) >= 2**32


def _hashes(key: Any, shape: tuple[int, ...]) -> tuple[UInt32[Array, "..."], ...]:
    numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _hash(key, jnp.zeros_like(numbers), numbers)


def _split(key: Any, shape: tuple[int, ...]) -> Any:
    if _many(shape):
        return threefry_prng_impl.split(key, shape)
    # Without a barrier every kernel that reads one of the keys would hash anew.
    return lax.optimization_barrier(jnp.stack(_hashes(key, shape), axis=-1))


def _random_bits(key: Any, bit_width: int, shape: tuple[int, ...]) -> Any:
    if _many(shape):
        return threefry_prng_impl.random_bits(key, bit_width, shape)
    high, low = _hashes(key, shape)
    if bit_width == 64:
        return computed_once((high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64))
    return computed_once((high ^ low).astype(_UINTS[bit_width]))


def _fold_in(key: Any, data: Any) -> Any:
    return jnp.stack(_hash(key, jnp.uint32(0), jnp.asarray(data, jnp.uint32)))


_UNROLLED = define_prng_impl(
    key_shape=(2,), seed=threefry_prng_impl.seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name=f"{_NAME}_unrolled",
    tag="unr",
)
