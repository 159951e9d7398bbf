"""Learners that keep environments whole for policies without a hidden state, and V-trace's loss on what they give."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from gymnax.environments import spaces
from helpers import Table, quick_jit, same, small

from eqxrl import AbstractLoss, AdvantageMinibatch, MinibatchLearner, PPOLoss, Trajectory
from eqxrl.advantages import VTrace
from eqxrl.learners import cut, flatten
from eqxrl.losses import VTraceLoss
from eqxrl.nn import GRUActorCritic

STEPS, ENVS, ACT = 6, 4, 3


@pytest.fixture(scope="module")
def rollout():
    """Every array tells which step and environment it belongs to: `step * ENVS + env`; what follows is -1 - env."""
    index = jnp.arange(STEPS * ENVS, dtype=jnp.float32).reshape(STEPS, ENVS)
    t = Trajectory(
        obs=jnp.stack([index, index / 24, jnp.sin(index)], axis=-1), action=(index % 2).astype(jnp.int32), log_prob=-1 - index / 24,
        reward=index, value=index / 10, terminated=index % 7 == 0, truncated=index % 5 == 0, final_value=index,
    )
    return AdvantageMinibatch(t, jnp.cos(index), index, last_value=-1.0 - jnp.arange(ENVS))


class Spy(AbstractLoss):
    """Shows each minibatch to the host."""

    seen: list = eqx.field(static=True)

    def __call__(self, agent, minibatch):
        jax.debug.callback(lambda m: self.seen.append(jax.device_get(m)), minibatch, ordered=True)
        return sum(jnp.sum(x) for x in jax.tree.leaves(eqx.filter(agent, eqx.is_inexact_array))), {}

    def at_step(self, num_updates):
        return self


class Spied(list):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def agents(kind):
    make = small if kind == "feed-forward" else GRUActorCritic
    return make(spaces.Box(-1, 1, (3,)), spaces.Discrete(ACT), key=jax.random.key(0))


def learned(agent, rollout, **options):
    seen = Spied()
    learner = MinibatchLearner(Spy(seen), optax.sgd(0.0), num_epochs=2, **options)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (ENVS, *x.shape)), agent.initial_carry())
    learner(agent, learner.init(agent), eqx.tree_at(lambda r: r.initial_carry, rollout, carry), jax.random.key(0))
    jax.effects_barrier()
    return seen


@pytest.mark.parametrize("kind", ["feed-forward", "memory"])
def test_environments_stay_whole_with_what_follows_them(rollout, kind):
    seen = learned(agents(kind), rollout, num_minibatches=2, sequences=True)
    assert len(seen) == 4
    for epoch in (seen[:2], seen[2:]):
        assert sorted(int(env) for m in epoch for env in m.targets[0]) == list(range(ENVS))
    for m in seen:
        envs = m.targets[0].astype(int)
        same(m.trajectories, jax.tree.map(lambda x: x[:, envs], rollout.trajectories))
        np.testing.assert_array_equal(m.targets, np.arange(STEPS)[:, None] * ENVS + envs)
        np.testing.assert_array_equal(m.last_value, -1.0 - envs)


@pytest.mark.parametrize("kind", ["feed-forward", "memory"])
def test_chunks_are_followed_by_the_next_ones_first_value(rollout, kind):
    seen = learned(agents(kind), rollout, num_minibatches=3, sequences=True, steps_back=2)
    for m in seen:
        assert m.targets.shape == (2, STEPS // 2 * ENVS // 3)
        for first, following in zip(m.targets[0].astype(int), m.last_value, strict=True):
            step, env = divmod(first, ENVS)
            assert step % 2 == 0
            expected = rollout.trajectories.value[step + 2, env] if step + 2 < STEPS else -1.0 - env
            np.testing.assert_array_equal(following, np.float32(expected))


def test_nothing_follows_where_it_is_not_asked_for(rollout):
    assert flatten(rollout).last_value == ()
    assert all(m.last_value == () for kind in ("feed-forward", "memory") for m in learned(agents(kind), rollout, num_minibatches=2))
    unknown = eqx.tree_at(lambda r: r.last_value, rollout, ())
    assert cut(agents("feed-forward"), unknown, 3).last_value == ()


def test_sizes_that_do_not_fit(rollout):
    with pytest.raises(ValueError, match=r"given sequences=True, so environments stay whole, and their number \(4\) must be divisible"):
        learned(agents("feed-forward"), rollout, num_minibatches=3, sequences=True)
    with pytest.raises(ValueError, match=r"so chunks of 3 steps stay whole, and their number \(8\) must be divisible .*\(5\)"):
        learned(agents("feed-forward"), rollout, num_minibatches=5, sequences=True, steps_back=3)


@pytest.mark.parametrize("name", ["advantages", "last_value"])
def test_shapes_are_checked(rollout, name):
    with pytest.raises(TypeError, match=name):
        AdvantageMinibatch(**{**vars(rollout), name: jnp.zeros((ENVS, 2))})


# V-trace's loss


@pytest.fixture(scope="module")
def case():
    """A policy that has moved away from the one that acted, by so much that ratios are clipped and aren't."""
    rng = np.random.default_rng(0)
    shape, n = (STEPS, ENVS), STEPS * ENVS
    logits = rng.normal(size=(n, ACT))
    action = rng.integers(ACT, size=n)
    log_prob = oracles.log_softmax(logits)[np.arange(n), action].reshape(shape)
    terminated, truncated = rng.random((2, *shape)) < 0.15
    reward, value, final_value = rng.normal(size=(3, *shape)).astype(np.float32)
    of = lambda x, dtype=jnp.float32: jnp.asarray(x, dtype).reshape(shape)  # noqa: E731
    flags = of(terminated, bool), of(truncated, bool)
    t = Trajectory(of(np.arange(n), jnp.int32), of(action, jnp.int32), of(log_prob), of(reward), of(value), *flags, of(final_value))
    absurd = of(np.full(n, 1e6))  # the rollout's own estimate isn't looked at
    minibatch = AdvantageMinibatch(t, absurd, absurd, last_value=jnp.asarray(rng.normal(size=ENVS), jnp.float32))
    agent = Table(jnp.asarray(logits + 0.5 * rng.normal(size=logits.shape), jnp.float32), jnp.asarray(rng.normal(size=n), jnp.float32))
    return agent, minibatch


