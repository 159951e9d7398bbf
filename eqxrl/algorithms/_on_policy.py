import dataclasses
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eqxrl._structs import (
    AdvantageMinibatch,
    TrainStepMetrics,
    TrajectoryCollectionState,
    TrajectoryWithLastObs,
)
from eqxrl._typing import KeyLike, Scalar, TEnvState, as_key, typed, validate
from eqxrl.advantages import AbstractAdvantage
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._bitwise import tied_to
from eqxrl.algorithms._finite import assert_finite
from eqxrl.algorithms._parts import name_of, part
from eqxrl.collectors import AbstractCollector
from eqxrl.learners import AbstractLearner, LearnerState
from eqxrl.nn import (
    AbstractActorCritic,
    ActorCriticPolicy,
    Masked,
    NormalizedActorCritic,
    check_actor_critic,
    default_actor_critic,
    has_action_mask,
    observe,
)


@typed
class OnPolicyState(eqx.Module, Generic[TEnvState]):
    """Everything that a continuation needs, and nothing else does."""

    agent: AbstractActorCritic
    """The policy, with its observation statistics if it keeps any."""
    learner_state: LearnerState
    """The optimiser's state and the number of updates."""
    rng: Key[Array, ""]
    data_collection_state: TrajectoryCollectionState[TEnvState]

    @property
    def num_iterations(self) -> Int[Array, "*seeds"]:
        return self.data_collection_state.global_step

    @property
    def num_updates(self) -> Int[Array, "*seeds"]:
        return self.learner_state.num_updates


class AbstractOnPolicy(AbstractAlgorithm[OnPolicyState, TrajectoryWithLastObs]):
    """Learns from each rollout once, then throws it away: collect, advantage, learn, observe."""

    collector: eqx.AbstractVar[AbstractCollector]
    advantage: eqx.AbstractVar[AbstractAdvantage]
    learner: eqx.AbstractVar[AbstractLearner]

    def behaviour(self, ts: OnPolicyState) -> AbstractActorCritic:
        """The policy that collects the next rollout: the one that is learned, unless it is overridden."""
        return ts.agent

    # Everything below is final. The hyperparameters have a flag `normalize_observations`.

    @part(AbstractActorCritic, made_later=True)
    def actor_critic(self):
        return default_actor_critic

    def init_agent(self, key: Key[Array, ""]) -> AbstractActorCritic:
        """The actor-critic that was passed, or a new one for the algorithm's spaces."""
        agent, observation_space = self.actor_critic, self.env.observation_space(self.env_params)
        if not isinstance(agent, AbstractActorCritic):
            agent = agent(observation_space, self.env.action_space(self.env_params), key=key)
            if not isinstance(agent, AbstractActorCritic):
                raise TypeError(f"actor_critic made a {name_of(agent)}, not an AbstractActorCritic")
            if has_action_mask(observation_space) and not isinstance(agent, Masked):
                agent = Masked(agent)
        if not self.hp.normalize_observations:
            return agent
        obs, _ = eqx.filter_eval_shape(self.env.reset, key, self.env_params)
        if not any(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(obs)):
            raise ValueError(f"normalize_observations needs observations with floats in them, not {observation_space}")
        return NormalizedActorCritic(agent, obs)

    def init_train_state(self, rng: KeyLike) -> OnPolicyState:
        """The state before training; `rng` is a key or a seed. The networks' key and the environments' are separate."""
        network_key, env_key, key = jax.random.split(as_key(rng), 3)
        agent = self.init_agent(network_key)
        state = self.collector.init(self.env, self.env_params, agent, env_key)
        validate(self.collector, state, batch="envs", kind=TrajectoryCollectionState, envs=self.collector.num_envs)
        check_actor_critic(agent, jax.tree.map(lambda x: x[0], state.last_obs), self.env.action_space(self.env_params))
        ts = OnPolicyState(agent=agent, learner_state=self.learner.init(agent), rng=key, data_collection_state=state)
        return tied_to(key, ts)

    def get_batch(self, ts: OnPolicyState, batch_idx: int | Int[Array, ""]) -> tuple[OnPolicyState, TrajectoryWithLastObs]:
        """One rollout `[steps envs]` of the policy as it stands."""
        collector = self.collector
        state, rollout = collector(self.env, self.env_params, self.behaviour(ts), ts.data_collection_state)
        sizes = dict(steps=collector.num_steps, envs=collector.num_envs)
        validate(collector, state, batch="envs", kind=TrajectoryCollectionState, envs=sizes["envs"])
        validate(collector, rollout, batch="steps envs", kind=TrajectoryWithLastObs, **sizes)
        return dataclasses.replace(ts, data_collection_state=state), rollout

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: OnPolicyState, batch: TrajectoryWithLastObs
    ) -> tuple[OnPolicyState, TrainStepMetrics]:
        """Learns from one rollout."""
        estimate = self.estimate_advantages(ts, batch)
        rng, key = jax.random.split(ts.rng)
        agent, learner_state, metrics = self.learner(ts.agent, ts.learner_state, estimate, key)
        if self.hp.debug:
            agent = assert_finite(agent, batch=estimate, metrics=metrics, agent=agent)
        agent = observe(agent, batch.trajectories.obs)
        ts = dataclasses.replace(ts, agent=agent, learner_state=learner_state, rng=rng)
        metrics = metrics | {"explained_variance": _explained_variance(estimate)}
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)

    def estimate_advantages(self, ts: OnPolicyState, batch: TrajectoryWithLastObs) -> AdvantageMinibatch:
        """The rollout with its advantages and targets, `[steps envs]`."""
        carry = ts.data_collection_state.carry
        last_value = jax.vmap(lambda obs, carry: ts.agent(obs, carry)[1])(batch.last_obs, carry)
        estimate = Estimate.of(self.advantage, self.advantage(batch, last_value))
        steps, envs = batch.trajectories.reward.shape
        validate(self.advantage, estimate, batch="steps envs", steps=steps, envs=envs)
        return AdvantageMinibatch(
            trajectories=batch.trajectories, advantages=estimate.advantages, targets=estimate.targets,
            initial_carry=batch.initial_carry, last_value=last_value,
        )

    def policy(self, ts: OnPolicyState) -> ActorCriticPolicy:
        """Draws from the actor-critic's distribution, or takes its mode."""
        return ActorCriticPolicy(ts.agent)

    @property
    def iteration_size(self) -> int:
        """Env steps of one rollout, over all environments."""
        return self.collector.num_envs * self.collector.num_steps


class Estimate(eqx.Module):
    """What an advantage estimator returned, before it is checked."""

    advantages: Float[Array, "*batch"]
    targets: Float[Array, "*batch"]

    @classmethod
    def of(cls, part: AbstractAdvantage, estimate: Any) -> "Estimate":
        """Built without its constructor, whose check couldn't name the part; `validate` does."""
        if not (isinstance(estimate, tuple) and len(estimate) == 2):
            raise TypeError(f"{type(part).__name__} must return (advantages, targets), got {type(estimate).__name__}")
        scalar = jnp.zeros(())
        return jax.tree.unflatten(jax.tree.structure(cls(advantages=scalar, targets=scalar)), estimate)


def _explained_variance(batch: AdvantageMinibatch) -> Scalar:
    """1 - Var(targets - values) / Var(targets), of the values that the rollout was collected with."""
    variance = jnp.var(batch.targets)
    unexplained = jnp.var(batch.targets - batch.trajectories.value)
    return jnp.where(variance > 0, 1 - unexplained / jnp.where(variance > 0, variance, 1), 0.0)
