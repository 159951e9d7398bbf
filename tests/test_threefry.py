"""Keys without a loop: whatever is drawn with them is what JAX draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl._threefry import computed_once, unrolled

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (3, 5)),
    "bits of 8": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "bits of 16": lambda key: jax.random.bits(key, (), jnp.uint16),
    "uniform": lambda key: jax.random.uniform(key, (4,)),
    "normal": lambda key: jax.random.normal(key, (2, 3)),
    "categorical": lambda key: jax.random.categorical(key, jnp.zeros((6, 4))),
    "randint": lambda key: jax.random.randint(key, (5,), 0, 1000),
    "permutation": lambda key: jax.random.permutation(key, 9),
    "beta": lambda key: jax.random.beta(key, 2.0, 3.0, (4,)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "fold in": lambda key: jax.random.key_data(jax.random.fold_in(key, 7)),
    "of a key of a key": lambda key: jax.random.normal(jax.random.fold_in(jax.random.split(key, 3)[2], 2)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_same_numbers(draw):
    keys = jax.random.split(jax.random.key(3), 2)
    np.testing.assert_array_equal(draw(unrolled(keys[0])), draw(keys[0]))
    np.testing.assert_array_equal(jax.vmap(lambda key: draw(unrolled(key)))(keys), jax.vmap(draw)(keys))


def test_64_bits():
    with jax.enable_x64(True):
        key = jax.random.key(5)
        np.testing.assert_array_equal(jax.random.bits(unrolled(key), (4,), jnp.uint64), jax.random.bits(key, (4,), jnp.uint64))
        np.testing.assert_array_equal(jax.random.normal(unrolled(key), (4,), jnp.float64), jax.random.normal(key, (4,), jnp.float64))


def test_there_is_no_loop():
    def loops(make):
        return jax.jit(lambda key: jax.random.normal(make(key), (4,))).lower(jax.random.key(0)).compile().as_text().count(" while(")

    assert loops(unrolled) == 0
    assert jax.default_backend() != "cpu" or loops(lambda key: key) == 1


def test_numbers_are_computed_once_however_many_kernels_read_them():
    """XLA's fusion would compute the hash, 20 rounds, in each kernel anew."""

    def used_twice(key, x):
        noise = jax.random.normal(unrolled(key), x.shape)
        return jnp.sin(noise * x), jnp.zeros(99).at[:9].set(noise), jnp.concatenate([x, noise])

    compiled = jax.jit(used_twice).lower(jax.random.key(0), jnp.ones(9)).compile().as_text()
    assert compiled.count(" shift-left(") == 20


@pytest.mark.parametrize("make", [unrolled, lambda key: key])
def test_what_is_drawn_is_made_normal_once(make):
    def used_thrice(key, once):
        noise = 2 * jax.random.normal(make(key), (9,)) + 1
        noise = computed_once(noise) if once else noise
        return jnp.sin(noise), jnp.zeros(99).at[:9].set(noise), jnp.concatenate([noise, noise[::-1] ** 2])

    programs = [jax.jit(used_thrice, static_argnums=1).lower(jax.random.key(0), once).compile().as_text() for once in (True, False)]
    once, anew = (program.count(" multiply(") for program in programs)
    assert jax.default_backend() != "cpu" or 2 * once < anew  # of the polynomials of the inverse error function


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "uint8"])
def test_computed_once_it_is_the_same(dtype):
    x = jnp.asarray([-1.5, -0.0, 3.25, jnp.inf, jnp.nan] if "float" in dtype else [0, 1, 200], dtype)
    once = computed_once(x)
    assert once.dtype == dtype
    np.testing.assert_array_equal(once.astype(jnp.float32), x.astype(jnp.float32))


def test_other_keys_stay_as_they_are():
    key = jax.random.key(0, impl="rbg")
    assert unrolled(key) is key
    key = jax.random.key(0)
    with jax.threefry_partitionable(False):
        assert unrolled(key) is key
    twice = unrolled(unrolled(key))
    assert twice.dtype == unrolled(key).dtype != key.dtype


def test_more_numbers_than_a_word_counts():
    """Of shapes alone, since they would fill the memory."""
    shape = (2**31, 2)
    assert jax.eval_shape(lambda key: jax.random.bits(unrolled(key), shape, jnp.uint8), jax.random.key(0)).shape == shape
    assert jax.eval_shape(lambda key: jax.random.split(unrolled(key), shape), jax.random.key(0)).shape == shape
