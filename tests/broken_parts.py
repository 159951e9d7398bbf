"""Parts that are broken on purpose, each in one way: what `eqxrl.verify` and `eqxrl.testing` must find out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from eqxrl import (
    GAE,
    AbstractAdvantage,
    AbstractCollector,
    AbstractEvaluator,
    AbstractLearner,
    AbstractLoss,
    EvalMetrics,
    MinibatchLearner,
    PPOLoss,
    RolloutCollector,
    TransitionCollector,
    UniformBuffer,
)
from eqxrl.advantages import next_values
from eqxrl.buffers import AbstractBuffer, Drawn
from eqxrl.envs import AbstractStepper, AbstractWrapper, ResetWhenDone
from eqxrl.learners import LearnerState, flatten, gradient_update, init_learner_state, swap_or_not
from eqxrl.nn import AbstractActorCritic, AbstractDistribution, Categorical, DiagGaussian, observe
from eqxrl.spaces import Box, Discrete, as_space, to_env_action

# Advantages


class Advantage(AbstractAdvantage):
    """Whatever `estimate(rollout, last_value)` says; it claims to be GAE if it is given a gamma."""

    estimate: Callable = eqx.field(static=True)

    def __call__(self, rollout, last_value):
        return self.estimate(rollout, last_value)


class Claimed(AbstractAdvantage):
    """GAE by its fields, one-step by what it does."""

    gamma: jax.Array
    gae_lambda: jax.Array

    def __call__(self, rollout, last_value):
        targets = rollout.trajectories.reward + self.gamma * next_values(rollout.trajectories, last_value)
        return targets - rollout.trajectories.value, targets


def recursion(delta, decay, value):
    def backwards(advantage, step):
        advantage = step[0] + step[1] * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantages, advantages + value


def gae(cut=lambda t: t.done, following=next_values):
    """GAE with another idea of where to cut, or of which value follows."""

    def estimate(rollout, last_value):
        t = rollout.trajectories
        delta = t.reward + 0.99 * following(t, last_value) - t.value
        return recursion(delta, jnp.where(cut(t), 0.0, 0.99 * 0.95), t.value)

    return Advantage(estimate)


def no_bootstrap(t, last_value):
    return jnp.where(t.done, 0.0, jnp.concatenate([t.value[1:], last_value[None]]))


def bootstraps_always(t, last_value):
    following = jnp.where(t.truncated, t.final_value, jnp.concatenate([t.value[1:], last_value[None]]))
    return jnp.where(t.terminated & ~t.truncated, 0.0, following)


def after(change):
    """GAE, and then `change(advantages, targets, rollout)`."""
    return Advantage(lambda rollout, last_value: change(*GAE()(rollout, last_value), rollout))


COUNTER = iter(range(10**9))  # the state of something that isn't pure

ADVANTAGES = {
    "leaks over truncation": gae(cut=lambda t: t.terminated),
    "done one step late": gae(cut=lambda t: jnp.concatenate([t.done[:1] & False, t.done[:-1]])),
    "no bootstrap": gae(following=no_bootstrap),
    "bootstraps where it terminated": gae(following=bootstraps_always),
    "mixes environments": after(lambda a, g, _: (a - a.mean(axis=1, keepdims=True), g)),
    "axes swapped": after(lambda a, g, _: (a.T, g.T)),
    "one environment's": after(lambda a, g, _: (a[:, 0], g[:, 0])),
    "no tuple": after(lambda a, g, _: a),
    "not what it claims": Claimed(jnp.float32(0.99), jnp.float32(0.95)),
    "root of 0": after(lambda a, g, r: (a + 0 * jnp.sqrt(0 * a), g)),
    "Python's state": after(lambda a, g, _: (a + next(COUNTER), g)),
    "only compiled": after(lambda a, g, _: (a + isinstance(a, jax.core.Tracer), g)),
    "NaN": after(lambda a, g, _: (a + jnp.log(-jnp.ones_like(a)), g)),
}


@jax.custom_batching.custom_vmap
def wrong_under_vmap(x):
    return x


@wrong_under_vmap.def_vmap
def _(axis_size, in_batched, x):
    return x[::-1], in_batched[0]


ADVANTAGES["mixes a batch"] = after(lambda a, g, _: (wrong_under_vmap(a), g))


# Losses


class Loss(AbstractLoss):
    """PPO's, changed."""

    change: Callable = eqx.field(static=True)
    """(agent, minibatch, loss, metrics) -> (loss, metrics)"""
    before: Callable = eqx.field(static=True, default=lambda agent, minibatch: (agent, minibatch))
    loss: PPOLoss = PPOLoss()

    def __call__(self, agent, minibatch):
        agent, minibatch = self.before(agent, minibatch)
        return self.change(agent, minibatch, *self.loss(agent, minibatch))

    def at_step(self, num_updates):
        return self


