from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
import jax
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Key

from eqxrl._typing import (
    Scalar,
    Schedule,
    TEnvParams,
    TEnvState,
    as_schedule,
    check_positive,
    field,
    typed,
)
from eqxrl.advantages import GAE, AbstractAdvantage
from eqxrl.algorithms._on_policy import AbstractOnPolicy
from eqxrl.collectors import AbstractCollector, RewardScaling, RolloutCollector
from eqxrl.envs import adapt, check_spaces, make
from eqxrl.evaluators import AbstractEvaluator, EpisodeEvaluator
from eqxrl.learners import AbstractLearner, MinibatchLearner
from eqxrl.losses import PPOLoss
from eqxrl.nn import AbstractActorCritic, MLPActorCritic, NormalizedActorCritic


@typed
class PPOHParams(eqx.Module):
    """How a PPO is configured. Integers and flags are static: they set shapes, or pick a branch. The others are leaves, to be
    swept by `vmap` without a recompile; those of type `Schedule` may also be a function of the number of gradient updates,
    such as `optax.linear_schedule(1e-3, 0.0, hp.num_updates)`."""

    num_epochs: int = field(default=8)
    """Passes over each rollout."""
    num_envs: int = field(default=64)
    num_steps: int = field(default=64)
    """Of each environment in a rollout."""
    num_minibatches: int = field(default=16)
    """Parts that a rollout is cut into for each pass."""
    num_seeds_per_eval: int = field(default=128)
    """Episodes of an evaluation."""
    eval_freq: int = field(default=4096)
    """Env steps between evaluations."""
    normalize_observations: bool = field(default=False)
    """Standardise observations by their running statistics: `nn.NormalizedActorCritic`."""
    normalize_rewards: bool = field(default=False)
    """Divide rewards by the deviation of the running return: `collectors.RewardScaling`."""
    clip_value: bool = field(default=True)
    """Keep the new value within `clip_eps` of the old one in the value loss, as the original did; turn it off where returns
    are much larger than `clip_eps` and rewards aren't normalised."""
    total_timesteps: int = field(default=131072)
    """Env steps, over all environments."""
    debug: bool = field(default=False)
    """Stop at the first NaN or infinity in a rollout, a loss or the policy, and name it; slower."""
    learning_rate: Schedule = field(default=3e-4, converter=as_schedule)
    gamma: Scalar = field(default=0.99)
    max_grad_norm: Scalar = field(default=float("inf"))
    """Global norm that gradients are clipped to."""
    gae_lambda: Scalar = field(default=0.95)
    clip_eps: Schedule = field(default=0.2, converter=as_schedule)
    vf_coef: Scalar = field(default=0.5)
    ent_coef: Schedule = field(default=0.01, converter=as_schedule)

    def __check_init__(self):
        sizes = ("num_epochs", "num_envs", "num_steps", "num_minibatches", "num_seeds_per_eval")
        check_positive(self, *sizes, "eval_freq", "total_timesteps")
        samples = self.num_envs * self.num_steps
        if samples % self.num_minibatches:
            raise ValueError(
                f"num_envs * num_steps ({samples}) must be divisible by num_minibatches ({self.num_minibatches}); "
                f"remainder {samples % self.num_minibatches}"
            )
        self._check_range("gamma", 0.0, 1.0)
        self._check_range("gae_lambda", 0.0, 1.0)
        for name in ("learning_rate", "clip_eps", "max_grad_norm"):
            self._check_range(name, 0.0, float("inf"))

    def _check_range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if callable(value) or isinstance(value, Tracer):
            return
        if not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
            raise ValueError(f"{name} must be in [{low}, {high}], got {np.asarray(value)}")

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: the horizon for a schedule that spans it."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps)) * self.num_epochs * self.num_minibatches


MakeActorCritic = Callable[..., AbstractActorCritic]
"""`(observation_space, action_space, *, key) -> AbstractActorCritic`, such as the class `MLPActorCritic`."""


@typed
class Parts(eqx.Module):
    """The parts that were passed to `create`; `None` where the default, configured by the hyperparameters, is used."""

    actor_critic: AbstractActorCritic | MakeActorCritic | None = None
    collector: AbstractCollector | None = None
    advantage: AbstractAdvantage | None = None
    learner: AbstractLearner | None = None
    evaluator: AbstractEvaluator | None = None


_PART_TYPES: dict[str, type] = {
    "collector": AbstractCollector,
    "advantage": AbstractAdvantage,
    "learner": AbstractLearner,
    "evaluator": AbstractEvaluator,
}


