from typing import Any

import equinox as eqx
import optax
from jaxtyping import Array, Int, Key

from eqxrl._typing import Scalar, field, within
from eqxrl.algorithms._off_policy import AbstractOffPolicy, AbstractOffPolicyHParams
from eqxrl.algorithms._parts import part
from eqxrl.learners import AbstractTargetUpdate, Polyak
from eqxrl.losses import AbstractReduction, Minimum
from eqxrl.nn import AbstractPolicy, Ensemble, RandomAtFirst, check_no_batch_renorm


class AbstractOffPolicyActorCriticHParams(AbstractOffPolicyHParams):
    """What off-policy algorithms with an actor beside several critics have in common."""

    num_envs: int = field(default=1)
    num_steps: int = field(default=16)
    updates_per_iteration: int = field(default=16)
    batch_size: int = field(default=256)
    num_critics: int = field(default=2)
    """Critics, each with a target network, if there are any."""
    tau: Scalar = field(default=0.005, metadata=within(0.0, 1.0))
    """Part of the networks in a step of their target networks."""


class AbstractOffPolicyActorCritic(AbstractOffPolicy):
    """An actor that aims for what an ensemble of critics says of its actions, after random actions at first."""

    @part(AbstractReduction)
    def reduction(self):
        return Minimum()

    @part(AbstractTargetUpdate)
    def target_update(self):
        return Polyak(self.hp.tau)

    @part(optax.GradientTransformation)
    def optimizer(self):
        return optax.flatten(optax.adam(self.hp.learning_rate))

    def ensemble(self, network: Any, size: int, key: Key[Array, ""], batch_renorm: bool = False) -> Ensemble:
        """Several of what the part makes, where `batch_renorm` says whether a `BatchRenorm` may be in it.

        **Raises:** `TypeError` where it is a network itself, of which all would be the same; `ValueError` for a `BatchRenorm`.
        """
        if isinstance(network, eqx.Module):
            how = "pass what makes one: (observation_space, action_space, *, key)"
            raise TypeError(f"got a {type(network).__name__} where several are made; {how}")
        made = Ensemble(lambda key: network(*self.spaces, key=key), size, key=key)
        if not batch_renorm:
            check_no_batch_renorm(made, type(self).__name__)
        return made

    def random_at_first(self, policy: AbstractPolicy, num_iterations: Int[Array, ""]) -> RandomAtFirst:
        """The policy, which draws actions from the whole action space before `learning_starts` env steps."""
        return RandomAtFirst(policy, self.env_steps_after(num_iterations) < self.hp.learning_starts, self.spaces[1])
