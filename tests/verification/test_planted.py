"""Mistakes that people make in parts of their own, each in a few lines, and the law that must find it: `planted.md` is the table."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import broken_parts as broken
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from broken_parts import after, but, gae, of_rollout, of_state, of_transitions
from helpers import sampled
from laws import judged_by
from planted_off_policy import BEHAVIOURS, BOX, CRITICS, TQC, UPDATES, Q, Soft

from eqxrl import GAE, EvalMetrics, MinibatchLearner, PPOLoss
from eqxrl._typing import Scalar, field
from eqxrl.advantages import next_values
from eqxrl.envs import NeverReset, ResetWhenDone
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.learners import init_learner_state
from eqxrl.losses import AbstractLoss
from eqxrl.nn import (
    Categorical,
    DiagGaussian,
    evaluate,
)  # fmt: skip
from eqxrl.spaces import sample

# Losses: PPO's, written out, with another term in the place of one.


def surrogate(ratio, a, eps, log_prob):
    return -jnp.mean(jnp.minimum(ratio * a, jnp.clip(ratio, 1 - eps, 1 + eps) * a))


def value_loss(value, old, targets, eps):
    near = old + jnp.clip(value - old, -eps, eps)
    return 0.5 * jnp.mean(jnp.maximum((value - targets) ** 2, (near - targets) ** 2))


class Written(AbstractLoss):
    surrogate: Callable = eqx.field(static=True, default=surrogate)
    value_loss: Callable = eqx.field(static=True, default=value_loss)
    bonus: Callable = eqx.field(static=True, default=lambda distribution, t: jnp.mean(distribution.entropy()))
    log_ratio: Callable = eqx.field(static=True, default=lambda new, old: new - old)
    standard: Callable = eqx.field(static=True, default=lambda a: (a - jnp.mean(a)) / (jnp.std(a) + 1e-8))
    kl: Callable = eqx.field(static=True, default=lambda log_ratio, new: jnp.mean(jnp.exp(log_ratio) - 1 - log_ratio))
    clip_eps: Scalar = field(default=0.2)
    vf_coef: Scalar = field(default=0.5)
    ent_coef: Scalar = field(default=0.01)
    clip_value: bool = field(default=True)

    def __call__(self, agent, minibatch):
        t = minibatch.trajectories
        distribution, value = evaluate(agent, minibatch)
        log_prob = distribution.log_prob(t.action)
        log_ratio = self.log_ratio(log_prob, t.log_prob)
        policy = self.surrogate(jnp.exp(log_ratio), self.standard(minibatch.advantages), self.clip_eps, log_prob)
        critic = self.value_loss(value, t.value, minibatch.targets, self.clip_eps)
        loss = policy + self.vf_coef * critic - self.ent_coef * self.bonus(distribution, t)
        return loss, dict(policy_loss=policy, value_loss=critic, approx_kl=self.kl(log_ratio, log_prob))

    def at_step(self, num_updates):
        return self


def squared(change):
    """Without clipping, of what `change` makes of the value and its target."""
    return lambda value, old, targets, eps: 0.5 * jnp.mean(jnp.square(change(value, targets)))


def clipped_value(worse, around=lambda value, old, targets: old):
    def term(value, old, targets, eps):
        middle = around(value, old, targets)
        near = middle + jnp.clip(value - middle, -eps, eps)
        return 0.5 * jnp.mean(worse((value - targets) ** 2, (near - targets) ** 2))

    return term


BETTER, CLIPPED, VALUES, ENTROPY = (
    "better actions become likelier", "the surrogate is clipped", "values go to their own targets", "entropy grows",
)  # fmt: skip
LOSSES = {
    "the entropy is added to the loss": (ENTROPY, Written(bonus=lambda d, t: -jnp.mean(d.entropy()))),
    "the entropy is estimated by -log_prob of the samples": (ENTROPY, Written(bonus=lambda d, t: -jnp.mean(d.log_prob(t.action)))),
    "the entropy has no gradient": (ENTROPY, Written(bonus=lambda d, t: jax.lax.stop_gradient(jnp.mean(d.entropy())))),
    "max for min in the surrogate": (CLIPPED, Written(lambda r, a, e, lp: -jnp.mean(jnp.maximum(r * a, jnp.clip(r, 1 - e, 1 + e) * a)))),
    "only the clipped term, no minimum": (CLIPPED, Written(lambda r, a, e, lp: -jnp.mean(jnp.clip(r, 1 - e, 1 + e) * a))),
    "no clipping at all": (CLIPPED, Written(lambda r, a, e, lp: -jnp.mean(r * a))),
    "clipped around 0 in place of 1": (CLIPPED, Written(lambda r, a, e, lp: -jnp.mean(jnp.minimum(r * a, jnp.clip(r, -e, e) * a)))),
    "the log-ratio is clipped as if it were the ratio": (
        CLIPPED, Written(lambda r, a, e, lp: -jnp.mean(jnp.minimum(r * a, jnp.exp(jnp.clip(jnp.log(r), 1 - e, 1 + e)) * a)))
    ),
    "the ratio without exp": (CLIPPED, Written(lambda r, a, e, lp: surrogate(1 + jnp.log(r), a, e, lp))),
    "the ratio upside down": (BETTER, Written(log_ratio=lambda new, old: old - new)),
    "the surrogate's sign": (BETTER, Written(lambda r, a, e, lp: -surrogate(r, a, e, lp))),
    "the new log-prob has no gradient": (BETTER, Written(log_ratio=lambda new, old: jax.lax.stop_gradient(new) - old)),
    "advantages [batch 1] times ratios [batch]": (BETTER, Written(lambda r, a, e, lp: -jnp.mean(r[None] * (1 + a)[:, None]))),
    "the ratio of the whole batch": (BETTER, Written(lambda r, a, e, lp: surrogate(jnp.mean(r), jnp.mean(a + 0.1), e, lp))),
    "absolute advantages": (BETTER, Written(lambda r, a, e, lp: surrogate(r, jnp.abs(a), e, lp))),
    "no epsilon in standardising": (BETTER, Written(standard=lambda a: (a - jnp.mean(a)) / jnp.std(a))),
    "a value loss of [batch] against [batch 1]": (VALUES, Written(value_loss=squared(lambda v, t: v[None] - t[:, None]))),
    "min for max in value clipping": (VALUES, Written(value_loss=clipped_value(jnp.minimum))),
    "values clipped around their targets": (VALUES, Written(value_loss=clipped_value(jnp.maximum, lambda v, old, t: t))),
    "the value has no gradient": (VALUES, Written(value_loss=squared(lambda v, t: jax.lax.stop_gradient(v) - t))),
    "the value is pushed off its target": (VALUES, Written(value_loss=lambda *x: -value_loss(*x))),
    "values are pulled to the batch's mean target": (VALUES, Written(value_loss=squared(lambda v, t: v - jnp.mean(t)))),
    "a sum over the minibatch": ("a mean over samples", Written(value_loss=lambda v, *x: v.size * value_loss(v, *x))),
    "the divergence of the new policy from nothing": (CLIPPED, Written(kl=lambda log_ratio, new: -jnp.mean(new))),
}  # fmt: skip

# Advantages


def of_step(following=next_values, gamma=0.99, decay=0.99 * 0.95, targets=lambda a, t: a + t.value):
    """Claims to be GAE by its numbers."""

    def estimate(rollout, last_value):
        t = rollout.trajectories
        delta = t.reward + gamma * following(t, last_value) - t.value
        advantages, _ = broken.recursion(delta, jnp.where(t.done, 0.0, decay), t.value)
        return advantages, targets(advantages, t)

    return Claims(estimate)


class Claims(broken.AbstractAdvantage):
    estimate: Callable = eqx.field(static=True)
    gamma: Scalar = field(default=0.99)
    gae_lambda: Scalar = field(default=0.95)

    def __call__(self, rollout, last_value):
        return self.estimate(rollout, last_value)


def no_last_value(t, last_value):
    return next_values(t, jnp.zeros_like(last_value))


def late_done(t):
    return jnp.concatenate([t.done[:1] & False, t.done[:-1]])


def forwards(rollout, last_value):
    flipped = eqx.tree_at(lambda r: r.trajectories.reward, rollout, rollout.trajectories.reward[::-1])
    return tuple(x[::-1] for x in GAE()(flipped, last_value))


CUT, APART = "cut at episode ends", "environments apart"
ADVANTAGES = {
    "the trace isn't cut where truncated": (CUT, gae(cut=lambda t: t.terminated)),
    "the trace isn't cut at all": (CUT, gae(cut=lambda t: t.done & False)),
    "done is that of the step before": (CUT, gae(cut=late_done)),
    "bootstraps where terminated and truncated": (CUT, gae(following=broken.bootstraps_always)),
    "time limits are terminations": ("a cut-off is bootstrapped", gae(following=broken.no_bootstrap)),
    "standardised over the environments": (APART, after(lambda a, g, _: ((a - a.mean()) / (a.std() + 1e-8), g))),
    "a baseline that is the mean over environments": (APART, after(lambda a, g, _: (a - a.mean(axis=1, keepdims=True), g))),
    "nothing follows the last step": ("GAE", of_step(no_last_value)),
    "lambda is forgotten": ("GAE", of_step(decay=0.99)),
    "gamma is forgotten in the trace": ("GAE", of_step(decay=0.95)),
    "targets without the value": ("GAE", of_step(targets=lambda a, t: a)),
    "the value of the same step follows": ("GAE", of_step(lambda t, last: jnp.where(t.terminated, 0.0, t.value))),
    "rewards in the wrong order of time": ("GAE", Claims(forwards)),
}  # fmt: skip

# Collectors


class SameStart(broken.AbstractStepper):
    """Every episode after the first opens with the same key."""

    def init(self, env, env_params, keys):
        return ResetWhenDone().init(env, env_params, keys)

    def step(self, env, env_params, keys, env_state, reset_state, action):
        after = NeverReset().step(env, env_params, keys, env_state, reset_state, action)
        first = jax.vmap(lambda _: env.reset(jax.random.key(0), env_params))(jnp.arange(keys.shape[1]))
        new = lambda a, b: jnp.where(after.done.reshape(-1, *[1] * (a.ndim - 1)), b, a)  # noqa: E731
        obs, state = jax.tree.map(new, (after.obs, after.env_state), first)
        return dataclasses.replace(after, obs=obs, env_state=state)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


class DeafInit(broken.AbstractStepper):
    """The seed makes no difference."""

    def init(self, env, env_params, keys):
        return ResetWhenDone().init(env, env_params, jax.random.split(jax.random.key(0), len(keys)))

    def step(self, *args):
        return ResetWhenDone().step(*args)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


def stepping(stepper):
    return broken.Collector(lambda env, p, agent, states, r: (states[1], r), stepper=stepper)


def scaled_returns(env, env_params, agent, states, rollout):
    return states[1], eqx.tree_at(lambda r: r.episodes.total_return, rollout, replace_fn=lambda x: 0.1 * x)


def mode_log_prob(t, env, env_params, agent):
    return jax.vmap(jax.vmap(lambda o: (d := agent(o, ())[0]).log_prob(d.mode())))(t.obs)


def no_flags(t, *_):
    return jnp.zeros_like(t.terminated)


FLAGS, STEPS, OWN, START = "flags", "steps follow one another", "rewards are their step's", "environments start differently"
REPLAYED, GO_ON, COUNTED = "log-probs and values are the policy's", "rollouts go on", "episodes are counted"
COLLECTORS = {
    "truncation is reported as termination": (FLAGS, of_rollout(terminated=lambda t, *_: t.done, truncated=no_flags)),
    "termination is reported as truncation": (FLAGS, of_rollout(truncated=lambda t, *_: t.done, terminated=no_flags)),
    "truncated isn't kept where terminated": (FLAGS, of_rollout(truncated=lambda t, *_: t.truncated & ~t.terminated)),
    "flags are those of the next step": (FLAGS, of_rollout(terminated=lambda t, *_: jnp.roll(t.terminated, -1, axis=0))),
    "every environment's first flag": (FLAGS, of_rollout(terminated=lambda t, *_: jnp.broadcast_to(t.terminated[:, :1], t.done.shape))),
    "the observation after the reset is valued": ("final values where cut off", broken.COLLECTORS["final value after the reset"]),
    "final observations aren't valued": ("final values where cut off", broken.COLLECTORS["no final value"]),
    "final values where terminated, too": ("final values where cut off", of_rollout(final_value=lambda t, *_: t.done * (1.0 + t.value))),
    "the clipped action with the other one's log-prob": (REPLAYED, broken.COLLECTORS["stores clipped actions"]),
    "the log-prob of the likeliest action": (REPLAYED, of_rollout(log_prob=mode_log_prob)),
    "the value of the next observation": (REPLAYED, broken.COLLECTORS["value of the next step"]),
    "the clipped action is stored": ("actions are stored unclipped", broken.COLLECTORS["stores clipped actions consistently"]),
    "the environment gets actions unclipped": (STEPS, broken.COLLECTORS["gives actions unclipped"]),
    "[envs steps] reshaped to [steps envs]": (STEPS, broken.COLLECTORS["interleaves time"]),
    "the observation after the step is stored": (STEPS, of_rollout(obs=lambda t, *_: jnp.roll(t.obs, -1, axis=0))),
    "episodes never start anew": (STEPS, stepping(NeverReset())),
    "another action is stored than was taken": (STEPS, of_rollout(action=lambda t, *_: t.action[:, ::-1])),
    "the reward of the step before": (OWN, of_rollout(reward=lambda t, *_: jnp.roll(t.reward, 1, axis=0))),
    "another environment's reward": (OWN, of_rollout(reward=lambda t, *_: jnp.roll(t.reward, 1, axis=1))),
    "the last reward of an episode is lost": (OWN, of_rollout(reward=lambda t, *_: jnp.where(t.done, 0.0, t.reward))),
    "all environments start with one key": (START, broken.COLLECTORS["environments alike"]),
    "every episode starts with the same key": (START, stepping(SameStart())),
    "the seed isn't looked at": (START, stepping(DeafInit())),
    "the key isn't passed on": (GO_ON, broken.COLLECTORS["collects the same again"]),
    "the environments' state isn't passed on": (
        GO_ON, of_state(env_state=lambda old, new: old.env_state, last_obs=lambda old, new: old.last_obs)
    ),
    "returns in scaled rewards": (COUNTED, broken.Collector(scaled_returns)),
    "lengths aren't recounted where an episode ended": (COUNTED, of_state(episode_length=lambda old, new: old.episode_length + 11)),
}  # fmt: skip

TRANSITIONS = {
    "next_obs after the reset": ("next_obs is what the step led to", broken.TRANSITIONS["next_obs after the reset"]),
    "next_obs is obs": ("next_obs is what the step led to", broken.TRANSITIONS["next_obs is obs"]),
    "done is stored as terminated": (FLAGS, of_transitions(terminated=lambda t, state: t.done)),
    "transitions: the reward of the step before": (OWN, broken.TRANSITIONS["reward of the step before"]),
}

# Learners


class ThrowsAway(broken.AbstractLearner):
    """The optimiser's state, before (`first`) or after learning."""

    first: bool = eqx.field(static=True)
    inner: MinibatchLearner = MinibatchLearner(PPOLoss(), optax.adam(1e-2), 2, 3)
    num_minibatches: int = eqx.field(static=True, default=3)

    def init(self, agent):
        return self.inner.init(agent)

    def __call__(self, agent, state, rollout, key):
        old = init_learner_state(self.inner.optimizer, agent).opt_state if self.first else state.opt_state
        after, new, metrics = self.inner(agent, dataclasses.replace(state, opt_state=old), rollout, key)
        return after, new if self.first else dataclasses.replace(new, opt_state=old), metrics


