import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._cond import cond_each
from eqxrl._structs import Replayed, TrainStepMetrics, Transitions
from eqxrl._threefry import split, unrolled
from eqxrl._typing import Scalar, Schedule, T, field, one_more, within
from eqxrl.algorithms._finite import assert_finite
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._parts import part
from eqxrl.algorithms._transitions import AbstractOnTransitions, TransitionsState
from eqxrl.buffers import AbstractBuffer, BufferState, Drawn, UniformBuffer, replayed
from eqxrl.nn import trainable


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


class AbstractOffPolicy(AbstractOnTransitions):
    """Keeps what it has seen in a buffer and learns from samples of it: collect, add, then `updates_per_iteration` times sample and
    update; no update before `learning_starts` env steps."""

    @abc.abstractmethod
    def update(
        self, learner: PyTree, batch: Replayed, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[PyTree, Float[Array, " batch"], dict[str, Scalar]]:
        """One gradient step on a batch `[batch]`, after `num_updates` of them; how far each value was off its target; metrics by name."""

    def replay(self, buffer_state: BufferState, drawn: Drawn) -> Any:
        """What `update` is given of the rows that were drawn: transitions over `n_step` steps, unless it is overridden, such as to give
        `sequences`."""
        return replayed(buffer_state, drawn, self.hp.gamma, self.hp.n_step)

    # Everything below is final. The hyperparameters are `AbstractOffPolicyHParams`.

    @part(AbstractBuffer)
    def buffer(self):
        return UniformBuffer(capacity=self.hp.buffer_size, batch_size=self.hp.batch_size)

    def init_buffer(self, ts: TransitionsState) -> BufferState:
        _, batch = eqx.filter_eval_shape(self.get_batch, ts, 0)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batch.transitions)
        return self.buffer.init(one)

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: TransitionsState, batch: Transitions
    ) -> tuple[TransitionsState, TrainStepMetrics]:
        """Adds the transitions to the buffer, and learns from samples of it. Before `learning_starts` the metrics are 0."""
        rng, key = split(ts.rng)
        buffer_state = self.buffer.add(ts.buffer_state, batch.transitions)
        num_updates = self.hp.updates_per_iteration
        arrays, static = eqx.partition(ts.learner, eqx.is_array)

        def one(carried, key):
            arrays, n, priorities = carried  # of the buffer, only what changes: its rows are many
            sample_key, update_key = jax.random.split(unrolled(key))
            buffered = dataclasses.replace(buffer_state, priorities=priorities)
            drawn = self.buffer.sample(buffered, sample_key)
            batch = self.replay(buffered, drawn)
            learner, errors, metrics = self.update(eqx.combine(arrays, static), batch, n, update_key)
            priorities = self.buffer.reweigh(buffered, drawn.index, errors).priorities
            return (eqx.filter(learner, eqx.is_array), one_more(n), priorities), metrics

        def learn(carried):
            carried, metrics = jax.lax.scan(one, carried, split(key, num_updates))
            return carried, jax.tree.map(jnp.mean, metrics)

        def wait(carried):
            _, metrics = eqx.filter_eval_shape(learn, carried)
            return carried, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        ready = ts.num_iterations >= math.ceil(self.hp.learning_starts / self.iteration_size)
        (arrays, n, priorities), metrics = cond_each(ready, learn, wait, (arrays, ts.num_updates, buffer_state.priorities))
        buffer_state = dataclasses.replace(buffer_state, priorities=priorities)
        learner = eqx.combine(arrays, static)
        if self.hp.debug:
            learner = assert_finite(learner, batch=batch, metrics=metrics, learner=learner)
        ts = dataclasses.replace(ts, learner=learner, buffer_state=buffer_state, num_updates=n, rng=rng)
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)


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
