from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, check_positive, typed
from eqxrl.learners._base import AbstractLearner, LearnerState, cut, flatten, gradient_update, init_learner_state, take
from eqxrl.learners._permutation import swap_or_not
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, has_memory


@typed
class MinibatchLearner(AbstractLearner):
    """Goes over the rollout `num_epochs` times, each time in a new order and in `num_minibatches` equal parts, with one step of
    the optimiser on each: every sample is used exactly once per epoch. Where the policy has a hidden state, whole environments are
    put in order instead of samples, so that it is trained through time."""

    loss: AbstractLoss
    optimizer: optax.GradientTransformation
    """Any of optax's."""
    num_epochs: int = eqx.field(static=True)
    num_minibatches: int = eqx.field(static=True)
    permutation: Callable = eqx.field(static=True, default=swap_or_not)
    """`(key, n) -> [n]` indices; `jax.random.permutation` works too."""
    steps_back: int | None = eqx.field(static=True, default=None)
    """For a policy with a hidden state: through how many steps gradients go back at most; `None`: through the whole rollout. What is put
    in order are then chunks of so many steps, each of which starts from the hidden state that the rollout had there."""

    def __check_init__(self):
        check_positive(self, "num_epochs", "num_minibatches", *(["steps_back"] if self.steps_back is not None else []))

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return init_learner_state(self.optimizer, agent)

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        through_time = has_memory(agent)
        samples = cut(agent, rollout, self.steps_back) if through_time and self.steps_back is not None else flatten(rollout)
        num_samples = samples.advantages.shape[-1]
        if rest := num_samples % self.num_minibatches:
            steps, envs = rollout.advantages.shape
            what = f"num_envs * num_steps ({envs} * {steps} = {num_samples})"
            if through_time:
                whole = "environments" if self.steps_back is None else f"chunks of {self.steps_back} steps"
                what = f"the policy has a hidden state, so {whole} stay whole, and their number ({num_samples})"
            raise ValueError(f"{what} must be divisible by num_minibatches ({self.num_minibatches}); remainder {rest}")
        arrays, static = eqx.partition(agent, eqx.is_array)

        def minibatch(carry, indices):
            arrays, state = carry
            agent, state, metrics = gradient_update(
                self.loss, self.optimizer, eqx.combine(arrays, static), state, take(samples, indices)
            )
            return (eqx.filter(agent, eqx.is_array), state), metrics

        def epoch(carry, _):
            arrays, state, key = carry
            key, permutation_key = jax.random.split(key)
            indices = self.permutation(permutation_key, num_samples).reshape(self.num_minibatches, -1)
            (arrays, state), metrics = jax.lax.scan(minibatch, (arrays, state), indices)
            return (arrays, state, key), jax.tree.map(jnp.mean, metrics)

        (arrays, state, _), metrics = jax.lax.scan(epoch, (arrays, state, key), length=self.num_epochs)
        return eqx.combine(arrays, static), state, jax.tree.map(jnp.mean, metrics)
