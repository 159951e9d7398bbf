"""Target networks move as said."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl.learners import NoTarget, Periodic, Polyak


def networks():
    make = lambda seed: eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(seed))  # noqa: E731
    return make(0), make(1)


def test_a_copy_every_so_many_updates():
    target, online = networks()
    move = eqx.filter_jit(Periodic(3))
    for n in range(7):
        moved = move(target, online, jnp.int32(n))
        assert eqx.tree_equal(moved, online if n % 3 == 0 else target), n


def test_a_running_mean():
    target, online = networks()
    moved = eqx.filter_jit(Polyak(0.25))(target, online, jnp.int32(5))
    for a, b, c in zip(*(jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (moved, target, online)), strict=True):
        np.testing.assert_allclose(a, 0.25 * c + 0.75 * b, rtol=1e-5, atol=1e-7)


def test_no_copy():
    target, online = networks()
    assert NoTarget()(target, online, jnp.int32(5)) is online


def test_integers_are_copied():
    moved = Polyak(0.5)((jnp.int32(1), jnp.float32(1)), (jnp.int32(4), jnp.float32(4)), jnp.int32(0))
    assert moved == (4, 2.5)


def test_no_period():
    with pytest.raises(ValueError, match="must be at least 1"):
        Periodic(0)
