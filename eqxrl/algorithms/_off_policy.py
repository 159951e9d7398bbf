import abc
import dataclasses
import math
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._structs import TrainStepMetrics, TrajectoryCollectionState, Transition, Transitions
from eqxrl._typing import KeyLike, Scalar, TEnvState, as_key, one_more, typed, validate
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._bitwise import tied_to
from eqxrl.algorithms._finite import assert_finite
from eqxrl.buffers import AbstractBuffer, BufferState
from eqxrl.collectors import AbstractCollector
from eqxrl.nn import AbstractPolicy


@typed
class OffPolicyState(eqx.Module, Generic[TEnvState]):
    """Everything that a continuation needs, and nothing else does."""

    learner: PyTree
    """Networks, target networks and optimisers: the algorithm's own struct."""
    buffer_state: BufferState
    num_updates: Int[Array, ""]
    """Gradient updates so far."""
    rng: Key[Array, ""]
    data_collection_state: TrajectoryCollectionState[TEnvState]

    @property
    def num_iterations(self) -> Int[Array, "*seeds"]:
        return self.data_collection_state.global_step


class AbstractOffPolicy(AbstractAlgorithm[OffPolicyState, Transitions]):
    """Keeps what it has seen in a buffer and learns from samples of it: collect, add, then `updates_per_iteration` times sample and
    update; no update before `learning_starts` env steps."""

    collector: eqx.AbstractVar[AbstractCollector]
    buffer: eqx.AbstractVar[AbstractBuffer]

    @abc.abstractmethod
    def init_learner(self, key: Key[Array, ""]) -> PyTree:
        """Networks, target networks and optimisers before training."""

    @abc.abstractmethod
    def behaviour(self, learner: PyTree, num_iterations: Int[Array, ""]) -> AbstractPolicy:
        """The policy that collects after so many iterations. Without a key it acts without exploration."""

    @abc.abstractmethod
    def update(
        self, learner: PyTree, batch: Transition, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[PyTree, dict[str, Scalar]]:
        """One gradient step on a batch `[batch]`, after `num_updates` of them, and metrics by name."""

    # Everything below is final. The hyperparameters have `learning_starts` and `updates_per_iteration`.

    def init_train_state(self, rng: KeyLike) -> OffPolicyState:
        """The state before training; `rng` is a key or a seed. The networks' key and the environments' are separate."""
        network_key, env_key, key = jax.random.split(as_key(rng), 3)
        learner, zero = self.init_learner(network_key), jnp.zeros((), jnp.int32)
        policy = self.behaviour(learner, zero)
        state = self.collector.init(self.env, self.env_params, policy, env_key)

        def collect(policy, state):
            self._validate(*(result := self.collector(self.env, self.env_params, policy, state)))
            return result[1]

        batch = eqx.filter_eval_shape(collect, policy, state)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batch.transitions)
        ts = OffPolicyState(
            learner=learner, buffer_state=self.buffer.init(one), num_updates=zero, rng=key, data_collection_state=state
        )
        return tied_to(key, ts)

    def get_batch(self, ts: OffPolicyState, batch_idx: int | Int[Array, ""]) -> tuple[OffPolicyState, Transitions]:
        """Transitions `[steps envs]` of the behaviour policy."""
        state, batch = self.collector(self.env, self.env_params, self.policy(ts), ts.data_collection_state)
        self._validate(state, batch)
        return dataclasses.replace(ts, data_collection_state=state), batch

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: OffPolicyState, batch: Transitions
    ) -> tuple[OffPolicyState, TrainStepMetrics]:
        """Adds the transitions to the buffer, and learns from samples of it. Before `learning_starts` the metrics are 0."""
        rng, key = jax.random.split(ts.rng)
        buffer_state = self.buffer.add(ts.buffer_state, batch.transitions)
        num_updates = self.hp.updates_per_iteration
        arrays, static = eqx.partition(ts.learner, eqx.is_array)

        def one(carried, key):
            arrays, n = carried
            sample_key, update_key = jax.random.split(key)
            sample = self.buffer.sample(buffer_state, sample_key)
            learner, metrics = self.update(eqx.combine(arrays, static), sample, n, update_key)
            return (eqx.filter(learner, eqx.is_array), one_more(n)), metrics

        def learn(carried):
            carried, metrics = jax.lax.scan(one, carried, jax.random.split(key, num_updates))
            return carried, jax.tree.map(jnp.mean, metrics)

        def wait(carried):
            _, metrics = eqx.filter_eval_shape(learn, carried)
            return carried, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        ready = ts.num_iterations >= math.ceil(self.hp.learning_starts / self.iteration_size)
        (arrays, n), metrics = jax.lax.cond(ready, learn, wait, (arrays, ts.num_updates))
        learner = eqx.combine(arrays, static)
        if self.hp.debug:
            learner = assert_finite(learner, batch=batch, metrics=metrics, learner=learner)
        ts = dataclasses.replace(ts, learner=learner, buffer_state=buffer_state, num_updates=n, rng=rng)
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)

    def policy(self, ts: OffPolicyState) -> AbstractPolicy:
        """The behaviour policy as it stands; without a key it doesn't explore."""
        return self.behaviour(ts.learner, ts.num_iterations)

    @property
    def iteration_size(self) -> int:
        """Env steps of one iteration, over all environments."""
        return self.collector.num_envs * self.collector.num_steps

    def _validate(self, state: Any, batch: Any) -> None:
        sizes = dict(steps=self.collector.num_steps, envs=self.collector.num_envs)
        validate(self.collector, state, batch="envs", kind=TrajectoryCollectionState, envs=sizes["envs"])
        validate(self.collector, batch, batch="steps envs", kind=Transitions, **sizes)
