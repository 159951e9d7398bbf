"""Data that crosses a seam: what one part hands to the next. No behaviour lives here.

Leading axes are `[envs]` for one step, `[steps envs]` for a rollout and `[batch]` for a minibatch. Observations and actions
may be any pytree of arrays; their leaves start with the same leading axes as everything else in the struct.
"""

from typing import Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from eqxrl._typing import (
    Action,
    Carry,
    Observation,
    Scalar,
    TEnvState,
    check_leading,
    field,
    leading,
    typed,
)


@typed
class Trajectory(eqx.Module):
    """What happened at each step, seen by the policy that acted."""

    obs: Observation = field(metadata=leading("*batch"))
    """What the policy saw, in the environment's own units."""
    action: Action = field(metadata=leading("*batch"))
    """What the policy drew, before it was clipped to the action space; `log_prob` belongs to this one."""
    log_prob: Float[Array, "*batch"]
    reward: Float[Array, "*batch"]
    value: Float[Array, "*batch"]
    """The critic's value of `obs`."""
    terminated: Bool[Array, "*batch"]
    """The MDP ended at this step: nothing comes after."""
    truncated: Bool[Array, "*batch"]
    """The episode was cut off at this step, by a time limit say; both flags may be true."""
    final_value: Float[Array, "*batch"]
    """The critic's value of the observation that this step led to, where the step was truncated; elsewhere 0."""

    @property
    def done(self) -> Bool[Array, "*batch"]:
        """The episode ended at this step, either way."""
        return self.terminated | self.truncated

    def __check_init__(self):
        check_leading(self, batch=self.reward.shape)


@typed
class EpisodeStats(eqx.Module):
    """Sums over the episodes that ended during a rollout; constant memory however many there were."""

    count: Scalar
    total_return: Scalar
    """Undiscounted, in the environment's own reward units, whatever the training rewards are scaled by."""
    total_length: Scalar
    """In steps of one environment."""


def no_episodes() -> EpisodeStats:
    zero = jnp.zeros((), jnp.float32)
    return EpisodeStats(count=zero, total_return=zero, total_length=zero)


@typed
class TrajectoryWithLastObs(eqx.Module):
    """A rollout, and where it stopped."""

    trajectories: Trajectory
    """`[steps envs]`"""
    last_done: Bool[Array, " envs"]
    """The last step ended an episode, so `last_obs` opens a new one."""
    last_obs: Observation = field(metadata=leading("envs"))
    """The observation after the last step (after a reset, where there was one)."""
    initial_carry: Carry = field(default=(), metadata=leading("envs"))
    """The policy's hidden state before the first step; `()` for a feed-forward policy."""
    episodes: EpisodeStats = field(default_factory=no_episodes)

    def __check_init__(self):
        check_leading(self, envs=self.last_done.shape)
        if self.trajectories.reward.shape[1:] != self.last_done.shape:
            raise TypeError(
                f"trajectories are {list(self.trajectories.reward.shape)} = [steps envs], but last_done is "
                f"{list(self.last_done.shape)} = [envs]"
            )


@typed
class AdvantageMinibatch(eqx.Module):
    """Steps with their advantages: a whole rollout `[steps envs]` on its way to the learner, `[batch]` on its way to a loss."""

    trajectories: Trajectory
    advantages: Float[Array, "*batch"]
    """In reward units; not standardised."""
    targets: Float[Array, "*batch"]
    """What the critic should have said."""

    def __check_init__(self):
        if self.trajectories.reward.shape != self.advantages.shape:
            raise TypeError(
                f"advantages are {list(self.advantages.shape)}, trajectories {list(self.trajectories.reward.shape)}; "
                "both need the same leading axes"
            )


@typed
class TrajectoryCollectionState(eqx.Module, Generic[TEnvState]):
    """Where the collector stands: everything that it needs to go on, and nothing else does."""

    last_obs: Observation = field(metadata=leading("envs"))
    env_state: TEnvState = field(metadata=leading("envs"))
    rms_state: PyTree
    """Running statistics of the reward scaling; `()` without one. The observations' statistics travel with the policy."""
    last_done: Bool[Array, " envs"]
    global_step: Int[Array, ""]
    """Rollouts collected so far. Env steps are counted on the host, as `global_step * num_steps * num_envs`: on the device
    their number would overflow 32 bits in a minute on a GPU."""
    rng: Key[Array, ""]
    episode_return: Float[Array, " envs"]
    """Of the episode under way."""
    episode_length: Int[Array, " envs"]
    reset_state: PyTree = ()
    """What the reset strategy keeps, such as a pool of first states."""
    carry: Carry = field(default=(), metadata=leading("envs"))
    """The policy's hidden state."""

    def __check_init__(self):
        check_leading(self, envs=self.last_done.shape)


@typed
class LossMetrics(eqx.Module):
    """What a loss has to say about one minibatch, besides its value. A loss without one of these leaves it at 0."""

    policy_loss: Scalar = field(default=0.0)
    value_loss: Scalar = field(default=0.0)
    entropy: Scalar = field(default=0.0)
    """Nats."""
    approx_kl: Scalar = field(default=0.0)
    """Nats; E[(r - 1) - log r], http://joschu.net/blog/kl-approx.html."""
    clip_fraction: Scalar = field(default=0.0)
    """The share of samples whose ratio was outside the clip range."""
    extra: dict[str, Scalar] = field(default_factory=dict)
    """Anything else that a custom loss reports, by name."""


@typed
class LearnerMetrics(eqx.Module):
    """Means over all minibatches of one call of a learner."""

    loss: LossMetrics
    grad_norm: Scalar
    """Global norm of the gradient, before any clipping."""


@typed
class TrainStepMetrics(eqx.Module):
    """One training iteration, at no cost of evaluation and in constant memory."""

    policy_loss: Float[Array, "*seeds"]
    value_loss: Float[Array, "*seeds"]
    entropy: Float[Array, "*seeds"]
    approx_kl: Float[Array, "*seeds"]
    clip_fraction: Float[Array, "*seeds"]
    grad_norm: Float[Array, "*seeds"]
    explained_variance: Float[Array, "*seeds"]
    """1 - Var(targets - values) / Var(targets), of the values that the rollout was collected with."""
    num_episodes: Float[Array, "*seeds"]
    """How many episodes ended during the rollout."""
    episode_return: Float[Array, "*seeds"]
    """Their mean undiscounted return; 0 where there were none."""
    episode_length: Float[Array, "*seeds"]
    """Their mean length in steps; 0 where there were none."""
    extra: dict[str, Float[Array, "*seeds"]] = field(default_factory=dict)


@typed
class EvalMetrics(eqx.Module):
    """Whole episodes of the policy as it stands: `[episodes]` for one evaluation, `[evals episodes]` for a run, and
    `[seeds evals episodes]` for a vmapped one."""

    episode_length: Int[Array, "*evals episodes"]
    """In steps."""
    cumulative_reward: Float[Array, "*evals episodes"]
    """Undiscounted return, in the environment's own reward units."""
