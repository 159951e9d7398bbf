from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, check_positive, typed
from eqxrl.learners._base import AbstractLearner, LearnerState, flatten, gradient_update, init_learner_state
from eqxrl.learners._permutation import swap_or_not
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic


@typed
class MinibatchLearner(AbstractLearner):
    """Goes over the rollout `num_epochs` times, each time in a new order and in `num_minibatches` equal parts, with one step of
    the optimiser on each: every sample is used exactly once per epoch."""

    loss: AbstractLoss
    optimizer: optax.GradientTransformation
    """Any of optax's."""
    num_epochs: int = eqx.field(static=True)
    num_minibatches: int = eqx.field(static=True)
    permutation: Callable = eqx.field(static=True, default=swap_or_not)
    """`(key, n) -> [n]` indices; `jax.random.permutation` works too."""

    def __check_init__(self):
        check_positive(self, "num_epochs", "num_minibatches")

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return init_learner_state(self.optimizer, agent)

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        num_samples = rollout.advantages.size
        if num_samples % self.num_minibatches:
            steps, envs = rollout.advantages.shape
            raise ValueError(
                f"num_envs * num_steps ({envs} * {steps} = {num_samples}) must be divisible by num_minibatches "
                f"({self.num_minibatches}); remainder {num_samples % self.num_minibatches}"
            )
        samples = flatten(rollout)
        arrays, static = eqx.partition(agent, eqx.is_array)

        def minibatch(carry, indices):
            arrays, state = carry
            one = jax.tree.map(lambda x: jnp.take(x, indices, axis=0, unique_indices=True, mode="clip"), samples)
            agent, state, metrics = gradient_update(self.loss, self.optimizer, eqx.combine(arrays, static), state, one)
            return (eqx.filter(agent, eqx.is_array), state), metrics

        def epoch(carry, _):
            arrays, state, key = carry
            key, permutation_key = jax.random.split(key)
            indices = self.permutation(permutation_key, num_samples).reshape(self.num_minibatches, -1)
            (arrays, state), metrics = jax.lax.scan(minibatch, (arrays, state), indices)
            return (arrays, state, key), jax.tree.map(jnp.mean, metrics)

        (arrays, state, _), metrics = jax.lax.scan(epoch, (arrays, state, key), length=self.num_epochs)
        return eqx.combine(arrays, static), state, jax.tree.map(jnp.mean, metrics)
