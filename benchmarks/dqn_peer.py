"""Stable-Baselines3's own DQN with the RL zoo's configuration for CartPole-v1: what its policies are worth after 50,000 steps.

    pip install stable-baselines3 && python benchmarks/dqn_peer.py
"""

import gymnasium
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

ZOO = dict(
    learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000, gamma=0.99, target_update_interval=10,
    train_freq=256, gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04, policy_kwargs=dict(net_arch=[256, 256]),
)


def main() -> None:
    torch.set_num_threads(1)
    for seed in range(10):
        model = DQN("MlpPolicy", gymnasium.make("CartPole-v1"), seed=seed, device="cpu", **ZOO).learn(50_000)
        mean, _ = evaluate_policy(model, Monitor(gymnasium.make("CartPole-v1")), n_eval_episodes=20)
        print(f"seed {seed}: {mean:.1f}", flush=True)


if __name__ == "__main__":
    main()
