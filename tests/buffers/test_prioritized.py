"""The sum tree against a plain list of priorities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from eqxrl.buffers import PrioritizedBuffer

EXAMPLE = {"number": jnp.int32(0), "obs": jnp.zeros(3)}


def rows(start, steps, envs):
    """Rows that are numbered from `start`, `[steps envs]`."""
    number = start + jnp.arange(steps * envs, dtype=jnp.int32).reshape(steps, envs)
    return {"number": number, "obs": jnp.repeat(number[..., None], 3, axis=-1).astype(jnp.float32)}


def priorities(state):
    """What the tree has for each row, after a look at all of its sums."""
    nodes = np.asarray(state.priorities.nodes)
    n = len(nodes) // 2
    np.testing.assert_array_equal(nodes[1:n], (nodes[2::2] + nodes[3::2])[: n - 1])
    assert not nodes[n + state.capacity :].any() and not nodes[n + int(state.size) :].any()
    return nodes[n : n + state.capacity]


def filled(buffer, errors):
    """A buffer with a row for each error, and priorities by it."""
    state = buffer.add(buffer.init(EXAMPLE), rows(0, len(errors), 1))
    return buffer.reweigh(state, jnp.arange(len(errors)), jnp.asarray(errors, jnp.float32))


@pytest.mark.parametrize("capacity, steps, envs", [(10, 2, 2), (7, 3, 1), (16, 2, 3), (8, 1, 8), (1, 1, 1), (33, 4, 2)])
def test_keeps_priorities_as_a_list_does(capacity, steps, envs):
    """Round the ring, with rows that are reweighed several times at once."""
    buffer, rng, n = PrioritizedBuffer(capacity, 5, alpha=0.7), np.random.default_rng(0), steps * envs
    state, expected, highest, where = buffer.init(EXAMPLE), np.zeros(capacity), 1.0, 0
    add, reweigh = eqx.filter_jit(buffer.add), eqx.filter_jit(buffer.reweigh)
    for i in range(25):
        state = add(state, rows(i * n, steps, envs))
        for _ in range(n):
            expected[where % capacity], where = highest, where + 1
        index = rng.integers(0, min(where, capacity), 12)
        errors = rng.normal(size=12) * 10.0 ** rng.integers(-3, 3, 12)
        state = reweigh(state, jnp.asarray(index, jnp.int32), jnp.asarray(errors, jnp.float32))
        p = (np.abs(errors) + 1e-6) ** 0.7
        for row in set(index):
            expected[row] = p[index == row].max()
        highest = max(highest, p.max())
        np.testing.assert_allclose(priorities(state), expected, rtol=1e-5)
        np.testing.assert_allclose(state.priorities.highest, highest, rtol=1e-5)
        np.testing.assert_array_equal(np.sort(state.rows["number"])[-min(where, capacity) :], np.arange(max(0, where - capacity), where))


def test_new_rows_have_the_highest_priority_so_far():
    buffer = PrioritizedBuffer(6, 2, alpha=1.0)
    state = filled(buffer, [0.5, 3.0, 0.1])
    np.testing.assert_allclose(priorities(buffer.add(state, rows(3, 2, 1))), [0.5, 3.0, 0.1, 3.0, 3.0, 0.0], rtol=1e-4)
    state = buffer.reweigh(state, jnp.array([1, 1]), jnp.array([-2.0, 0.1]))  # the highest one so far stays, whatever becomes of its row
    np.testing.assert_allclose(priorities(buffer.add(state, rows(3, 1, 1))), [0.5, 2.0, 0.1, 3.0, 0.0, 0.0], rtol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 3, 50, 64])
def test_rows_are_drawn_in_proportion_to_their_priorities(num_rows):
    buffer = PrioritizedBuffer(64, 4, alpha=0.6)
    errors = np.random.default_rng(num_rows).exponential(size=num_rows) ** 2
    state = filled(buffer, errors)
    drawn = jax.vmap(lambda key: buffer.sample(state, key))(jax.random.split(jax.random.key(0), 20_000))
    counts = np.bincount(np.asarray(drawn.index).ravel(), minlength=num_rows)
    p = (errors + 1e-6) ** 0.6
    # Stratified draws are less spread than independent ones, so that this is on the safe side.
    assert num_rows == 1 or scipy.stats.chisquare(counts, 80_000 * p / p.sum()).pvalue > 1e-3
    assert len(counts) == num_rows
    np.testing.assert_array_equal(drawn.rows["number"], drawn.index)
    np.testing.assert_array_equal(drawn.rows["obs"][..., 1], drawn.index)


def test_a_batch_is_stratified():
    """Each of its rows comes from a part of the sum of its own."""
    buffer = PrioritizedBuffer(100, 20, alpha=1.0)
    errors = np.random.default_rng(0).exponential(size=90)
    ends = np.cumsum(errors) / errors.sum() * 20
    begins, state, strata = np.r_[0, ends[:-1]], filled(buffer, errors), np.arange(20)
    index = np.asarray(jax.vmap(lambda key: buffer.sample(state, key).index)(jax.random.split(jax.random.key(0), 200)))
    assert (ends[index] > strata - 1e-3).all() and (begins[index] < strata + 1 + 1e-3).all()
    assert len(np.unique(index)) > 80  # and keys differ


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_make_up_for_the_probabilities(beta):
    buffer = PrioritizedBuffer(40, 16, alpha=0.6, beta=beta)
    errors = np.random.default_rng(0).exponential(size=30)
    drawn = buffer.sample(filled(buffer, errors), jax.random.key(0))
    p = (errors + 1e-6) ** 0.6
    weight = (30 * (p / p.sum())[np.asarray(drawn.index)]) ** -beta
    np.testing.assert_allclose(drawn.weight, weight / weight.max(), rtol=1e-5)
    assert beta == 0 or len(np.unique(drawn.weight)) > 5


ADVERSARIAL = {
    "tiny": np.zeros(21),
    "one large": np.r_[np.zeros(10), 1e20, np.zeros(10)],
    "large first": np.r_[1e10, np.full(20, 1e-3)],
    "large last": np.r_[np.full(20, 1e-3), 1e10],
    "what is lost in the sum": np.r_[1.0, np.full(20, 2.0**-25)],
    "without end": np.full(21, np.inf),
    "mixed": 10.0 ** np.random.default_rng(0).uniform(-30, 30, 21),
}


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 20.0])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_what_was_not_filled_is_never_drawn(name, alpha):
    """Also at both ends of the sum, where rounding leads."""
    buffer = PrioritizedBuffer(64, 8, alpha=alpha)
    state = filled(buffer, ADVERSARIAL[name])
    assert np.isfinite(priorities(state)).all() and (priorities(state)[:21] > 0).all() and np.isfinite(state.priorities.nodes).all()
    ends = [jnp.zeros(8), jnp.full(8, 1.0), jnp.full(8, np.nextafter(np.float32(1), np.float32(0)))]
    with pytest.MonkeyPatch.context() as patch:
        for end in ends:  # 1 itself isn't drawn, but what it is rounded to may be the whole sum
            patch.setattr(jax.random, "uniform", lambda *_, end=end: end)
            drawn = buffer.sample(state, jax.random.key(0))
            assert ((drawn.index >= 0) & (drawn.index < 21)).all()
            assert np.isfinite(drawn.weight).all() and (drawn.weight <= 1).all()
    drawn = jax.vmap(lambda key: buffer.sample(state, key))(jax.random.split(jax.random.key(1), 300))
    assert ((drawn.index >= 0) & (drawn.index < 21)).all()


def test_an_error_that_is_no_number_leads_to_no_empty_row():
    buffer = PrioritizedBuffer(64, 8)
    state = filled(buffer, [1.0, 2.0, np.nan, 1.0])
    assert (buffer.sample(state, jax.random.key(0)).index < 4).all()


def test_sums_do_not_drift():
    """However often rows are reweighed, and whatever was there before, the sums are those of the rows."""
    buffer = PrioritizedBuffer(50, 16, alpha=1.0)
    state = filled(buffer, np.full(50, 1e20))

    def one(state, key):
        drawn = buffer.sample(state, key)
        return buffer.reweigh(state, drawn.index, jax.random.exponential(key, (16,))), None

    state, _ = jax.lax.scan(one, state, jax.random.split(jax.random.key(0), 2000))
    assert priorities(state).max() < 100
    np.testing.assert_allclose(state.priorities.nodes[1], priorities(state).astype(np.float64).sum(), rtol=1e-6)


def test_a_whole_flow_is_the_same_in_a_scan_and_for_several_at_once():
    buffer = PrioritizedBuffer(20, 6)

    def one(state, given):
        start, key = given
        state = buffer.add(state, rows(start, 2, 2))
        drawn = buffer.sample(state, key)
        state = buffer.reweigh(state, drawn.index, drawn.rows["obs"][:, 0] - start)
        return state, drawn

    def flow(key):
        return jax.lax.scan(one, buffer.init(EXAMPLE), (4 * jnp.arange(12, dtype=jnp.int32), jax.random.split(key, 12)))

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(flow))(keys)
    for i, key in enumerate(keys):
        alone, state, drawn = jax.jit(flow)(key), buffer.init(EXAMPLE), []
        for j, k in enumerate(jax.random.split(key, 12)):
            state, d = one(state, (jnp.int32(4 * j), k))
            drawn.append(d)
        step_by_step = state, jax.tree.map(lambda *x: jnp.stack(x), *drawn)
        for x in (jax.tree.map(lambda x, i=i: x[i], together), step_by_step):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), x, alone)


def test_alpha_and_beta_are_numbers_that_can_be_swept():

    def sample(alpha, beta):
        buffer = PrioritizedBuffer(8, 4, alpha, beta)
        return buffer.sample(filled(buffer, [1.0, 2.0, 3.0, 4.0]), jax.random.key(0))

    weight = eqx.filter_vmap(sample)(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0])).weight
    np.testing.assert_array_equal(weight[0], 1)
    assert not (weight[1] == 1).all()
    for bad in (dict(alpha=-1.0), dict(beta=-0.1), dict(alpha=float("nan"))):
        with pytest.raises(ValueError, match="PrioritizedBuffer.(alpha|beta) must be in"):
            PrioritizedBuffer(8, 4, **bad)
    for sizes in (dict(capacity=0, batch_size=1), dict(capacity=1, batch_size=0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            PrioritizedBuffer(**sizes)
    with pytest.raises(ValueError, match="10 rows were added at once, but the buffer's capacity is 8"):
        PrioritizedBuffer(8, 4).add(PrioritizedBuffer(8, 4).init(EXAMPLE), rows(0, 10, 1))


@pytest.mark.parametrize("seeds", [None, 2])
def test_nothing_copies_the_rows_or_the_tree(seeds):
    """In a loop that adds, draws and reweighs, all is written in place: the program needs no second buffer, and no second tree."""
    buffer, batch = PrioritizedBuffer(100_000, 4), [] if seeds is None else [seeds]
    state = buffer.init({"obs": jnp.zeros(16)})

    def run(state):
        def one(i, state):
            state = buffer.add(state, {"obs": jnp.ones((4, 2, 16))})
            drawn = buffer.sample(state, jax.random.fold_in(jax.random.key(0), i))
            return buffer.reweigh(state, drawn.index, drawn.weight * drawn.rows["obs"][:, 0])

        return jax.lax.fori_loop(0, 10, one, state)

    many = jax.tree.map(lambda x: jnp.zeros((*batch, *x.shape), x.dtype), state)
    program = jax.jit(run if seeds is None else jax.vmap(run), donate_argnums=0).lower(many).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.1 * 2 * 2**17 * 4
