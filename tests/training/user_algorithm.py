"""An algorithm as a user may write one, of which the package knows nothing: no collector, no learner, no gradient."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from helpers import with_limit
from jaxtyping import Array, Float, Int, Key

from eqxrl import TrainStepMetrics, field
from eqxrl._structs import EpisodeStats
from eqxrl.algorithms import AbstractAlgorithm, AbstractHParams
from eqxrl.nn import AbstractPolicy


class Climber(AbstractPolicy):
    """Linear in the observation."""

    weights: Float[Array, " obs"]

    def __call__(self, obs, carry, key):
        return (obs @ self.weights > 0).astype(jnp.int32), carry, ()

    def initial_carry(self):
        return ()


class ClimberState(eqx.Module):
    weights: Float[Array, " obs"]
    best: Float[Array, ""]
    rng: Key[Array, ""]
    num_iterations: Int[Array, ""]
    num_updates: Int[Array, ""]


class Tried(eqx.Module):
    weights: Float[Array, " obs"]
    lengths: Int[Array, " episodes"]


class ClimberHParams(AbstractHParams):
    total_timesteps: int = field(default=24 * 7)
    eval_freq: int = field(default=24 * 2)
    debug: bool = field(default=False)
    num_seeds_per_eval: int = field(default=2)
    noise: Float[Array, ""] = field(default=0.5)
    num_updates = 0


class HillClimber(AbstractAlgorithm):
    """Changes the weights at random, plays two episodes, and keeps the weights that did best."""

    HParams = ClimberHParams
    iteration_size = 24

    def init_train_state(self, rng):
        rng, key = jax.random.split(rng)
        weights, zero = jax.random.normal(key, (4,)), jnp.zeros_like(key, jnp.int32)
        return ClimberState(weights=weights, best=jnp.zeros_like(weights[0]), rng=rng, num_iterations=zero, num_updates=zero)

    def get_batch(self, ts, batch_idx):
        rng, key, noise_key = jax.random.split(ts.rng, 3)
        weights = ts.weights + self.hp.noise * jax.random.normal(noise_key, ts.weights.shape)
        metrics = self.evaluator(self.env, self.env_params, Climber(weights), key)
        return dataclasses.replace(ts, rng=rng), Tried(weights=weights, lengths=metrics.episode_length)

    def training_step(self, batch_idx, ts, batch):
        length = batch.lengths.mean()
        better = length >= ts.best
        n, total = jnp.float32(batch.lengths.size), batch.lengths.sum().astype(jnp.float32)
        metrics = TrainStepMetrics(
            means={"better": better.astype(jnp.float32)}, episodes=EpisodeStats(count=n, total_return=total, total_length=total)
        )
        state = ClimberState(
            weights=jnp.where(better, batch.weights, ts.weights),
            best=jnp.where(better, length, ts.best),
            rng=ts.rng,
            num_iterations=ts.num_iterations + 1,
            num_updates=ts.num_updates + better,
        )
        return state, metrics

    def policy(self, ts):
        return Climber(ts.weights)


def own():
    """7 iterations, which count as 24 env steps each."""
    return with_limit(HillClimber.create("CartPole-v1"), 7)
