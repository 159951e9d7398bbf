import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree

from eqxrl._devices import mean_over_devices
from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, describe, one_more, strong, typed
from eqxrl.learners._clipped import grad_norm
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, episode_starts, trainable
from eqxrl.nn._memory import forgetting


@typed
class LearnerState(eqx.Module):
    """Where the learner stands."""

    opt_state: PyTree
    """optax's."""
    num_updates: Int[Array, ""]
    """Gradient updates so far: what schedules are functions of. It stops at 2³¹ - 1, where they stay as they are."""


class AbstractLearner(eqx.Module):
    """Improves a policy. One full-batch gradient step per rollout, in full:

        class OneStep(AbstractLearner):
            loss: AbstractLoss
            optimizer: optax.GradientTransformation

            def init(self, agent):
                return init_learner_state(self.optimizer, agent)

            def __call__(self, agent, state, rollout, key):
                return gradient_update(self.loss, self.optimizer, agent, state, flatten(rollout))

    Several devices that share an agent (`DataParallelLearner`) each call it with their own environments; `gradient_update` takes the mean
    of their gradients.
    """

    @abc.abstractmethod
    def init(self, agent: AbstractActorCritic) -> LearnerState:
        """The state before the first update."""

    @abc.abstractmethod
    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        """**Arguments:** the policy that collected the rollout; the learner's state; the rollout `[steps envs]`; a key.

        **Returns:** the improved policy, the next state, and metrics by name, means over all updates made.
        """


def init_learner_state(optimizer: optax.GradientTransformation, agent: AbstractActorCritic) -> LearnerState:
    """The state of a learner with this optimiser, before its first update."""
    opt_state = strong(optimizer.init(eqx.filter(agent, trainable(agent))))
    return LearnerState(opt_state=opt_state, num_updates=jnp.zeros((), jnp.int32))


def flatten(rollout: AdvantageMinibatch) -> AdvantageMinibatch:
    """`[steps envs]` to `[batch]`, step by step; the rollout as it is where the policy has a hidden state. Both without `last_value`."""
    rollout = dataclasses.replace(rollout, last_value=())
    if jax.tree.leaves(rollout.initial_carry):
        return rollout
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)


def cut(agent: AbstractActorCritic, rollout: AdvantageMinibatch, num_steps: int) -> AdvantageMinibatch:
    """A rollout `[steps envs]` as shorter ones, side by side: `[num_steps chunks*envs]`, each with the hidden state that the policy which
    collected it, `agent`, had at its beginning, and the value of what follows it, if that is known of the rollout. Gradients then go back
    through `num_steps` steps at most.

    **Raises:** `ValueError` where the rollout can't be cut into equal chunks.
    """
    steps, envs = rollout.advantages.shape
    if steps % num_steps:
        raise ValueError(f"a rollout of {steps} steps can't be cut into chunks of {num_steps}; remainder {steps % num_steps}")

    def chunks(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, num_steps, *x.shape[1:]), tree)

    def follow(carry: PyTree, chunk: Any) -> tuple[PyTree, PyTree]:
        obs, starts = chunk
        carry = jax.vmap(forgetting, in_axes=(0, None, 0))(starts[0], agent.initial_carry(), carry)
        return jax.vmap(agent.sequence, in_axes=(1, 1, 0))(obs, starts, carry)[2], carry

    t = rollout.trajectories
    _, carries = jax.lax.scan(follow, rollout.initial_carry, chunks((t.obs, episode_starts(t))))
    side_by_side = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(num_steps, -1, *x.shape[3:]), chunks(_steps(rollout)))
    following = jax.tree.map(lambda x: jnp.concatenate([*t.value[num_steps::num_steps], x]), rollout.last_value)
    carries = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carries)
    return dataclasses.replace(side_by_side, initial_carry=carries, last_value=following)


def _steps(rollout: AdvantageMinibatch) -> AdvantageMinibatch:
    """What a rollout has of each step."""
    return dataclasses.replace(rollout, initial_carry=(), last_value=())


def take(rollout: AdvantageMinibatch, indices: Int[Array | np.ndarray, " minibatch"]) -> AdvantageMinibatch:
    """Some samples of a flat rollout, or some environments of one `[steps envs]`."""

    def leaves(tree: PyTree, axis: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=axis, unique_indices=True, mode="clip"), tree)

    initial_carry, last_value = leaves((rollout.initial_carry, rollout.last_value), 0)
    steps = leaves(_steps(rollout), rollout.advantages.ndim - 1)
    return dataclasses.replace(steps, initial_carry=initial_carry, last_value=last_value)


def gradient_update(
    loss: AbstractLoss, optimizer: optax.GradientTransformation, agent: AbstractActorCritic, state: LearnerState,
    minibatch: AdvantageMinibatch,
) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
    """One step of the optimiser on one minibatch `[batch]`. The metrics are the loss's, and `grad_norm`: the gradient's global norm,
    before any clipping.

    **Raises:** `TypeError` for a loss that doesn't return a scalar and a dict of scalars.
    """
    loss = loss.at_step(state.num_updates)
    params, static = eqx.partition(agent, trainable(agent))

    def objective(params: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
        result: Any = loss(eqx.combine(params, static), minibatch)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            got = describe(result) if isinstance(result, tuple) else type(result).__name__
            raise TypeError(f"{type(loss).__name__} returned {got}; return (loss, metrics): a scalar, and a dict of scalars by name")
        for name, x in {"the loss": result[0], **result[1]}.items():
            if jnp.shape(x) != () or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
                raise TypeError(f"{type(loss).__name__} returned {describe(x)} for {name}; return a float scalar, such as a mean")
        return result

    grads, metrics = mean_over_devices(jax.grad(objective, has_aux=True)(params))
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    updated: Any = optax.apply_updates(params, updates)
    metrics = metrics | {"grad_norm": grad_norm(grads)}
    return eqx.combine(updated, static), LearnerState(opt_state=opt_state, num_updates=one_more(state.num_updates)), metrics
