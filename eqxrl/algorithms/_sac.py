import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import Replayed
from eqxrl._typing import Scalar, Schedule, as_scalar, as_schedule, field, optional, strong, typed, within
from eqxrl.algorithms._off_policy import bootstrapped, copied, descended
from eqxrl.algorithms._off_policy_actor_critic import AbstractOffPolicyActorCritic, AbstractOffPolicyActorCriticHParams
from eqxrl.algorithms._parts import part
from eqxrl.learners import NoTarget
from eqxrl.losses import fixed, values_chosen, values_of_both, values_taken
from eqxrl.nn import (
    AbstractActionNoise,
    ActionValue,
    Noisy,
    QNetwork,
    RandomAtFirst,
    Sampling,
    StochasticActor,
    trainable,
    with_statistics,
)  # fmt: skip
from eqxrl.spaces import Discrete, log_volume


class SACHParams(AbstractOffPolicyActorCriticHParams):
    """How a SAC is configured; see `PPOHParams`."""

    learning_rate: Schedule = field(default=3e-4, converter=as_schedule, metadata=within(0.0))
    """Adam's step size, for the actor, the critics and the temperature."""
    temperature: Scalar = field(default=1.0, metadata=within(0.0, open_low=True))
    """What a nat of entropy is worth: at first, or always, if it isn't learned."""
    learn_temperature: bool = field(default=True)
    """Move the temperature so that the policy's entropy is `target_entropy`."""
    target_entropy: Scalar | None = field(default=None, converter=optional(as_scalar))
    """In nats, those of an action in a Box with its numbers scaled to [-1, 1]. By default -1 for each of its numbers, and 0.7 of the
    highest possible one of a Discrete action."""


@typed
class SACLearner(eqx.Module):
    """The networks, the older copies of the critics that targets are computed with, the temperature and the optimiser's state."""

    actor: PyTree
    critics: PyTree
    target: PyTree
    """None with `NoTarget`."""
    log_temperature: Scalar
    opt_state: PyTree


class SAC(AbstractOffPolicyActorCritic):
    """Soft actor-critic, for actions in a Box or in a Discrete space. Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905; Christodoulou
    2019, https://arxiv.org/abs/1910.07207. With `reduction=TruncatedQuantiles()` it is TQC: Kuznetsov et al. 2020,
    https://arxiv.org/abs/2005.04269. With `target_update=NoTarget()` and `nn.ActionValue(batch_renorm=True)` as `critic` it is CrossQ, but
    for that paper's normalised and delayed actor: Bhatt et al. 2024, https://arxiv.org/abs/1902.05605.

    Actor, critics and temperature take each step together, from where all of them stand.
    """

    HParams = SACHParams

    @part(eqx.Module, made_later=True)
    def actor(self):
        return StochasticActor

    @part(eqx.Module, made_later=True)
    def critic(self):
        """One of the critics: `critic(obs, action) -> [outputs]`; of Discrete actions `critic(obs) -> [act]`."""
        if isinstance(self.spaces[1], Discrete):
            return functools.partial(QNetwork, hidden_sizes=(256, 256))
        return functools.partial(ActionValue, hidden_sizes=(256, 256), out_size=self.reduction.outputs)

    @part(AbstractActionNoise)
    def action_noise(self):
        """What is added to the samples of the actor while it collects, where exploring is hard; by default nothing."""
        return None

    def init_learner(self, key: Key[Array, ""]) -> SACLearner:
        actor_key, critic_key = jax.random.split(key)
        alone = isinstance(self.target_update, NoTarget)
        actor = self.made(self.actor, actor_key)
        critics = self.ensemble(self.critic, self.hp.num_critics, critic_key, batch_renorm=alone)
        log_temperature = jnp.log(self.hp.temperature)
        networks = actor, critics, log_temperature
        opt_state = strong(self.optimizer.init(eqx.filter(networks, trainable(networks))))
        return SACLearner(actor, critics, None if alone else copied(critics), log_temperature, opt_state)

    def behaviour(self, learner: SACLearner, num_iterations: Int[Array, ""]) -> RandomAtFirst:
        if (noise := self.action_noise) is None:
            return self.random_at_first(Sampling(learner.actor), num_iterations)
        if isinstance(self.spaces[1], Discrete):
            raise TypeError("action_noise is added to actions in a Box, but these are Discrete; leave it out")
        noise = noise.at_step(self.env_steps_after(num_iterations))
        return self.random_at_first(Noisy(learner.actor, noise, self.spaces[1]), num_iterations)

    def update(
        self, learner: SACLearner, batch: Replayed, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[SACLearner, Float[Array, " batch"], dict[str, Scalar]]:
        self.reduction.check(eqx.filter_eval_shape(values_taken, learner.critics, self.spaces[1], batch.obs, batch.action))
        next_key, actor_key = jax.random.split(key)
        temperature = jnp.exp(learner.log_temperature) if self.hp.learn_temperature else self.hp.temperature
        policy = jax.vmap(learner.actor)(batch.next_obs)

        def valued(critics):
            """Values of the batch, their targets, and the critics after it."""
            reduce = self.reduction.following
            if learner.target is None:
                values, following, log_prob, critics = values_of_both(critics, batch, policy, next_key, reduce)
            else:
                values = values_taken(critics, self.spaces[1], batch.obs, batch.action)
                following, log_prob = values_chosen(policy, learner.target, batch.next_obs, next_key, reduce)
            return values, bootstrapped(batch, following - (temperature * log_prob)[:, None]), critics

        def loss(networks):
            actor, critics, log_temperature = networks
            values, targets, critics = valued(critics)
            critic_loss = jnp.mean(batch.weight * self.reduction.loss(values, targets))
            policy = jax.vmap(actor)(batch.obs)
            value, log_prob = values_chosen(policy, fixed(critics), batch.obs, actor_key, self.reduction.value)
            actor_loss = jnp.mean(temperature * log_prob - value)
            entropy = -jnp.mean(jax.lax.stop_gradient(log_prob))
            temperature_loss = jnp.exp(log_temperature) * (entropy - self._target_entropy()) if self.hp.learn_temperature else 0.0
            errors = jnp.abs(self.reduction.value(values) - jnp.mean(targets, axis=-1))
            metrics = dict(critic_loss=critic_loss, actor_loss=actor_loss, entropy=entropy, value=jnp.mean(value), temperature=temperature)
            return critic_loss + actor_loss + temperature_loss, (errors, metrics, fixed(critics))

        networks = learner.actor, learner.critics, learner.log_temperature
        after, opt_state, (errors, metrics, moved), _ = descended(loss, self.optimizer, networks, learner.opt_state)
        actor, critics, log_temperature = after
        critics = with_statistics(critics, moved)
        target = None if learner.target is None else self.target_update(learner.target, critics, num_updates)
        return SACLearner(actor, critics, target, log_temperature, opt_state), errors, metrics

    def _target_entropy(self) -> Scalar:
        space, given = self.spaces[1], self.hp.target_entropy
        if isinstance(space, Discrete):
            return jnp.float32(0.7 * math.log(space.n)) if given is None else given
        given = jnp.float32(-math.prod(space.shape)) if given is None else given
        return given + log_volume(space)  # a log-prob is in the action's own units
