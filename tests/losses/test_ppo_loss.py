"""PPOLoss: value and gradient against rlax's surrogate, distrax's distributions and a value loss in NumPy and float64."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import rlax

from eqxrl import PPO, AdvantageMinibatch, PPOHParams, PPOLoss, Trajectory
from eqxrl.losses import ActorCriticLoss
from eqxrl.nn import AbstractActorCritic, Categorical, DiagGaussian

BATCH, ACT = 64, 3


class Table(AbstractActorCritic):
    """One distribution and one value for each observation, a number: gradients by the table are gradients by the outputs."""

    head: jax.Array
    log_std: jax.Array | None
    values: jax.Array

    def __call__(self, obs, carry):
        head = self.head[obs]
        distribution = Categorical(head) if self.log_std is None else DiagGaussian(head, self.log_std, (ACT,))
        return distribution, self.values[obs], carry

    def initial_carry(self):
        return ()

    def oracle(self):
        if self.log_std is None:
            return distrax.Categorical(self.head)
        return distrax.MultivariateNormalDiag(self.head, jnp.broadcast_to(jnp.exp(self.log_std), self.head.shape))


@pytest.fixture(params=["discrete", "continuous"], scope="module")
def case(request):
    """A policy that has moved away from the one that acted, by so much that every branch of the loss is taken."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    log_std = None if request.param == "discrete" else jax.random.normal(next(keys), (ACT,)) * 0.3
    old = Table(jax.random.normal(next(keys), (BATCH, ACT)), log_std, jax.random.normal(next(keys), (BATCH,)))
    new = Table(
        old.head + 0.3 * jax.random.normal(next(keys), old.head.shape),
        log_std,
        old.values + 0.3 * jax.random.normal(next(keys), (BATCH,)),
    )
    obs = jnp.arange(BATCH)
    distribution, value, _ = jax.vmap(old)(obs, ())
    action = distribution.sample(next(keys))
    zeros = jnp.zeros(BATCH)
    minibatch = AdvantageMinibatch(
        trajectories=Trajectory(
            obs=obs,
            action=action,
            log_prob=old.oracle().log_prob(action),
            reward=zeros,
            value=value,
            terminated=zeros > 0,
            truncated=zeros > 0,
            final_value=zeros,
        ),
        advantages=3 + 2 * jax.random.normal(next(keys), (BATCH,)),
        targets=value + 0.5 * jax.random.normal(next(keys), (BATCH,)),
    )
    return new, minibatch


