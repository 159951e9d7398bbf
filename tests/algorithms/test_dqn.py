"""DQN: one update against NumPy, the target network, exploration, the buffer's start, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, same

from eqxrl import DQN, DQNHParams, Replayed, preset
from eqxrl.algorithms import MakeNetwork, MakePart
from eqxrl.buffers import replayed

HP = DQNHParams(
    num_envs=2,
    num_steps=4,
    updates_per_iteration=3,
    buffer_size=40,
    batch_size=5,
    learning_starts=16,
    target_update_freq=4,
    num_seeds_per_eval=2,
    total_timesteps=80,
    eval_freq=40,
)


@pytest.fixture(scope="module")
def dqn():
    algo = DQN.create("CartPole-v1", hp=HP, q_network=MakeNetwork("q", dict(hidden_sizes=(16,))))
    return eqx.tree_at(lambda a: a.env_params, algo, algo.env_params.replace(max_steps_in_episode=7))


@pytest.fixture(scope="module")
def states(dqn):
    """The training states, each one iteration after the other."""
    step = quick_jit(lambda algo, ts: algo.iteration(ts, 0))
    ts = quick_jit(lambda algo, key: algo.init_train_state(key))(dqn, jax.random.key(0))
    found = [(ts, None)]
    for _ in range(8):
        found.append(step(dqn, found[-1][0]))
    return found


def mlp(q, obs):
    weights = [(np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64)) for layer in q.layers]
    x = np.asarray(obs, np.float64)
    for weight, bias in weights[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    return x @ weights[-1][0].T + weights[-1][1]


def batch_of(n, seed=0):
    rng = np.random.default_rng(seed)
    flags = rng.random((2, n)) < 0.3
    return Replayed(
        obs=jnp.asarray(3 * rng.normal(size=(n, 4)), jnp.float32),
        action=jnp.asarray(rng.integers(0, 2, n), jnp.int32),
        reward=jnp.asarray(3 * rng.normal(size=n), jnp.float32),
        next_obs=jnp.asarray(3 * rng.normal(size=(n, 4)), jnp.float32),
        terminated=jnp.asarray(flags[0]),
        truncated=jnp.asarray(flags[1]),
        discount=jnp.full(n, 0.99, jnp.float32),
        weight=jnp.ones(n, jnp.float32),
    )


@pytest.mark.parametrize("double", [True, False])
def test_the_loss_is_the_one_in_numpy(dqn, double):
    algo = dataclasses.replace(dqn, hp=dataclasses.replace(dqn.hp, double=double))
    learner = algo.init_learner(jax.random.key(0))
    learner = eqx.tree_at(lambda x: x.target, learner, algo.init_learner(jax.random.key(1)).q)
    batch = batch_of(200)
    _, errors, metrics = algo.update(learner, batch, jnp.int32(1), jax.random.key(0))  # 1: no copy of the target network
    next_value, choice = mlp(learner.target, batch.next_obs), mlp(learner.q if double else learner.target, batch.next_obs)
    following = next_value[np.arange(200), choice.argmax(-1)]
    targets = np.asarray(batch.reward) + 0.99 * np.where(batch.terminated, 0, following)  # a truncated one is bootstrapped
    error = mlp(learner.q, batch.obs)[np.arange(200), batch.action] - targets
    huber = np.where(np.abs(error) <= 1, 0.5 * error**2, np.abs(error) - 0.5)
    np.testing.assert_allclose(metrics["value_loss"], huber.mean(), rtol=1e-5)
    np.testing.assert_allclose(errors, np.abs(error), rtol=1e-4, atol=1e-4)
    assert (np.argmax(mlp(learner.q, batch.next_obs), -1) != np.argmax(next_value, -1)).any()


@pytest.mark.parametrize("double", [True, False])
def test_with_quantiles_the_loss_is_the_one_in_numpy(dqn, double):
    """Every quantile against every target; the network's own choice is by the means; each transition counts by its weight."""
    algo = dataclasses.replace(
        dqn, hp=dataclasses.replace(dqn.hp, double=double),
        parts=dqn.parts | dict(q_network=MakeNetwork("q", dict(hidden_sizes=(16,), quantiles=4))),
    )  # fmt: skip
    learner = algo.init_learner(jax.random.key(0))
    learner = eqx.tree_at(lambda x: x.target, learner, algo.init_learner(jax.random.key(1)).q)
    batch, rows = batch_of(200), np.arange(200)
    weight = np.random.default_rng(1).random(200)
    _, errors, metrics = algo.update(learner, eqx.tree_at(lambda b: b.weight, batch, jnp.asarray(weight, jnp.float32)), jnp.int32(1),
                                     jax.random.key(0))  # fmt: skip
    next_values = mlp(learner.target, batch.next_obs).reshape(200, 2, 4)
    choice = mlp(learner.q, batch.next_obs).reshape(200, 2, 4) if double else next_values
    following = next_values[rows, choice.mean(-1).argmax(-1)]
    targets = np.asarray(batch.reward)[:, None] + 0.99 * np.where(np.asarray(batch.terminated)[:, None], 0, following)
    own = mlp(learner.q, batch.obs).reshape(200, 2, 4)[rows, batch.action]
    u = targets[:, None, :] - own[:, :, None]
    huber = np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
    tau = np.array([1, 3, 5, 7])[None, :, None] / 8
    losses = (np.abs(tau - (u < 0)) * huber).mean(2).sum(1)
    np.testing.assert_allclose(metrics["value_loss"], np.mean(weight * losses), rtol=1e-5)
    np.testing.assert_allclose(errors, np.abs(own.mean(1) - targets.mean(1)), rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_anew_for_each_update_and_network(dqn):
    parts = dqn.parts | dict(q_network=MakeNetwork("q", dict(hidden_sizes=(16,), noisy=True)))
    noisy = dataclasses.replace(dqn, parts=parts, hp=dataclasses.replace(dqn.hp, double=False))
    learner, batch = noisy.init_learner(jax.random.key(0)), batch_of(50)
    update = quick_jit(lambda learner, batch, key: noisy.update(learner, batch, jnp.int32(1), key))
    (one, *_), (same_key, *_), (other, *_) = (update(learner, batch, jax.random.key(i)) for i in (0, 0, 1))
    same(one, same_key)
    assert not np.array_equal(one.q.layers[0].weight, other.q.layers[0].weight)
    assert not np.array_equal(one.q.layers[0].deviation.weight, learner.q.layers[0].deviation.weight)
    # What is learned depends on the noise of the target too: with nothing bootstrapped there is less of it.
    alone = batch_of(1)
    alone = dataclasses.replace(alone, reward=0 * alone.reward, next_obs=alone.obs, terminated=alone.terminated & False,
                                discount=jnp.ones(1), action=jnp.argmax(jax.vmap(learner.q)(alone.obs), -1).astype(jnp.int32))  # fmt: skip
    errors = [update(learner, alone, jax.random.key(i))[1] for i in range(5)]
    assert np.min(errors) > 1e-4  # had both networks one draw, the target would be the value itself


def test_prioritised_replay(dqn):
    """Drawn rows get priorities by their errors, within the loop of updates and from one iteration to the next."""
    hp = dataclasses.replace(dqn.hp, buffer_size=64)
    algo = dataclasses.replace(dqn, hp=hp, parts=dqn.parts | dict(buffer=MakePart("prioritized", dict(alpha=0.7, beta=1.0))))
    step = quick_jit(lambda ts: algo.iteration(ts, 0))
    ts = algo.init_train_state(jax.random.key(0))
    for i in range(4):
        before, (ts, _) = ts, step(ts)
        leaves = np.asarray(ts.buffer_state.priorities.nodes)[64:]
        assert (leaves[: 8 * (i + 1)] > 0).all() and not leaves[8 * (i + 1) :].any()
        changed = np.flatnonzero(leaves[: 8 * i] != np.asarray(before.buffer_state.priorities.nodes)[64 : 64 + 8 * i])
        assert (len(changed) == 0) == (i == 0) and len(changed) <= 3 * 5
    # One iteration by hand: the same keys, the same updates, a list instead of a tree.
    after, _ = step(ts)
    collected, batch = quick_jit(lambda ts: algo.get_batch(ts, 0))(ts)
    _, key = jax.random.split(collected.rng)
    state, learner, n = algo.buffer.add(collected.buffer_state, batch.transitions), collected.learner, collected.num_updates
    p = np.asarray(state.priorities.nodes)[64:104].astype(np.float64)
    update = quick_jit(lambda learner, batch, n, key: algo.update(learner, batch, n, key))
    for k in jax.random.split(key, 3):
        sample_key, update_key = jax.random.split(k)
        drawn = algo.buffer.sample(state, sample_key)
        index = np.asarray(drawn.index)
        weight = (40 * p[index] / p.sum()) ** -1.0
        np.testing.assert_allclose(drawn.weight, weight / weight.max(), rtol=1e-4)
        learner, errors, _ = update(learner, replayed(state, drawn, algo.hp.gamma), n, update_key)
        state, n = algo.buffer.reweigh(state, drawn.index, errors), n + 1
        p[index] = [((np.asarray(errors)[index == i] + 1e-6) ** 0.7).max() for i in index]
    np.testing.assert_allclose(np.asarray(after.buffer_state.priorities.nodes)[64:104], p, rtol=1e-3)
    same(after.learner.q, learner.q, rtol=1e-4, atol=1e-5)


def test_an_iteration_copies_neither_rows_nor_priorities():
    """Of a large buffer; what is written lies where it was."""
    hp = dataclasses.replace(HP, buffer_size=200_000)
    algo = DQN.create("CartPole-v1", hp=hp, q_network=MakeNetwork("q", dict(hidden_sizes=(16,))), buffer=MakePart("prioritized"))
    shapes = eqx.filter_eval_shape(algo.init_train_state, jax.random.key(0))
    arrays, static = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    program = jax.jit(lambda x: eqx.filter(algo.iteration(eqx.combine(x, static), 0)[0], eqx.is_array), donate_argnums=0)
    analysis = program.lower(arrays).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 0.5 * 2 * 2**18 * 4


def test_an_update_moves_values_towards_their_targets(dqn):
    dqn = eqx.tree_at(lambda a: a.hp.learning_rate, dqn, jnp.float32(1e-2))
    learner, batch = dqn.init_learner(jax.random.key(0)), batch_of(8)
    update = quick_jit(lambda algo, learner, n: algo.update(learner, batch, n, jax.random.key(0)))
    losses = []
    for _ in range(100):
        learner, _, metrics = update(dqn, learner, jnp.int32(1))
        losses.append(float(metrics["value_loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_the_target_is_copied_every_so_many_updates(dqn):
    learner, batch = dqn.init_learner(jax.random.key(0)), batch_of(8)
    update = quick_jit(lambda algo, learner, n: algo.update(learner, batch, n, jax.random.key(0))[0])
    for n in range(9):
        before = learner
        learner = update(dqn, before, jnp.int32(n))
        same(learner.target, before.q if n % 4 == 0 else before.target)
        assert not eqx.tree_equal(learner.q, before.q)


def test_nothing_is_learned_before_learning_starts(states):
    counts = [int(ts.num_updates) for ts, _ in states]
    assert counts == [0, 0, 3, 6, 9, 12, 15, 18, 21]  # 16 env steps are two iterations of 8
    same(states[0][0].learner.q, states[1][0].learner.q)
    assert not eqx.tree_equal(states[1][0].learner.q, states[2][0].learner.q)
    assert all(float(x) == 0 for x in states[1][1].means.values())
    assert float(states[2][1].means["value_loss"]) > 0
    assert [int(ts.num_iterations) for ts, _ in states] == list(range(9))
    assert [int(ts.buffer_state.size) for ts, _ in states] == [0, 8, 16, 24, 32, 40, 40, 40, 40]


def test_exploration_decreases_as_said(dqn, states):
    """Only random actions up to `learning_starts`; from 1 to 0.05 in a fifth of 80 steps; without a key none at all."""
    for ts, _ in states:
        steps = int(ts.num_iterations) * 8
        expected = 1.0 if steps < 16 else max(0.05, 1 - 0.95 * steps / 16)
        np.testing.assert_allclose(dqn.policy(ts).epsilon, expected, rtol=1e-6)
    ts, _ = states[-1]
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 4)), jnp.float32)
    greedy, _, _ = dqn.policy(ts)(obs, (), None)
    np.testing.assert_array_equal(greedy, mlp(ts.learner.q, obs).argmax(-1))
    policy = eqx.tree_at(lambda p: p.epsilon, dqn.policy(ts), jnp.float32(0.3))
    drawn, _, _ = policy(obs, (), jax.random.key(0))
    assert abs(np.mean(drawn != greedy) - 0.15) < 0.03  # of the random ones half are the greedy one


def test_stored_transitions_are_the_environments_own(dqn, states):
    """What each step led to, also at the end of an episode, where the next one starts elsewhere."""
    collect = quick_jit(lambda algo, ts: algo.get_batch(ts, 0))
    ts = states[3][0]
    _, batch = collect(dqn, ts)
    t = batch.transitions
    done = np.asarray(t.done)
    assert done.any() and not done.all()
    np.testing.assert_array_equal(np.asarray(t.next_obs)[:-1][~done[:-1]], np.asarray(t.obs)[1:][~done[:-1]])
    assert (np.abs(np.asarray(t.next_obs)[:-1][done[:-1]] - np.asarray(t.obs)[1:][done[:-1]]).max(-1) > 1e-3).all()
    params = dqn.env_params
    state = dqn.env.reset(jax.random.key(0), params)[1]
    for step in range(4):
        for i in range(2):
            x, x_dot, theta, theta_dot = np.asarray(t.obs)[step, i]
            at = state.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
            obs, _, reward, *_ = dqn.env.step(jax.random.key(0), at, t.action[step, i], params)
            np.testing.assert_allclose(obs, t.next_obs[step, i], rtol=1e-5, atol=1e-6)
            assert reward == t.reward[step, i]


def test_a_network_that_does_not_fit_is_named():
    with pytest.raises(TypeError, match="values each action of a Discrete space.*Box"):
        DQN.create("Pendulum-v1", hp=HP)
    with pytest.raises(ValueError, match="DQNHParams.batch_size must be at least 1"):
        DQNHParams(batch_size=0)
    assert DQNHParams(learning_starts=0).learning_starts == 0


def test_two_halves_are_the_whole_bit_for_bit(dqn):
    half = dataclasses.replace(dqn, hp=dataclasses.replace(dqn.hp, exploration_fraction=0.4, total_timesteps=40))
    whole, _ = dqn.train(jax.random.key(0))
    first, _ = half.train(jax.random.key(0))
    second, _ = half.train(train_state=first)
    same(second, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cartpole_is_learned():
    """The whole table: `python benchmarks/learning.py --algo dqn`."""
    algo = preset("CartPole-v1", "dqn").create(eval_freq=49_920)
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 5))
    assert np.sum(metrics.cumulative_reward[:, -1].mean(-1) >= 475) >= 4