class BadStep(AbstractLoss):
    """Grows a coefficient where it had none."""

    coefficient: Any = None

    def __call__(self, agent, minibatch):
        return PPOLoss()(agent, minibatch)

    def at_step(self, num_updates):
        return BadStep(jnp.zeros((num_updates.item() + 1,)))


class DeadClip(AbstractLoss):
    """PPO's with a clip range that it doesn't look at."""

    clip_eps: jax.Array
    vf_coef: jax.Array

    def __call__(self, agent, minibatch):
        return PPOLoss(vf_coef=self.vf_coef)(agent, minibatch)

    def at_step(self, num_updates):
        return self


def metric(**change):
    return Loss(lambda agent, m, loss, metrics: (loss, metrics | {k: f(metrics) for k, f in change.items()}))


def _neighbours(agent, m, loss, metrics):
    return loss + 1e-2 * jnp.mean(m.advantages[1:] * m.advantages[:-1]), metrics


LOSSES = {
    "no metrics": Loss(lambda agent, m, loss, metrics: loss),
    "not a scalar": Loss(lambda agent, m, loss, metrics: (loss[None], metrics)),
    "a sum": Loss(lambda agent, m, loss, metrics: (loss * m.advantages.size, metrics)),
    "looks at neighbours": Loss(_neighbours),
    "the sign": Loss(lambda agent, m, loss, metrics: (-loss, metrics)),
    "KL's sign": metric(approx_kl=lambda metrics: metrics["approx_kl"] + 0.1),
    "metric of each sample": metric(entropy=lambda metrics: jnp.broadcast_to(metrics["entropy"], (2,))),
    "gradient stopped": Loss(lambda agent, m, loss, metrics: (jax.lax.stop_gradient(loss), metrics)),
    "NaN": Loss(lambda agent, m, loss, metrics: (loss + jnp.log(-1.0), metrics)),
    "Python's state": Loss(lambda agent, m, loss, metrics: (loss + next(COUNTER), metrics)),
    "at_step": BadStep(),
}


# Learners


class Learner(AbstractLearner):
    """Minibatches as they should be, but for what comes before and after."""

    before: Callable = eqx.field(static=True, default=lambda agent, rollout: (agent, rollout))
    after: Callable = eqx.field(static=True, default=lambda old, new: new)
    """(arguments, result) -> result"""
    learner: MinibatchLearner = MinibatchLearner(PPOLoss(), optax.adam(1e-2), 2, 3)

    @property
    def num_minibatches(self):
        return self.learner.num_minibatches

    @property
    def optimizer(self):
        return self.learner.optimizer

    def init(self, agent):
        return self.learner.init(agent)

    def __call__(self, agent, state, rollout, key):
        changed = self.before(agent, rollout)
        return self.after((agent, state, rollout, key), self.learner(changed[0], state, changed[1], key))