@pytest.mark.parametrize("clip_value", [True, False])
@pytest.mark.parametrize("clip_eps", [0.1, 0.25])
def test_value_and_gradient(case, clip_eps, clip_value):
    agent, minibatch = case
    t = minibatch.trajectories
    advantages = oracles.standardise(minibatch.advantages).astype(np.float32)
    vf_coef, ent_coef = 0.7, 0.03

    def policy_and_entropy(agent):
        ratio = jnp.exp(agent.oracle().log_prob(t.action) - t.log_prob)
        entropy = jnp.mean(agent.oracle().entropy())
        return rlax.clipped_surrogate_pg_loss(ratio, advantages, clip_eps) - ent_coef * entropy

    expected, expected_gradient = jax.value_and_grad(policy_and_entropy)(agent)
    value_loss, by_value = oracles.value_loss(agent.values, t.value, minibatch.targets, clip_eps if clip_value else None)

    loss = PPOLoss(clip_eps=clip_eps, vf_coef=vf_coef, ent_coef=ent_coef, clip_value=clip_value)
    (value, metrics), gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(agent, minibatch)
    np.testing.assert_allclose(value, expected + vf_coef * value_loss, rtol=2e-6)
    np.testing.assert_allclose(gradient.head, expected_gradient.head, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient.values, vf_coef * by_value, rtol=1e-5, atol=1e-7)
    if agent.log_std is not None:
        np.testing.assert_allclose(gradient.log_std, expected_gradient.log_std, rtol=1e-5, atol=1e-6)

    # both branches of each maximum were taken, and each of them mattered
    assert 0 < np.count_nonzero(by_value) < BATCH if clip_value else np.all(by_value != 0)
    ratio = np.exp(np.asarray(agent.oracle().log_prob(t.action) - t.log_prob, np.float64))
    _, by_log_prob = oracles.policy_loss(np.log(ratio), 0.0, oracles.standardise(minibatch.advantages), clip_eps)
    assert 0 < np.count_nonzero(by_log_prob) < BATCH

    np.testing.assert_allclose(metrics["approx_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-5)
    assert metrics["clip_fraction"] == np.mean(np.abs(ratio - 1) > clip_eps)
    np.testing.assert_allclose(metrics["entropy"], jnp.mean(agent.oracle().entropy()), rtol=1e-6)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-6)
    np.testing.assert_allclose(
        value, metrics["policy_loss"] + vf_coef * metrics["value_loss"] - ent_coef * metrics["entropy"], rtol=1e-6
    )


def test_old_policy_itself():
    """With the policy that acted: ratio 1, so no KL and nothing clipped, and the policy loss is minus the mean of standardised
    advantages, 0."""
    agent = Table(jnp.zeros((BATCH, ACT)), None, jnp.zeros(BATCH))
    zeros = jnp.zeros(BATCH)
    minibatch = AdvantageMinibatch(
        trajectories=Trajectory(
            obs=jnp.arange(BATCH),
            action=jnp.zeros(BATCH, jnp.int32),
            log_prob=jnp.full(BATCH, -jnp.log(ACT)),
            reward=zeros,
            value=zeros,
            terminated=zeros > 0,
            truncated=zeros > 0,
            final_value=zeros,
        ),
        advantages=jax.random.normal(jax.random.key(1), (BATCH,)),
        targets=jnp.ones(BATCH),
    )
    loss, metrics = PPOLoss(ent_coef=0.5)(agent, minibatch)
    assert abs(metrics["policy_loss"]) < 1e-6 and abs(metrics["approx_kl"]) < 1e-7 and metrics["clip_fraction"] == 0
    assert metrics["value_loss"] == 0.5
    np.testing.assert_allclose(loss, 0.5 * 0.5 - 0.5 * np.log(ACT), rtol=1e-5)


@pytest.mark.parametrize("advantage", [2.5, 0.1, -1234.567])
def test_equal_advantages_are_0(case, advantage):
    """Their mean in float32 is another number than each of them, and what is left of that isn't divided by an epsilon."""
    agent, minibatch = case
    minibatch = eqx.tree_at(lambda m: m.advantages, minibatch, jnp.full(BATCH, advantage))
    loss = PPOLoss(vf_coef=0.0, ent_coef=0.0)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda agent: loss(agent, minibatch)[0]))(agent)
    assert value == 0 and all(bool(jnp.all(x == 0)) for x in jax.tree.leaves(gradient))


def test_a_minibatch_of_one_sample_is_refused(case):
    agent, minibatch = case
    with pytest.raises(ValueError, match="of a single sample nothing is left.*use fewer minibatches"):
        PPOLoss()(agent, jax.tree.map(lambda x: x[:1], minibatch))
    with pytest.raises(ValueError, match="of a single sample nothing is left"):
        PPO.create("CartPole-v1", hp=PPOHParams(num_envs=2, num_steps=4, num_minibatches=8))


@pytest.mark.parametrize("wrong", [{"clip_eps": -0.1}, {"vf_coef": float("nan")}, {"ent_coef": -1.0}])
@pytest.mark.parametrize("kind", [PPOLoss, ActorCriticLoss])
def test_coefficients_are_not_negative(kind, wrong):
    name = next(iter(wrong))
    if hasattr(kind(), name):
        with pytest.raises(ValueError, match=rf"{kind.__name__}.{name} must be in \[0.0, inf\], got"):
            kind(**wrong)


def test_a_standardised_minibatch_ignores_shift_and_scale_of_advantages(case):
    agent, minibatch = case
    other = eqx.tree_at(lambda m: m.advantages, minibatch, 8 * minibatch.advantages + 1)
    np.testing.assert_allclose(PPOLoss()(agent, minibatch)[0], PPOLoss()(agent, other)[0], rtol=1e-5)


def test_schedules():
    loss = PPOLoss(clip_eps=optax.linear_schedule(0.2, 0.0, 8), ent_coef=optax.exponential_decay(0.5, 1, 0.5), vf_coef=0.25)
    for num_updates in (0, 1, 6, 8, 20):
        now = loss.at_step(jnp.int32(num_updates))
        np.testing.assert_allclose(now.clip_eps, 0.2 * max(0.0, 1 - num_updates / 8), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(now.ent_coef, 0.5 * 0.5**num_updates, rtol=1e-6)
        assert now.vf_coef == 0.25 and now.clip_value
    assert not PPOLoss(clip_value=False).at_step(jnp.int32(3)).clip_value


def test_a_schedule_is_no_number(case):
    with pytest.raises(TypeError, match=r"schedule.* is a schedule; take its value first, with at_step\(num_updates\)"):
        PPOLoss(clip_eps=optax.linear_schedule(0.2, 0.0, 8))(*case)
