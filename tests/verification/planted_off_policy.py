"""Mistakes in off-policy algorithms: what `test_planted.py` judges."""


import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from optax import losses

from eqxrl import DQN, SAC, TD3
from eqxrl.algorithms import MakeNetwork, descended
from eqxrl.algorithms._dqn import DQNLearner
from eqxrl.algorithms._sac import SACLearner
from eqxrl.learners import AbstractTargetUpdate
from eqxrl.losses import Mean, TruncatedQuantiles, fixed, values_chosen, values_taken
from eqxrl.nn import (
    AbstractPolicy,
    EpsilonGreedy,
    GaussianNoise,
    Noisy,
    RandomAtFirst,
    Sampling,
    value_of,
    with_noise,
)  # fmt: skip

# DQN's update, written out, with something changed in it.


def copied(old, new, n):
    return jax.tree.map(lambda a, b: jnp.where(n % 2 == 0, b, a), old, new)


class Q(DQN):
    following: Callable = eqx.field(static=True, default=lambda own, old, batch: value_of(old, jnp.argmax(own, axis=-1)))
    ends: Callable = eqx.field(static=True, default=lambda batch: batch.terminated)
    judge: Callable = eqx.field(static=True, default=lambda value, targets: jnp.mean(losses.huber_loss(value, targets)))
    taken: Callable = eqx.field(static=True, default=lambda values, batch: value_of(values, batch.action))
    target: Callable = eqx.field(static=True, default=copied)
    keep: Callable = eqx.field(static=True, default=lambda old, new: new)
    discount: Callable = eqx.field(static=True, default=lambda batch: batch.discount)

    def update(self, learner, batch, num_updates, key):
        params, static = eqx.partition(learner.q, eqx.is_inexact_array)
        target = eqx.combine(self.target(eqx.filter(learner.target, eqx.is_inexact_array), params, num_updates), static)
        own, old = (jax.lax.stop_gradient(jax.vmap(net)(batch.next_obs)) for net in (learner.q, target))
        following = jnp.where(self.ends(batch), 0.0, self.following(own, old, batch))
        targets = batch.reward + self.discount(batch) * following

        def loss(params):
            return self.judge(self.taken(jax.vmap(eqx.combine(params, static))(batch.obs), batch), targets)

        value_loss, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = self.optimizer.update(grads, learner.opt_state, params)
        q = eqx.combine(optax.apply_updates(params, updates), static)
        learner = DQNLearner(q=q, target=target, opt_state=self.keep(learner.opt_state, opt_state))
        return learner, jnp.abs(targets), dict(value_loss=value_loss)


def fresh(old, new):
    return jax.tree.map(jnp.zeros_like, new)


UPDATES = {
    "bootstraps past the end": ("nothing follows a termination", dict(ends=lambda batch: batch.terminated & False)),
    "time limits end it": ("a cut-off is bootstrapped", dict(ends=lambda batch: batch.done)),
    "nothing is bootstrapped": ("a cut-off is bootstrapped", dict(ends=lambda batch: batch.done | True)),
    "no target network": ("targets", dict(following=lambda own, old, batch: jnp.max(own, axis=-1))),
    "the target network chooses as well": ("targets", dict(following=lambda own, old, batch: jnp.max(old, axis=-1))),
    "roles of the networks swapped": ("targets", dict(following=lambda own, old, batch: value_of(own, jnp.argmax(old, axis=-1)))),
    "the next value of the action that was taken": ("targets", dict(following=lambda own, old, batch: value_of(old, batch.action))),
    "values [batch] against targets [batch 1]": ("targets", dict(judge=lambda v, t: jnp.mean(jnp.square(v[None] - t[:, None])))),
    "the highest value is trained, not that of the action": ("targets", dict(taken=lambda values, batch: jnp.max(values, axis=-1))),
    "gamma squared": ("targets", dict(discount=lambda batch: batch.discount**4)),
    "a sum over the batch": ("a mean over transitions", dict(judge=lambda v, t: jnp.sum(losses.huber_loss(v, t)))),
    "the target network is never copied": ("every network moves", dict(target=lambda old, new, n: old)),
    "the optimiser starts anew at each update": ("the optimiser goes on", dict(keep=fresh)),
}  # fmt: skip

# SAC's update and TD3's, written out, with something changed in them.


