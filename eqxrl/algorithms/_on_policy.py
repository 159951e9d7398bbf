"""The on-policy iteration, written once against abstract parts: collect, advantage, learn, record. An algorithm is a final
class that picks the parts (`PPO` is one); nothing here knows which."""

import abc
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from eqxrl._structs import (
    AdvantageMinibatch,
    EpisodeStats,
    EvalMetrics,
    LearnerMetrics,
    TrainStepMetrics,
    TrajectoryCollectionState,
    TrajectoryWithLastObs,
)
from eqxrl._typing import Action, KeyLike, Observation, T, TEnvParams, TEnvState, as_key, typed, validate
from eqxrl.advantages import AbstractAdvantage
from eqxrl.collectors import AbstractCollector
from eqxrl.envs import to_env_action
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.learners import AbstractLearner, LearnerState
from eqxrl.nn import AbstractActorCritic, check_actor_critic, observe

_EVALUATION = 0x6576616C  # "eval": what an evaluation's key is derived from the state's with


@typed
class PPOState(eqx.Module, Generic[TEnvState]):
    """Everything that a continuation needs, and nothing else does."""

    agent: AbstractActorCritic
    """The policy, with its observation statistics if it keeps any."""
    learner_state: LearnerState
    """The optimiser's state and the number of updates."""
    rng: Key[Array, ""]
    data_collection_state: TrajectoryCollectionState[TEnvState]


