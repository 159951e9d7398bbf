"""PQN: its targets, its loss and its exploration against NumPy, the laws, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import quick_jit, with_limit

from eqxrl import PQN, PQNHParams, preset, verify
from eqxrl.losses import QLoss
from eqxrl.nn import Greedy, MLPActorCritic, QActorCritic, QNetwork
from eqxrl.testing import check_distribution

HP = PQNHParams(num_envs=4, num_steps=6, num_epochs=2, num_minibatches=2, gamma=0.9, q_lambda=0.7, num_seeds_per_eval=2)


def small(observation_space, action_space, *, key):
    return QActorCritic(QNetwork(observation_space, action_space, hidden_sizes=(6,), layer_norm=True, key=key))


@pytest.fixture(scope="module")
def pqn():
    return with_limit(PQN.create("CartPole-v1", hp=HP, actor_critic=small), 4)


def test_targets_and_loss(pqn):
    """Q(λ) as the paper has it, backwards from the last step, with the highest value of what comes next."""

    @quick_jit
    def first(pqn):
        ts, batch = pqn.get_batch(pqn.init_train_state(0), 0)
        estimate = pqn.estimate_advantages(ts, batch)
        q = jax.vmap(jax.vmap(ts.agent.q))
        return ts, batch, estimate, q(batch.trajectories.obs), jax.vmap(ts.agent.q)(batch.last_obs)

    ts, batch, estimate, q, last = first(pqn)
    t = batch.trajectories
    assert np.any(t.truncated & ~t.terminated)
    best, returns = np.asarray(last, np.float64).max(-1), np.asarray(last, np.float64).max(-1)
    targets = np.zeros((6, 4))
    for step in reversed(range(6)):
        if step < 5:
            best = np.asarray(q[step + 1], np.float64).max(-1)
        mixed = 0.7 * returns + 0.3 * best
        ended = np.where(t.terminated[step], 0.0, t.final_value[step])
        targets[step] = returns = np.asarray(t.reward[step]) + 0.9 * np.where(t.done[step], ended, mixed)
    np.testing.assert_allclose(estimate.targets, targets, rtol=1e-4)
    loss, metrics = quick_jit(lambda agent, batch: QLoss()(agent, batch))(ts.agent, estimate_flat(estimate))
    taken = np.take_along_axis(np.asarray(q, np.float64), np.asarray(t.action)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, 0.5 * np.mean((taken - targets) ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], taken.mean(), rtol=1e-4)


def estimate_flat(estimate):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), dataclasses.replace(estimate, last_value=()))


def test_only_the_value_of_the_action_that_was_taken_is_moved(pqn):
    ts, batch = quick_jit(lambda pqn: pqn.get_batch(pqn.init_train_state(0), 0))(pqn)
    estimate = estimate_flat(pqn.estimate_advantages(ts, batch))
    last = lambda agent: agent.q.layers[-1].bias  # noqa: E731
    gradient = last(eqx.filter_grad(lambda agent: QLoss()(agent, estimate)[0])(ts.agent))
    taken = jax.vmap(ts.agent.q)(estimate.trajectories.obs)
    action = np.asarray(estimate.trajectories.action)
    error = np.asarray(taken)[np.arange(24), action] - np.asarray(estimate.targets)
    np.testing.assert_allclose(gradient, [error[action == a].sum() / 24 for a in range(2)], rtol=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_greedy(epsilon):
    values = jnp.array([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
    distribution = Greedy(values, jnp.full(2, epsilon))
    p = np.full((2, 3), epsilon / 3)
    p[[0, 1], [1, 0]] += 1 - epsilon
    for action in range(3):
        np.testing.assert_allclose(jnp.exp(distribution.log_prob(jnp.full(2, action))), p[:, action], atol=1e-6)
        np.testing.assert_array_equal(distribution.value_of(jnp.full(2, action)), values[:, action])
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(p, axis=-1), atol=1e-6)
    np.testing.assert_array_equal(distribution.mode(), [1, 0])
    check_distribution(distribution)


def test_exploration_decreases_with_env_steps(pqn):
    hp = dataclasses.replace(HP, total_timesteps=240, epsilon_start=0.8, epsilon_end=0.2, exploration_fraction=0.5)
    pqn = PQN.create("CartPole-v1", hp=hp, actor_critic=small)
    ts = pqn.init_train_state(0)
    for iteration, epsilon in ((0, 0.8), (1, 0.68), (5, 0.2), (9, 0.2)):  # 24 env steps each
        at = eqx.tree_at(lambda ts: ts.data_collection_state.global_step, ts, jnp.int32(iteration))
        np.testing.assert_allclose(pqn.behaviour(at).epsilon, epsilon, rtol=1e-6)
    assert pqn.policy(ts).agent is ts.agent  # evaluations don't explore


def test_other_policies_are_refused():
    with pytest.raises(TypeError, match="Exploring needs a policy that has the actions' values, an nn.Greedy, got Categorical"):
        PQN.create("CartPole-v1", hp=HP, actor_critic=MLPActorCritic)
    with pytest.raises(TypeError, match="QNetwork values each action of a Discrete space"):
        PQN.create("Pendulum-v1", hp=HP)


@pytest.mark.slow
def test_the_laws_hold():
    report = verify(PQN.create("CartPole-v1", hp=HP))
    assert report.ok, report


@pytest.mark.slow
def test_it_learns():
    algo = preset("CartPole-v1", "pqn").create()
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 4))
    assert (np.asarray(metrics.cumulative_reward[:, -1].mean(-1)) >= 475).all()
