"""A2C: its loss against NumPy, one update for each rollout, and learning."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, small, with_limit

from eqxrl import A2C, A2CHParams, preset
from eqxrl.learners import flatten


@pytest.fixture(scope="module")
def a2c():
    hp = A2CHParams(num_envs=3, num_steps=5, vf_coef=0.7, ent_coef=0.2, gamma=0.9, num_seeds_per_eval=2)
    return with_limit(A2C.create("CartPole-v1", hp=hp, actor_critic=small), 7)


def test_the_loss_is_the_one_in_numpy(a2c):
    ts, batch = quick_jit(lambda a, key: a.get_batch(a.init_train_state(key), 0))(a2c, jax.random.key(0))
    estimate = flatten(a2c.estimate_advantages(ts, batch))
    loss, metrics = a2c.loss.at_step(jnp.int32(0))(ts.agent, estimate)
    distribution, value, _ = jax.vmap(lambda obs: ts.agent(obs, ()))(estimate.trajectories.obs)
    log_p = np.asarray(jax.nn.log_softmax(distribution.logits), np.float64)
    chosen = log_p[np.arange(15), np.asarray(estimate.trajectories.action)]
    policy_loss = -np.mean(chosen * np.asarray(estimate.advantages, np.float64))
    value_loss = np.mean((np.asarray(value, np.float64) - np.asarray(estimate.targets, np.float64)) ** 2)
    entropy = -np.mean(np.sum(np.exp(log_p) * log_p, -1))
    np.testing.assert_allclose(metrics["policy_loss"], policy_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-5)
    np.testing.assert_allclose(loss, policy_loss + 0.7 * value_loss - 0.2 * entropy, rtol=1e-5)


def test_targets_are_returns_to_the_rollouts_end(a2c):
    ts, batch = quick_jit(lambda a, key: a.get_batch(a.init_train_state(key), 0))(a2c, jax.random.key(0))
    targets = a2c.estimate_advantages(ts, batch).targets
    t = batch.trajectories
    following = np.asarray(jax.vmap(lambda obs: ts.agent(obs, ())[1])(batch.last_obs), np.float64)
    for step in reversed(range(5)):
        ended = np.where(t.terminated[step], 0.0, t.final_value[step])
        following = np.asarray(t.reward[step]) + 0.9 * np.where(t.done[step], ended, following)
        np.testing.assert_allclose(targets[step], following, rtol=1e-5)


def test_one_update_for_each_rollout(a2c):
    ts, metrics = quick_jit(lambda a, key: a.iterations(a.init_train_state(key), 4))(a2c, jax.random.key(0))
    assert int(ts.num_updates) == int(ts.num_iterations) == 4
    assert set(metrics.means) == {"policy_loss", "value_loss", "entropy", "grad_norm", "explained_variance"}
    assert A2CHParams(num_envs=3, num_steps=5, total_timesteps=60).num_updates == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cartpole_is_learned():
    """The whole table: `python benchmarks/learning.py --algo a2c`."""
    algo = preset("CartPole-v1", "a2c").create(eval_freq=500_000)
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 5))
    assert np.sum(metrics.cumulative_reward[:, -1].mean(-1) >= 475) >= 4