def only_actor(old, new):
    """The critic's gradient is never applied."""
    return eqx.tree_at(lambda a: a.actor_critic.critic, new[0], old[0].actor_critic.critic), *new[1:]


def first_half_of_epochs(old, new):
    return new[0], dataclasses.replace(new[1], num_updates=old[1].num_updates), new[2]


def with_replacement(keys, epoch, n):
    return jax.random.randint(keys[epoch], (n,), 0, n)


class FromTheStart(broken.AbstractLearner):
    """Each epoch begins with the policy that collected, so that only the last one counts."""

    inner: MinibatchLearner = MinibatchLearner(PPOLoss(), optax.adam(1e-2), 1, 3)
    num_minibatches: int = eqx.field(static=True, default=3)

    def init(self, agent):
        return self.inner.init(agent)

    def __call__(self, agent, state, rollout, key):
        for k in jax.random.split(key):
            after, state, metrics = self.inner(agent, state, rollout, k)
        return after, state, metrics


ONCE, ADAM = "each sample once per epoch", "the optimiser goes on"
LEARNERS = {
    "the optimiser's state is thrown away at each rollout": (ADAM, ThrowsAway(True)),
    "the optimiser's new state isn't returned": (ADAM, ThrowsAway(False)),
    "the last sample is left out": (ONCE, broken.LEARNERS["drops a sample"]),
    "half of the minibatches are left out": (ONCE, broken.LEARNERS["half of the samples"]),
    "samples are drawn with replacement": (ONCE, broken.LoopLearner(with_replacement)),
    "one permutation for all epochs": ("epochs in different orders", broken.LEARNERS["one permutation"]),
    "samples are never shuffled": ("epochs in different orders", broken.LEARNERS["no permutation"]),
    "advantages are shuffled apart": ("samples whole", broken.LEARNERS["shuffles advantages apart"]),
    "statistics are updated before learning": ("ratio 1 before the first update", broken.LEARNERS["statistics updated first"]),
    "statistics are trained": ("learned", broken.LEARNERS["trains statistics"]),
    "the critic never learns": ("learned", broken.Learner(after=only_actor)),
    "the old policy is returned": ("learned", broken.LEARNERS["learns nothing"]),
    "updates aren't counted": ("learned", broken.Learner(after=first_half_of_epochs)),
    "a key is used for two epochs": ("keys used once", broken.LEARNERS["uses a key twice"]),
    "each epoch begins with the old policy": (None, FromTheStart()),
}

