import dataclasses
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl._typing import Scalar, check_positive, field, typed, within
from eqxrl.advantages._base import AbstractAdvantage, next_values


@typed
class NStep(AbstractAdvantage):
    r"""Returns of $n$ steps, $\sum_{k<n} \gamma^k r_{t+k} + \gamma^n V(s_{t+n})$, as targets; advantages are what they exceed the value by.
    They end earlier where the MDP does, and with the value of the final observation where an episode was cut off, or of the last one
    where the rollout ends.

    Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 4; Sutton and Barto 2018, eq. 7.1.
    """

    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    num_steps: int = eqx.field(static=True, default=5)
    """$n$; more than the rollout has steps are as many as it has."""

    def __check_init__(self):
        check_positive(self, "num_steps")

    def __call__(
        self, rollout: TrajectoryWithLastObs, last_value: Float[Array, " envs"]
    ) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
        t = rollout.trajectories

        def one_step_more(_: Any, returns: Float[Array, "steps envs"]) -> Float[Array, "steps envs"]:
            return t.reward + self.gamma * next_values(dataclasses.replace(t, value=returns), last_value)

        targets = jax.lax.fori_loop(0, min(self.num_steps, len(t.reward)), one_step_more, t.value)
        return targets - t.value, targets
