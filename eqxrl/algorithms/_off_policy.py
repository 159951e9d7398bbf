import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import Replayed, TrainStepMetrics, TrajectoryCollectionState, Transitions
from eqxrl._typing import KeyLike, Scalar, Schedule, T, TEnvState, as_key, field, one_more, typed, validate, within
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._bitwise import tied_to
from eqxrl.algorithms._finite import assert_finite
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._parts import part
from eqxrl.buffers import AbstractBuffer, BufferState, UniformBuffer, replayed
from eqxrl.collectors import AbstractCollector, TransitionCollector
from eqxrl.nn import AbstractPolicy, Ensemble, RandomAtFirst, check_no_batch_renorm, has_action_mask, trainable


class AbstractOffPolicyHParams(AbstractHParams):
    """What off-policy algorithms have in common."""

    learning_rate: eqx.AbstractVar[Schedule]  # pyright: ignore[reportGeneralTypeIssues]

    num_envs: int = field(default=8)
    """Environments that are stepped at once."""
    num_steps: int = field(default=4)
    """Steps of each environment in an iteration."""
    updates_per_iteration: int = field(default=4)
    """Gradient updates after these steps."""
    buffer_size: int = field(default=50_000)
    """Newest transitions that are kept."""
    batch_size: int = field(default=64)
    """Transitions in a gradient update."""
    learning_starts: int = field(default=1_000, metadata={"at_least": 0})
    """Env steps with random actions, before the first update."""
    n_step: int = field(default=1)
    """Steps whose rewards are summed before a value is trusted."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`, at most."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps)) * self.updates_per_iteration


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

    @abc.abstractmethod
    def init_learner(self, key: Key[Array, ""]) -> PyTree:
        """Networks, target networks and optimisers before training."""

    @abc.abstractmethod
    def behaviour(self, learner: PyTree, num_iterations: Int[Array, ""]) -> AbstractPolicy:
        """The policy that collects after so many iterations. Without a key it acts without exploration."""

    @abc.abstractmethod
    def update(
        self, learner: PyTree, batch: Replayed, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[PyTree, Float[Array, " batch"], dict[str, Scalar]]:
        """One gradient step on a batch `[batch]`, after `num_updates` of them; how far each value was off its target; metrics by name."""

    # Everything below is final. The hyperparameters are `AbstractOffPolicyHParams`.

    @part(AbstractCollector)
    def collector(self):
        return TransitionCollector(num_envs=self.hp.num_envs, num_steps=self.hp.num_steps)

    @part(AbstractBuffer)
    def buffer(self):
        return UniformBuffer(capacity=self.hp.buffer_size, batch_size=self.hp.batch_size)

    def init_train_state(self, rng: KeyLike) -> OffPolicyState:
        """The state before training; `rng` is a key or a seed. The networks' key and the environments' are separate."""
        if has_action_mask(self.env.observation_space(self.env_params)):
            raise ValueError(f"{type(self).__name__} doesn't look at action masks; an on-policy algorithm does, such as PPO")
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
            arrays, n, priorities = carried  # of the buffer, only what changes: its rows are many
            sample_key, update_key = jax.random.split(key)
            buffered = dataclasses.replace(buffer_state, priorities=priorities)
            drawn = self.buffer.sample(buffered, sample_key)
            batch = replayed(buffered, drawn, self.hp.gamma, self.hp.n_step)
            learner, errors, metrics = self.update(eqx.combine(arrays, static), batch, n, update_key)
            priorities = self.buffer.reweigh(buffered, drawn.index, errors).priorities
            return (eqx.filter(learner, eqx.is_array), one_more(n), priorities), metrics

        def learn(carried):
            carried, metrics = jax.lax.scan(one, carried, jax.random.split(key, num_updates))
            return carried, jax.tree.map(jnp.mean, metrics)

        def wait(carried):
            _, metrics = eqx.filter_eval_shape(learn, carried)
            return carried, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        ready = ts.num_iterations >= math.ceil(self.hp.learning_starts / self.iteration_size)
        (arrays, n, priorities), metrics = jax.lax.cond(ready, learn, wait, (arrays, ts.num_updates, buffer_state.priorities))
        buffer_state = dataclasses.replace(buffer_state, priorities=priorities)
        learner = eqx.combine(arrays, static)
        if self.hp.debug:
            learner = assert_finite(learner, batch=batch, metrics=metrics, learner=learner)
        ts = dataclasses.replace(ts, learner=learner, buffer_state=buffer_state, num_updates=n, rng=rng)
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)

    def policy(self, ts: OffPolicyState) -> AbstractPolicy:
        """The behaviour policy as it stands; without a key it doesn't explore."""
        return self.behaviour(ts.learner, ts.num_iterations)

    def ensemble(self, network: Any, size: int, key: Key[Array, ""], batch_renorm: bool = False) -> Ensemble:
        """Several of what the part makes, where `batch_renorm` says whether a `BatchRenorm` may be in it.

        **Raises:** `TypeError` where it is a network itself, of which all would be the same; `ValueError` for a `BatchRenorm`.
        """
        if isinstance(network, eqx.Module):
            how = "pass what makes one: (observation_space, action_space, *, key)"
            raise TypeError(f"got a {type(network).__name__} where several are made; {how}")
        made = Ensemble(lambda key: network(*self.spaces, key=key), size, key=key)
        if not batch_renorm:
            check_no_batch_renorm(made, type(self).__name__)
        return made

    def random_at_first(self, policy: AbstractPolicy, num_iterations: Int[Array, ""]) -> RandomAtFirst:
        """The policy, which draws actions from the whole action space before `learning_starts` env steps."""
        env_steps = num_iterations.astype(jnp.float32) * self.iteration_size
        return RandomAtFirst(policy, env_steps < self.hp.learning_starts, self.spaces[1])

    @property
    def iteration_size(self) -> int:
        """Env steps of one iteration, over all environments."""
        return self.collector.num_envs * self.collector.num_steps

    def _validate(self, state: Any, batch: Any) -> None:
        sizes = dict(steps=self.collector.num_steps, envs=self.collector.num_envs)
        validate(self.collector, state, batch="envs", kind=TrajectoryCollectionState, envs=sizes["envs"])
        validate(self.collector, batch, batch="steps envs", kind=Transitions, **sizes)


def bootstrapped(batch: Replayed, following: Float[Array, "batch targets"]) -> Float[Array, "batch targets"]:
    """Rewards, and discounted values of what follows, which is nothing where the MDP ended."""
    following = jnp.where(batch.terminated[:, None], 0.0, following)
    return batch.reward[:, None] + batch.discount[:, None] * following


def descended(
    loss: Callable[[T], tuple[Scalar, Any]], optimizer: optax.GradientTransformation, networks: T, opt_state: PyTree
) -> tuple[T, PyTree, Any, PyTree]:
    """The networks and the optimiser's state after one step down the gradient of `loss(networks) -> (loss, else)`; what else it returned,
    and the gradients."""
    params, static = eqx.partition(networks, trainable(networks))
    grads, aux = jax.grad(lambda params: loss(eqx.combine(params, static)), has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    after: Any = eqx.combine(optax.apply_updates(params, updates), static)
    return after, opt_state, aux, grads


def copied(network: T) -> T:
    """With buffers of its own: one that is in a state twice can't be donated."""
    return jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, network)
