"""Tuned configurations, as data. `benchmarks/learning.py` judges them over seeds and prints the table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eqxrl._schedules import LinearSchedule
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._makers import MakeNetwork, MakePart
from eqxrl.learners import NoTarget
from eqxrl.losses import TruncatedQuantiles


@dataclasses.dataclass(frozen=True)
class Preset:
    """A configuration of an algorithm for one environment."""

    env_id: str
    algorithm: str
    """By its name in `ALGORITHMS`."""
    name: str
    source: str
    hp: Mapping[str, Any]
    """Hyperparameters that differ from the defaults."""
    anneal: tuple[str, ...] = ()
    """Hyperparameters that go linearly to 0 over the run."""
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parts that differ from the defaults: networks, for the most."""

    @property
    def cls(self) -> type[AbstractAlgorithm]:
        from eqxrl.algorithms import ALGORITHMS

        return ALGORITHMS[self.algorithm]

    def hparams(self, **overrides: Any) -> AbstractHParams:
        """The hyperparameters, some of them overridden. An annealed one that is overridden by a number is annealed from that."""
        hp: Any = self.cls.HParams(**{**self.hp, **overrides})
        starts = {name: getattr(hp, name) for name in self.anneal}
        schedules = {name: LinearSchedule(x, 0.0, hp.num_updates) for name, x in starts.items() if not callable(x)}
        return dataclasses.replace(hp, **schedules)

    def create(self, env_kwargs: Mapping[str, Any] | None = None, **overrides: Any) -> AbstractAlgorithm:
        """The algorithm with these hyperparameters, some of them overridden, and an environment that is made with options, if any."""
        return self.cls.create(self.env_id, env_kwargs=env_kwargs, hp=self.hparams(**overrides), **self.parts)


