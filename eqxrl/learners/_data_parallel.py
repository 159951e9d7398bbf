from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl._devices import in_turn, mean_over_devices, on_each
from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, check_positive, typed
from eqxrl.learners._adaptive_kl import AdaptiveKL
from eqxrl.learners._base import AbstractLearner, LearnerState
from eqxrl.learners._minibatch import MinibatchLearner
from eqxrl.nn import AbstractActorCritic


@typed
class DataParallelLearner(AbstractLearner):
    """Learns with `inner` on each of `num_devices` devices, from its share of the environments; gradients are means over them, so that
    the policy stays the same on all. A minibatch is then as many parts, one of each device's, and what a loss computes over a minibatch,
    such as the mean that advantages are standardised by, it computes over its part. Where there are fewer devices, one learns for all.

    `inner` makes its updates with `gradient_update`, or takes the means itself (`mean_over_devices`) before it changes anything by them.

    **Raises:** `ValueError` for a learner that ends with another policy on each device.
    """

    inner: AbstractLearner
    num_devices: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(self, "num_devices")

    @property
    def num_epochs(self) -> int | None:
        return getattr(self.inner, "num_epochs", None)

    @property
    def num_minibatches(self) -> int | None:
        return getattr(self.inner, "num_minibatches", None)

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return self.inner.init(agent)

    def __call__(
        self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]
    ) -> tuple[AbstractActorCritic, LearnerState, dict[str, Scalar]]:
        if rest := (envs := rollout.advantages.shape[-1]) % self.num_devices:
            raise ValueError(f"{envs} environments must be divisible by num_devices ({self.num_devices}); remainder {rest}")
        arrays, static = eqx.partition(agent, eqx.is_array)
        of_envs = rollout.initial_carry, rollout.last_value
        of_steps = rollout.trajectories, rollout.advantages, rollout.targets

        def share(arrays: Any, state: Any, of_steps: Any, of_envs: Any, key: Any) -> Any:
            agent, state, metrics = self.inner(eqx.combine(arrays, static), state, AdvantageMinibatch(*of_steps, *of_envs), key)
            return eqx.filter(agent, eqx.is_array), state, mean_over_devices(metrics)

        axes = dict(in_axes=(None, None, 1, 0, None), out_axes=(None, None, None))
        if not isinstance(self.inner, MinibatchLearner | AdaptiveKL):
            self._check(share, axes, arrays, state, of_steps, of_envs, key)
        arrays, state, metrics = on_each(share, self.num_devices, **axes)(arrays, state, of_steps, of_envs, key)
        return eqx.combine(arrays, static), state, metrics

    def _check(self, share: Any, axes: Any, *args: Any) -> None:
        """That all devices end with the same, which JAX sees in a program for one device only."""
        try:
            jax.eval_shape(in_turn(share, self.num_devices, **axes), *args)
        except ValueError as e:
            if "out_axes is None" not in str(e):
                raise
            name = type(self.inner).__name__
            raise ValueError(
                f"{name} ends with another policy or learner's state on each of {self.num_devices} devices; make its updates with "
                "gradient_update, or take mean_over_devices of what it changes parameters by"
            ) from e