# Evaluators: a loop over a fixed number of steps, with something changed in it.


class Plays(AbstractEvaluator):
    choose: Callable = eqx.field(static=True, default=lambda policy, obs, key, space: policy(obs, (), None)[0])
    count: Callable = eqx.field(static=True, default=lambda t, going, reward: jnp.where(going, reward, 0.0))
    over: Callable = eqx.field(static=True, default=lambda terminated, truncated: terminated | truncated)
    report: Callable = eqx.field(static=True, default=lambda lengths, returns: (lengths, returns))
    keys: Callable = eqx.field(static=True, default=lambda key: jax.random.split(key, 5))

    def __call__(self, env, env_params, policy, key):
        reset_key, step_key = jax.random.split(key)
        obs, state = jax.vmap(lambda k: env.reset(k, env_params))(self.keys(reset_key))

        def step(carry, it):
            (obs, state, going), (t, key) = carry, it
            act_key, key = jax.random.split(key)
            action = self.choose(policy, obs, act_key, env.action_space(env_params))
            keys = jax.random.split(key, 5)
            obs, state, reward, terminated, truncated, _ = jax.vmap(lambda *a: env.step(*a, env_params))(keys, state, action)
            counted = self.count(t, going, reward)
            return (obs, state, going & ~self.over(terminated, truncated)), (going.astype(jnp.int32), counted)

        its = jnp.arange(7), jax.random.split(step_key, 7)
        _, (lengths, returns) = jax.lax.scan(step, (obs, state, jnp.ones(5, bool)), its)
        return EvalMetrics(*self.report(lengths.sum(0), returns.sum(0)))