_ZOO = "RL Baselines3 Zoo, hyperparams"  # its vf_coef of 0.5 weighs the whole squared error, `PPOLoss`'s half of it: 1.0 here
_LR = ("learning_rate",)
_CARTPOLE_PPO = dict(
    num_envs=8, num_steps=32, num_minibatches=1, num_epochs=20, total_timesteps=99_840, eval_freq=9_984, learning_rate=1e-3, clip_eps=0.2,
    gamma=0.98, gae_lambda=0.8, ent_coef=0.0, vf_coef=1.0, max_grad_norm=0.5, clip_value=False,
)
_NO_VELOCITY = _CARTPOLE_PPO | dict(normalize_observations=True, normalize_rewards=True)
_CARTPOLE_DQN = dict(
    num_envs=1, num_steps=256, updates_per_iteration=128, buffer_size=100_000, batch_size=64, learning_starts=1_000, target_update_freq=128,
    total_timesteps=49_920, eval_freq=4_992, learning_rate=2.3e-3, epsilon_end=0.04, exploration_fraction=0.16,
)
_ACROBOT_DQN = dict(
    num_envs=1, num_steps=4, updates_per_iteration=4, buffer_size=50_000, batch_size=128, learning_starts=0, target_update_freq=250,
    total_timesteps=100_000, eval_freq=10_000, learning_rate=6.3e-4, epsilon_end=0.1, exploration_fraction=0.12, double=False,
)
_PENDULUM_SAC = dict(
    num_envs=1, num_steps=8, updates_per_iteration=8, buffer_size=20_000, learning_starts=100, total_timesteps=20_000, eval_freq=2_000,
    learning_rate=1e-3,
)
_OTHER_SUITES = dict(num_envs=16, num_steps=128, num_minibatches=8, num_epochs=4, learning_rate=1e-3, max_grad_norm=0.5)
_ALL = (
    Preset("CartPole-v1", "ppo", "zoo", f"{_ZOO}/ppo.yml", _CARTPOLE_PPO, anneal=("learning_rate", "clip_eps")),
    *(
        Preset(
            f"{suite}/CartPole-v1", "ppo", "zoo", f"{_ZOO}/ppo.yml", _CARTPOLE_PPO | dict(eval_freq=49_920, num_seeds_per_eval=32),
            anneal=("learning_rate", "clip_eps"),
        )
        for suite in ("envpool", "gymnasium")
    ),
    *(
        Preset(
            f"{suite}/LunarLander-v3", "ppo", "zoo", f"{_ZOO}/ppo.yml",
            dict(num_envs=16, num_steps=1024, num_minibatches=256, num_epochs=4, total_timesteps=999_424, eval_freq=196_608,
                 num_seeds_per_eval=32, learning_rate=3e-4, clip_eps=0.2, gamma=0.999, gae_lambda=0.98, ent_coef=0.01, vf_coef=1.0,
                 max_grad_norm=0.5, clip_value=False),
        )
        for suite in ("envpool", "gymnasium")
    ),
    Preset(
        "CartPole-v1", "ppo", "cleanrl", "CleanRL ppo.py; PureJaxRL ppo.py",
        dict(num_envs=4, num_steps=128, num_minibatches=4, num_epochs=4, total_timesteps=500_000, eval_freq=50_000,
             learning_rate=2.5e-4, max_grad_norm=0.5),
        anneal=_LR,
    ),
    *(
        Preset(
            "CartPoleNoVel-v1", "ppo", name, source, {**_NO_VELOCITY, **hp}, anneal=("learning_rate", "clip_eps"),
            parts=dict(actor_critic=MakeNetwork(name, dict(activation="relu", **more))),
        )
        for name, source, hp, more in (
            # With the zoo's discount a policy, without noise, ends episodes after some 250 steps on one seed of five.
            ("lstm", f"{_ZOO}/ppo_lstm.yml, but for gamma and gae_lambda", dict(gamma=0.99, gae_lambda=0.9), dict(orthogonal=False)),
            ("gru", f"{_ZOO}/ppo_lstm.yml, with a GRU, but for gamma and gae_lambda", dict(gamma=0.99, gae_lambda=0.9), {}),
            ("mlp", f"{_ZOO}/ppo_lstm.yml, without memory", {}, {}),
        )
    ),
    Preset(
        "PendulumNoVel-v1", "ppo", "gru", "tuned here",
        dict(num_envs=16, num_steps=128, num_minibatches=8, num_epochs=10, total_timesteps=100_352, eval_freq=20_480, learning_rate=1e-3,
             gamma=0.9, ent_coef=0.0, max_grad_norm=0.5, normalize_rewards=True, clip_value=False),
        anneal=_LR, parts=dict(actor_critic=MakeNetwork("gru")),
    ),
    Preset(
        "MountainCarContinuousNoVel-v0", "ppo", "gru", "tuned here",
        dict(num_envs=8, num_steps=256, num_minibatches=8, num_epochs=10, total_timesteps=301_056, eval_freq=51_200, learning_rate=1e-3,
             gamma=0.999, ent_coef=0.005, max_grad_norm=0.5, normalize_observations=True, normalize_rewards=True),
        anneal=_LR, parts=dict(actor_critic=MakeNetwork("gru", dict(log_std_init=0.5))),
    ),
    *(
        Preset(
            env_id, "pqn", "tuned", "tuned here, on CartPole-v1",
            dict(total_timesteps=499_712, eval_freq=49_152, learning_rate=5e-4, epsilon_end=0.1, normalize_rewards=True), anneal=_LR,
        )
        for env_id in ("CartPole-v1", "Acrobot-v1")
    ),
    Preset("CartPole-v1", "a2c", "zoo", f"{_ZOO}/a2c.yml", dict(num_envs=8, total_timesteps=500_000, eval_freq=50_000)),
    Preset(
        "CartPole-v1", "dqn", "zoo",
        f"{_ZOO}/dqn.yml, with double Q-learning, layer norm, targets of three steps and a smaller, falling learning rate",
        _CARTPOLE_DQN | dict(n_step=3, learning_rate=1e-3, max_grad_norm=1.0), anneal=_LR,
        parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(256, 256), layer_norm=True))),
    ),
    Preset(
        "CartPole-v1", "dqn", "qr", f"{_ZOO}/qrdqn.yml, with double Q-learning and a falling learning rate",
        _CARTPOLE_DQN, anneal=_LR, parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(256, 256), quantiles=10))),
    ),
    Preset(
        "CartPole-v1", "dqn", "rainbow", "Hessel et al. 2018, https://arxiv.org/abs/1710.02298, but with quantiles; tuned here",
        dict(num_envs=1, num_steps=16, updates_per_iteration=8, buffer_size=50_000, batch_size=64, learning_starts=1_000, n_step=3,
             target_update_freq=200, total_timesteps=49_920, eval_freq=4_992, learning_rate=2.5e-3, epsilon_end=0.0,
             exploration_fraction=0.02),
        parts=dict(
            q_network=MakeNetwork("q", dict(hidden_sizes=(128, 128), dueling=True, quantiles=10, noisy=True)),
            buffer=MakePart("prioritized", dict(alpha=0.5)),
        ),
    ),
    Preset(
        "MountainCar-v0", "dqn", "zoo", f"{_ZOO}/dqn.yml, with targets of three steps and a falling learning rate",
        dict(num_envs=1, num_steps=16, updates_per_iteration=8, buffer_size=10_000, batch_size=128, learning_starts=1_000, gamma=0.98,
             n_step=3, target_update_freq=300, total_timesteps=120_000, eval_freq=12_000, learning_rate=4e-3,
             epsilon_end=0.07, double=False),
        anneal=_LR, parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(256, 256)))),
    ),
    *(
        Preset(
            "Acrobot-v1", "dqn", name, source, _ACROBOT_DQN,
            parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(256, 256), **more))),
        )
        for name, source, more in (("zoo", f"{_ZOO}/dqn.yml", {}), ("qr", f"{_ZOO}/qrdqn.yml", dict(quantiles=25)))
    ),
    Preset(
        "Acrobot-v1", "ppo", "zoo", f"{_ZOO}/ppo.yml",
        dict(num_envs=16, num_steps=256, num_minibatches=64, num_epochs=4, total_timesteps=499_712, eval_freq=49_152,
             normalize_observations=True, normalize_rewards=True, gae_lambda=0.94, ent_coef=0.0, vf_coef=1.0, max_grad_norm=0.5,
             clip_value=False),
    ),
    Preset(
        "Pendulum-v1", "ppo", "tuned", "tuned here",
        dict(num_envs=4, num_steps=1024, num_minibatches=64, num_epochs=10, total_timesteps=147_456, eval_freq=16_384,
             learning_rate=1e-3, gamma=0.95, ent_coef=0.0, max_grad_norm=0.5, normalize_rewards=True, clip_value=False),
        anneal=_LR,
    ),
    Preset("Pendulum-v1", "sac", "zoo", f"{_ZOO}/sac.yml", _PENDULUM_SAC),
    Preset("Pendulum-v1", "sac", "tqc", f"{_ZOO}/tqc.yml", _PENDULUM_SAC, parts=dict(reduction=TruncatedQuantiles())),
    Preset(
        "Pendulum-v1", "sac", "simba", f"Lee et al. 2024, https://arxiv.org/abs/2410.09754, but smaller; {_ZOO}/sac.yml",
        _PENDULUM_SAC,
        parts=dict(
            actor=MakeNetwork("actor", dict(hidden_sizes=(64,), residual=True)),
            critic=MakeNetwork("action_value", dict(hidden_sizes=(64, 64), residual=True)),
        ),
    ),
    Preset(
        "Pendulum-v1", "sac", "crossq", f"Bhatt et al. 2024, https://arxiv.org/abs/1902.05605, but smaller; {_ZOO}/sac.yml",
        _PENDULUM_SAC | dict(batch_size=128),
        parts=dict(
            actor=MakeNetwork("actor", dict(hidden_sizes=(64, 64))),
            critic=MakeNetwork("action_value", dict(hidden_sizes=(256, 256), batch_renorm=True)), target_update=NoTarget(),
        ),
    ),
    Preset(
        "Pendulum-v1", "td3", "zoo", f"{_ZOO}/td3.yml",
        dict(num_envs=1, num_steps=8, updates_per_iteration=8, buffer_size=200_000, learning_starts=10_000, gamma=0.98,
             total_timesteps=20_000, eval_freq=2_000, learning_rate=1e-3),
        parts=dict(
            actor=MakeNetwork("deterministic", dict(hidden_sizes=(400, 300))),
            critic=MakeNetwork("action_value", dict(hidden_sizes=(400, 300))),
        ),
    ),
    Preset(
        "Pendulum-v1", "td3", "fast", "FastTD3, Seo et al. 2025, https://arxiv.org/abs/2505.22642, but smaller, and with histogram loss",
        dict(num_envs=128, num_steps=1, updates_per_iteration=4, buffer_size=200_000, batch_size=1024, learning_starts=1_280, gamma=0.97,
             total_timesteps=307_200, eval_freq=20_480, learning_rate=1e-3, tau=0.1, target_noise=0.001),
        parts=dict(
            actor=MakeNetwork("deterministic", dict(hidden_sizes=(64, 64))),
            critic=MakeNetwork("action_value", dict(hidden_sizes=(128, 64), out_size=101)),
            action_noise=MakePart("mixed_noise"), reduction=MakePart("histogram", dict(low=-400.0, high=0.0, num_bins=101)),
        ),
    ),
    Preset(
        "MountainCarContinuous-v0", "sac", "zoo", f"{_ZOO}/sac.yml, with Ornstein-Uhlenbeck noise in the place of a state-dependent one",
        dict(num_envs=1, num_steps=32, updates_per_iteration=32, buffer_size=50_000, batch_size=512, learning_starts=1_000, gamma=0.9999,
             total_timesteps=49_984, eval_freq=4_992, learning_rate=3e-4, tau=0.01, temperature=0.1, learn_temperature=False),
        parts=dict(
            actor=MakeNetwork("actor", dict(hidden_sizes=(64, 64))), critic=MakeNetwork("action_value", dict(hidden_sizes=(64, 64))),
            action_noise=MakePart("lasting_noise", dict(std=0.3, theta=0.05)),
        ),
    ),
    Preset(
        "CartPole-v1", "sac", "rejax", "rejax, configs, but for the Polyak step",
        dict(num_envs=5, num_steps=2, updates_per_iteration=4, buffer_size=50_000, batch_size=256, learning_starts=1_000,
             total_timesteps=50_000, eval_freq=5_000, learning_rate=1e-3, tau=0.05),
    ),
    Preset(
        # Whole episodes in a rollout: environments that begin together are at the same point of them.
        "Pendulum-v1", "reppo", "tuned", "tuned here",
        dict(num_envs=8, num_steps=256, num_minibatches=16, num_epochs=8, total_timesteps=147_456, eval_freq=16_384, learning_rate=1e-3,
             gamma=0.95),
        anneal=_LR,
        parts=dict(
            actor=MakeNetwork("actor", dict(hidden_sizes=(64, 64), activation="swish", layer_norm=True)),
            critic=MakeNetwork("action_value", dict(hidden_sizes=(64, 64), activation="swish", layer_norm=True, out_size=151)),
        ),
    ),
    Preset(
        "MountainCarContinuous-v0", "ppo", "tuned", "tuned here",
        dict(num_envs=8, num_steps=256, num_minibatches=8, num_epochs=10, total_timesteps=198_656, eval_freq=20_480,
             learning_rate=1e-3, gamma=0.999, ent_coef=0.005, max_grad_norm=0.5, normalize_observations=True, normalize_rewards=True),
        anneal=_LR, parts=dict(actor_critic=MakeNetwork("mlp", dict(log_std_init=0.5))),
    ),
    *(  # With a learning rate that stays, a policy that had found the goal each time may lose it for good.
        Preset(
            env_id, "ppo", "tuned", "tuned here", dict(total_timesteps=total_timesteps, eval_freq=32_768, max_grad_norm=0.5), anneal=_LR,
        )
        for env_id, total_timesteps in (("navix/Navix-Empty-8x8-v0", 196_608), ("navix/Navix-DoorKey-5x5-v0", 393_216))
    ),
    Preset(
        "pgx/tic_tac_toe", "ppo", "tuned", "tuned here", dict(total_timesteps=303_104, eval_freq=50_000, learning_rate=1e-3),
    ),
    *(
        Preset(
            env_id, "ppo", "tuned", "tuned here; the network of JaxMARL, baselines/IPPO",
            dict(num_envs=16, num_steps=104, num_minibatches=4, num_epochs=4, total_timesteps=299_520, eval_freq=74_880, learning_rate=2e-3,
                 max_grad_norm=0.5, **hp),
            anneal=_LR, parts=dict(actor_critic=MakeNetwork("agents", network)),
        )
        for env_id, hp, network in (
            ("jaxmarl/MPE_simple_spread_v3", {}, {}),
            ("jaxmarl/MPE_simple_speaker_listener_v4", dict(normalize_rewards=True), dict(central=True)),
        )
    ),
    Preset(
        "craftax/Craftax-Classic-Symbolic-v1", "ppo", "tuned", "tuned here, with a short horizon after Dedieu et al. 2025, https://arxiv.org/abs/2502.01591",
        dict(num_envs=48, num_steps=96, num_minibatches=8, num_epochs=4, total_timesteps=1_004_544, eval_freq=101_376,
             num_seeds_per_eval=32, learning_rate=4.5e-4, gamma=0.925, gae_lambda=0.625, max_grad_norm=0.5),
        anneal=_LR,
    ),
    Preset(  # Its likeliest actions are worth a quarter of those that it draws.
        "craftax/Craftax-Symbolic-v1", "ppo", "tuned", "tuned here; judged by actions that are drawn",
        dict(num_envs=64, num_steps=64, num_minibatches=8, num_epochs=4, total_timesteps=614_400, eval_freq=102_400,
             num_seeds_per_eval=32, learning_rate=5e-4, gae_lambda=0.8, max_grad_norm=1.0),
        anneal=_LR,
        parts=dict(actor_critic=MakeNetwork("mlp", dict(activation="relu")), evaluator=MakePart("episodes", dict(deterministic=False))),
    ),
    *(
        Preset(
            env_id, "ppo", "tuned", "tuned here",
            dict(num_envs=64, num_epochs=8, ent_coef=0.0, max_grad_norm=0.5, clip_value=False, num_seeds_per_eval=16,
                 normalize_observations=True, normalize_rewards=True, **hp),
            anneal=_LR,
        )
        for env_id, hp in (
            ("playground/CartpoleBalance",
             dict(num_steps=32, num_minibatches=4, total_timesteps=409_600, eval_freq=40_960, learning_rate=1e-3)),
            ("playground/CartpoleSwingup",
             dict(num_steps=128, num_minibatches=16, total_timesteps=1_638_400, eval_freq=163_840, learning_rate=5e-4)),
        )
    ),
    *(
        Preset(
            env_id, "ppo", "tuned", "tuned here", _OTHER_SUITES | dict(total_timesteps=total_timesteps, eval_freq=eval_freq) | more,
            anneal=_LR,
        )
        for env_id, total_timesteps, eval_freq, more in (
            ("brax/inverted_pendulum", 819_200, 81_920,
             dict(num_epochs=8, normalize_observations=True, ent_coef=0.0, clip_value=False)),
            ("brax/fast", 204_800, 20_480,
             dict(normalize_observations=True, normalize_rewards=True, ent_coef=0.0, clip_value=False)),
            ("gymnasium/InvertedPendulum-v5", 100_352, 100_352,
             dict(num_envs=8, num_steps=256, num_epochs=8, normalize_observations=True, ent_coef=0.0, num_seeds_per_eval=16)),
            ("jumanji/Tetris-v0", 1_024_000, 102_400, dict(num_envs=32, normalize_rewards=True)),
            ("pgx/connect_four", 303_104, 30_720, {}),
            ("xminigrid/MiniGrid-Empty-8x8", 204_800, 20_480, dict(learning_rate=3e-4)),
            ("xminigrid/MiniGrid-DoorKey-5x5", 409_600, 40_960, {}),
        )
    ),
    Preset(
        "jumanji/Game2048-v1", "ppo", "tuned", "tuned here",
        dict(total_timesteps=499_712, eval_freq=124_928, num_seeds_per_eval=64, learning_rate=1e-3, gamma=0.997, normalize_rewards=True),
    ),
    *(  # With its entropy bonus of 0.01 many agents soon die at the same place each time, and find no way past it.
        Preset(
            "Breakout-MinAtar", "ppo", name, "PureJaxRL, README, MinAtar, with more entropy, and with values that may follow returns",
            dict(num_envs=64, num_steps=128, num_minibatches=8, num_epochs=4, total_timesteps=1_998_848, eval_freq=204_800,
                 learning_rate=5e-3, max_grad_norm=0.5, ent_coef=0.1, clip_value=False),
            anneal=_LR, parts=dict(actor_critic=network),
        )
        for name, network in (("purejaxrl", MakeNetwork("mlp", dict(activation="relu"))), ("cnn", MakeNetwork("cnn", dict(shared=False))))
    ),
    Preset(
        "Breakout-MinAtar", "dqn", "tuned", "tuned here",
        dict(num_envs=64, num_steps=4, updates_per_iteration=8, buffer_size=100_096, batch_size=64, learning_starts=5_120, n_step=3,
             target_update_freq=200, total_timesteps=1_998_848, eval_freq=409_600, learning_rate=5e-4, exploration_fraction=0.1),
        anneal=_LR, parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(128,), layer_norm=True))),
    ),
    Preset(
        "Breakout-MinAtar", "pqn", "purejaxql", "PureJaxQL, configurations, MinAtar, with twice the learning rate",
        dict(num_envs=128, num_steps=32, num_minibatches=32, num_epochs=2, total_timesteps=1_998_848, eval_freq=204_800, learning_rate=1e-3,
             q_lambda=0.65, exploration_fraction=0.1),
        anneal=_LR, parts=dict(actor_critic=MakeNetwork("q_policy", dict(hidden_sizes=(), layer_norm=True))),
    ),
)
PRESETS: dict[str, dict[str, dict[str, Preset]]] = {}
"""By environment, algorithm and name; the first one of an algorithm is what the command uses."""
for _preset in _ALL:
    PRESETS.setdefault(_preset.env_id, {}).setdefault(_preset.algorithm, {})[_preset.name] = _preset


def preset(env_id: str, algo: str = "ppo", name: str | None = None) -> Preset:
    """A tuned configuration by name; the environment's first one for the algorithm if no name is given."""
    for_env = PRESETS.get(env_id, {}).get(algo, {})
    if not for_env:
        there = ", ".join(f"{env} ({', '.join(algos)})" for env, algos in PRESETS.items())
        raise ValueError(f"there is no preset for {algo} on {env_id}; there are some for {there}")
    if name is not None and name not in for_env:
        raise ValueError(f"there is no preset {name!r} for {algo} on {env_id}; there is {', '.join(for_env)}")
    return for_env[name or next(iter(for_env))]
