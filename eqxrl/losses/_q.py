from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar
from eqxrl.losses._base import AbstractLoss
from eqxrl.nn import AbstractActorCritic, Greedy, evaluate


class QLoss(AbstractLoss):
    """Half of the mean squared error of the values of the actions that were taken, off their targets. The policy's distribution must be
    `nn.Greedy`.

    Gallici et al. 2024, https://arxiv.org/abs/2407.04811, algorithm 1.
    """

    deviates: ClassVar[dict[str, str]] = {"better actions become likelier": "it moves values to their targets, whatever the advantages"}

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        distribution, _ = evaluate(agent, minibatch)
        if not isinstance(distribution, Greedy):
            raise TypeError(f"QLoss needs a policy that has the actions' values, an nn.Greedy, got {type(distribution).__name__}")
        value = distribution.value_of(minibatch.trajectories.action)
        loss = 0.5 * jnp.mean(jnp.square(value - minibatch.targets))
        return loss, dict(q_loss=loss, q=jnp.mean(value))

    def at_step(self, num_updates: Int[Array, ""]) -> "QLoss":
        return self
