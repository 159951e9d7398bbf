"""One whole PPO update (advantages, epochs of minibatches, Adam) against the one written out in NumPy in `oracles.py`."""

import contextlib
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from helpers import Recorder, quick_jit, small, with_limit, with_parts

from eqxrl import PPO, PPOHParams

HP = PPOHParams(
    num_envs=3,
    num_steps=20,
    num_epochs=3,
    num_minibatches=5,
    learning_rate=optax.linear_schedule(3e-3, 0.0, 20),
    gamma=0.95,
    gae_lambda=0.9,
    clip_eps=0.1,
    max_grad_norm=0.3,
    vf_coef=0.6,
    ent_coef=0.02,
)


def parameters(agent):
    """As the oracle wants them."""
    params = {name: [(layer.weight, layer.bias) for layer in getattr(agent, name)] for name in ("actor", "critic")}
    if hasattr(agent.head, "log_std"):
        params["log_std"] = agent.head.log_std
    return jax.tree.map(lambda x: np.array(x, np.float64), params)


def with_dtype(tree, dtype):
    """The tree with its floats as `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


@pytest.mark.parametrize("env_id, max_steps", [("CartPole-v1", 12), ("Pendulum-v1", 7)])
def test_equals_numpy(env_id, max_steps):
    ppo = with_limit(PPO.create(env_id, hp=HP, actor_critic=small), max_steps)
    orders = Recorder()
    ppo = with_parts(ppo, learner=dataclasses.replace(ppo.learner, permutation=orders))
    ts, batch = quick_jit(lambda ppo, key: ppo.get_batch(ppo.init_train_state(key), 0))(ppo, jax.random.key(0))
    t = batch.trajectories
    assert np.any(t.truncated & ~t.terminated)

    params = parameters(ts.agent)
    last_value = oracles.mlp_forward(params["critic"], np.asarray(batch.last_obs, np.float64))[0][:, 0]
    advantages, targets = oracles.gae_by_sum(
        t.reward, t.value, t.terminated, t.truncated, t.final_value, last_value, float(HP.gamma), float(HP.gae_lambda)
    )
    flat = {name: np.asarray(getattr(t, name)) for name in ("obs", "action", "log_prob", "value")}
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in flat.items()}
    flat = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in flat.items()}
    flat |= {"advantages": advantages.ravel(), "targets": targets.ravel()}

    for dtype, tolerance in [(jnp.float64, 1e-9), (jnp.float32, 2e-6)]:
        orders.clear()
        with jax.enable_x64(True) if dtype == jnp.float64 else contextlib.nullcontext():
            step = quick_jit(lambda ppo, ts, batch: ppo.training_step(0, ts, batch))
            after, _ = step(*with_dtype((ppo, ts, batch), dtype))
            jax.effects_barrier()
        expected = jax.tree.map(np.copy, params)
        oracles.ppo_update(
            expected,
            flat,
            orders,
            num_minibatches=HP.num_minibatches,
            learning_rate=lambda k: 3e-3 * (1 - k / 20),
            max_grad_norm=float(HP.max_grad_norm),
            clip_eps=float(HP.clip_eps),
            vf_coef=float(HP.vf_coef),
            ent_coef=float(HP.ent_coef),
        )
        assert len(orders) == HP.num_epochs
        for a, b in zip(jax.tree.leaves(parameters(after.agent)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
        for before, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            assert np.abs(before - b).max() > 1e-3  # the update was far larger than the tolerance
