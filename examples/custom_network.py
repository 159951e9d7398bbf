"""Replace the network: a policy and a critic on one shared torso, with layer normalisation."""

import equinox as eqx
import jax

from eqxrl import PPO, AbstractActorCritic, PPOHParams
from eqxrl.nn import Categorical, orthogonal_linear


class SharedTorso(AbstractActorCritic):
    torso: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    policy: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, observation_space, action_space, *, key):
        torso_key, policy_key, critic_key = jax.random.split(key, 3)
        self.torso = orthogonal_linear(observation_space.shape[0], 64, scale=2**0.5, key=torso_key)
        self.norm = eqx.nn.LayerNorm(64)
        self.policy = orthogonal_linear(64, action_space.n, scale=0.01, key=policy_key)
        self.critic = orthogonal_linear(64, 1, scale=1.0, key=critic_key)

    def __call__(self, obs, carry):
        x = jax.nn.relu(self.norm(self.torso(obs)))
        return Categorical(self.policy(x)), self.critic(x)[0], carry

    def initial_carry(self):
        return ()


def main(total_timesteps: int = 50_000) -> float:
    hp = PPOHParams(num_envs=16, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps, learning_rate=1e-3)
    ppo = PPO.create("CartPole-v1", hp=hp, actor_critic=SharedTorso)
    _, metrics = ppo.train(jax.random.key(0))
    print("return before:", metrics.cumulative_reward[0].mean(), " after:", metrics.cumulative_reward[-1].mean())
    return float(metrics.cumulative_reward[-1].mean())


if __name__ == "__main__":
    main()
