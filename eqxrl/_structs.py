"""Data that crosses a seam: what one part hands to the next. No behaviour lives here.

Leading axes are `[envs]` for one step, `[steps envs]` for a rollout and `[batch]` for a minibatch. Observations and actions
may be any pytree of arrays; their leaves start with the same leading axes as everything else in the struct.
"""

from typing import Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from eqxrl._typing import Action, Carry, Observation, TEnvState, check_leading, field, leading, typed


class AbstractSteps(eqx.Module):
    """Steps of environments, whose rewards and end flags are `*batch`, as are the leading axes of all that is with them."""

    reward: eqx.AbstractVar[Float[Array, "*batch"]]
    terminated: eqx.AbstractVar[Bool[Array, "*batch"]]
    truncated: eqx.AbstractVar[Bool[Array, "*batch"]]

    @property
    def done(self) -> Bool[Array, "*batch"]:
        """The episode ended at this step, either way."""
        return self.terminated | self.truncated

    def __check_init__(self):
        check_leading(self, batch=self.reward.shape)


@typed
class Trajectory(AbstractSteps):
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


@typed
class EpisodeStats(eqx.Module):
    """Sums over the episodes that ended during a rollout; constant memory however many there were."""

    count: Float[Array, "*seeds"]
    total_return: Float[Array, "*seeds"]
    """Undiscounted, in the environment's own reward units, whatever the training rewards are scaled by."""
    total_length: Float[Array, "*seeds"]
    """In steps of one environment."""


def no_episodes() -> EpisodeStats:
    return EpisodeStats(*3 * [jnp.zeros((), jnp.float32)])


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
            steps, envs = list(self.trajectories.reward.shape), list(self.last_done.shape)
            raise TypeError(f"trajectories are {steps} = [steps envs], but last_done is {envs} = [envs]")


@typed
class AdvantageMinibatch(eqx.Module):
    """Steps with their advantages: a whole rollout `[steps envs]` on its way to the learner, `[batch]` on its way to a loss, or, for a
    policy with a hidden state, `[steps envs]` of some of the environments."""

    trajectories: Trajectory
    advantages: Float[Array, "*batch"]
    """In reward units; not standardised."""
    targets: Float[Array, "*batch"]
    """What the critic should have said."""
    initial_carry: Carry = field(default=(), metadata=leading("envs"))
    """The policy's hidden state before the first step, `[envs ...]`; `()` for a feed-forward policy."""
    last_value: Float[Array, " envs"] | tuple[()] = ()
    """The critic's value of the observation after the last step; `()` for single samples, which nothing follows."""

    def __check_init__(self):
        advantages, rewards = self.advantages.shape, self.trajectories.reward.shape
        if advantages != rewards:
            raise TypeError(f"advantages are {list(advantages)}, trajectories {list(rewards)}; both need the same leading axes")


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
    """What the stepper keeps, such as a pool of first states."""
    carry: Carry = field(default=(), metadata=leading("envs"))
    """The policy's hidden state."""

    def __check_init__(self):
        check_leading(self, envs=self.last_done.shape)


@typed
class TrainStepMetrics(eqx.Module):
    """One training iteration, at no cost of evaluation and in constant memory."""

    means: dict[str, Float[Array, "*seeds"]]
    """By name, such as `policy_loss`; over several iterations they are averaged."""
    episodes: EpisodeStats
    """Of the episodes that ended in the iteration; over several iterations they are summed."""


@typed
class Transition(AbstractSteps):
    """One step of the environment, as an off-policy algorithm stores it."""

    obs: Observation = field(metadata=leading("*batch"))
    action: Action = field(metadata=leading("*batch"))
    """What the policy chose, before it was clipped to the action space."""
    reward: Float[Array, "*batch"]
    next_obs: Observation = field(metadata=leading("*batch"))
    """What the action led to; never the first observation of the next episode."""
    terminated: Bool[Array, "*batch"]
    """The MDP ended at this step: `next_obs` has no value."""
    truncated: Bool[Array, "*batch"]
    """The episode was cut off at this step; `next_obs` has a value all the same, unless `terminated`."""
    remembered: PyTree = field(default=(), metadata=leading("*batch"))
    """What the policy remembered of how it chose, such as the action's log-prob; `()` for most."""


@typed
class Replayed(AbstractSteps):
    """Transitions `[batch]` as an off-policy algorithm learns from them, over one step or several."""

    obs: Observation = field(metadata=leading("*batch"))
    """Before the first step."""
    action: Action = field(metadata=leading("*batch"))
    """At the first step."""
    reward: Float[Array, "*batch"]
    """The discounted sum over the steps."""
    next_obs: Observation = field(metadata=leading("*batch"))
    """What the last step led to."""
    terminated: Bool[Array, "*batch"]
    """The MDP ended at the last step: `next_obs` has no value."""
    truncated: Bool[Array, "*batch"]
    """The episode was cut off at the last step."""
    discount: Float[Array, "*batch"]
    """What the value of `next_obs` counts for, had the MDP not ended there: gamma to the power of the number of steps."""
    weight: Float[Array, "*batch"]
    """What each counts for in a mean: 1, unless the buffer draws some more often than others."""


@typed
class Transitions(eqx.Module):
    """What was collected for a replay buffer."""

    transitions: Transition
    """`[steps envs]`"""
    episodes: EpisodeStats


@typed
class EvalMetrics(eqx.Module):
    """Whole episodes of the policy as it stands: `[episodes]` for one evaluation, `[evals episodes]` for a run, and
    `[seeds evals episodes]` for a vmapped one."""

    episode_length: Int[Array, "*evals episodes"]
    """In steps."""
    cumulative_reward: Float[Array, "*evals episodes"]
    """Undiscounted return, in the environment's own reward units."""