class Idle(AbstractLearner):
    """Learns nothing, and so compiles at once: for what doesn't depend on learning."""

    num_minibatches: int = eqx.field(static=True, default=1)

    def init(self, agent):
        return LearnerState(opt_state=(), num_updates=jnp.zeros((), jnp.int32))

    def __call__(self, agent, state, rollout, key):
        return agent, state, {"grad_norm": jnp.zeros((), jnp.float32)}


class LoopLearner(AbstractLearner):
    """Two epochs of three minibatches; `indices(epoch_keys, epoch, n)` says which samples, `shuffle` how a sample is put
    together."""

    indices: Callable = eqx.field(static=True)
    shuffle: Callable = eqx.field(static=True, default=lambda samples, indices: jax.tree.map(lambda x: x[indices], samples))
    loss: AbstractLoss = PPOLoss()
    optimizer: Any = optax.adam(1e-2)
    num_minibatches: int = eqx.field(static=True, default=3)

    def init(self, agent):
        return init_learner_state(self.optimizer, agent)

    def __call__(self, agent, state, rollout, key):
        samples = flatten(rollout)
        n = rollout.advantages.size
        keys = jax.random.split(key, 2)
        arrays, static = eqx.partition(agent, eqx.is_array)

        def update(carry, indices):
            agent, state = eqx.combine(carry[0], static), carry[1]
            agent, state, metrics = gradient_update(self.loss, self.optimizer, agent, state, self.shuffle(samples, indices))
            return (eqx.filter(agent, eqx.is_array), state), metrics

        order = jnp.stack([self.indices(keys, epoch, n) for epoch in range(2)])
        indices = order.reshape(2 * self.num_minibatches, -1)
        (arrays, state), metrics = jax.lax.scan(update, (arrays, state), indices)
        return eqx.combine(arrays, static), state, jax.tree.map(jnp.mean, metrics)


def _separately(samples, indices):
    whole = jax.tree.map(lambda x: x[indices], samples)
    return dataclasses.replace(whole, advantages=samples.advantages[indices[::-1]])


class OneStep(AbstractLearner):
    """As it should be: one gradient step on the whole rollout."""

    loss: AbstractLoss = PPOLoss()
    optimizer: Any = optax.sgd(1e-2)

    def init(self, agent):
        return init_learner_state(self.optimizer, agent)

    def __call__(self, agent, state, rollout, key):
        return gradient_update(self.loss, self.optimizer, agent, state, flatten(rollout))


class TrainsStatistics(AbstractLearner):
    """Every float is trained, the observations' statistics too."""

    loss: AbstractLoss = PPOLoss()
    num_minibatches: int = eqx.field(static=True, default=2)

    def init(self, agent):
        return LearnerState(opt_state=(), num_updates=jnp.zeros((), jnp.int32))

    def __call__(self, agent, state, rollout, key):
        params, static = eqx.partition(agent, eqx.is_inexact_array)
        for _ in range(2):
            value = jax.grad(lambda p: self.loss(eqx.combine(p, static), flatten(rollout)), has_aux=True)
            gradient, metrics = value(params)
            params = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradient)
        state = dataclasses.replace(state, num_updates=state.num_updates + 2)
        return eqx.combine(params, static), state, metrics | {"grad_norm": optax.tree.norm(gradient)}


def _twice(keys, epoch, n):
    return swap_or_not(keys[0], n)


def _drops_one(keys, epoch, n):
    order = swap_or_not(keys[epoch], n)
    return order.at[0].set(order[1])


def _uses_key_twice(keys, epoch, n):
    return swap_or_not(keys[epoch], n) + 0 * jax.random.randint(keys[epoch], (), 0, 2)


def _counts_nothing(old, new):
    return new[0], dataclasses.replace(new[1], num_updates=new[1].num_updates * 0), new[2]


def norm(change):
    return lambda old, new: (*new[:2], new[2] | {"grad_norm": change(new[2]["grad_norm"])})