class Soft(SAC):
    judges: Callable = eqx.field(static=True, default=lambda learner: learner.target)
    at: Callable = eqx.field(static=True, default=lambda batch: batch.next_obs)
    ends: Callable = eqx.field(static=True, default=lambda batch: batch.terminated)
    reduce: Callable = eqx.field(static=True, default=lambda reduction: reduction.following)
    bonus: Callable = eqx.field(static=True, default=lambda temperature, log_prob: -temperature * log_prob)
    read: Callable = eqx.field(static=True, default=jnp.exp)
    live: bool = eqx.field(static=True, default=False)
    fix: Callable = eqx.field(static=True, default=fixed)
    detach: Callable = eqx.field(static=True, default=jax.lax.stop_gradient)
    cost: Callable = eqx.field(static=True, default=lambda temperature, log_prob: temperature * log_prob)
    price: Callable = eqx.field(static=True, default=lambda log_t, short: -jnp.exp(log_t) * short)
    follow: Callable = eqx.field(static=True, default=lambda rule, old, new, n: rule(old, new, n))

    def update(self, learner, batch, num_updates, key):
        next_key, actor_key = jax.random.split(key)

        def targets(actor, log_temperature):
            policy, obs = jax.vmap(actor)(self.at(batch)), self.at(batch)
            following, log_prob = values_chosen(policy, self.judges(learner), obs, next_key, self.reduce(self.reduction))
            following = following + self.bonus(self.read(log_temperature), log_prob)[:, None]
            return batch.reward[:, None] + batch.discount[:, None] * jnp.where(self.ends(batch)[:, None], 0.0, following)

        def loss(networks):
            actor, critics, log_temperature = networks
            own = targets(actor, log_temperature) if self.live else targets(learner.actor, learner.log_temperature)
            values = values_taken(critics, self.spaces[1], batch.obs, batch.action)
            critic_loss = jnp.mean(self.reduction.loss(values, own))
            value, log_prob = values_chosen(
                jax.vmap(actor)(batch.obs), self.fix(critics), batch.obs, actor_key, self.reduction.value
            )
            actor_loss = jnp.mean(self.cost(jnp.exp(learner.log_temperature), log_prob) - value)
            price = self.price(log_temperature, self._target_entropy() + jnp.mean(self.detach(log_prob)))
            return critic_loss + actor_loss + price, jnp.abs(self.reduction.value(values) - jnp.mean(own, axis=-1))

        networks = learner.actor, learner.critics, learner.log_temperature
        (actor, critics, log_temperature), opt_state, errors, _ = descended(loss, self.optimizer, networks, learner.opt_state)
        target = self.follow(self.target_update, learner.target, critics, num_updates)
        return SACLearner(actor, critics, target, log_temperature, opt_state), errors, dict(error=jnp.mean(errors))


class OwnActor(TD3):
    """The actor itself, not its older copy, takes the next action."""

    def update(self, learner, batch, num_updates, key):
        as_it_is = TD3.update(self, dataclasses.replace(learner, target=(learner.actor, learner.target[1])), batch, num_updates, key)
        right = TD3.update(self, learner, batch, num_updates, key)[0]
        return dataclasses.replace(as_it_is[0], target=right.target, actor=right.actor), *as_it_is[1:]


class OldActorStays(TD3):
    def update(self, learner, batch, num_updates, key):
        after, *more = TD3.update(self, learner, batch, num_updates, key)
        return dataclasses.replace(after, target=(learner.target[0], after.target[1])), *more


class OneLate(DQN):
    def update(self, learner, batch, num_updates, key):
        return DQN.update(self, learner, batch, num_updates + 1, key)


class Distorted(eqx.Module):
    """A network whose outputs aren't what they were."""

    net: eqx.Module
    how: Callable = eqx.field(static=True)

    def __call__(self, obs):
        return self.how(self.net(obs))


class Frozen(AbstractTargetUpdate):
    def __call__(self, target, online, num_updates):
        return target


class Quantiles(DQN):
    """DQN's update with something else in the place of the target network or of the batch."""

    target: Callable = eqx.field(static=True, default=lambda old, own: old)
    batch: Callable = eqx.field(static=True, default=lambda batch: batch)

    def update(self, learner, batch, num_updates, key):
        old = self.target_update(learner.target, learner.q, num_updates)
        algo = dataclasses.replace(self, parts=self.parts | dict(target_update=Frozen()))
        learner = dataclasses.replace(learner, target=self.target(old, learner.q))
        after, *more = DQN.update(algo, learner, self.batch(batch), num_updates, key)
        return dataclasses.replace(after, target=old), *more


def worst(values):
    return jnp.max(values, axis=(0, -1))[..., None]


def lowest_left_out(reduction):
    def following(values):
        together = jnp.sort(jnp.moveaxis(values, 0, -1).reshape(values.shape[1], -1), axis=-1)
        return together[:, reduction.dropped * values.shape[0] :]

    return following


