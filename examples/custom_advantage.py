"""Replace one part: an advantage estimator in ten lines, and what happens when it returns the wrong shape."""

import jax
import jax.numpy as jnp

from eqxrl import PPO, AbstractAdvantage, PPOHParams, ShapeError, field


class MonteCarlo(AbstractAdvantage):
    """Rewards to go, bootstrapped only where a rollout or an episode was cut off."""

    gamma: jax.Array = field(default=0.99)

    def __call__(self, rollout, last_value):
        def backwards(to_go, step):
            to_go = step.reward + self.gamma * jnp.where(step.done, step.final_value, to_go)
            return to_go, to_go

        _, targets = jax.lax.scan(backwards, last_value, rollout.trajectories, reverse=True)
        return targets - rollout.trajectories.value, targets


class Broken(AbstractAdvantage):
    """The same, but it forgets the steps: `[envs]` instead of `[steps envs]`."""

    def __call__(self, rollout, last_value):
        advantages, targets = MonteCarlo()(rollout, last_value)
        return advantages.mean(axis=0), targets


def main(total_timesteps: int = 50_000) -> float:
    hp = PPOHParams(num_envs=16, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps, learning_rate=1e-3)
    ppo = PPO.create("CartPole-v1", hp=hp, advantage=MonteCarlo())
    _, metrics = ppo.train(jax.random.key(0))
    print("return before:", metrics.cumulative_reward[0].mean(), " after:", metrics.cumulative_reward[-1].mean())

    try:
        PPO.create("CartPole-v1", hp=hp, advantage=Broken())
    except ShapeError as error:
        print(error)
    return float(metrics.cumulative_reward[-1].mean())


if __name__ == "__main__":
    main()
