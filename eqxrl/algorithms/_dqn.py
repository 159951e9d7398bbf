import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import Replayed
from eqxrl._typing import Scalar, Schedule, as_schedule, field, strong, typed, within
from eqxrl.algorithms._hparams import AbstractEpsilonGreedyHParams
from eqxrl.algorithms._off_policy import AbstractOffPolicy, AbstractOffPolicyHParams, copied, descended
from eqxrl.algorithms._parts import part
from eqxrl.learners import AbstractTargetUpdate, Periodic, clipped, grad_norm
from eqxrl.losses import td_loss, td_target
from eqxrl.nn import EpsilonGreedy, QNetwork, perturbed, trainable


class DQNHParams(AbstractOffPolicyHParams, AbstractEpsilonGreedyHParams):
    """How a DQN is configured; see `PPOHParams`."""

    target_update_freq: int = field(default=500)
    """Gradient updates between copies of the network to the target network."""
    double: bool = field(default=True)
    """Let the network choose the next action that the target network values (van Hasselt et al. 2016)."""
    learning_rate: Schedule = field(default=1e-3, converter=as_schedule, metadata=within(0.0))
    """Adam's step size."""
    max_grad_norm: Scalar = field(default=10.0, metadata=within(0.0))
    """Global norm that gradients are clipped to."""


@typed
class DQNLearner(eqx.Module):
    """The network, its older copy that targets are computed with, and the optimiser's state."""

    q: PyTree
    target: PyTree
    opt_state: PyTree


class DQN(AbstractOffPolicy):
    """Deep Q-learning with a replay buffer and a target network. Mnih et al. 2015, https://doi.org/10.1038/nature14236; double Q-learning
    after van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461.

    `q_network` may be any `q(obs) -> [act]`. Where it gives quantiles `[act quantiles]`, this is QR-DQN, Dabney et al. 2018,
    https://arxiv.org/abs/1710.10044; `nn.QNetwork` has these, dueling and noisy layers as options. With `buffer=MakePart("prioritized")`
    transitions are drawn by how far their values were off."""

    HParams = DQNHParams

    @part(eqx.Module, made_later=True)
    def q_network(self):
        return QNetwork

    @part(optax.GradientTransformation)
    def optimizer(self):
        return clipped(self.hp.max_grad_norm, optax.adam(self.hp.learning_rate))

    @part(AbstractTargetUpdate)
    def target_update(self):
        return Periodic(self.hp.target_update_freq)

    def init_learner(self, key: Key[Array, ""]) -> DQNLearner:
        q = self.made(self.q_network, key)
        opt_state = strong(self.optimizer.init(eqx.filter(q, trainable(q))))
        return DQNLearner(q=q, target=copied(q), opt_state=opt_state)

    def behaviour(self, learner: DQNLearner, num_iterations: Int[Array, ""]) -> EpsilonGreedy:
        env_steps = self.env_steps_after(num_iterations)
        return EpsilonGreedy(learner.q, jnp.where(env_steps < self.hp.learning_starts, 1.0, self.hp.epsilon(env_steps)))

    def update(
        self, learner: DQNLearner, batch: Replayed, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[DQNLearner, Float[Array, " batch"], dict[str, Scalar]]:
        own_key, choice_key, target_key = jax.random.split(key, 3)
        target = self.target_update(learner.target, learner.q, num_updates)
        next_values = jax.vmap(perturbed(target, target_key))(batch.next_obs)
        choice = jax.vmap(perturbed(learner.q, choice_key))(batch.next_obs) if self.hp.double else next_values
        targets = jax.vmap(td_target)(batch, next_values, choice)

        def loss(q):
            losses, value = jax.vmap(td_loss)(jax.vmap(perturbed(q, own_key))(batch.obs), batch.action, targets)
            value_loss = jnp.mean(batch.weight * losses)
            return value_loss, (value_loss, value)

        q, opt_state, (value_loss, value), grads = descended(loss, self.optimizer, learner.q, learner.opt_state)
        errors = jnp.abs(value - targets.reshape(len(value), -1).mean(axis=1))
        metrics = dict(value_loss=value_loss, value=jnp.mean(value), grad_norm=grad_norm(grads))
        return DQNLearner(q=q, target=target, opt_state=opt_state), errors, metrics
