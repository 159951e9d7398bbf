"""What a learner is. One full-batch gradient step per rollout, in full:

    class OneStep(AbstractLearner):
        loss: AbstractLoss
        optimizer: optax.GradientTransformation

        def init(self, agent):
            return init_learner_state(self.optimizer, agent)

        def __call__(self, agent, state, rollout, key):
            return gradient_update(self.loss, self.optimizer, agent, state, flatten(rollout))
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._structs import AdvantageMinibatch, LearnerMetrics
from eqxrl._typing import strong, typed
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, trainable


@typed
class LearnerState(eqx.Module):
    """Where the learner stands."""

    opt_state: PyTree
    """optax's."""
    num_updates: Int[Array, ""]
    """Gradient updates so far: what schedules are functions of."""


class AbstractLearner(eqx.Module):
    """Improves a policy."""

    @abc.abstractmethod
    def init(self, agent: AbstractActorCritic) -> LearnerState:
        """The state before the first update."""

    @abc.abstractmethod
    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, LearnerMetrics]:
        """**Arguments:** the policy that collected the rollout; the learner's state; the rollout `[steps envs]`; a key.

        **Returns:** the improved policy, the next state, and means over all updates made.
        """


def init_learner_state(optimizer: optax.GradientTransformation, agent: AbstractActorCritic) -> LearnerState:
    opt_state = strong(optimizer.init(eqx.filter(agent, trainable(agent))))
    return LearnerState(opt_state=opt_state, num_updates=jnp.zeros((), jnp.int32))


def flatten(rollout: AdvantageMinibatch) -> AdvantageMinibatch:
    """`[steps envs]` to `[batch]`, step by step."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)


def gradient_update(
    loss: AbstractLoss,
    optimizer: optax.GradientTransformation,
    agent: AbstractActorCritic,
    state: LearnerState,
    minibatch: AdvantageMinibatch,
) -> tuple[AbstractActorCritic, LearnerState, LearnerMetrics]:
    """One step of the optimiser on one minibatch `[batch]`."""
    loss = loss.at_step(state.num_updates)
    params, static = eqx.partition(agent, trainable(agent))
    grads, loss_metrics = jax.grad(lambda p: loss(eqx.combine(p, static), minibatch), has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    updated: Any = optax.apply_updates(params, updates)
    agent = eqx.combine(updated, static)
    metrics = LearnerMetrics(loss=loss_metrics, grad_norm=optax.tree.norm(grads))
    return agent, LearnerState(opt_state=opt_state, num_updates=state.num_updates + 1), metrics
