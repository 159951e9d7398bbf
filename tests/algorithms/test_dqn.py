"""DQN: one update against NumPy, the target network, exploration, the buffer's start, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, same

from eqxrl import DQN, DQNHParams, Replayed, preset
from eqxrl.algorithms import MakeNetwork

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