LEARNERS = {
    "one permutation": LoopLearner(_twice),
    "no permutation": LoopLearner(lambda keys, epoch, n: jnp.arange(n)),
    "drops a sample": LoopLearner(_drops_one),
    "half of the samples": LoopLearner(lambda keys, epoch, n: swap_or_not(keys[epoch], n)[: n // 2]),
    "shuffles advantages apart": LoopLearner(lambda keys, epoch, n: swap_or_not(keys[epoch], n), _separately),
    "uses a key twice": LoopLearner(_uses_key_twice),
    "statistics updated first": Learner(lambda agent, rollout: (observe(agent, rollout.trajectories.obs), rollout)),
    "trains statistics": TrainsStatistics(),
    "learns nothing": Learner(after=lambda old, new: (old[0], *new[1:])),
    "counts nothing": Learner(after=_counts_nothing),
    "weakly typed": Learner(after=norm(lambda x: jnp.asarray(1.0))),
    "NaN": Learner(after=norm(lambda x: x + jnp.log(-1.0))),
    "negative norm": Learner(after=norm(lambda x: -x)),
    "Python's state": Learner(lambda agent, r: (agent, dataclasses.replace(r, advantages=r.advantages + next(COUNTER)))),
}


# Collectors


class Collector(AbstractCollector):
    """The rollout collector, and then `change(env, env_params, agent, (state, new state), rollout) -> (new state, rollout)`."""

    change: Callable = eqx.field(static=True)
    init_change: Callable = eqx.field(static=True, default=lambda state: state)
    stepper: AbstractStepper = ResetWhenDone()
    num_envs: int = eqx.field(static=True, default=4)
    num_steps: int = eqx.field(static=True, default=11)

    def init(self, env, env_params, agent, key):
        return self.init_change(self.inner.init(env, env_params, agent, key))

    @property
    def inner(self):
        return RolloutCollector(num_envs=self.num_envs, num_steps=self.num_steps, stepper=self.stepper)

    def __call__(self, env, env_params, agent, state):
        new, rollout = self.inner(env, env_params, agent, state)
        return self.change(env, env_params, agent, (state, new), rollout)


def of_rollout(**fields):
    """`field=f(trajectories, env, env_params, agent)` in the place of a trajectory's field."""

    def change(env, env_params, agent, states, rollout):
        t = rollout.trajectories
        new = dataclasses.replace(t, **{name: f(t, env, env_params, agent) for name, f in fields.items()})
        return states[1], dataclasses.replace(rollout, trajectories=new)

    return Collector(change)


def of_state(**fields):
    """`field=f(state before, state after)` in the place of a state's field."""

    def change(env, env_params, agent, states, rollout):
        return dataclasses.replace(states[1], **{name: f(*states) for name, f in fields.items()}), rollout

    return Collector(change)


def values(agent, obs):
    return jax.vmap(jax.vmap(lambda o: agent(o, ())[1]))(obs)


def log_probs(agent, obs, action):
    return jax.vmap(jax.vmap(lambda o, a: agent(o, ())[0].log_prob(a)))(obs, action)


def clipped(t, env, env_params, agent):
    return to_env_action(env.action_space(env_params), t.action)


def interleaved(x):
    return jnp.swapaxes(x, 0, 1).reshape(x.shape)


def _interleaves(env, env_params, agent, states, rollout):
    return states[1], dataclasses.replace(rollout, trajectories=jax.tree.map(interleaved, rollout.trajectories))


def _weak(state):
    return dataclasses.replace(state, episode_return=jnp.broadcast_to(jnp.asarray(0.0), state.episode_return.shape))


def _transposes(env, env_params, agent, states, rollout):
    swapped = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rollout.trajectories)
    return states[1], eqx.tree_at(lambda r: r.trajectories, rollout, swapped)


def _counts_all(env, env_params, agent, states, rollout):
    episodes = dataclasses.replace(rollout.episodes, total_length=rollout.episodes.total_length + 1)
    return states[1], dataclasses.replace(rollout, episodes=episodes)


class SameSeeds(AbstractStepper):
    """All environments open with the same key."""

    def init(self, env, env_params, keys):
        return ResetWhenDone().init(env, env_params, jnp.broadcast_to(keys[:1], keys.shape))

    def step(self, *args):
        return ResetWhenDone().step(*args)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


class Unclipped(AbstractWrapper):
    """An environment's action space, hidden from whoever would clip to it."""

    env: Any

    def action_space(self, params=None):
        space = as_space(self.env.action_space(params))
        return space if isinstance(space, Discrete) else Box(-1e9, 1e9, space.shape, space.dtype)

    def step(self, key, state, action, params=None):
        return self.env.step(key, state, action, params)

    def reset(self, key, params=None):
        return self.env.reset(key, params)


class NoClip(AbstractCollector):
    """Gives environments the actions as they were drawn."""

    num_envs: int = eqx.field(static=True, default=4)
    num_steps: int = eqx.field(static=True, default=11)

    def init(self, env, env_params, agent, key):
        return RolloutCollector(self.num_envs, self.num_steps).init(Unclipped(env), env_params, agent, key)

    def __call__(self, env, env_params, agent, state):
        return RolloutCollector(self.num_envs, self.num_steps)(Unclipped(env), env_params, agent, state)


def _reset_obs_value(t, env, env_params, agent):
    return jnp.where(t.truncated & ~t.terminated, jnp.concatenate([t.value[1:], t.value[:1]]), 0.0)


COLLECTORS = {
    "stores clipped actions": of_rollout(action=clipped),
    "stores clipped actions consistently": of_rollout(
        action=clipped, log_prob=lambda t, e, p, agent: log_probs(agent, t.obs, clipped(t, e, p, agent))
    ),
    "log-prob of the step before": of_rollout(log_prob=lambda t, *_: jnp.roll(t.log_prob, 1, axis=0)),
    "value of the next step": of_rollout(value=lambda t, *_: jnp.roll(t.value, -1, axis=0)),
    "final values everywhere": of_rollout(final_value=lambda t, *_: jnp.where(t.done, t.final_value, t.value)),
    "final value after the reset": of_rollout(final_value=_reset_obs_value),
    "no final value": of_rollout(final_value=lambda t, *_: jnp.zeros_like(t.value)),
    "reward of the step before": of_rollout(reward=lambda t, *_: jnp.roll(t.reward, 1, axis=0)),
    "done one step late": of_rollout(
        terminated=lambda t, *_: jnp.roll(t.terminated, 1, axis=0), truncated=lambda t, *_: jnp.roll(t.truncated, 1, axis=0)
    ),
    "interleaves time": Collector(_interleaves),
    "[envs steps]": Collector(_transposes),
    "gives actions unclipped": NoClip(),
    "collects the same again": of_state(rng=lambda old, new: jax.random.clone(old.rng)),
    "counts no rollouts": of_state(global_step=lambda old, new: old.global_step),
    "starts over": of_state(last_obs=lambda old, new: old.last_obs),
    "miscounts lengths": Collector(_counts_all),
    "weakly typed": Collector(lambda env, p, agent, states, r: (states[1], r), _weak),
    "environments alike": Collector(lambda env, p, agent, states, r: (states[1], r), stepper=SameSeeds()),
    "NaN": of_rollout(reward=lambda t, *_: t.reward + jnp.log(-1.0)),
}


class Transitions(AbstractCollector):
    """The transition collector, and then `change(transitions, new state)` in the place of the transitions."""

    change: Callable = eqx.field(static=True)
    num_envs: int = eqx.field(static=True, default=4)
    num_steps: int = eqx.field(static=True, default=11)

    def init(self, env, env_params, policy, key):
        return TransitionCollector(self.num_envs, self.num_steps).init(env, env_params, policy, key)

    def __call__(self, env, env_params, policy, state):
        state, batch = TransitionCollector(self.num_envs, self.num_steps)(env, env_params, policy, state)
        return state, dataclasses.replace(batch, transitions=self.change(batch.transitions, state))


def of_transitions(**fields):
    """`field=f(transitions, new state)` in the place of a transition's field."""
    return Transitions(lambda t, state: dataclasses.replace(t, **{name: f(t, state) for name, f in fields.items()}))


def _obs_after(t, state):
    """With which the next step opens, after a reset too."""
    return jnp.concatenate([t.obs[1:], state.last_obs[None]])


TRANSITIONS = {
    "next_obs after the reset": of_transitions(next_obs=_obs_after),
    "next_obs is obs": of_transitions(next_obs=lambda t, state: t.obs),
    "truncation as termination": of_transitions(
        terminated=lambda t, state: t.done, truncated=lambda t, state: jnp.zeros_like(t.truncated)
    ),
    "termination as truncation": of_transitions(
        truncated=lambda t, state: t.done, terminated=lambda t, state: jnp.zeros_like(t.terminated)
    ),
    "reward of the step before": of_transitions(reward=lambda t, state: jnp.roll(t.reward, 1, axis=0)),
    "interleaves time": Transitions(lambda t, state: jax.tree.map(interleaved, t)),
    "[envs steps]": Transitions(lambda t, state: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), t)),
    "NaN": of_transitions(reward=lambda t, state: t.reward + jnp.log(-1.0)),
}