def best_alone(lengths, returns):
    best = jnp.argmax(returns)
    return lengths[best][None], returns[best][None]


PLAYED, PICKED = "episodes as played", "neither picked nor repeated"
EVALUATORS = {
    "it plays at random": (PLAYED, Plays(lambda p, obs, key, space: jax.vmap(lambda k: sample(space, k))(jax.random.split(key, 5)))),
    "it explores as in training": (PLAYED, Plays(lambda p, obs, key, space: p(obs, (), key)[0])),
    "it always takes the same action": (PLAYED, Plays(lambda p, obs, key, space: jnp.zeros(5, jnp.int32))),
    "rewards after the end count": (PLAYED, Plays(count=lambda t, going, reward: reward)),
    "the last reward doesn't count": (PLAYED, broken.Evaluator(lambda going, reward: jnp.where(going, reward, 0.0), num_steps=6)),
    "the first reward doesn't count": (PLAYED, Plays(count=lambda t, going, reward: jnp.where(going & (t > 0), reward, 0.0))),
    "returns are discounted": (PLAYED, Plays(count=lambda t, going, reward: jnp.where(going, 0.9**t * reward, 0.0))),
    "an episode goes on where it is cut off": (PLAYED, Plays(over=lambda terminated, truncated: terminated)),
    "the best return in the place of all": (PLAYED, Plays(report=lambda n, r: (n, jnp.full_like(r, r.max())))),
    "the mean in the place of episodes": (PLAYED, Plays(report=lambda n, r: (n[:1], r.mean()[None]))),
    "only the best episode is reported": (PICKED, Plays(report=best_alone)),
    "all episodes start with one key": (PICKED, Plays(keys=lambda key: jnp.broadcast_to(key, (5,)))),
}  # fmt: skip

