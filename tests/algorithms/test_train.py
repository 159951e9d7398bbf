"""`train`: how long it runs, when it evaluates, how it goes on, and how often it compiles."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arrays, quick_jit, same, tiny, with_parts

from eqxrl import PPO, AbstractAdvantage, PPOHParams, Trajectory
from eqxrl.algorithms import PPOState
from eqxrl.algorithms._base import add_exactly

SIZE = 3 * 8  # env steps of an iteration of `tiny`
TINY = tiny()
TRACES = []


class Counted(AbstractAdvantage):
    """Notes each time that it is traced."""

    inner: AbstractAdvantage

    def __call__(self, rollout, last_value):
        TRACES.append(1)
        return self.inner(rollout, last_value)


def counted(**hparams):
    ppo = tiny(**{**dict(normalize_observations=True, normalize_rewards=True), **hparams})
    return with_parts(ppo, advantage=Counted(ppo.advantage))


@pytest.fixture(scope="module")
def six():
    """A run of six iterations, with an evaluation after each two and one at the start."""
    ppo = counted(total_timesteps=6 * SIZE, eval_freq=2 * SIZE)
    return ppo, ppo.train(jax.random.key(0))


@pytest.fixture(scope="module")
def three():
    """A PPO of three iterations, with an evaluation after each."""
    return counted(total_timesteps=3 * SIZE, eval_freq=SIZE)


def test_two_halves_are_the_whole_bit_for_bit(six, three):
    """However often it was evaluated meanwhile."""
    _, (whole, evaluations) = six
    half, first = three.train(jax.random.key(0))
    halves, second = three.train(train_state=half)
    same(halves, whole)
    assert evaluations.cumulative_reward.shape == (4, 2) and first.cumulative_reward.shape == (4, 2)
    same(jax.tree.map(lambda x: x[0], evaluations), jax.tree.map(lambda x: x[0], first))
    same(jax.tree.map(lambda x: x[1], evaluations), jax.tree.map(lambda x: x[2], first))
    same(jax.tree.map(lambda x: x[-1], evaluations), jax.tree.map(lambda x: x[-1], second))
    same(jax.tree.map(lambda x: x[-1], first), jax.tree.map(lambda x: x[0], second))  # the same state, the same key


@pytest.mark.slow
def test_two_vmapped_halves_are_the_whole_bit_for_bit(six, three):
    keys = jax.random.split(jax.random.key(0), 3)
    whole, _ = eqx.filter_vmap(six[0].train)(keys)
    half, _ = eqx.filter_vmap(three.train)(keys)
    halves, _ = eqx.filter_vmap(lambda ts: three.train(train_state=ts))(half)
    same(halves, whole)


def test_one_compile(six, three):
    """For other seeds, other values of float hyperparameters, and a state to go on from."""
    ppo, (state, _) = six
    before = len(TRACES)
    ppo.train(jax.random.key(1))
    other = dataclasses.replace(ppo.hp, gamma=0.5, learning_rate=1e-2, clip_eps=0.3)
    result, _ = dataclasses.replace(ppo, hp=other).train(jax.random.key(0))
    assert len(TRACES) == before
    assert not np.array_equal(result.agent.actor_critic.critic[0].weight, state.agent.actor_critic.critic[0].weight)
    again, _ = three.train(train_state=state)
    before = len(TRACES)
    three.train(train_state=again)
    three.train(train_state=three.init_train_state(jax.random.key(3)))
    assert len(TRACES) == before


def test_an_evaluation_leaves_the_state_alone(six):
    ppo, (state, _) = six
    copies = arrays(state)
    first, second = (quick_jit(lambda ppo, ts: ppo.eval_callback(ts))(ppo, state) for _ in range(2))
    same(first, second)
    for a, b in zip(copies, arrays(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_evaluations_key(six):
    """Another one after each iteration, or the one given."""
    ppo, (state, _) = six
    seen = []

    class Spy(type(ppo.evaluator)):
        def __call__(self, env, env_params, policy, key):
            seen.append(jax.random.key_data(key).tolist())
            return super().__call__(env, env_params, policy, key)

    spied = with_parts(ppo, evaluator=Spy(num_episodes=2))
    after, _ = quick_jit(lambda ppo, ts: ppo.iteration(ts, 0))(ppo, state)
    given = jax.random.key(5)
    spied.eval_callback(state)
    spied.eval_callback(after)
    spied.eval_callback(state, given)
    spied.eval_callback(state, jax.random.PRNGKey(5))
    spied.eval_callback(state, 5)
    assert seen[2] == seen[3] == seen[4] == jax.random.key_data(given).tolist()
    assert len({str(x) for x in seen}) == 3


def test_vmapped_seeds_are_single_runs(six):
    ppo, (alone, alone_evaluations) = six
    keys = jnp.stack([jax.random.key(4), jax.random.key(0)])
    states, evaluations = quick_jit(lambda keys: eqx.filter_vmap(ppo.train)(keys))(keys)
    assert evaluations.episode_length.shape == (2, 4, 2)
    second = jax.tree.map(lambda x: x[1] if eqx.is_array(x) else x, (states, evaluations))
    same(second, (alone, alone_evaluations), rtol=1e-4, atol=1e-5)
    assert ppo.env_steps(states) == ppo.env_steps(alone) == 6 * SIZE


def test_the_first_evaluation_may_be_skipped(three):
    short = dataclasses.replace(three, hp=dataclasses.replace(three.hp, total_timesteps=1))
    state, evaluations = quick_jit(lambda p, k: p.train(k, skip_initial_evaluation=True))(short, jax.random.key(0))
    assert evaluations.episode_length.shape == (1, 2)
    assert state.data_collection_state.global_step == 1


def test_old_style_keys_and_seeds_and_bad_arguments(three):
    init = quick_jit(lambda p, k: p.init_train_state(k))
    new, old, seed = (init(three, k) for k in (jax.random.key(7), jax.random.PRNGKey(7), 7))
    same(new, old)
    same(new, seed)
    with pytest.raises(ValueError, match="pass rng, to start anew, or train_state, to go on from it"):
        three.train()
    with pytest.raises(ValueError, match=r"rng must be a JAX key or a seed, got uint32\[3\]"):
        three.train(jnp.zeros(3, jnp.uint32))


def test_a_state_to_go_on_from_comes_before_a_key(three):
    state = three.init_train_state(3)
    expected, _ = three.train(train_state=state)
    before = len(TRACES)
    for rng in (jax.random.key(0), jax.random.PRNGKey(1), 2):
        same(three.train(rng, train_state=state)[0], expected)
    assert len(TRACES) == before


@pytest.mark.parametrize(
    "total, freq, chunks",
    [
        (SIZE, SIZE, [1]),
        (1, 1, [1]),
        (SIZE + 1, SIZE, [1, 1]),
        (10 * SIZE, 4 * SIZE, [4, 4, 2]),
        (10 * SIZE - 1, 4 * SIZE, [4, 4, 2]),
        (10 * SIZE + 1, 4 * SIZE, [4, 4, 3]),
        (10 * SIZE, 1, [1] * 10),
        (10 * SIZE, 10**9, [10]),
        (10 * SIZE, int(2.6 * SIZE), [3, 3, 3, 1]),
    ],
)
def test_budget(total, freq, chunks):
    """The smallest number of whole iterations that reaches the budget, never more."""
    ppo = dataclasses.replace(TINY, hp=dataclasses.replace(TINY.hp, total_timesteps=total, eval_freq=freq))
    assert ppo.chunks.tolist() == chunks
    assert ppo.iteration_size == SIZE and ppo.chunks.dtype == np.int32
    steps = sum(chunks) * SIZE
    assert total <= steps < total + SIZE


def test_a_budget_larger_than_32_bits():
    hp = dataclasses.replace(TINY.hp, total_timesteps=2**36, eval_freq=2**34)
    ppo = dataclasses.replace(TINY, hp=hp)
    assert sum(map(int, ppo.chunks)) == -(-(2**36) // SIZE)
    ts = ppo.init_train_state(jax.random.key(0))
    ts = eqx.tree_at(lambda ts: ts.data_collection_state.global_step, ts, jnp.int32(2**31 - 1))
    assert ppo.env_steps(ts) == (2**31 - 1) * SIZE


def test_metrics_of_several_iterations(six, three):
    """Means over iterations, and sums over the episodes that ended in them."""
    ppo = three
    init, iteration = (quick_jit(f) for f in (lambda p, k: p.init_train_state(k), lambda p, ts: p.iteration(ts, 0)))
    ts, each = init(ppo, jax.random.key(0)), []
    for _ in range(3):
        before, (ts, batch) = ts, quick_jit(lambda p, ts: p.get_batch(ts, 0))(ppo, ts)
        estimate = ppo.estimate_advantages(ts, batch)
        ts, metrics = iteration(ppo, before)
        each.append(metrics)
        unexplained = np.var(np.asarray(estimate.targets - batch.trajectories.value, np.float64))
        expected = 1 - unexplained / np.var(np.asarray(estimate.targets, np.float64))
        np.testing.assert_allclose(metrics.means["explained_variance"], expected, rtol=1e-3, atol=1e-4)
        assert metrics.episodes.count == np.sum(batch.trajectories.done)
        same(metrics.episodes, batch.episodes, rtol=1e-6)
    _, together = quick_jit(lambda p, ts: p.iterations(ts, 3))(ppo, init(ppo, jax.random.key(0)))
    for name in ("count", "total_return", "total_length"):
        expected = np.sum([getattr(m.episodes, name) for m in each])
        np.testing.assert_allclose(getattr(together.episodes, name), expected, rtol=1e-5)
    assert together.episodes.count > 0
    names = {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance"}
    assert set(together.means) == names
    for name in names:
        expected = np.mean([m.means[name] for m in each])
        np.testing.assert_allclose(together.means[name], expected, rtol=1e-3, atol=1e-6)


def test_the_actor():
    """Takes one observation, and returns what the environment may be given; deterministic or drawn."""
    ppo = tiny("Pendulum-v1")
    ts = quick_jit(lambda p, k: p.init_train_state(k))(ppo, jax.random.key(0))
    ts = eqx.tree_at(lambda ts: ts.agent.head.log_std, ts, jnp.array([3.0]))
    obs = ts.data_collection_state.last_obs[0]
    act, mode = ppo.make_actor(ts), ppo.make_actor(ts, deterministic=True)
    actions = np.array([act(obs, key) for key in jax.random.split(jax.random.key(0), 20)])
    assert actions.shape == (20, 1) and np.abs(actions).max() == 2.0 and len(np.unique(actions)) > 2
    np.testing.assert_array_equal(act(obs, 3), act(obs, jax.random.key(3)))
    expected, _, _ = ts.agent(obs, ())
    np.testing.assert_allclose(mode(obs, jax.random.key(0)), np.clip(expected.mean, -2, 2), rtol=1e-6)


def test_states_are_strong_and_typed(six):
    """A weak type would compile a second time; a key as numbers would not be recognised as one."""
    ppo, (state, _) = six
    assert isinstance(state, PPOState) and isinstance(ppo, PPO) and isinstance(ppo.hp, PPOHParams)
    assert dataclasses.is_dataclass(Trajectory)
    fresh = ppo.init_train_state(jax.random.key(0))
    for tree in (state, fresh):
        leaves = [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]
        assert not any(x.weak_type for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert jnp.issubdtype(state.rng.dtype, jax.dtypes.prng_key)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)


def test_a_result_that_is_not_finite_is_said_to_be_none():
    """A learning rate that overflows float32: the first metric that goes, and since when."""
    ppo = tiny(learning_rate=1e38, total_timesteps=4 * SIZE, eval_freq=2 * SIZE)
    with pytest.warns(UserWarning, match=rf"metrics.* isn't finite from interval 1 of 2 on \(env steps 0 to {2 * SIZE} .*no result"):
        ts, _ = ppo.train(0)
    with pytest.warns(UserWarning, match="isn't finite"):
        ppo.train(train_state=ts)
    one = dataclasses.replace(ppo, hp=dataclasses.replace(ppo.hp, learning_rate=jnp.float32(jnp.inf)))
    with pytest.warns(UserWarning, match="isn't finite"):
        one.train(0)


def test_ten_million_terms_are_summed_without_loss():
    """In float32, added one by one, ten million times 0.1 is 1,087,937."""

    @jax.jit
    def total(n):
        return jax.lax.fori_loop(0, n, lambda _, sums: add_exactly(sums, jnp.float32(0.1)), (jnp.float32(0), jnp.float32(0)))[0]

    assert total(10_000_000) == 1e6


def test_counters_do_not_wrap(three):
    """After 2³¹ updates a schedule would be back at its start."""
    last = jnp.int32(2**31 - 1)
    ts = three.init_train_state(0)
    where = lambda ts: (ts.learner_state.num_updates, ts.data_collection_state.global_step)  # noqa: E731
    ts, _ = quick_jit(lambda ts: three.iteration(ts, 0))(eqx.tree_at(where, ts, (last, last)))
    assert ts.num_updates == last and ts.num_iterations == last
