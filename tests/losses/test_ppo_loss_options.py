"""PPOLoss's options: values and gradients against loops over samples in NumPy and float64, with derivatives by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from helpers import Table, quick_jit

from eqxrl import AdvantageMinibatch, PPOLoss, ShapeError, Trajectory
from eqxrl.losses import ActorCriticLoss

BATCH, ACT, EPS = 96, 3, 0.2


@pytest.fixture(scope="module")
def case():
    """A policy that has moved away so far that every branch of the losses is taken."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(BATCH, ACT))
    moved = (logits + rng.normal(size=logits.shape)).astype(np.float32)
    action = rng.integers(ACT, size=BATCH)
    old_value = rng.normal(size=BATCH).astype(np.float32)
    zeros = jnp.zeros(BATCH)
    trajectories = Trajectory(
        obs=jnp.arange(BATCH),
        action=jnp.asarray(action, jnp.int32),
        log_prob=jnp.asarray(oracles.log_softmax(logits)[np.arange(BATCH), action], jnp.float32),
        reward=zeros,
        value=jnp.asarray(old_value),
        terminated=zeros > 0,
        truncated=zeros > 0,
        final_value=zeros,
    )
    advantages, errors, moves = (rng.normal(size=BATCH).astype(np.float32) for _ in range(3))
    minibatch = AdvantageMinibatch(trajectories, jnp.asarray(1 + 2 * advantages), jnp.asarray(old_value + errors))
    return Table(jnp.asarray(moved), jnp.asarray(old_value + 0.4 * moves)), minibatch


def by_hand(agent, minibatch, *, standardise=True, dual=None, value_eps=EPS, kl=0.0):
    """The loss without an entropy bonus, with a weight of 1 on the value loss, and its gradients by logits and values; one sample at a
    time. Also how many samples each option has changed."""
    t, n = minibatch.trajectories, BATCH
    log_p = oracles.log_softmax(np.asarray(agent.logits, np.float64))
    advantages = np.asarray(minibatch.advantages, np.float64)
    if standardise:
        advantages = oracles.standardise(advantages)
    loss, by_logits, by_values, cut = 0.0, np.zeros((n, ACT)), np.zeros(n), 0
    for i in range(n):
        action, a = int(t.action[i]), advantages[i]
        log_ratio = log_p[i, action] - float(t.log_prob[i])
        r = np.exp(log_ratio)
        objective, by_log_prob = r * a, r * a
        if a > 0 and r > 1 + EPS:
            objective, by_log_prob = (1 + EPS) * a, 0.0
        if a < 0 and r < 1 - EPS:
            objective, by_log_prob = (1 - EPS) * a, 0.0
        if dual is not None and a < 0 and objective < dual * a:
            objective, by_log_prob, cut = dual * a, 0.0, cut + 1
        loss += (-objective + kl * (r - 1 - log_ratio)) / n
        by_log_prob = (-by_log_prob + kl * (r - 1)) / n
        by_logits[i] = by_log_prob * (np.eye(ACT)[action] - np.exp(log_p[i]))
    value_loss, by_values = oracles.value_loss(agent.values, t.value, minibatch.targets, value_eps)
    return loss + value_loss, by_logits, by_values, cut


