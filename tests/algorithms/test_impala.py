"""IMPALA: its loss and its updates against NumPy and a plain loop, the laws, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_jit, same, small, with_limit

from eqxrl import GAE, IMPALA, IMPALAHParams, PPOLoss, verify
from eqxrl.algorithms import ALGORITHMS
from eqxrl.learners import flatten, gradient_update, init_learner_state

SIZES = dict(num_envs=4, num_steps=6, num_epochs=2, num_minibatches=2)


@pytest.fixture(scope="module")
def impala():
    hp = IMPALAHParams(**SIZES, vf_coef=0.7, ent_coef=0.2, gamma=0.9, gae_lambda=0.8, learning_rate=0.02, num_seeds_per_eval=2)
    return with_limit(IMPALA.create("CartPole-v1", hp=hp, actor_critic=small), 4)


@pytest.fixture(scope="module")
def estimate(impala):
    """The first state, and its rollout with advantages."""
    collect = quick_jit(lambda a, key: a.get_batch(a.init_train_state(key), 0))
    ts, batch = collect(impala, jax.random.key(0))
    return ts, quick_jit(lambda a, ts, batch: a.estimate_advantages(ts, batch))(impala, ts, batch)


def test_the_rollouts_first_loss_is_a2cs(impala, estimate):
    """As long as ratios are 1: the policy gradient with λ-returns, in NumPy by a loop backwards."""
    ts, rollout = estimate
    t = rollout.trajectories
    assert np.any(t.truncated) and np.all(np.asarray(t.final_value)[np.asarray(t.truncated & ~t.terminated)] != 0)
    loss, metrics = quick_jit(lambda a, agent, rollout: a.loss.at_step(jnp.int32(0))(agent, rollout))(impala, ts.agent, rollout)
    following = target = np.asarray(rollout.last_value, np.float64)
    value, targets = np.asarray(t.value, np.float64), np.zeros((6, 4))
    for s in reversed(range(6)):
        ended = np.where(t.terminated[s], 0.0, t.final_value[s])
        following, target = (np.where(t.done[s], ended, x) for x in (following, target))
        target = targets[s] = np.asarray(t.reward[s]) + 0.9 * (0.2 * following + 0.8 * target)
        following = value[s]
    logits = jax.vmap(jax.vmap(lambda obs: ts.agent(obs, ())[0].logits))(t.obs)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    chosen = np.take_along_axis(log_p, np.asarray(t.action)[..., None], -1)[..., 0]
    policy_loss, value_loss = -np.mean(chosen * (targets - value)), np.mean((targets - value) ** 2)
    entropy = -np.mean(np.sum(np.exp(log_p) * log_p, -1))
    np.testing.assert_allclose(metrics["policy_loss"], policy_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-5)
    np.testing.assert_allclose(loss, policy_loss + 0.7 * value_loss - 0.2 * entropy, rtol=1e-5)
    np.testing.assert_allclose(rollout.targets, targets, rtol=1e-5)


def test_an_iteration_is_a_plain_loop_of_updates(impala, estimate):
    """On whole environments, with optax's RMSProp; the ratios move away from 1."""
    ts, rollout = estimate
    in_order = dataclasses.replace(impala.learner, permutation=lambda key, n: jnp.arange(n))
    after, state, metrics = quick_jit(in_order)(ts.agent, ts.learner_state, rollout, jax.random.key(0))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(0.02, decay=0.99, eps=1e-5))
    agent, plain, kls = ts.agent, init_learner_state(optimizer, ts.agent), []
    update = quick_jit(lambda agent, state, part: gradient_update(impala.loss, optimizer, agent, state, part))
    for k in range(4):
        envs = slice(2 * (k % 2), 2 * (k % 2) + 2)
        part = jax.tree.map(lambda x, envs=envs: x[..., envs] if x.ndim < 3 else x[:, envs], rollout)
        agent, plain, m = update(agent, plain, part)
        kls.append(float(m["approx_kl"]))
    same(after, agent, rtol=1e-4, atol=1e-6)
    assert kls[0] < 1e-6 < 1e-4 < kls[-1]
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(kls), rtol=1e-3)


def test_updates_are_counted(impala):
    ts, metrics = quick_jit(lambda a, key: a.iterations(a.init_train_state(key), 3))(impala, jax.random.key(0))
    assert int(ts.num_iterations) == 3 and int(ts.num_updates) == 12
    assert set(metrics.means) == {"policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm", "explained_variance"}
    assert IMPALAHParams(**SIZES, total_timesteps=72).num_updates == 12
    assert ALGORITHMS["impala"] is IMPALA


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"num_envs \(6\) must be divisible by num_minibatches \(4\), since environments stay whole"):
        IMPALAHParams(num_envs=6, num_minibatches=4)
    with pytest.raises(TypeError, match="IMPALA's loss needs a VTrace as its advantage, got GAE"):
        IMPALA.create("CartPole-v1", advantage=GAE(), actor_critic=small)
    IMPALA.create("CartPole-v1", advantage=GAE(), loss=PPOLoss(), hp=IMPALAHParams(**SIZES), actor_critic=small)


def test_flat_samples_have_nothing_after_them(estimate):
    assert estimate[1].last_value.shape == (4,) and flatten(estimate[1]).last_value == ()


@pytest.mark.slow
def test_the_laws_hold():
    report = verify(IMPALA.create("CartPole-v1"), quiet=True)
    assert report.ok, report
    assert not [check.name for check in report.checks if check.status == "declared"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cartpole_is_learned():
    algo = IMPALA.create("CartPole-v1", hp=IMPALAHParams(total_timesteps=150_000, eval_freq=150_000))
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 4))
    assert np.all(metrics.cumulative_reward[:, -1].mean(-1) >= 400), metrics.cumulative_reward[:, -1].mean(-1)