class AbstractOnPolicy(eqx.Module, Generic[TEnvState, TEnvParams]):
    """An algorithm that learns from each rollout once, then throws it away."""

    env: eqx.AbstractVar[Any]
    env_params: eqx.AbstractVar[TEnvParams]
    total_timesteps: eqx.AbstractVar[int]
    """Env steps over all environments."""
    eval_freq: eqx.AbstractVar[int]
    """Env steps between evaluations."""
    debug: eqx.AbstractVar[bool]
    collector: eqx.AbstractVar[AbstractCollector]
    advantage: eqx.AbstractVar[AbstractAdvantage]
    learner: eqx.AbstractVar[AbstractLearner]
    evaluator: eqx.AbstractVar[AbstractEvaluator]

    @abc.abstractmethod
    def init_agent(self, key: Key[Array, ""]) -> AbstractActorCritic:
        """The policy before training."""

    # The training state, and one iteration of it.

    def init_train_state(self, rng: KeyLike) -> PPOState[TEnvState]:
        """The state before training. The networks' seed and the environments' are separate, derived from `rng`."""
        network_key, env_key, rng = jax.random.split(as_key(rng), 3)
        agent = self.init_agent(network_key)
        state = self.collector.init(self.env, self.env_params, agent, env_key)
        validate(self.collector, state, batch="envs", envs=self.collector.num_envs)
        check_actor_critic(agent, jax.tree.map(lambda x: x[0], state.last_obs), self.env.action_space(self.env_params))
        ts = PPOState(agent=agent, learner_state=self.learner.init(agent), rng=rng, data_collection_state=state)
        return _tied_to(rng, ts)

    def get_batch(self, ts: PPOState, batch_idx: int | Int[Array, ""]) -> tuple[PPOState, TrajectoryWithLastObs]:
        """One rollout `[steps envs]` of the policy as it stands. `batch_idx` is for algorithms that depend on it; this one
        doesn't."""
        del batch_idx
        state, rollout = self.collector(self.env, self.env_params, ts.agent, ts.data_collection_state)
        sizes = dict(steps=self.collector.num_steps, envs=self.collector.num_envs)
        validate(self.collector, state, batch="envs", envs=sizes["envs"])
        validate(self.collector, rollout, batch="steps envs", **sizes)
        return dataclasses.replace(ts, data_collection_state=state), rollout

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: PPOState, batch: TrajectoryWithLastObs
    ) -> tuple[PPOState, TrainStepMetrics]:
        """Learns from one rollout."""
        minibatch = self.estimate_advantages(ts, batch)
        rng, key = jax.random.split(ts.rng)
        agent, learner_state, metrics = self.learner(ts.agent, ts.learner_state, minibatch, key)
        if self.debug:
            agent = _assert_finite(agent, batch_idx, batch=minibatch, metrics=metrics, agent=agent)
        agent = observe(agent, batch.trajectories.obs)
        ts = dataclasses.replace(ts, agent=agent, learner_state=learner_state, rng=rng)
        return ts, _record(metrics, minibatch, batch.episodes)

    def estimate_advantages(self, ts: PPOState, batch: TrajectoryWithLastObs) -> AdvantageMinibatch:
        """The rollout with its advantages and targets, `[steps envs]`."""
        carry = ts.data_collection_state.carry
        last_value = jax.vmap(lambda obs, carry: ts.agent(obs, carry)[1])(batch.last_obs, carry)
        estimate = self.advantage(batch, last_value)
        shape = batch.trajectories.reward.shape
        unchecked = Estimate.of(self.advantage, estimate)
        validate(self.advantage, unchecked, batch="steps envs", steps=shape[0], envs=shape[1])
        return AdvantageMinibatch(
            trajectories=batch.trajectories, advantages=unchecked.advantages, targets=unchecked.targets
        )

    def iteration(self, ts: PPOState, batch_idx: int | Int[Array, ""]) -> tuple[PPOState, TrainStepMetrics]:
        """Collect, then learn."""
        ts, batch = self.get_batch(ts, batch_idx)
        return self.training_step(batch_idx, ts, batch)

    def iterations(self, ts: PPOState, num_iterations: int | Int[Array, ""]) -> tuple[PPOState, TrainStepMetrics]:
        """Several iterations; metrics are means over them, those of episodes over the episodes that ended.

        The number is a traced value and the loop the same program for any of them: XLA compiles a loop of one trip, or of any
        number it knows, differently, and then chunks of different length would not add up bit for bit.
        """
        arrays, static = eqx.partition(ts, eqx.is_array)

        def one(i, carried):
            arrays, total = carried
            ts, metrics = self.iteration(eqx.combine(arrays, static), i)
            return eqx.filter(ts, eqx.is_array), jax.tree.map(jnp.add, total, _per_episode(metrics, jnp.multiply))

        metrics = eqx.filter_eval_shape(lambda ts: self.iteration(ts, jnp.int32(0))[1], ts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        n = jnp.asarray(num_iterations, jnp.int32)
        arrays, total = jax.lax.fori_loop(jnp.zeros_like(n), n, one, (arrays, zeros))
        mean = jax.tree.map(lambda x: x / jnp.maximum(n, 1), total)
        mean = dataclasses.replace(mean, num_episodes=total.num_episodes)
        episodes = dataclasses.replace(
            mean, episode_return=total.episode_return, episode_length=total.episode_length
        )
        return eqx.combine(arrays, static), _per_episode(episodes, lambda x, count: x / jnp.maximum(count, 1))

    # A whole run.

    def train(
        self, rng: KeyLike | None = None, train_state: PPOState | None = None, skip_initial_evaluation: bool = False
    ) -> tuple[PPOState, EvalMetrics]:
        """Trains for `total_timesteps`, in one compiled program; works under `jit` and `vmap`.

        **Arguments:**

        - `rng`: seeds the networks and the environments.
        - `train_state`: go on from this state, for `total_timesteps` more, instead of a new one; `rng` isn't needed then, for
          the state holds its own.
        - `skip_initial_evaluation`: don't evaluate before the first iteration.

        **Returns:** the final state, and an evaluation about every `eval_freq` env steps, `[evals episodes]`; the last one is
        of the final state. It runs the smallest number of whole iterations that reaches `total_timesteps`; `env_steps` of the
        final state tells how many steps that were.
        """
        if (rng is None) == (train_state is None):
            raise ValueError("pass either rng, to start anew, or train_state, to go on from it")
        ts, evaluations, _ = _train(self, None if rng is None else as_key(rng), train_state, skip_initial_evaluation)
        return ts, evaluations

    def eval_callback(self, ts: PPOState, rng: KeyLike | None = None) -> EvalMetrics:
        """Evaluates the policy, `[episodes]`. Without `rng` a key derived from the state is used, another one at each
        iteration; the state itself never changes."""
        key = jax.random.fold_in(ts.rng, _EVALUATION) if rng is None else as_key(rng)
        metrics = self.evaluator(self.env, self.env_params, ts.agent, key)
        return validate(self.evaluator, metrics, batch="")

    @property
    def iteration_size(self) -> int:
        """Env steps of one iteration."""
        return self.collector.num_envs * self.collector.num_steps

    @property
    def chunks(self) -> np.ndarray:
        """How many iterations there are before each evaluation of a run."""
        num_iterations = math.ceil(self.total_timesteps / self.iteration_size)
        each = min(max(1, round(self.eval_freq / self.iteration_size)), num_iterations)
        full, rest = divmod(num_iterations, each)
        return np.array([each] * full + [rest] * (rest > 0), np.int32)

    def env_steps(self, ts: PPOState) -> int:
        """How many env steps, over all environments, the state has behind it; of one member, if it is a vmapped one."""
        return int(np.max(jax.device_get(ts.data_collection_state.global_step))) * self.iteration_size

    # Using the result.

    def make_actor(self, ts: PPOState, deterministic: bool = False) -> Callable[[Observation, KeyLike], Action]:
        """The trained policy as a function `act(obs, rng)` of one observation, in the environment's units, that returns an
        action fit for the environment; a pytree, so that jitted functions take it as an argument. It has no memory, so a
        recurrent policy is refused."""
        if jax.tree.leaves(ts.agent.initial_carry()):
            raise TypeError("make_actor is for policies without a hidden state; step the recurrent ts.agent with its carry")

        return eqx.Partial(_act, ts.agent, self.env, self.env_params, deterministic)

    def visualize(self, ts: PPOState, gif_path: str | Path, eval_rng: KeyLike | None = None) -> Path:
        """Writes a GIF of one episode, which ends where the episode ends; the policy takes its likeliest actions."""
        from eqxrl.viz import render_episode

        key = jax.random.fold_in(ts.rng, _EVALUATION) if eval_rng is None else as_key(eval_rng)
        return render_episode(self.env, self.env_params, self.make_actor(ts, deterministic=True), gif_path, key)


def _act(
    agent: AbstractActorCritic, env: Any, env_params: Any, deterministic: bool, obs: Observation, rng: KeyLike
) -> Action:
    distribution, _, _ = agent(obs, agent.initial_carry())
    action = distribution.mode() if deterministic else distribution.sample(as_key(rng))
    return to_env_action(env.action_space(env_params), action)


@eqx.filter_jit
def _train(
    algo: AbstractOnPolicy, rng: Key[Array, ""] | None, ts: PPOState | None, skip_initial_evaluation: bool
) -> tuple[PPOState, EvalMetrics, TrainStepMetrics]:
    """The metrics `[chunks]` are for no one, but without them the learning would be fused into other kernels, and rounded
    otherwise, than in `Trainer`, which shows them."""
    ts = algo.init_train_state(rng) if ts is None else ts  # pyright: ignore[reportArgumentType]
    arrays, static = eqx.partition(ts, eqx.is_array)

    def chunk(arrays, num_iterations):
        ts, metrics = algo.iterations(eqx.combine(arrays, static), num_iterations)
        return eqx.filter(ts, eqx.is_array), (algo.eval_callback(ts), metrics)

    arrays, (evaluations, metrics) = jax.lax.scan(chunk, arrays, jnp.asarray(algo.chunks))
    if not skip_initial_evaluation:
        first = algo.eval_callback(ts)
        evaluations = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, evaluations)
    return eqx.combine(arrays, static), evaluations, metrics


