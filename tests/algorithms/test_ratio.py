"""The strongest single test of a PPO: the policy that is updated first is the policy that acted."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Recorder, quick_jit, tiny, with_parts

from eqxrl import AbstractLoss

ITERATIONS, EPOCHS, MINIBATCHES = 12, 2, 4


class Watched(AbstractLoss):
    """A loss, and what it says about each minibatch."""

    inner: AbstractLoss
    seen: Recorder = eqx.field(static=True)
    num_updates: jax.Array

    def __call__(self, agent, minibatch):
        loss, metrics = self.inner(agent, minibatch)
        t = minibatch.trajectories
        distribution, value, _ = jax.vmap(lambda obs: agent(obs, ()))(t.obs)
        furthest = jnp.max(jnp.abs(jnp.exp(distribution.log_prob(t.action) - t.log_prob) - 1))
        apart = jnp.max(jnp.abs(value - t.value))
        jax.debug.callback(lambda *x: self.seen.append(x), self.num_updates, furthest, metrics["approx_kl"], apart, ordered=True)
        return loss, metrics

    def at_step(self, num_updates):
        return Watched(self.inner.at_step(num_updates), self.seen, num_updates)


@pytest.fixture(scope="module", params=["CartPole-v1", "Pendulum-v1"])
def watched(request):
    """A run with both normalisations on: `[iterations updates 4]` and the permutations `[iterations epochs samples]`."""
    ppo = tiny(
        request.param,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        learning_rate=3e-3,
        normalize_observations=True,
        normalize_rewards=True,
    )
    seen, orders = Recorder(), Recorder()
    learner = dataclasses.replace(ppo.learner, loss=Watched(ppo.learner.loss, seen, jnp.int32(0)), permutation=orders)
    quick_jit(lambda ppo, key: ppo.iterations(ppo.init_train_state(key), ITERATIONS))(with_parts(ppo, learner=learner), jax.random.key(0))
    jax.effects_barrier()
    return np.array(seen, np.float64).reshape(ITERATIONS, -1, 4), np.array(orders).reshape(ITERATIONS, EPOCHS, -1)


def test_the_ratio_is_1_at_the_first_minibatch_of_every_update(watched):
    seen, _ = watched
    np.testing.assert_array_equal(seen[:, :, 0].ravel(), np.arange(ITERATIONS * EPOCHS * MINIBATCHES))
    ratio, approx_kl, value = np.moveaxis(seen[:, :, 1:], -1, 0)
    assert ratio[:, 0].max() < 1e-5  # |ratio - 1|: log-probs of a few nats, in float32
    assert np.abs(approx_kl[:, 0]).max() <= 1e-6
    assert value[:, 0].max() < 1e-5
    assert ratio[:, 1:].min() > 1e-4 and value[:, 1:].min() > 1e-4  # at every other one it isn't


def test_each_sample_once_per_epoch_in_ever_new_orders(watched):
    _, orders = watched
    samples = orders.shape[-1]
    np.testing.assert_array_equal(np.sort(orders, axis=-1), np.broadcast_to(np.arange(samples), orders.shape))
    assert len(np.unique(orders.reshape(-1, samples), axis=0)) == ITERATIONS * EPOCHS
