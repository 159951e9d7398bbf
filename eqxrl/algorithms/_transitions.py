import abc
import dataclasses
from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._structs import TrajectoryCollectionState, Transitions
from eqxrl._typing import KeyLike, TEnvState, as_key, typed, validate
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._bitwise import tied_to
from eqxrl.algorithms._parts import part
from eqxrl.buffers import BufferState
from eqxrl.collectors import AbstractCollector, TransitionCollector
from eqxrl.envs import default_stepper
from eqxrl.nn import AbstractPolicy, has_action_mask


@typed
class TransitionsState(eqx.Module, Generic[TEnvState]):
    """Everything that a continuation needs, and nothing else does."""

    learner: PyTree
    """Networks, target networks, optimisers' states and the like: the algorithm's own struct."""
    num_updates: Int[Array, ""]
    """Gradient updates so far."""
    rng: Key[Array, ""]
    data_collection_state: TrajectoryCollectionState[TEnvState]
    buffer_state: BufferState | None = None
    """What was collected before, of algorithms that keep it."""

    @property
    def num_iterations(self) -> Int[Array, "*seeds"]:
        return self.data_collection_state.global_step


class AbstractOnTransitions(AbstractAlgorithm[TransitionsState, Transitions]):
    """Learns from single transitions, each with the observation that it led to, whatever becomes of them."""

    @abc.abstractmethod
    def init_learner(self, key: Key[Array, ""]) -> PyTree:
        """Networks, target networks and optimisers before training."""

    @abc.abstractmethod
    def behaviour(self, learner: PyTree, num_iterations: Int[Array, ""]) -> AbstractPolicy:
        """The policy that collects after so many iterations. Without a key it acts without exploration."""

    # Everything below is final. The hyperparameters have `num_envs` and `num_steps`.

    @part(AbstractCollector)
    def collector(self):
        return TransitionCollector(self.hp.num_envs, self.hp.num_steps, default_stepper(self.env))

    def init_train_state(self, rng: KeyLike) -> TransitionsState:
        """The state before training; `rng` is a key or a seed. The networks' key and the environments' are separate."""
        if has_action_mask(self.env.observation_space(self.env_params)):
            raise ValueError(f"{type(self).__name__} doesn't look at action masks; an on-policy algorithm does, such as PPO")
        network_key, env_key, key = jax.random.split(as_key(rng), 3)
        learner, zero = self.init_learner(network_key), jnp.zeros((), jnp.int32)
        state = self.collector.init(self.env, self.env_params, self.behaviour(learner, zero), env_key)
        ts = TransitionsState(learner=learner, num_updates=zero, rng=key, data_collection_state=state)
        return tied_to(key, dataclasses.replace(ts, buffer_state=self.init_buffer(ts)))

    def init_buffer(self, ts: TransitionsState) -> BufferState | None:
        """Where transitions are kept, empty; `None` for an algorithm that learns from each of them once."""
        return None

    def get_batch(self, ts: TransitionsState, batch_idx: int | Int[Array, ""]) -> tuple[TransitionsState, Transitions]:
        """Transitions `[steps envs]` of the behaviour policy."""
        sizes = dict(steps=self.collector.num_steps, envs=self.collector.num_envs)
        state, batch = self.collector(self.env, self.env_params, self.policy(ts), ts.data_collection_state)
        validate(self.collector, state, batch="envs", kind=TrajectoryCollectionState, envs=sizes["envs"])
        validate(self.collector, batch, batch="steps envs", kind=Transitions, **sizes)
        return dataclasses.replace(ts, data_collection_state=state), batch

    def policy(self, ts: TransitionsState) -> AbstractPolicy:
        """The behaviour policy as it stands; without a key it doesn't explore."""
        return self.behaviour(ts.learner, ts.num_iterations)

    @property
    def iteration_size(self) -> int:
        """Env steps of one iteration, over all environments."""
        return self.collector.num_envs * self.collector.num_steps