# Steppers


class Stepper(AbstractStepper):
    """The default one, and then `change(result, environment, its parameters, keys)`."""

    change: Callable = eqx.field(static=True)

    def init(self, env, env_params, keys):
        return ResetWhenDone().init(env, env_params, keys)

    def step(self, env, env_params, keys, env_state, reset_state, action):
        return self.change(ResetWhenDone().step(env, env_params, keys, env_state, reset_state, action), env, env_params, keys)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


def _one_state(after, env, env_params, keys):
    def pick(new, x):
        return jnp.where(after.done.reshape(-1, *[1] * (x.ndim - 1)), new[:1], x)

    first = jax.vmap(lambda key: env.reset(key, env_params))(jnp.broadcast_to(jax.random.split(jax.random.key(0))[:1], keys.shape[1:]))
    obs, state = jax.tree.map(pick, first, (after.obs, after.env_state))
    return dataclasses.replace(after, obs=obs, env_state=state)


def _key_twice(after, env, env_params, keys):
    return dataclasses.replace(after, reward=after.reward + 0 * jax.vmap(lambda key: jax.random.uniform(key))(keys[0]))


STEPPERS = {
    "final_obs after the reset": Stepper(lambda after, *_: dataclasses.replace(after, final_obs=after.obs)),
    "obs before the reset": Stepper(lambda after, *_: dataclasses.replace(after, obs=after.final_obs)),
    "one first state": Stepper(_one_state),
    "truncation dropped": Stepper(lambda after, *_: dataclasses.replace(after, truncated=after.truncated & False)),
    "reward as an integer": Stepper(lambda after, *_: eqx.tree_at(lambda a: a.reward, after, after.reward.astype(jnp.int32))),
    "key twice": Stepper(_key_twice),
}