def test_vtraces_loss_and_gradient(case):
    """In NumPy and float64, targets by a loop backwards, derivatives by hand; none of them through the targets."""
    agent, minibatch = case
    t, n, gamma, lam, rho_clip, c_clip, vf_coef, ent_coef = minibatch.trajectories, STEPS * ENVS, 0.9, 0.8, 1.2, 0.9, 0.7, 0.03
    log_p = oracles.log_softmax(np.asarray(agent.logits, np.float64)).reshape(STEPS, ENVS, ACT)
    p, value = np.exp(log_p), np.asarray(agent.values, np.float64).reshape(STEPS, ENVS)
    chosen = np.eye(ACT)[np.asarray(t.action)]
    log_prob = (log_p * chosen).sum(-1)
    log_ratio = log_prob - np.asarray(t.log_prob, np.float64)
    ratio, advantages, targets = np.exp(log_ratio), np.zeros((STEPS, ENVS)), np.zeros((STEPS, ENVS))
    for env in range(ENVS):
        following = then = float(minibatch.last_value[env])  # the value of what a step led to, and V-trace's target of it
        for s in reversed(range(STEPS)):
            if t.terminated[s, env] or t.truncated[s, env]:
                following = then = 0.0 if t.terminated[s, env] else float(t.final_value[s, env])
            rho, c = min(ratio[s, env], rho_clip), lam * min(ratio[s, env], c_clip)
            r, v = float(t.reward[s, env]), value[s, env]
            advantages[s, env] = rho * (r + gamma * ((1 - lam) * following + lam * then) - v)
            targets[s, env] = v + rho * (r + gamma * following - v) + gamma * c * (then - following)
            following, then = v, targets[s, env]
    entropy = -(p * log_p).sum(-1)
    expected = np.mean(-log_prob * advantages + vf_coef * (value - targets) ** 2 - ent_coef * entropy)
    by_logits = -advantages[..., None] * (chosen - p) + ent_coef * p * (log_p + entropy[..., None])

    loss = VTraceLoss(VTrace(gamma, lam, rho_clip, c_clip), vf_coef=vf_coef, ent_coef=ent_coef)
    (got, metrics), gradient = quick_jit(eqx.filter_value_and_grad(loss, has_aux=True))(agent, minibatch)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.logits, by_logits.reshape(n, ACT) / n, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.values, vf_coef * 2 * (value - targets).ravel() / n, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(ratio - 1 - log_ratio), rtol=1e-4)
    assert 0 < (ratio > rho_clip).sum() < n and 0 < (ratio > c_clip).sum() < n


def test_its_schedule(case):
    loss = VTraceLoss(VTrace(), ent_coef=optax.linear_schedule(0.4, 0.0, 8))
    with pytest.raises(TypeError, match="is a schedule; take its value first"):
        loss(*case)
    now = loss.at_step(jnp.int32(2))
    np.testing.assert_allclose(now.ent_coef, 0.3, rtol=1e-6)
    assert now.vf_coef == loss.vf_coef and now.vtrace is loss.vtrace


def test_samples_are_not_sequences(case):
    with pytest.raises(ValueError, match=r"got samples \[24\] without last_value.*use MinibatchLearner\(..., sequences=True\)"):
        VTraceLoss(VTrace())(case[0], flatten(case[1]))


def test_ppo_on_sequences_learns_as_on_samples(rollout):
    """With one minibatch, in which the order doesn't matter."""
    agent = agents("feed-forward")
    results = []
    for sequences in (False, True):
        learner = MinibatchLearner(PPOLoss(), optax.sgd(0.01), num_epochs=1, num_minibatches=1, sequences=sequences)
        after, _, metrics = quick_jit(learner)(agent, learner.init(agent), rollout, jax.random.key(0))
        results.append((after, metrics))
    same(*results, rtol=1e-4, atol=1e-6)