class PPO(AbstractOnPolicy[TEnvState, TEnvParams], Generic[TEnvState, TEnvParams]):
    """Proximal policy optimisation. Schulman et al. 2017, https://arxiv.org/abs/1707.06347

    A part that wasn't passed to `create` is built from `hp` whenever it is used, so each hyperparameter lives in one leaf,
    `hp`'s, and changing it there (`eqx.tree_at`, `dataclasses.replace`, `vmap`) changes the run. A part that was passed
    brings its own.
    """

    env: Any
    env_params: TEnvParams
    hp: PPOHParams
    parts: Parts

    @classmethod
    def create(
        cls,
        env_id: str | None = None,
        env: Any = None,
        env_params: Any = None,
        hp: PPOHParams | None = None,
        *,
        actor_critic: AbstractActorCritic | MakeActorCritic | None = None,
        collector: AbstractCollector | None = None,
        advantage: AbstractAdvantage | None = None,
        learner: AbstractLearner | None = None,
        evaluator: AbstractEvaluator | None = None,
    ) -> "PPO":
        """**Arguments:**

        - `env_id`: an environment's name for `eqxrl.make`; or
        - `env`, `env_params`: an environment; its `default_params` if none are given.
        - `hp`: hyperparameters; the defaults if none are given.
        - `actor_critic`: a policy, which every run then starts from, or what makes one:
          `(observation_space, action_space, *, key) -> AbstractActorCritic`.
        - `collector`, `advantage`, `learner`, `evaluator`: replace the default part.

        **Raises:** `ValueError` or `TypeError`, before anything is compiled, where something doesn't fit.
        """
        if (env_id is None) == (env is None):
            raise ValueError("pass either env_id, as in PPO.create('CartPole-v1'), or env, as in PPO.create(env=env)")
        given: dict[str, Any] = dict(collector=collector, advantage=advantage, learner=learner, evaluator=evaluator)
        for name, part in given.items():
            if part is not None and not isinstance(part, _PART_TYPES[name]):
                raise TypeError(f"{name} must be an {_PART_TYPES[name].__name__}, got {_name(part)}")
        if hp is not None and not isinstance(hp, PPOHParams):
            raise TypeError(f"hp must be PPOHParams, got {_name(hp)}")
        if actor_critic is not None and not callable(actor_critic):
            raise TypeError(f"actor_critic must be an AbstractActorCritic or make one, got {_name(actor_critic)}")
        if env_id is not None:
            env, default_params = make(env_id)
            env_params = default_params if env_params is None else env_params
        elif env_params is None:
            env_params = env.default_params
        env = adapt(env, env_params)
        check_spaces(env, env_params)
        hp = PPOHParams() if hp is None else hp
        parts = Parts(actor_critic=actor_critic, **given)
        ppo = cls(env=env, env_params=env_params, hp=hp, parts=parts)  # pyright: ignore[reportCallIssue] - AbstractVars are no fields
        eqx.filter_eval_shape(ppo.init_train_state, jax.random.key(0))  # every mismatch shows here, in a second
        return ppo

    def init_agent(self, key: Key[Array, ""]) -> AbstractActorCritic:
        observation_space = self.env.observation_space(self.env_params)
        action_space = self.env.action_space(self.env_params)
        make_agent = self.parts.actor_critic or MLPActorCritic
        if isinstance(make_agent, AbstractActorCritic):
            agent = make_agent
        else:
            agent = make_agent(observation_space, action_space, key=key)
            if not isinstance(agent, AbstractActorCritic):
                raise TypeError(f"actor_critic made a {_name(agent)}, not an AbstractActorCritic")
        if not self.hp.normalize_observations:
            return agent
        if hasattr(observation_space, "n"):
            raise ValueError(f"normalize_observations needs observations of numbers, not {observation_space}")
        obs, _ = eqx.filter_eval_shape(self.env.reset, key, self.env_params)
        return NormalizedActorCritic(agent, obs)

    @property
    def collector(self) -> AbstractCollector:
        if self.parts.collector is not None:
            return self.parts.collector
        scaling = RewardScaling(gamma=self.hp.gamma) if self.hp.normalize_rewards else None
        return RolloutCollector(num_envs=self.hp.num_envs, num_steps=self.hp.num_steps, reward_scaling=scaling)

    @property
    def advantage(self) -> AbstractAdvantage:
        return self.parts.advantage or GAE(gamma=self.hp.gamma, gae_lambda=self.hp.gae_lambda)

    @property
    def learner(self) -> AbstractLearner:
        if self.parts.learner is not None:
            return self.parts.learner
        hp = self.hp
        return MinibatchLearner(
            loss=PPOLoss(clip_eps=hp.clip_eps, vf_coef=hp.vf_coef, ent_coef=hp.ent_coef, clip_value=hp.clip_value),
            optimizer=optax.chain(
                optax.clip_by_global_norm(hp.max_grad_norm), optax.adam(hp.learning_rate, eps=1e-5)
            ),
            num_epochs=hp.num_epochs,
            num_minibatches=hp.num_minibatches,
        )

    @property
    def evaluator(self) -> AbstractEvaluator:
        return self.parts.evaluator or EpisodeEvaluator(num_episodes=self.hp.num_seeds_per_eval)

    @property
    def total_timesteps(self) -> int:
        return self.hp.total_timesteps

    @property
    def eval_freq(self) -> int:
        return self.hp.eval_freq

    @property
    def debug(self) -> bool:
        return self.hp.debug


def _name(x: Any) -> str:
    return x.__name__ if isinstance(x, type) else type(x).__name__