# Buffers


class Buffer(AbstractBuffer):
    """The uniform one, with another way to add (`add(buffer, state, rows)`) or to sample (`sample(buffer, state, key)`)."""

    change_add: Callable = eqx.field(static=True, default=UniformBuffer.add)
    change_sample: Callable = eqx.field(static=True, default=UniformBuffer.sample)
    capacity: int = eqx.field(static=True, default=20)
    batch_size: int = eqx.field(static=True, default=16)

    @property
    def inner(self):
        return UniformBuffer(self.capacity, self.batch_size)

    def init(self, example):
        return self.inner.init(example)

    def add(self, state, rows):
        return self.change_add(self.inner, state, rows)

    def sample(self, state, key):
        return self.change_sample(self.inner, state, key)


def _draw(state, index):
    return drawn(jax.tree.map(lambda x: x[index], state.rows), index)


def drawn(rows, index):
    return Drawn(rows=rows, index=index, weight=jnp.ones(index.shape))


def _whole_capacity(buffer, state, key):
    return _draw(state, jax.random.randint(key, (16,), 0, buffer.capacity))


def _leaves_apart(buffer, state, key):
    leaves, treedef = jax.tree.flatten(state.rows)
    keys = jax.random.split(key, len(leaves))
    rows = treedef.unflatten([x[jax.random.randint(k, (16,), 0, state.size)] for k, x in zip(keys, leaves)])
    return drawn(rows, jnp.arange(16))