# Networks, distributions


def detached(logits, value):
    return Categorical(jax.lax.stop_gradient(logits)), value


def tanh_of(normal):
    """Squashed to ±1, with the log-prob of what it was before."""
    return but(
        normal,
        sample=lambda d, key: jnp.tanh(d.sample(key)),
        log_prob=lambda d, a: d.log_prob(jnp.arctanh(a)),
        mode=lambda d: jnp.tanh(d.mode()),
    )


def mean_over_dims(d, a):
    return d.log_prob(a) / 2


NORMAL, CHOICE = broken.GAUSSIAN, broken.CATEGORICAL
FREQUENT = "samples are as frequent as log_prob says"
POLICIES = {
    "a layer that is never called": ("every number is used", broken.POLICIES["idle layer"]),
    "the policy's outputs have no gradient": ("every number is used", broken.policy(detached)),
    "the value is [1]": ("fits the spaces", broken.POLICIES["value not a scalar"]),
    "one action too few": ("fits the spaces", broken.POLICIES["too few actions"]),
    "a square root of 0": ("finite", broken.POLICIES["root of 0"]),
    "Python's random numbers": ("pure", broken.POLICIES["Python's state"]),
    "probabilities in the place of logits": (None, broken.policy(lambda logits, value: (Categorical(jax.nn.softmax(logits)), value))),
}
DISTRIBUTIONS = {
    "squashed without the Jacobian": (FREQUENT, tanh_of(DiagGaussian(jnp.array([0.3]), jnp.array([-0.4]), (1,)))),
    "logits that aren't normalised": (FREQUENT, broken.DISTRIBUTIONS["not normalised"]),
    "a mean over dimensions in log_prob": (FREQUENT, but(NORMAL, log_prob=mean_over_dims)),
    "every sample is the same": (FREQUENT, but(NORMAL, sample=lambda d, key: d.sample(jax.random.key(0)))),
    "uniform samples": (FREQUENT, but(CHOICE, sample=lambda d, key: jax.random.randint(key, (), 0, 3))),
    "the variance in the place of the deviation": (FREQUENT, broken.DISTRIBUTIONS["variance for deviation"]),
    "no log_std in log_prob": (FREQUENT, broken.DISTRIBUTIONS["no change of scale"]),
    "the entropy without its constant": ("entropy = -mean log_prob", broken.DISTRIBUTIONS["entropy without e"]),
    "the entropy in bits": ("entropy = -mean log_prob", but(CHOICE, entropy=lambda d: d.entropy() / jnp.log(2.0))),
    "argmin for argmax": ("the mode is likeliest", broken.DISTRIBUTIONS["mode"]),
}  # fmt: skip