BOX, TARGETS, ACTOR, TEMPERATURE, FOLLOW = (
    dict(kind="box"), "critics' targets", "the actor's direction", "the temperature's direction", "target networks follow",
)  # fmt: skip
TQC = BOX | dict(parts=dict(reduction=TruncatedQuantiles(7, 2)))
QR = dict(parts=dict(q_network=MakeNetwork("q", dict(hidden_sizes=(8,), quantiles=5))))
CRITICS = {
    "the critics are their own targets": (TARGETS, (Soft, BOX | dict(judges=lambda learner: learner.critics))),
    "SAC: the same observation follows": (TARGETS, (Soft, BOX | dict(at=lambda batch: batch.obs))),
    "SAC: done in the place of terminated": (TARGETS, (Soft, BOX | dict(ends=lambda batch: batch.done))),
    "SAC: bootstraps past the end": (TARGETS, (Soft, BOX | dict(ends=lambda batch: batch.terminated & False))),
    "the mean of the critics in targets": (TARGETS, (Soft, BOX | dict(reduce=lambda _: Mean().following))),
    "the highest critic in targets": (TARGETS, (Soft, BOX | dict(reduce=lambda _: worst))),
    "the temperature's term is added in targets": (TARGETS, (Soft, BOX | dict(bonus=lambda t, log_prob: t * log_prob))),
    "no entropy in targets": (TARGETS, (Soft, BOX | dict(bonus=lambda t, log_prob: 0 * log_prob))),
    "the logarithm of the temperature in its place": (TARGETS, (Soft, BOX | dict(read=lambda log_t: log_t))),
    "the actor's loss trains the critics": (TARGETS, (Soft, BOX | dict(fix=lambda critics: critics))),
    "TQC: the lowest quantiles are left out": (TARGETS, (Soft, TQC | dict(reduce=lowest_left_out))),
    "TQC: no quantile is left out": (TARGETS, (Soft, TQC | dict(reduce=lambda _: TruncatedQuantiles(7, 0).following))),
    "TQC: the temperature's term is added": (TARGETS, (Soft, TQC | dict(bonus=lambda t, log_prob: t * log_prob))),
    "discrete SAC: the critics are their own targets": (TARGETS, (Soft, dict(judges=lambda learner: learner.critics))),
    "discrete SAC: the temperature's term is added": (TARGETS, (Soft, dict(bonus=lambda t, log_prob: t * log_prob))),
    "TD3: the actor acts in targets, not its copy": (TARGETS, (OwnActor, BOX)),
    "QR-DQN: no target network": ("targets", (Quantiles, QR | dict(target=lambda old, own: own))),
    "QR-DQN: gamma squared": ("targets", (Quantiles, QR | dict(batch=lambda b: dataclasses.replace(b, discount=b.discount**2)))),
    "QR-DQN: the mean in the place of the distribution": (
        "targets", (Quantiles, QR | dict(target=lambda old, own: Distorted(old, lambda x: jnp.repeat(x.mean(1)[:, None], 5, 1)))),
    ),
    "QR-DQN: the next action's median alone": (
        "targets", (Quantiles, QR | dict(target=lambda old, own: Distorted(old, lambda x: jnp.repeat(x[:, 2:3], 5, 1)))),
    ),
    "targets have a gradient": (ACTOR, (Soft, BOX | dict(live=True))),
    "the actor seeks what it is certain of": (ACTOR, (Soft, BOX | dict(cost=lambda t, log_prob: -t * log_prob))),
    "the temperature's loss has a gradient for the actor": (ACTOR, (Soft, BOX | dict(detach=lambda x: x))),
    "discrete SAC: the actor seeks what it is certain of": (ACTOR, (Soft, dict(cost=lambda t, log_prob: -t * log_prob))),
    "the temperature's loss has the wrong sign": (TEMPERATURE, (Soft, BOX | dict(price=lambda log_t, short: jnp.exp(log_t) * short))),
    "copies and networks change places": (FOLLOW, (Soft, BOX | dict(follow=lambda rule, old, new, n: rule(new, old, n)))),
    "copies are the networks at each update": (FOLLOW, (Soft, BOX | dict(follow=lambda rule, old, new, n: new))),
    "TD3: the actor's copy stays": (FOLLOW, (OldActorStays, BOX)),
    "DQN: copied one update late": (FOLLOW, (OneLate, {})),
}  # fmt: skip

# What acts while an algorithm collects.


def acting(cls, act, **options):
    """The algorithm whose `behaviour` is `act(algorithm, learner, num_iterations)`."""

    class Changed(cls):
        def behaviour(self, learner, num_iterations):
            return act(self, learner, num_iterations)

    return Changed, options


