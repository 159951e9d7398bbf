import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from eqxrl._structs import AdvantageMinibatch, Trajectory
from eqxrl._typing import Carry, Observation, Scalar, describe
from eqxrl.nn._distributions import AbstractDistribution, Categorical
from eqxrl.nn._joint import Joint, MultiCategorical
from eqxrl.nn._memory import forgetting
from eqxrl.spaces import Discrete, as_space, check_action_space, parts


class AbstractActorCritic(eqx.Module):
    """A policy and a critic. A feed-forward member, in full:

        class Linear(AbstractActorCritic):
            policy: eqx.nn.Linear
            critic: eqx.nn.Linear

            def __call__(self, obs, carry):
                return Categorical(self.policy(obs)), self.critic(obs)[0], carry

            def initial_carry(self):
                return ()

    It sees one observation at a time; whoever calls it vmaps over environments or samples. A recurrent member returns its
    hidden state as the carry and gives the state of a fresh episode as `initial_carry()`; the collector resets it where
    episodes end.
    """

    @abc.abstractmethod
    def __call__(self, obs: Observation, carry: Carry) -> tuple[AbstractDistribution, Scalar, Carry]:
        """**Arguments:** one observation, in the environment's own units, without leading axes; the hidden state.

        **Returns:** the distribution of the action, the value of the observation (in the units of the training reward), and
        the next hidden state.
        """

    @abc.abstractmethod
    def initial_carry(self) -> Carry:
        """The hidden state at the start of an episode; `()` for a feed-forward policy."""

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[AbstractDistribution, Float[Array, " steps"], Carry]:
        """What a policy with a hidden state makes of all steps of one environment, `[steps ...]`, given the hidden state before the
        first and where episodes begin; and the hidden state after the last. One step after the other, unless a member knows a faster
        way."""

        def step(carry: Carry, obs_and_start: Any) -> tuple[Carry, Any]:
            obs, start = obs_and_start
            distribution, value, carry = self(obs, forgetting(start, self.initial_carry(), carry))
            return carry, (distribution, value)

        carry, (distribution, value) = jax.lax.scan(step, carry, (obs, starts))
        return distribution, value, carry


def has_memory(agent: Any) -> bool:
    """Whether an actor-critic, or a policy, has a hidden state."""
    return bool(jax.tree.leaves(eqx.filter_eval_shape(lambda agent: agent.initial_carry(), agent)))


def evaluate(agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[AbstractDistribution, Float[Array, "*batch"]]:
    """For a loss: what the policy makes of each step of a minibatch, a distribution and a value, `[batch]` or `[steps envs]`. It is
    `[steps envs]` for a policy with a hidden state, which starts from `minibatch.initial_carry` and anew where an episode begins."""
    t = minibatch.trajectories
    if not has_memory(agent):
        each: Any = lambda obs: agent(obs, agent.initial_carry())  # noqa: E731
        for _ in minibatch.advantages.shape:
            each = jax.vmap(each)
        distribution, value, _ = each(t.obs)
        return distribution, value
    distribution, value, _ = jax.vmap(agent.sequence, in_axes=(1, 1, 0), out_axes=(1, 1, 0))(
        t.obs, episode_starts(t), minibatch.initial_carry
    )
    return distribution, value


def episode_starts(trajectory: Trajectory) -> Bool[Array, "steps envs"]:
    """Where an episode begins after the first step; there the hidden state is fresh already."""
    return jnp.concatenate([jnp.zeros_like(trajectory.done[:1]), trajectory.done[:-1]])


def check_actor_critic(agent: AbstractActorCritic, obs: PyTree, action_space: Any) -> None:
    """Without computing anything: does the network take the environment's observation (`obs`, one of them, or its shapes), and
    do its outputs fit the action space?

    **Raises:** `TypeError` or `ValueError`, which say what came and what was expected.
    """
    name = type(agent).__name__
    try:
        distribution, value, carry = eqx.filter_eval_shape(lambda a, o: a(o, a.initial_carry()), agent, obs)
    except Exception as error:
        raise TypeError(f"{name} does not take the environment's observation, {describe(obs)}: {error}") from error
    if not isinstance(distribution, AbstractDistribution):
        raise TypeError(f"{name} returned {describe(distribution)} as its distribution; return an AbstractDistribution")
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name} returned the value {describe(value)} for one observation; return a float scalar")
    expected_carry = eqx.filter_eval_shape(lambda a: a.initial_carry(), agent)
    if jax.tree.map(describe, expected_carry) != jax.tree.map(describe, carry):
        raise TypeError(f"{name} returned the carry {describe(carry)}, but initial_carry() is {describe(expected_carry)}")
    action = eqx.filter_eval_shape(lambda d: d.sample(jax.random.key(0)), distribution)
    log_prob = eqx.filter_eval_shape(lambda d, action: d.log_prob(action), distribution, action)
    if log_prob.shape != ():
        raise TypeError(f"{type(distribution).__name__}.log_prob is {describe(log_prob)} for one action; a scalar is needed")
    spaces = parts(check_action_space(action_space))
    if jax.tree.structure(action) != jax.tree.structure(spaces):
        raise ValueError(f"{name} returned actions {describe(action)}, but the action space is {as_space(action_space)}")
    distributions = distribution.parts if isinstance(distribution, Joint) else distribution
    if jax.tree.structure(distributions, is_leaf=_is_distribution) != jax.tree.structure(spaces):
        distributions = jax.tree.map(lambda _: None, spaces)  # another kind of joint distribution: only its actions are looked at
    jax.tree.map(functools.partial(_check_part, name), spaces, action, distributions, is_leaf=_is_distribution)


def _check_part(name: str, space: Any, action: Any, distribution: AbstractDistribution | None) -> None:
    choices = distribution.nvec if isinstance(distribution, MultiCategorical) else None
    if isinstance(distribution, Categorical):
        choices = distribution.logits.shape[-1]
    if choices is not None and choices != (space.n if isinstance(space, Discrete) else getattr(space, "nvec", None)):
        raise ValueError(f"{name} chooses among {choices} actions, but the space is {space}")
    is_float = jnp.issubdtype(space.dtype, jnp.floating)
    if action.shape != space.shape or jnp.issubdtype(action.dtype, jnp.floating) != is_float:
        raise ValueError(f"{name} returned actions {describe(action)}, but the action space is {space}")


def _is_distribution(x: Any) -> bool:
    return isinstance(x, AbstractDistribution)