# Buffers, steppers

BUFFERS = {
    "rows are drawn that weren't filled": ("the newest rows", broken.BUFFERS["samples what isn't filled"]),
    "the newest rows are overwritten": ("the newest rows", broken.BUFFERS["keeps the oldest"]),
    "an index for each array": ("whole rows", broken.BUFFERS["rows mixed"]),
    "one array is written in another order": ("whole rows", broken.BUFFERS["rows mixed when added"]),
    "the same key for each batch": ("uniform", broken.BUFFERS["one key"]),
    "the last row is never drawn": (
        "uniform", broken.Buffer(change_sample=lambda b, s, key: broken._draw(s, jax.random.randint(key, (16,), 0, s.size.clip(2) - 1)))
    ),
}  # fmt: skip
STEPPERS = {
    "the final observation is the one after the reset": ("next_obs is what the step led to", broken.STEPPERS["final_obs after the reset"]),
    "truncation is dropped": (FLAGS, broken.STEPPERS["truncation dropped"]),
    "the new episode opens where the old one ended": (STEPS, broken.STEPPERS["obs before the reset"]),
    "all episodes open in one state": (START, broken.STEPPERS["one first state"]),
}

FAMILIES = dict(
    LOSSES=LOSSES, ADVANTAGES=ADVANTAGES, COLLECTORS=COLLECTORS, TRANSITIONS=TRANSITIONS, LEARNERS=LEARNERS, EVALUATORS=EVALUATORS,
    POLICIES=POLICIES, DISTRIBUTIONS=DISTRIBUTIONS, BUFFERS=BUFFERS, STEPPERS=STEPPERS, UPDATES=UPDATES,
    CRITICS=CRITICS, BEHAVIOURS=BEHAVIOURS,
)  # fmt: skip
PLANTED = [(family, what) for family, planted in FAMILIES.items() for what in planted]