def _overwrites_the_newest(buffer, state, rows):
    """Once it is full, everything is written into the same rows."""
    after = buffer.add(state, rows)
    return dataclasses.replace(after, num_added=jnp.where(after.num_added > buffer.capacity, buffer.capacity, after.num_added))


def _one_array_reversed(buffer, state, rows):
    leaves, treedef = jax.tree.flatten(rows)
    return buffer.add(state, treedef.unflatten([leaves[0][::-1], *leaves[1:]]))


BUFFERS = {
    "samples what isn't filled": Buffer(change_sample=_whole_capacity),
    "rows mixed": Buffer(change_sample=_leaves_apart),
    "rows mixed when added": Buffer(change_add=_one_array_reversed),
    "keeps the oldest": Buffer(change_add=_overwrites_the_newest),
    "prefers the first": Buffer(
        change_sample=lambda buffer, state, key: _draw(state, jax.random.randint(key, (16,), 0, state.size) // 2)
    ),
    "one key": Buffer(change_sample=lambda buffer, state, key: buffer.sample(state, jax.random.key(0))),
    "key twice": Buffer(
        change_sample=lambda buffer, state, key: _draw(
            state, jax.random.randint(key, (16,), 0, state.size) + 0 * jax.random.randint(key, (16,), 0, 2)
        )
    ),
    "a batch of steps": Buffer(change_sample=lambda buffer, state, key: buffer.sample(state, key).index),
    "Python's state": Buffer(
        change_sample=lambda buffer, state, key: _draw(state, (jax.random.randint(key, (16,), 0, state.size) + next(COUNTER)) % state.size)
    ),
}


# Policies


class Policy(AbstractActorCritic):
    """A linear one for [3] observations and 3 actions, and an idle layer."""

    layer: eqx.nn.Linear
    idle: eqx.nn.Linear
    change: Callable = eqx.field(static=True)
    """(logits, value) -> (distribution, value)"""

    def __call__(self, obs, carry):
        out = self.layer(obs)
        return *self.change(out[:3], out[3]), carry

    def initial_carry(self):
        return ()


def policy(change, idle=0):
    layers = [eqx.nn.Linear(3, size, key=jax.random.key(0)) for size in (4, idle)]
    return Policy(*layers, change)


POLICIES = {
    "too few actions": policy(lambda logits, value: (Categorical(logits[:2]), value)),
    "value not a scalar": policy(lambda logits, value: (Categorical(logits), value[None])),
    "idle layer": policy(lambda logits, value: (Categorical(logits), value), idle=2),
    "NaN": policy(lambda logits, value: (Categorical(logits), value + jnp.log(-1.0))),
    "root of 0": policy(lambda logits, value: (Categorical(logits), value + 0 * jnp.sqrt(0 * value))),
    "Python's state": policy(lambda logits, value: (Categorical(logits), value + next(COUNTER))),
}


# Distributions


class Distribution(AbstractDistribution):
    """A right one, in which some methods are another one's, or another function of it."""

    right: AbstractDistribution
    change: tuple = eqx.field(static=True)

    def _of(self, name):
        return dict(self.change).get(name, lambda d, *args: getattr(d, name)(*args))

    def sample(self, key):
        return self._of("sample")(self.right, key)

    def log_prob(self, action):
        return self._of("log_prob")(self.right, action)

    def entropy(self):
        return self._of("entropy")(self.right)

    def mode(self):
        return self._of("mode")(self.right)


CATEGORICAL = Categorical(jnp.array([0.5, -1.0, 0.3]))
GAUSSIAN = DiagGaussian(jnp.array([0.3, -1.0]), jnp.array([0.5, -0.4]), (2,))


def but(right, **change):
    return Distribution(right, tuple(change.items()))


def _variance_for_deviation(d, key):
    return d.mean + jnp.exp(2 * d.log_std) * jax.random.normal(key, (2,))


DISTRIBUTIONS = {
    "a log-prob for each number": but(GAUSSIAN, log_prob=lambda d, a: -((a - d.mean) ** 2)),
    "variance for deviation": but(GAUSSIAN, sample=_variance_for_deviation),
    "no change of scale": but(GAUSSIAN, log_prob=lambda d, a: d.log_prob(a) + jnp.sum(d.log_std)),
    "entropy without e": but(GAUSSIAN, entropy=lambda d: d.entropy() - 1.0),
    "mode": but(CATEGORICAL, mode=lambda d: jnp.argmin(d.logits).astype(jnp.int32)),
    "not normalised": but(
        CATEGORICAL, log_prob=lambda d, a: d.logits[a], entropy=lambda d: -jnp.sum(jax.nn.softmax(d.logits) * d.logits)
    ),
    "one key": but(CATEGORICAL, sample=lambda d, key: d.sample(jax.random.key(0))),
    "key twice": but(GAUSSIAN, sample=lambda d, key: d.sample(key) + 0 * jax.random.normal(key)),
    "NaN": but(GAUSSIAN, log_prob=lambda d, a: d.log_prob(a) + jnp.log(-1.0)),
    "Python's state": but(GAUSSIAN, entropy=lambda d: d.entropy() + next(COUNTER)),
}


# Evaluators


class Evaluator(AbstractEvaluator):
    """Steps for a fixed time, over the ends of episodes; `count(going, reward)` says what a step counts."""

    count: Callable = eqx.field(static=True)
    num_steps: int = eqx.field(static=True, default=7)
    key_twice: bool = eqx.field(static=True, default=False)
    metrics: Callable = eqx.field(static=True, default=EvalMetrics)

    def __call__(self, env, env_params, policy, key):
        reset_key, step_key = jax.random.split(key)
        obs, state = jax.vmap(lambda k: env.reset(k, env_params))(jax.random.split(reset_key, 5))

        def step(carry, key):
            obs, state, going = carry
            action, _, _ = policy(obs, (), None)
            keys = jax.random.split(key, 5)
            obs, state, reward, terminated, truncated, _ = jax.vmap(lambda *a: env.step(*a, env_params))(keys, state, action)
            counted = self.count(going, reward)
            return (obs, state, going & ~(terminated | truncated)), (counted, going.astype(jnp.int32))

        keys = jax.random.split(step_key, self.num_steps)
        _, (rewards, lengths) = jax.lax.scan(step, (obs, state, jnp.ones(5, bool)), keys)
        more = jax.random.uniform(reset_key) * 0 if self.key_twice else 0.0
        return self.metrics(episode_length=lengths.sum(0), cumulative_reward=rewards.sum(0) + more)


def going_only(going, reward):
    return jnp.where(going, reward, 0.0)


EVALUATORS = {
    "counts after the end": Evaluator(lambda going, reward: reward),
    "stops a step early": Evaluator(going_only, num_steps=6),
    "counts half": Evaluator(lambda going, reward: 0.5 * going_only(going, reward)),
    "key twice": Evaluator(going_only, key_twice=True),
    "only a sum": Evaluator(going_only, metrics=lambda episode_length, cumulative_reward: cumulative_reward.sum()),
    "Python's state": Evaluator(lambda going, reward: going_only(going, reward) + next(COUNTER)),
}

