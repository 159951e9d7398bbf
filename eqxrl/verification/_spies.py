"""Parts that look on: they stand in the place of a part, do what it does, and tell what they saw."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from eqxrl._structs import (
    AdvantageMinibatch,
    EvalMetrics,
    LearnerMetrics,
    LossMetrics,
    TrajectoryCollectionState,
    TrajectoryWithLastObs,
)
from eqxrl._typing import Carry, Scalar
from eqxrl.collectors import AbstractCollector
from eqxrl.envs import AbstractWrapper, is_discrete, separable
from eqxrl.envs._protocol import Transition, advance, final_observation
from eqxrl.envs._spaces import bounds
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.learners import AbstractLearner, LearnerState
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, RunningMoments
from eqxrl.verification._copies import edit, find


def is_recurrent(agent: AbstractActorCritic) -> bool:
    return bool(jax.tree.leaves(eqx.filter_eval_shape(lambda a: a.initial_carry(), agent)))


def replay(
    agent: AbstractActorCritic, rollout: TrajectoryWithLastObs
) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
    """The log-probabilities of a rollout's actions, and the values of its observations, computed anew."""
    t = rollout.trajectories
    fresh = agent.initial_carry()

    def reset(carry: Carry, done: Bool[Array, " envs"]) -> Carry:
        pick = lambda new, x: jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), new, x)  # noqa: E731
        return jax.tree.map(pick, fresh, carry)

    def step(carry: Carry, seen: Any) -> tuple[Carry, Any]:
        obs, action, done = seen
        distribution, value, carry = jax.vmap(agent)(obs, carry)
        return reset(carry, done), (distribution.log_prob(action), value)

    return jax.lax.scan(step, rollout.initial_carry, (t.obs, t.action, t.done))[1]


def moments_of(agent: AbstractActorCritic) -> Float[Array, " numbers"]:
    """All the running statistics in a policy, in one row."""
    leaves = jax.tree.leaves(find(agent, RunningMoments))
    return jnp.concatenate([jnp.zeros((0,), jnp.float32), *(x.ravel() for x in leaves)])


class Recorder:
    """Holds what a compiled program tells, in order."""

    def __init__(self) -> None:
        self.heard: list[dict[str, np.ndarray]] = []

    def __call__(self, told: Any) -> None:
        self.heard.append(jax.tree.map(np.asarray, told))

    def collect(self) -> list[dict[str, np.ndarray]]:
        """What was told since the last time."""
        jax.effects_barrier()
        heard, self.heard = self.heard, []
        return heard


class Spy(AbstractLoss):
    """A loss that tells of each minibatch which samples are in it, and how likely the policy holds their actions."""

    loss: AbstractLoss
    recorder: Recorder = eqx.field(static=True)

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, LossMetrics]:
        t = minibatch.trajectories
        told = dict(
            sample=t.reward,
            advantage=minibatch.advantages,
            target=minibatch.targets,
            value=t.value,
            log_prob=t.log_prob,
            moments=moments_of(agent),
        )
        if not is_recurrent(agent):
            distribution, _, _ = jax.vmap(lambda obs: agent(obs, agent.initial_carry()))(t.obs)
            told["new_log_prob"] = distribution.log_prob(t.action)
        jax.debug.callback(self.recorder, jax.lax.stop_gradient(told), ordered=True)
        return self.loss(agent, minibatch)

    def at_step(self, num_updates: Int[Array, ""]) -> "Spy":
        return Spy(self.loss.at_step(num_updates), self.recorder)


class Numbered(AbstractLearner):
    """A learner that is given its samples numbered from 0, in the place of their rewards, which a learner has no use for."""

    learner: AbstractLearner

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return self.learner.init(agent)

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, LearnerMetrics]:
        reward = rollout.trajectories.reward
        number = jnp.arange(reward.size, dtype=reward.dtype).reshape(reward.shape)
        return self.learner(agent, state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, number), key)


def spy_on(learner: AbstractLearner, recorder: Recorder) -> AbstractLearner | None:
    """The learner with a spy in its loss; `None` where it has no loss to be found."""
    losses = find(learner, AbstractLoss)
    if not losses:
        return None

    def change(module: eqx.Module, f: Any, value: Any) -> Any:
        return Spy(value, recorder) if any(value is loss for loss in losses) else value

    return Numbered(edit(learner, change))


@dataclasses.dataclass(frozen=True)
class NarrowSpace:
    """A box within a box: so small that no action which was drawn freely lies in it."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any


class Glass(AbstractWrapper):
    """An environment in which everything can be seen through the reward: it is the critic's value of what the action led to,
    before any reset, and NaN where the action lies outside the action space, which is narrowed to nearly a point."""

    env: Any
    agent: AbstractActorCritic

    @property
    def separable(self) -> bool:
        return separable(self.env)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def transition(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self._see(action, params, *advance(self.env, key, state, action, params))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        return self._see(action, params, *self.env.step(key, state, action, params))

    def action_space(self, params: Any = None) -> Any:
        space = self.env.action_space(params)
        if is_discrete(space):
            return space
        low, high = bounds(space)
        low, high = jnp.maximum(low, -1e3), jnp.minimum(high, 1e3)
        middle, width = (low + high) / 2, 1e-3 * (high - low)
        return NarrowSpace(middle - width, middle + width, tuple(space.shape), space.dtype)

    def _see(
        self, action: Any, params: Any, obs: Any, state: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Transition:
        value = self.agent(final_observation(self.env, info), self.agent.initial_carry())[1]
        space = self.action_space(params)
        if not is_discrete(space):
            value = jnp.where(jnp.all((action >= space.low) & (action <= space.high)), value, jnp.nan)
        return obs, state, value, terminated, truncated, info


def through_glass(
    collector: AbstractCollector, env: Any, env_params: Any, agent: AbstractActorCritic, key: Key[Array, ""]
) -> list[TrajectoryWithLastObs]:
    """Two rollouts, one after the other, in an environment made of glass."""
    glass = Glass(env, agent)
    state = collector.init(glass, env_params, agent, key)

    def one(state: TrajectoryCollectionState, _: None) -> tuple[TrajectoryCollectionState, TrajectoryWithLastObs]:
        return collector(glass, env_params, agent, state)

    rollouts = jax.lax.scan(one, state, length=2)[1]
    return [jax.tree.map(lambda x: x[i], rollouts) for i in range(2)]


class KeyTeller(AbstractEvaluator):
    """Plays nothing: its lengths are the bits of the key that it was given, its returns are `number`."""

    number: Scalar

    def __call__(self, env: Any, env_params: Any, agent: AbstractActorCritic, key: Key[Array, ""]) -> EvalMetrics:
        bits = jax.lax.bitcast_convert_type(jax.random.key_data(key).ravel(), jnp.int32)
        return EvalMetrics(episode_length=bits, cumulative_reward=jnp.broadcast_to(self.number, bits.shape))
