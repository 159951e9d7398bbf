import jax.numpy as jnp
from jaxtyping import Array, Int

from eqxrl._structs import AdvantageMinibatch
from eqxrl._typing import Scalar, Schedule, as_number, as_schedule, at_step, field, typed, within
from eqxrl.losses._base import AbstractLoss
from eqxrl.nn import AbstractActorCritic, evaluate


@typed
class ActorCriticLoss(AbstractLoss):
    r"""Policy gradient with a critic, $-\log \pi(a_t|s_t) \hat A_t + c_v (v - R)^2 - c_e S$, as a mean over the minibatch.

    Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 4.
    """

    vf_coef: Scalar = field(default=0.5, metadata=within(0.0))
    ent_coef: Schedule = field(default=0.01, converter=as_schedule, metadata=within(0.0))

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, dict[str, Scalar]]:
        distribution, value = evaluate(agent, minibatch)
        policy_loss = -jnp.mean(distribution.log_prob(minibatch.trajectories.action) * minibatch.advantages)
        value_loss = jnp.mean(jnp.square(value - minibatch.targets))
        entropy = jnp.mean(distribution.entropy())
        loss = policy_loss + self.vf_coef * value_loss - as_number(self.ent_coef) * entropy
        return loss, dict(policy_loss=policy_loss, value_loss=value_loss, entropy=entropy)

    def at_step(self, num_updates: Int[Array, ""]) -> "ActorCriticLoss":
        return ActorCriticLoss(vf_coef=self.vf_coef, ent_coef=at_step(self.ent_coef, num_updates))
