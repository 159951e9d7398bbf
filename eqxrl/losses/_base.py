"""What a loss is. Vanilla policy gradient, in full:

    class PolicyGradient(AbstractLoss):
        def __call__(self, agent, minibatch):
            t = minibatch.trajectories
            distribution, _, _ = jax.vmap(lambda obs: agent(obs, agent.initial_carry()))(t.obs)
            loss = -jnp.mean(distribution.log_prob(t.action) * minibatch.advantages)
            return loss, LossMetrics(policy_loss=loss)

        def at_step(self, num_updates):
            return self
"""

import abc

import equinox as eqx
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch, LossMetrics
from eqxrl._typing import Scalar
from eqxrl.nn import AbstractActorCritic


class AbstractLoss(eqx.Module):
    """Judges a policy on one minibatch."""

    @abc.abstractmethod
    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, LossMetrics]:
        """**Arguments:** the policy, which gradients flow to; steps `[batch]`.

        **Returns:** what to minimise, and what there is to say about it.
        """

    @abc.abstractmethod
    def at_step(self, num_updates: Int[Array, ""]) -> "AbstractLoss":
        """This loss with the coefficients that hold after so many gradient updates; itself, if they never change."""
