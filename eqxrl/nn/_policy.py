import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eqxrl._typing import Action, Carry, Observation, Scalar, typed
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._distributions import Categorical
from eqxrl.nn._layers import perturbed
from eqxrl.nn._q_network import expected


class AbstractPolicy(eqx.Module):
    """What acts in environments: the collector of an off-policy algorithm, evaluators, `make_actor` and pictures are given one.
    One that always takes the same action, in full:

        class Constant(AbstractPolicy):
            action: Int[Array, ""]

            def __call__(self, obs, carry, key):
                num_envs = jax.tree.leaves(obs)[0].shape[0]
                return jnp.repeat(self.action[None], num_envs), carry, ()

            def initial_carry(self):
                return ()
    """

    @abc.abstractmethod
    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, Any]:
        """**Arguments:**

        - `obs`: `[envs ...]`, in the environment's own units.
        - `carry`: the hidden state, `[envs ...]`.
        - `key`: what actions are drawn with; `None`: take the action that the policy holds best, without exploration.

        **Returns:** actions `[envs ...]`, the next hidden state, and what is to be remembered of how they were chosen.
        """

    @abc.abstractmethod
    def initial_carry(self) -> Carry:
        """The hidden state of one environment at the start of an episode; `()` for a policy without memory."""


class ActorCriticPolicy(AbstractPolicy):
    """Acts as an actor-critic says: draws from its distribution, or takes the mode. It remembers the distribution and the value."""

    agent: AbstractActorCritic

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, Any]:
        distribution, value, carry = jax.vmap(self.agent)(obs, carry)
        action = distribution.mode() if key is None else distribution.sample(key)
        return action, carry, (distribution, value)

    def initial_carry(self) -> Carry:
        return self.agent.initial_carry()


@typed
class EpsilonGreedy(AbstractPolicy):
    """The action of the highest value, or with probability `epsilon` one drawn uniformly from all of them. A noisy network is drawn anew at
    each step, for all environments at once; without a key it isn't perturbed."""

    q: eqx.Module
    """Values of one observation: `q(obs) -> [act]`, or quantiles of them, `[act quantiles]`."""
    epsilon: Scalar

    def __call__(self, obs: Observation, carry: Carry, key: Key[Array, ""] | None) -> tuple[Action, Carry, tuple[()]]:
        # The third of what `split` would give: the other two are used below.
        q: Any = self.q if key is None else perturbed(self.q, jax.random.fold_in(key, 2))
        values: Float[Array, "envs act"] = jax.vmap(lambda obs: expected(q(obs)))(obs)
        greedy = jnp.argmax(values, axis=-1).astype(jnp.int32)
        if key is None:
            return greedy, carry, ()
        explore_key, action_key = jax.random.split(key)
        explore = jax.random.bernoulli(explore_key, self.epsilon, greedy.shape)
        return jnp.where(explore, Categorical(jnp.zeros_like(values)).sample(action_key), greedy), carry, ()

    def initial_carry(self) -> tuple[()]:
        return ()
