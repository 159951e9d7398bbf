import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._cond import cond_each
from eqxrl._structs import Replayed
from eqxrl._typing import Scalar, Schedule, as_schedule, field, strong, typed, within
from eqxrl.algorithms._off_policy import bootstrapped, copied, descended
from eqxrl.algorithms._off_policy_actor_critic import AbstractOffPolicyActorCritic, AbstractOffPolicyActorCriticHParams
from eqxrl.algorithms._parts import part
from eqxrl.losses import fixed, values_taken
from eqxrl.nn import AbstractActionNoise, ActionValue, DeterministicActor, GaussianNoise, Noisy, RandomAtFirst, trainable, with_noise


class TD3HParams(AbstractOffPolicyActorCriticHParams):
    """How a TD3 is configured; see `PPOHParams`."""

    policy_delay: int = field(default=2)
    """Updates of the critics for one of the actor and of the target networks."""
    learning_rate: Schedule = field(default=1e-3, converter=as_schedule, metadata=within(0.0))
    """Adam's step size, for the actor and the critics."""
    exploration_noise: Schedule = field(default=0.1, converter=as_schedule, metadata=within(0.0))
    """Standard deviation of the noise while collecting, as a part of half of the distance between an action's bounds; a schedule is
    one of env steps."""
    target_noise: Scalar = field(default=0.2, metadata=within(0.0))
    """The same of the noise on the target policy's actions."""
    target_noise_clip: Scalar = field(default=0.5, metadata=within(0.0))
    """What this noise is clipped to, in the same unit."""


@typed
class TD3Learner(eqx.Module):
    """Actor and critics, their older copies that targets are computed with, and the optimisers' states."""

    actor: PyTree
    critics: PyTree
    target: tuple[PyTree, PyTree]
    """Of the actor, and of the critics."""
    opt_state: tuple[PyTree, PyTree]


class TD3(AbstractOffPolicyActorCritic):
    """Twin delayed deep deterministic policy gradient, for actions in a Box. Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477.

    The actor aims for the reduction's value, the minimum of the critics, not for the first critic's.
    """

    HParams = TD3HParams

    @part(eqx.Module, made_later=True)
    def actor(self):
        return DeterministicActor

    @part(eqx.Module, made_later=True)
    def critic(self):
        """One of the critics: `critic(obs, action) -> [outputs]`."""
        return functools.partial(ActionValue, hidden_sizes=(256, 256), out_size=self.reduction.outputs)

    @part(AbstractActionNoise)
    def action_noise(self):
        return GaussianNoise(self.hp.exploration_noise)

    def init_learner(self, key: Key[Array, ""]) -> TD3Learner:
        actor_key, critic_key = jax.random.split(key)
        nets = self.made(self.actor, actor_key), self.ensemble(self.critic, self.hp.num_critics, critic_key)
        opt_states = [strong(self.optimizer.init(eqx.filter(net, trainable(net)))) for net in nets]
        return TD3Learner(*nets, target=copied(nets), opt_state=(opt_states[0], opt_states[1]))

    def behaviour(self, learner: TD3Learner, num_iterations: Int[Array, ""]) -> RandomAtFirst:
        noise = self.action_noise.at_step(self.env_steps_after(num_iterations))
        return self.random_at_first(Noisy(learner.actor, noise, self.spaces[1]), num_iterations)

    def update(
        self, learner: TD3Learner, batch: Replayed, num_updates: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[TD3Learner, Float[Array, " batch"], dict[str, Scalar]]:
        hp, box, (old_actor, old_critics) = self.hp, self.spaces[1], learner.target
        self.reduction.check(eqx.filter_eval_shape(values_taken, learner.critics, box, batch.obs, batch.action))
        action = with_noise(box, jax.vmap(old_actor)(batch.next_obs), hp.target_noise, key, hp.target_noise_clip)
        following = self.reduction.following(values_taken(old_critics, box, batch.next_obs, action))
        targets = bootstrapped(batch, following)

        def critic_loss(critics):
            values = values_taken(critics, box, batch.obs, batch.action)
            loss = jnp.mean(batch.weight * self.reduction.loss(values, targets))
            errors = jnp.abs(self.reduction.value(values) - jnp.mean(targets, axis=-1))
            return loss, (errors, dict(critic_loss=loss, value=jnp.mean(values)))

        opt_actor, opt_critics = learner.opt_state
        critics, opt_critics, (errors, metrics), _ = descended(critic_loss, self.optimizer, learner.critics, opt_critics)

        def actor_loss(actor):
            values = values_taken(fixed(critics), box, batch.obs, jax.vmap(actor)(batch.obs))
            return -jnp.mean(self.reduction.value(values)), None

        waiting, static = eqx.partition((learner.actor, opt_actor, learner.target), eqx.is_array)

        def follow(arrays):
            actor, opt_actor, target = eqx.combine(arrays, static)
            actor, opt_actor, *_ = descended(actor_loss, self.optimizer, actor, opt_actor)
            target = self.target_update(target, (actor, critics), num_updates // hp.policy_delay)
            return eqx.filter((actor, opt_actor, target), eqx.is_array)

        arrays = cond_each(num_updates % hp.policy_delay == 0, follow, lambda arrays: arrays, waiting)
        actor, opt_actor, target = eqx.combine(arrays, static)
        return TD3Learner(actor, critics, target, (opt_actor, opt_critics)), errors, metrics
