"""The ring buffer against a plain Python list."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from eqxrl.buffers import UniformBuffer

EXAMPLE = {"number": jnp.int32(0), "obs": jnp.zeros(3), "flag": jnp.array(False)}


def rows(start, steps, envs):
    """Rows that are numbered from `start`, `[steps envs]`."""
    number = start + jnp.arange(steps * envs, dtype=jnp.int32).reshape(steps, envs)
    return {"number": number, "obs": jnp.repeat(number[..., None], 3, axis=-1).astype(jnp.float32), "flag": number % 2 == 0}


@pytest.mark.parametrize("capacity, steps, envs", [(10, 2, 2), (10, 5, 2), (7, 3, 1), (12, 2, 3), (8, 1, 8)])
def test_keeps_the_newest_as_a_list_does(capacity, steps, envs):
    buffer = UniformBuffer(capacity=capacity, batch_size=4)
    state, newest = buffer.init(EXAMPLE), []
    add = eqx.filter_jit(buffer.add)
    for i in range(20):
        new = rows(i * steps * envs, steps, envs)
        state = add(state, new)
        newest = (newest + np.asarray(new["number"]).ravel().tolist())[-capacity:]
        assert int(state.size) == len(newest)
        kept = np.asarray(state.rows["number"])[: len(newest)]
        assert sorted(kept.tolist()) == newest
        np.testing.assert_array_equal(state.rows["obs"][:, 0][: len(newest)], kept)  # rows stay whole
        np.testing.assert_array_equal(state.rows["flag"][: len(newest)], kept % 2 == 0)


def test_the_count_does_not_overflow():
    buffer = UniformBuffer(capacity=6, batch_size=4)
    state, _ = jax.lax.scan(lambda s, _: (buffer.add(s, rows(0, 2, 2)), None), buffer.init(EXAMPLE), length=1000)
    assert 6 <= int(state.num_added) < 12 and int(state.size) == 6


def test_draws_uniformly_from_what_is_filled_and_nothing_else():
    buffer = UniformBuffer(capacity=50, batch_size=20_000)
    for added in (7, 35, 77):
        state = buffer.add(buffer.init(EXAMPLE), rows(1, 7, 1))
        for i in range(1, added // 7):
            state = buffer.add(state, rows(1 + 7 * i, 7, 1))
        drawn = np.asarray(buffer.sample(state, jax.random.key(added)).rows["number"])
        expected = np.arange(max(1, added - 50 + 1), added + 1)
        values, counts = np.unique(drawn, return_counts=True)
        np.testing.assert_array_equal(values, expected)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_samples_are_whole_rows_and_differ_by_key():
    buffer = UniformBuffer(capacity=64, batch_size=16)
    state = buffer.add(buffer.init(EXAMPLE), rows(0, 8, 8))
    one, other = (buffer.sample(state, jax.random.key(i)).rows for i in range(2))
    assert one["obs"].shape == (16, 3)
    np.testing.assert_array_equal(one["obs"][:, 1], one["number"])
    np.testing.assert_array_equal(one["flag"], one["number"] % 2 == 0)
    assert not np.array_equal(one["number"], other["number"])


def test_more_rows_than_it_holds():
    buffer = UniformBuffer(capacity=5, batch_size=2)
    with pytest.raises(ValueError, match="6 rows were added at once, but the buffer's capacity is 5"):
        buffer.add(buffer.init(EXAMPLE), rows(0, 3, 2))
    for sizes in (dict(capacity=0, batch_size=1), dict(capacity=1, batch_size=0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            UniformBuffer(**sizes)


def test_a_write_does_not_copy_the_buffer():
    """In a loop, what is written is in place: the program needs no second buffer."""
    buffer = UniformBuffer(capacity=100_000, batch_size=4)
    state = buffer.init({"obs": jnp.zeros(16)})

    def run(state):
        new = {"obs": jnp.ones((4, 2, 16))}
        return jax.lax.fori_loop(0, 10, lambda _, s: buffer.add(s, new), state)

    analysis = jax.jit(run, donate_argnums=0).lower(state).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 0.1 * 100_000 * 16 * 4
