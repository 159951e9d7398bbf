import abc

import equinox as eqx
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar
from eqxrl.nn import AbstractActorCritic


class AbstractLoss(eqx.Module):
    """Judges a policy on one minibatch. Vanilla policy gradient, in full:

        class PolicyGradient(AbstractLoss):
            def __call__(self, agent, minibatch):
                distribution, _ = evaluate(agent, minibatch)
                log_prob = distribution.log_prob(minibatch.trajectories.action)
                loss = -jnp.mean(log_prob * minibatch.advantages)
                return loss, {"policy_loss": loss}

            def at_step(self, num_updates):
                return self
    """

    @abc.abstractmethod
    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        """**Arguments:** the policy, which gradients flow to; steps `[batch]`.

        **Returns:** what to minimise, and what there is to report about it, by name.
        """

    @abc.abstractmethod
    def at_step(self, num_updates: Int[Array, ""]) -> "AbstractLoss":
        """This loss with the coefficients that hold after so many gradient updates; itself, if they never change."""