def _tied_to(rng: Key[Array, ""], tree: T) -> T:
    """The same values, each of which depends on `rng`. Under vmap over seeds, counters would else stay one for all of them until
    the state is given back, and one for each in a run that goes on from it: XLA takes powers of a number and of an array by
    different routines, so the two runs would differ in the last bit."""
    bit = jnp.ravel(jax.random.key_data(rng))[0] == 0
    numbers, rest = eqx.partition(tree, lambda x: eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    return eqx.combine(jax.tree.map(lambda x: jnp.where(bit, x, x), numbers), rest)


class Estimate(eqx.Module):
    """What an advantage estimator returned, before anyone believes it."""

    advantages: Float[Array, "*batch"]
    targets: Float[Array, "*batch"]

    @classmethod
    def of(cls, part: AbstractAdvantage, estimate: Any) -> "Estimate":
        """Built without its constructor, whose check couldn't name the part; `validate` does."""
        if not (isinstance(estimate, tuple) and len(estimate) == 2):
            raise TypeError(f"{type(part).__name__} must return (advantages, targets), got {type(estimate).__name__}")
        scalar = jnp.zeros(())
        return jax.tree.unflatten(jax.tree.structure(cls(advantages=scalar, targets=scalar)), estimate)


def _record(metrics: LearnerMetrics, batch: AdvantageMinibatch, episodes: EpisodeStats) -> TrainStepMetrics:
    variance = jnp.var(batch.targets)
    unexplained = jnp.var(batch.targets - batch.trajectories.value)
    count = jnp.maximum(episodes.count, 1)
    return TrainStepMetrics(
        **{f.name: getattr(metrics.loss, f.name) for f in dataclasses.fields(metrics.loss)},
        grad_norm=metrics.grad_norm,
        explained_variance=jnp.where(variance > 0, 1 - unexplained / jnp.where(variance > 0, variance, 1), 0.0),
        num_episodes=episodes.count,
        episode_return=episodes.total_return / count,
        episode_length=episodes.total_length / count,
    )


def _per_episode(metrics: TrainStepMetrics, combine: Callable[[Array, Array], Array]) -> TrainStepMetrics:
    """The metrics that are means over episodes, combined with the number of episodes."""
    return dataclasses.replace(
        metrics,
        episode_return=combine(metrics.episode_return, metrics.num_episodes),
        episode_length=combine(metrics.episode_length, metrics.num_episodes),
    )


def _assert_finite(x: T, batch_idx: int | Int[Array, ""], **named: Any) -> T:
    """For `debug`: stops the run, inside the compiled program, at the first NaN or infinity, and names where it is."""
    for name, tree in named.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
            where = f"{name}{jax.tree_util.keystr(path)}"
            x = eqx.error_if(x, ~jnp.all(jnp.isfinite(leaf)), f"not finite: {where}")
    return x
