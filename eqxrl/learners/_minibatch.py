from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, as_scalar, check_positive, field, optional, typed, within
from eqxrl.learners._base import AbstractLearner, LearnerState, cut, flatten, gradient_update, init_learner_state, take
from eqxrl.learners._permutation import swap_or_not
from eqxrl.learners._target_kl import until_kl
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, has_memory


@typed
class MinibatchLearner(AbstractLearner):
    """Goes over the rollout `num_epochs` times, each time in a new order and in `num_minibatches` equal parts, with one step of
    the optimiser on each: every sample is used exactly once per epoch. A single part stays in the rollout's order, since the gradient of
    all samples doesn't depend on one. Where the policy has a hidden state, whole environments are
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
    sequences: bool = field(default=False)
    """Keep environments whole, `[steps envs]`, for a policy without a hidden state too, with the value of what follows the last step
    (`last_value`), for a loss that looks at what comes later; or chunks of them, with `steps_back`."""
    target_kl: Scalar | None = field(default=None, converter=optional(as_scalar), metadata=within(0.0, open_low=True))
    """Once the loss's metric `approx_kl` of a minibatch is above 1.5 times this, that update and all later ones of the rollout are left
    out, as in Stable-Baselines3. `num_updates` and the schedules of optax's optimisers count them all the same, so that schedules end with
    the run; the rest of the optimiser's state stays as it is. Metrics are means over the updates that were made, and `updates_made` is
    their share."""

    def __check_init__(self):
        check_positive(self, "num_epochs", "num_minibatches", *(["steps_back"] if self.steps_back is not None else []))

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return init_learner_state(self.optimizer, agent)

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        samples = self._samples(agent, rollout)
        num_samples = samples.advantages.shape[-1]
        arrays, static = eqx.partition(agent, eqx.is_array)

        def update(learned, indices):
            arrays, state = learned
            agent, state, metrics = gradient_update(
                self.loss, self.optimizer, eqx.combine(arrays, static), state, samples if indices is None else take(samples, indices)
            )
            return (eqx.filter(agent, eqx.is_array), state), metrics

        minibatch, total, begin = update, jnp.mean, (arrays, state)
        if self.target_kl is not None:
            minibatch, total, begin = until_kl(self.target_kl, update), jnp.sum, ((arrays, state), jnp.zeros((), bool))

        names: list[str] = []

        def with_metrics_in_one(learned, indices):  # as in `iterations`
            learned, metrics = minibatch(learned, indices)
            names[:] = metrics
            return learned, jnp.stack(list(metrics.values()))

        def epoch(carry, _):
            learned, key = carry
            if self.num_minibatches == 1:  # of all samples, whose order doesn't matter
                learned, metrics = with_metrics_in_one(learned, None)
                return (learned, key), metrics
            key, permutation_key = jax.random.split(key)
            indices = self.permutation(permutation_key, num_samples).reshape(self.num_minibatches, -1)
            learned, metrics = jax.lax.scan(with_metrics_in_one, learned, indices)
            return (learned, key), total(metrics, axis=0)

        learned: Any
        (learned, _), metrics = jax.lax.scan(epoch, (begin, key), length=self.num_epochs)
        metrics: Any = dict(zip(names, total(metrics, axis=0), strict=True))
        if self.target_kl is not None:
            learned, made = learned[0], metrics.pop("updates_made")
            metrics = {name: x / jnp.maximum(made, 1) for name, x in metrics.items()}
            metrics |= {"updates_made": made / (self.num_epochs * self.num_minibatches)}
        arrays, state = learned
        return eqx.combine(arrays, static), state, metrics

    def _samples(self, agent: AbstractActorCritic, rollout: AdvantageMinibatch) -> AdvantageMinibatch:
        """What is put in order, along the last axis: samples `[batch]`, or environments or chunks of them, `[steps envs]`."""
        through_time = has_memory(agent)
        whole = through_time or self.sequences
        samples = rollout if self.sequences else flatten(rollout)
        if whole and self.steps_back is not None:
            samples = cut(agent, samples, self.steps_back)
        num_samples = samples.advantages.shape[-1]
        if rest := num_samples % self.num_minibatches:
            steps, envs = rollout.advantages.shape
            what = f"num_envs * num_steps ({envs} * {steps} = {num_samples})"
            if whole:
                kept = "environments" if self.steps_back is None else f"chunks of {self.steps_back} steps"
                why = "the policy has a hidden state" if through_time else "the learner was given sequences=True"
                what = f"{why}, so {kept} stay whole, and their number ({num_samples})"
            raise ValueError(f"{what} must be divisible by num_minibatches ({self.num_minibatches}); remainder {rest}")
        return samples
