"""Sweeps: which numbers are best? `sweep` trains a population at once, on all devices, and ranks it; or do it by hand, since `train` is a
function like any other."""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams, Trainer, log_uniform, set_cpu_flags, sweep


def population(ppo: PPO, num_seeds: int, folder: str | None = None) -> jax.Array:
    """Final returns of each learning rate, entropy coefficient and seed. With a folder it can be killed and called again."""
    result = sweep(ppo, {"learning_rate": log_uniform(3e-4, 3e-3, 3), "ent_coef": [0.0, 0.01]}, seeds=num_seeds, folder=folder)
    print(result)
    algo, ts = result.load()  # of the best point, the first seed
    print("action for an upright pole:", algo.make_actor(ts, deterministic=True)(jnp.zeros(4), 0))
    return jnp.asarray(result.returns).reshape(3, 2, num_seeds)


def by_hand(ppo: PPO, num_seeds: int) -> jax.Array:
    """The same grid's learning rates, by `vmap`."""

    def final_return(learning_rate, key):
        hp = dataclasses.replace(ppo.hp, learning_rate=learning_rate)
        _, metrics = dataclasses.replace(ppo, hp=hp).train(key, skip_initial_evaluation=True)
        return metrics.cumulative_reward[-1].mean()

    over_seeds = eqx.filter_vmap(final_return, in_axes=(None, 0))
    over_rates = eqx.filter_vmap(over_seeds, in_axes=(0, None))
    return over_rates(jnp.array([3e-4, 1e-3, 3e-3]), jax.random.split(jax.random.key(0), num_seeds))


def fit(ppo: PPO) -> jax.Array:
    """Final returns of four discounts: any leaf may have a `[seeds]` axis; with callbacks, loggers and checkpoints if you like."""
    gammas = jnp.array([0.9, 0.95, 0.98, 0.99])
    swept = eqx.tree_at(lambda a: a.hp.gamma, ppo, gammas)
    axes = eqx.tree_at(lambda a: a.hp.gamma, jax.tree.map(lambda _: None, ppo), 0, is_leaf=lambda x: x is None)
    _, metrics = Trainer().fit(swept, jax.random.split(jax.random.key(1), len(gammas)), axes=axes)
    return metrics.cumulative_reward[:, -1].mean(-1)


def main(total_timesteps: int = 40_000, num_seeds: int = 3, folder: str | None = None) -> jax.Array:
    hp = PPOHParams(num_envs=8, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps, eval_freq=total_timesteps)
    ppo = PPO.create("CartPole-v1", hp=hp)
    print("discounts:", fit(ppo))
    print("learning rates, by hand:", by_hand(ppo, num_seeds).mean(-1))
    return population(ppo, num_seeds, folder)


if __name__ == "__main__":
    set_cpu_flags()
    main(folder=sys.argv[1] if len(sys.argv) > 1 else None)
