"""Train many agents at once: a grid of learning rates and entropy coefficients, several seeds each, in one compiled program."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams


def main(total_timesteps: int = 40_000, num_seeds: int = 3) -> jax.Array:
    hp = PPOHParams(num_envs=8, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps, eval_freq=total_timesteps)
    ppo = PPO.create("CartPole-v1", hp=hp)

    def final_return(learning_rate, ent_coef, key):
        swept = dataclasses.replace(hp, learning_rate=learning_rate, ent_coef=ent_coef)
        _, metrics = dataclasses.replace(ppo, hp=swept).train(key, skip_initial_evaluation=True)
        return metrics.cumulative_reward[-1].mean()

    learning_rates, ent_coefs = jnp.array([3e-4, 1e-3, 3e-3]), jnp.array([0.0, 0.01])
    over_seeds = eqx.filter_vmap(final_return, in_axes=(None, None, 0))
    over_grid = eqx.filter_vmap(eqx.filter_vmap(over_seeds, in_axes=(None, 0, None)), in_axes=(0, None, None))
    returns = over_grid(learning_rates, ent_coefs, jax.random.split(jax.random.key(0), num_seeds))
    for lr, row in zip(learning_rates, returns.mean(-1), strict=True):
        cells = [f"ent_coef {c:.2f} -> {r:.0f}" for c, r in zip(ent_coefs, row, strict=True)]
        print(f"learning rate {lr:.0e}: " + ", ".join(cells))
    return returns


if __name__ == "__main__":
    main()
