"""A task that changes while one learns it: CartPole with a pole that is long, and falls slowly, and then shrinks to the length that is
asked for. (That one can be learned without, too; it is here since it takes seconds.) Any parameter of an environment can be scheduled so.
`eqxrl.envs.RandomizeParams` draws them for each episode instead.
"""

import jax.numpy as jnp

from eqxrl import PPO, PPOHParams, RolloutCollector, make
from eqxrl.collectors import Curriculum


def shrinking(env_params, env_steps):
    """The parameters of the next rollout; `env_params` are those of the task that counts, `env_steps` is a traced float32."""
    times = jnp.interp(env_steps, jnp.array([0.0, 30_000.0]), jnp.array([5.0, 1.0]))
    return env_params.replace(length=env_params.length * times)


def main(total_timesteps: int = 60_000) -> float:
    env, params = make("CartPole-v1")
    hp = PPOHParams(num_envs=16, num_steps=32, num_minibatches=4, learning_rate=1e-3, total_timesteps=total_timesteps, eval_freq=15_000)
    ppo = PPO.create(
        env=env,
        env_params=params.replace(length=0.2),  # the task: evaluations are of it from the first one on, whatever the schedule says
        hp=hp,
        collector=lambda hp: Curriculum(RolloutCollector(hp.num_envs, hp.num_steps), shrinking),
    )
    _, metrics = ppo.train(0)
    returns = metrics.cumulative_reward.mean(-1)
    print("mean return of each evaluation, at most 500:", returns.round(1))
    return float(returns[-1])


if __name__ == "__main__":
    main()