class Deaf(AbstractPolicy):
    """It isn't heard whether there is a key."""

    policy: AbstractPolicy
    key: Callable = eqx.field(static=True)

    def __call__(self, obs, carry, key):
        return self.policy(obs, carry, self.key(key))

    def initial_carry(self):
        return self.policy.initial_carry()


class Changed(AbstractPolicy):
    """`change(actions, key)` of another policy's, where there is a key."""

    policy: AbstractPolicy
    change: Callable = eqx.field(static=True)

    def __call__(self, obs, carry, key):
        action, carry, remembered = self.policy(obs, carry, key)
        return action if key is None else self.change(action, key), carry, remembered

    def initial_carry(self):
        return self.policy.initial_carry()


def random_for(steps):
    """Random at first as long as `steps(num_iterations, iteration_size) < learning_starts`."""

    def act(algo, learner, n):
        random = steps(n, algo.iteration_size) < algo.hp.learning_starts
        return RandomAtFirst(Sampling(learner.actor), random, algo.spaces[1])

    return act


def epsilon_of(steps):
    def act(algo, learner, n):
        hp, env_steps = algo.hp, n * algo.iteration_size
        progress = jnp.clip(steps(n, algo.iteration_size) / (hp.exploration_fraction * hp.total_timesteps), 0.0, 1.0)
        epsilon = hp.epsilon_start + (hp.epsilon_end - hp.epsilon_start) * progress
        return EpsilonGreedy(learner.q, jnp.where(env_steps < hp.learning_starts, 1.0, epsilon))

    return act


def noisy(policy):
    return lambda algo, learner, n: algo.random_at_first(policy(algo, learner.actor), n)


def one_for_all(algo, actor):
    noise = lambda action, key: with_noise(algo.spaces[1], action, algo.hp.exploration_noise, key)  # noqa: E731
    best = Deaf(Noisy(actor, GaussianNoise(0.0), algo.spaces[1]), lambda key: None)
    return Changed(best, lambda action, key: action + noise(0 * action[:1], key))


def one_of_its_own(key):
    return jax.random.key(0) if key is None else key


RANDOM, KEYLESS, EXPLORES = "random before learning_starts", "doesn't explore without a key", "explores as said"
BEHAVIOURS = {
    "no random actions at first": (RANDOM, acting(SAC, lambda algo, learner, n: Sampling(learner.actor), **BOX)),
    "half of the space at first": (
        RANDOM, acting(SAC, lambda algo, learner, n: Changed(SAC.behaviour(algo, learner, n), lambda a, key: jnp.abs(a)), **BOX)
    ),
    "the last choice is never tried": (
        RANDOM, acting(DQN, lambda algo, learner, n: Changed(DQN.behaviour(algo, learner, n), lambda a, key: jnp.minimum(a, 1)))
    ),
    "random actions end one iteration early": (RANDOM, acting(SAC, random_for(lambda n, size: (n + 1) * size), **BOX)),
    "iterations are taken for env steps at first": (EXPLORES, acting(SAC, random_for(lambda n, size: n), **BOX)),
    "SAC never draws": (
        EXPLORES, acting(SAC, lambda algo, learner, n: algo.random_at_first(Deaf(Sampling(learner.actor), lambda key: None), n), **BOX)
    ),
    "discrete SAC acts by another network": (
        EXPLORES, acting(SAC, lambda algo, learner, n: algo.random_at_first(Sampling(jax.tree.map(lambda x: 3 * x, learner.actor)), n))
    ),
    "iterations are taken for env steps in epsilon": (EXPLORES, acting(DQN, epsilon_of(lambda n, size: n))),
    "epsilon falls at once": (EXPLORES, acting(DQN, epsilon_of(lambda n, size: 1e9))),
    "the variance in the place of the noise's deviation": (
        EXPLORES, acting(TD3, noisy(lambda algo, actor: Noisy(actor, GaussianNoise(algo.hp.exploration_noise**2), algo.spaces[1])), **BOX)
    ),
    "one noise for all environments": (EXPLORES, acting(TD3, noisy(one_for_all), **BOX)),
    "it explores without a key": (
        KEYLESS, acting(DQN, lambda algo, learner, n: Deaf(DQN.behaviour(algo, learner, n), one_of_its_own))
    ),
    "it acts by another network": (
        KEYLESS, acting(DQN, lambda algo, learner, n: EpsilonGreedy(jax.tree.map(lambda x: -x, learner.q), jnp.float32(0.1)))
    ),
    "without a key it draws a key": (
        KEYLESS, acting(SAC, lambda algo, learner, n: Deaf(SAC.behaviour(algo, learner, n), one_of_its_own), **BOX)
    ),
}  # fmt: skip