@pytest.mark.parametrize("family, what", sampled(PLANTED, every=6), ids=str)
def test_the_law_that_is_meant_for_it_finds_it(family, what):
    law, part = FAMILIES[family][what]
    if family == "UPDATES":
        part = Q, part
    failed = {check.name: check.detail for check in judged_by(family, part, law) if check.status == "failed"}
    assert failed.keys() == ({law} if law else set()), failed


@pytest.mark.parametrize(
    "family, what",
    [("LOSSES", "the entropy is added to the loss"), ("ADVANTAGES", "lambda is forgotten"), ("BUFFERS", "the same key for each batch"),
     ("DISTRIBUTIONS", "squashed without the Jacobian")],
)  # fmt: skip
def test_without_its_law_it_would_pass_unnoticed(family, what):
    law, part = FAMILIES[family][what]
    assert [check.name for check in judged_by(family, part) if check.status == "failed"] == [law]


def test_the_table_is_this_one():
    rows = re.findall(r"^\| (\w+) \| (.+) \| (.+) \|$", Path(__file__).with_name("planted.md").read_text(), re.MULTILINE)[1:]
    assert [(family, what, law) for family, what, law in rows] == [
        (family.lower(), what, FAMILIES[family][what][0] or "**not caught**") for family, what in PLANTED
    ]


def test_the_written_parts_are_right_without_a_change():
    """So it is the change that is found."""
    for family, part in (("LOSSES", Written()), ("ADVANTAGES", of_step()), ("EVALUATORS", Plays()), ("UPDATES", (Q, {})),
                         ("CRITICS", (Soft, BOX)), ("CRITICS", (Soft, TQC))):
        assert [str(check) for check in judged_by(family, part) if check.status == "failed"] == []
