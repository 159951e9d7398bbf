"""Train many agents at once, in one compiled program: a grid with `eqx.filter_vmap`, or a sweep with the trainer's `axes`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams, Trainer


def grid(ppo: PPO, num_seeds: int) -> jax.Array:
    """Final returns of each learning rate, entropy coefficient and seed: `train` is a function like any other."""

    def final_return(learning_rate, ent_coef, key):
        hp = dataclasses.replace(ppo.hp, learning_rate=learning_rate, ent_coef=ent_coef)
        _, metrics = dataclasses.replace(ppo, hp=hp).train(key, skip_initial_evaluation=True)
        return metrics.cumulative_reward[-1].mean()

    learning_rates, ent_coefs = jnp.array([3e-4, 1e-3, 3e-3]), jnp.array([0.0, 0.01])
    over_seeds = eqx.filter_vmap(final_return, in_axes=(None, None, 0))
    over_grid = eqx.filter_vmap(eqx.filter_vmap(over_seeds, in_axes=(None, 0, None)), in_axes=(0, None, None))
    returns = over_grid(learning_rates, ent_coefs, jax.random.split(jax.random.key(0), num_seeds))
    for lr, row in zip(learning_rates, returns.mean(-1), strict=True):
        cells = [f"ent_coef {c:.2f} -> {r:.0f}" for c, r in zip(ent_coefs, row, strict=True)]
        print(f"learning rate {lr:.0e}: " + ", ".join(cells))
    return returns


def fit(ppo: PPO) -> jax.Array:
    """Final returns of four discounts: any leaf may have a `[seeds]` axis; with callbacks, loggers and checkpoints if you like."""
    gammas = jnp.array([0.9, 0.95, 0.98, 0.99])
    swept = eqx.tree_at(lambda a: a.hp.gamma, ppo, gammas)
    axes = eqx.tree_at(lambda a: a.hp.gamma, jax.tree.map(lambda _: None, ppo), 0, is_leaf=lambda x: x is None)
    _, metrics = Trainer().fit(swept, jax.random.split(jax.random.key(1), len(gammas)), axes=axes)
    returns = metrics.cumulative_reward[:, -1].mean(-1)
    print(", ".join(f"gamma {g:.2f} -> {r:.0f}" for g, r in zip(gammas, returns, strict=True)))
    return returns


def main(total_timesteps: int = 40_000, num_seeds: int = 3) -> jax.Array:
    hp = PPOHParams(num_envs=8, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps, eval_freq=total_timesteps)
    ppo = PPO.create("CartPole-v1", hp=hp)
    fit(ppo)
    return grid(ppo, num_seeds)


if __name__ == "__main__":
    main()