OPTIONS = {
    "none": ({}, {}),
    "raw advantages": (dict(normalize_advantages=False), dict(standardise=False)),
    "dual clip": (dict(dual_clip=1.5), dict(dual=1.5)),
    "a range for values": (dict(clip_value_eps=0.05), dict(value_eps=0.05)),
    "KL": (dict(kl_coef=0.7), dict(kl=0.7)),
    "all": (
        dict(normalize_advantages=False, dual_clip=3.0, clip_value_eps=0.5, kl_coef=2.0),
        dict(standardise=False, dual=3.0, value_eps=0.5, kl=2.0),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_value_and_gradient(case, name):
    options, in_numpy = OPTIONS[name]
    loss = PPOLoss(clip_eps=EPS, vf_coef=1.0, ent_coef=0.0, **options)
    (value, metrics), gradient = quick_jit(eqx.filter_value_and_grad(loss, has_aux=True))(*case)
    expected, by_logits, by_values, cut = by_hand(*case, **in_numpy)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.logits, by_logits, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient.values, by_values, rtol=1e-4, atol=1e-7)
    if name != "none":  # it makes a difference here
        without = by_hand(*case)
        assert abs(without[0] - expected) > 1e-3
        assert np.abs(without[1] - by_logits).max() > 1e-4 or np.abs(without[2] - by_values).max() > 1e-4
    assert ("dual" in name or name == "all") == (cut > 0)
    assert set(metrics) == {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"}


@pytest.mark.parametrize("option", [dict(kl_coef=0.0), dict(clip_value_eps=EPS), dict(dual_clip=1e6)])
def test_an_option_that_says_nothing_changes_nothing(case, option):
    plain, same = (quick_jit(PPOLoss(clip_eps=EPS, **x))(*case)[0] for x in ({}, option))
    np.testing.assert_allclose(same, plain, rtol=1e-6)


def test_what_is_off_is_not_compiled(case):
    def operations(**options):
        loss = PPOLoss(clip_eps=EPS, **options)
        return str(jax.make_jaxpr(lambda logits: loss(Table(logits, case[0].values), case[1])[0])(case[0].logits)).count("\n")

    none = operations()
    assert operations(normalize_advantages=False) < none
    for option in (dict(dual_clip=3.0), dict(kl_coef=1.0)):
        assert operations(**option) > none


def test_schedules(case):
    loss = PPOLoss(clip_value_eps=optax.linear_schedule(0.4, 0.0, 8), kl_coef=optax.exponential_decay(0.5, 1, 0.5), dual_clip=2.0)
    with pytest.raises(TypeError, match="is a schedule; take its value first"):
        loss(*case)
    for num_updates in (0, 3, 8):
        now = loss.at_step(jnp.int32(num_updates))
        np.testing.assert_allclose(now.clip_value_eps, 0.4 * (1 - num_updates / 8), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(now.kl_coef, 0.5 * 0.5**num_updates, rtol=1e-6)
        assert now.dual_clip == 2.0 and now.normalize_advantages
    still = PPOLoss(normalize_advantages=False).at_step(jnp.int32(1))
    assert still.kl_coef is None and still.clip_value_eps is None and not still.normalize_advantages


def test_each_number_can_be_swept(case):
    def loss(dual_clip, eps, kl_coef):
        return PPOLoss(dual_clip=dual_clip, clip_value_eps=eps, kl_coef=kl_coef).at_step(jnp.int32(0))

    several = [jnp.array(x) for x in ([1.2, 3.0], [0.05, 0.5], [0.0, 1.0])]
    swept = quick_jit(lambda several: eqx.filter_vmap(lambda *x: loss(*x)(*case)[0])(*several))(several)
    for i in range(2):
        np.testing.assert_allclose(swept[i], loss(*(x[i] for x in several))(*case)[0], rtol=1e-5)


def test_a_single_sample_has_an_advantage_unless_it_is_standardised(case):
    one = jax.tree.map(lambda x: x[:1], case[1])
    assert np.isfinite(PPOLoss(normalize_advantages=False)(case[0], one)[0])
    with pytest.raises(ValueError, match="of a single sample nothing is left"):
        PPOLoss()(case[0], one)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(dual_clip=1.0), r"PPOLoss.dual_clip must be in \(1.0, inf\], got 1"),
        (dict(dual_clip=0.5), r"PPOLoss.dual_clip must be in \(1.0, inf\], got 0.5"),
        (dict(kl_coef=-1.0), r"PPOLoss.kl_coef must be in \[0.0, inf\], got -1"),
        (dict(kl_coef=float("nan")), r"PPOLoss.kl_coef must be in .*, got nan"),
        (dict(clip_value_eps=-0.1), r"PPOLoss.clip_value_eps must be in \[0.0, inf\]"),
        (dict(clip_value_eps=0.1, clip_value=False), "clip_value_eps was set, but clip_value is False"),
    ],
)
def test_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        PPOLoss(**wrong)


def test_several_numbers_for_one():
    with pytest.raises(ShapeError, match=r"PPOLoss.kl_coef must be one number, got float32\[2\].*vmap over them"):
        PPOLoss(kl_coef=jnp.ones(2))


def test_an_actor_critic_loss_takes_sequences(case):
    """What is evaluated on `[steps envs]` is what is evaluated on `[batch]`, sample by sample."""
    agent, minibatch = case
    sequences = jax.tree.map(lambda x: x.reshape(12, BATCH // 12, *x.shape[1:]), minibatch)
    for loss in (ActorCriticLoss(), PPOLoss()):
        for a, b in zip(jax.tree.leaves(loss(agent, sequences)), jax.tree.leaves(loss(agent, minibatch)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
