"""Write your own training loop out of the same pieces: collect, learn, look at the metrics."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams


def main(num_iterations: int = 60) -> float:
    ppo = PPO.create("CartPole-v1", hp=PPOHParams(num_envs=16, num_steps=64, num_minibatches=4, learning_rate=1e-3))
    get_batch, training_step = eqx.filter_jit(ppo.get_batch), eqx.filter_jit(ppo.training_step)

    ts = ppo.init_train_state(jax.random.key(0))
    for i in jnp.arange(num_iterations):  # an array, so that one compiled program serves every i
        ts, rollout = get_batch(ts, i)  # rollout.trajectories.obs is [steps envs obs]
        ts, metrics = training_step(i, ts, rollout)
        if i % 10 == 9:
            mean_return = metrics.episodes.total_return / metrics.episodes.count
            print(f"{ppo.env_steps(ts):6} steps: return {mean_return:5.1f}, approx_kl {metrics.means['approx_kl']:.4f}")

    act = ppo.make_actor(ts, deterministic=True)
    print("action for an upright pole:", act(rollout.last_obs[0] * 0, jax.random.key(1)))
    return float(ppo.eval_callback(ts).cumulative_reward.mean())


if __name__ == "__main__":
    print("return of the final policy:", main())
