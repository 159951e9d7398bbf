import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxrl._structs import Trajectory, TrajectoryWithLastObs


class AbstractAdvantage(eqx.Module):
    """Estimates advantages and the critic's targets: a function of one rollout, which knows nothing of environments, losses or
    policies. One-step temporal differences, in full:

        class TD(AbstractAdvantage):
            gamma: Float[Array, ""] = field(default=0.99)

            def __call__(self, rollout, last_value):
                t = rollout.trajectories
                targets = t.reward + self.gamma * next_values(t, last_value)
                return targets - t.value, targets
    """

    @abc.abstractmethod
    def __call__(
        self, rollout: TrajectoryWithLastObs, last_value: Float[Array, " envs"]
    ) -> tuple[Float[Array, "steps envs"], Float[Array, "steps envs"]]:
        """**Arguments:**

        - `rollout`: rewards, values and end flags, each `[steps envs]`.
        - `last_value`: `[envs]`, value of the observation after the last step.

        **Returns:** advantages (reward units, not standardised) and targets for the critic, each `[steps envs]`.
        """


def next_values(trajectory: Trajectory, last_value: Float[Array, " envs"]) -> Float[Array, "steps envs"]:
    """The value of what each step led to: 0 where the MDP ended, that of the final observation where the episode was cut off,
    and otherwise that of the next step's observation. `trajectory` is `[steps envs]`."""
    following = jnp.concatenate([trajectory.value[1:], last_value[None]])
    following = jnp.where(trajectory.truncated, trajectory.final_value, following)
    return jnp.where(trajectory.terminated, 0.0, following)
