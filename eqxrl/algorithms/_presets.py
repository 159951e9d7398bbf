"""Tuned configurations, as data. Each was judged over 20 seeds (`benchmarks/learning.py` prints the table)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from eqxrl._schedules import LinearSchedule
from eqxrl.algorithms._ppo import PPO, PPOHParams
from eqxrl.nn import MLPActorCritic

_ACTIVATIONS = {"tanh": jax.nn.tanh, "relu": jax.nn.relu, "swish": jax.nn.swish}


@dataclasses.dataclass(frozen=True)
class MakeMLP:
    """`MLPActorCritic` with its options, comparable, so that building the same policy twice doesn't compile twice."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    log_std_init: float = 0.0

    def __call__(self, observation_space: Any, action_space: Any, *, key: Any) -> MLPActorCritic:
        return MLPActorCritic(
            observation_space,
            action_space,
            hidden_sizes=self.hidden_sizes,
            activation=_ACTIVATIONS[self.activation],
            log_std_init=self.log_std_init,
            key=key,
        )


@dataclasses.dataclass(frozen=True)
class Preset:
    """A configuration of PPO for one environment."""

    env_id: str
    source: str
    hp: Mapping[str, Any]
    """Fields of `PPOHParams` that differ from its defaults."""
    anneal: tuple[str, ...] = ()
    """Fields that go linearly to 0 over the run."""
    network: MakeMLP = MakeMLP()

    def hparams(self, **overrides: Any) -> PPOHParams:
        """The hyperparameters; a field that is overridden is no longer annealed."""
        hp = PPOHParams(**{**self.hp, **overrides})
        schedules = {
            name: LinearSchedule(getattr(hp, name), 0.0, hp.num_updates) for name in self.anneal if name not in overrides
        }
        return dataclasses.replace(hp, **schedules)

    def create(self, **overrides: Any) -> PPO:
        """A PPO with these hyperparameters, some of them overridden."""
        return PPO.create(self.env_id, hp=self.hparams(**overrides), actor_critic=self.network)


_ZOO = "RL Baselines3 Zoo, hyperparams/ppo.yml"
_HERE = "tuned here"

PRESETS: dict[str, dict[str, Preset]] = {
    "CartPole-v1": {
        "zoo": Preset(
            "CartPole-v1",
            _ZOO,
            dict(
                num_envs=8, num_steps=32, num_minibatches=1, num_epochs=20, total_timesteps=99_840, eval_freq=9_984,
                learning_rate=1e-3, clip_eps=0.2, gamma=0.98, gae_lambda=0.8, ent_coef=0.0, max_grad_norm=0.5, clip_value=False,
            ),
            anneal=("learning_rate", "clip_eps"),
        ),
        "cleanrl": Preset(
            "CartPole-v1",
            "CleanRL ppo.py; PureJaxRL ppo.py",
            dict(
                num_envs=4, num_steps=128, num_minibatches=4, num_epochs=4, total_timesteps=500_000, eval_freq=50_000,
                learning_rate=2.5e-4, max_grad_norm=0.5,
            ),
            anneal=("learning_rate",),
        ),
    },
    "Acrobot-v1": {
        "zoo": Preset(
            "Acrobot-v1",
            _ZOO,
            dict(
                num_envs=16, num_steps=256, num_minibatches=64, num_epochs=4, total_timesteps=499_712, eval_freq=49_152,
                normalize_observations=True, normalize_rewards=True, gae_lambda=0.94, ent_coef=0.0, max_grad_norm=0.5,
                clip_value=False,
            ),
        ),
    },
    "Pendulum-v1": {
        "tuned": Preset(
            "Pendulum-v1",
            _HERE,
            dict(
                num_envs=4, num_steps=1024, num_minibatches=64, num_epochs=10, total_timesteps=147_456, eval_freq=16_384,
                learning_rate=1e-3, gamma=0.95, ent_coef=0.0, max_grad_norm=0.5, normalize_rewards=True, clip_value=False,
            ),
            anneal=("learning_rate",),
        ),
    },
    "MountainCarContinuous-v0": {
        "tuned": Preset(
            "MountainCarContinuous-v0",
            _HERE,
            dict(
                num_envs=8, num_steps=256, num_minibatches=8, num_epochs=10, total_timesteps=198_656, eval_freq=20_480,
                learning_rate=1e-3, gamma=0.999, ent_coef=0.005, max_grad_norm=0.5,
                normalize_observations=True, normalize_rewards=True,
            ),
            anneal=("learning_rate",),
            network=MakeMLP(log_std_init=0.5),
        ),
    },
    "Breakout-MinAtar": {
        "purejaxrl": Preset(
            "Breakout-MinAtar",
            "PureJaxRL, README, MinAtar",
            dict(
                num_envs=64, num_steps=128, num_minibatches=8, num_epochs=4, total_timesteps=1_998_848, eval_freq=204_800,
                learning_rate=5e-3, max_grad_norm=0.5,
            ),
            anneal=("learning_rate",),
            network=MakeMLP(activation="relu"),
        ),
    },
}


def preset(env_id: str, name: str | None = None) -> Preset:
    """A tuned configuration by name; the environment's first one if no name is given."""
    for_env = PRESETS.get(env_id, {})
    if not for_env:
        raise ValueError(f"there is no preset for {env_id}; there are some for {', '.join(PRESETS)}")
    if name is not None and name not in for_env:
        raise ValueError(f"there is no preset {name!r} for {env_id}; there is {', '.join(for_env)}")
    return for_env[name or next(iter(for_env))]
