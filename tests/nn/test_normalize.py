"""Running statistics against gymnasium's, in float64."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium.wrappers.utils import RunningMeanStd
from gymnax.environments import spaces
from helpers import same

from eqxrl import AdvantageMinibatch, MinibatchLearner, MLPActorCritic, PPOLoss, Trajectory
from eqxrl.nn import AbstractActorCritic, NormalizedActorCritic, RunningMoments, observe, trainable
from eqxrl.nn._normalize import zero_moments

BOX = spaces.Box(-1e6, 1e6, (2,))


@pytest.fixture(scope="module")
def agent():
    inner = MLPActorCritic(BOX, spaces.Discrete(3), hidden_sizes=(4,), key=jax.random.key(0))
    return NormalizedActorCritic(inner, jnp.zeros(2))


@pytest.mark.parametrize("std", [1.0, 0.01])
def test_ten_million_samples_with_mean_1000(std):
    """A thousand deviations (or a hundred thousand) away from 0, where summing squares in float32 would leave nothing."""
    batches = np.random.default_rng(0).normal(1e3, std, (2442, 32, 128)).astype(np.float32)
    assert batches.size > 1e7
    ours, _ = jax.jit(lambda m, xs: jax.lax.scan(lambda m, x: (m.update(x), None), m, xs))(zero_moments(), batches)
    theirs = RunningMeanStd(epsilon=0.0, dtype=np.float64)
    for batch in batches.astype(np.float64):
        theirs.update(batch.ravel())
    assert ours.count == theirs.count == batches.size
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=0, atol=2e-3 * std + 1e-4)
    np.testing.assert_allclose(ours.var, theirs.var, rtol=1e-3)


def test_a_feature_that_never_changes_is_0():
    """The mean of 4096 times 123.456 in float32 is another number, and the rounding error over an epsilon is anything."""
    moments = zero_moments()
    for _ in range(3):
        moments = jax.jit(lambda m: m.update(jnp.full((32, 128), 123.456)))(moments)
        assert moments.mean == np.float32(123.456) and moments.var == 0
    inner = MLPActorCritic(BOX, spaces.Discrete(3), hidden_sizes=(4,), key=jax.random.key(0))
    seen = jnp.stack([jnp.full(640, 123.456), jnp.linspace(-1, 1, 640)], axis=-1)
    agent = NormalizedActorCritic(inner, jnp.zeros(2)).observe(seen)
    assert (jax.vmap(agent.normalize)(seen)[:, 0] == 0).all()


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"epsilon": 0.0}, {"epsilon": -1e-8}, {"clip": float("nan")}])
def test_what_it_divides_by_is_above_0(agent, wrong):
    with pytest.raises(ValueError, match=rf"NormalizedActorCritic.{next(iter(wrong))} must be above 0"):
        NormalizedActorCritic(agent.actor_critic, jnp.zeros(2), **wrong)


def test_each_dimension_apart():
    rng = np.random.default_rng(0)
    batches = rng.normal([[5.0, 0.0], [1.0, -2.0], [0.0, 100.0]], [1.0, 10.0], (50, 4, 3, 2)).astype(np.float32)
    ours, theirs = zero_moments((3, 2)), RunningMeanStd(epsilon=0.0, shape=(3, 2), dtype=np.float64)
    for batch in batches:
        ours = ours.update(jnp.asarray(batch))
        theirs.update(batch.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.var, theirs.var, rtol=1e-5)
    np.testing.assert_allclose(ours.mean, batches.mean((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.var, batches.var((0, 1)), rtol=1e-4)


def test_order_and_batch_size_hardly_matter():
    x = jax.random.normal(jax.random.key(0), (240,)) + 7
    once = zero_moments().update(x)
    bit_by_bit = zero_moments()
    for part in jnp.split(x, [1, 2, 50, 239]):
        bit_by_bit = bit_by_bit.update(part)
    np.testing.assert_allclose(bit_by_bit.mean, once.mean, rtol=1e-6)
    np.testing.assert_allclose(bit_by_bit.var, once.var, rtol=1e-5)


def test_nothing_counted_changes_nothing(agent):
    np.testing.assert_array_equal(agent.normalize(jnp.array([0.5, -3.0])), [0.5, -3.0])
    np.testing.assert_array_equal(agent.normalize(jnp.array([11.0, -1e30])), [10.0, -10.0])


def test_the_policy_sees_what_gymnasium_would_show_it(agent):
    rng = np.random.default_rng(1)
    theirs = RunningMeanStd(epsilon=0.0, shape=(2,), dtype=np.float64)
    for _ in range(5):
        rollout = rng.normal([3.0, -200.0], [0.5, 30.0], (6, 4, 2)).astype(np.float32)
        agent = observe(agent, jnp.asarray(rollout))
        theirs.update(rollout.reshape(-1, 2).astype(np.float64))
    for obs in rollout.reshape(-1, 2):
        seen = np.clip((obs - theirs.mean) / np.sqrt(theirs.var + 1e-8), -10, 10)
        np.testing.assert_allclose(agent.normalize(jnp.asarray(obs)), seen, rtol=1e-4, atol=1e-4)
        by_ours, by_inner = agent(jnp.asarray(obs), ()), agent.actor_critic(jnp.asarray(seen, jnp.float32), ())
        np.testing.assert_allclose(by_ours[0].logits, by_inner[0].logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_ours[1], by_inner[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(agent.normalize(jnp.array([1e6, -1e6])), [10.0, -10.0])


def test_a_policy_without_statistics_observes_nothing(agent):
    inner = agent.actor_critic
    assert eqx.tree_equal(observe(inner, jnp.zeros((5, 3, 2))), inner)
    assert inner.initial_carry() == agent.initial_carry()


def test_observations_of_several_parts():
    obs = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 9, ())})
    inner = MLPActorCritic(space, spaces.Discrete(2), hidden_sizes=(4,), key=jax.random.key(0))
    agent = NormalizedActorCritic(inner, obs)
    many = {"a": jax.random.normal(jax.random.key(1), (6, 4, 2)), "b": jnp.arange(24.0).reshape(6, 4)}
    agent = agent.observe(many)
    np.testing.assert_allclose(agent.statistics["a"].mean, many["a"].mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(agent.statistics["b"].var, np.arange(24).var(), rtol=1e-5)
    seen = agent.normalize(jax.tree.map(lambda x: x[2, 1], many))
    np.testing.assert_allclose(seen["b"], (9 - 11.5) / np.arange(24).std(), rtol=1e-5)


def test_choices_and_masks_stay_as_they_are():
    """Standardised, the number of a choice would no longer be one, nor a mask a mask."""
    space = spaces.Dict({"mask": spaces.Box(0, 1, (3,), jnp.bool_), "number": spaces.Discrete(4), "x": spaces.Box(-9, 9, (2,))})
    rng = np.random.default_rng(0)
    many = {
        "mask": jnp.asarray(rng.random((6, 4, 3)) < 0.5),
        "number": jnp.asarray(rng.integers(0, 4, (6, 4)), jnp.int32),
        "x": jnp.asarray(rng.normal(5, 3, (6, 4, 2)), jnp.float32),
    }
    one = jax.tree.map(lambda x: x[1, 2], many)
    inner = MLPActorCritic(space, spaces.Discrete(2), hidden_sizes=(4,), key=jax.random.key(0))
    agent = NormalizedActorCritic(inner, one).observe(many)
    seen = agent.normalize(one)
    for name in ("mask", "number"):
        assert agent.statistics[name] is None and seen[name].dtype == many[name].dtype
        np.testing.assert_array_equal(seen[name], one[name])
    np.testing.assert_allclose(seen["x"], (one["x"] - many["x"].mean((0, 1))) / many["x"].std((0, 1)), rtol=1e-4)
    _, by_ours, _ = agent(one, ())
    _, by_inner, _ = inner(seen, ())
    assert by_ours == by_inner
    assert agent.observe(many).statistics["x"].count == 48  # again: the structure stays as it is
    assert jax.tree.structure(agent.observe(many)) == jax.tree.structure(agent)
    assert not any(jax.tree.leaves(trainable(agent).statistics))


class Outer(AbstractActorCritic):
    """A policy with one that normalises somewhere inside."""

    parts: dict

    def __call__(self, obs, carry):
        return self.parts["policy"][0](obs, carry)

    def initial_carry(self):
        return ()


def test_statistics_are_found_wherever_they_are(agent):
    obs = 5 + jax.random.normal(jax.random.key(0), (6, 4, 2))
    inside = observe(Outer({"policy": [agent], "other": jnp.zeros(3)}), obs)
    assert eqx.tree_equal(inside, Outer({"policy": [observe(agent, obs)], "other": jnp.zeros(3)}))
    assert inside.parts["policy"][0].statistics.count == 24
    assert not any(jax.tree.leaves(trainable(inside).parts["policy"][0].statistics))


def test_an_attribute_of_the_policy_inside(agent):
    """It isn't handed out: called from outside, it would get observations that aren't normalised."""
    for name in ("actor", "critic", "head", "encoders"):
        with pytest.raises(AttributeError, match=f"'{name}' belongs to the ActorCritic inside .*agent.actor_critic.{name}.*normalize"):
            getattr(agent, name)
    with pytest.raises(AttributeError, match="NormalizedActorCritic has no attribute 'nothing'"):
        agent.nothing
    assert not hasattr(agent, "__array__")
    same(copy.deepcopy(agent), agent)  # which asks for attributes of an object that has none yet


def test_statistics_are_never_trained_not_even_by_weight_decay(agent):
    agent = observe(agent, 5 + jax.random.normal(jax.random.key(0), (6, 4, 2)))
    zeros = jnp.zeros((6, 4))
    t = Trajectory(
        obs=5 + jax.random.normal(jax.random.key(1), (6, 4, 2)),
        action=jnp.ones((6, 4), jnp.int32),
        log_prob=zeros - 1.1,
        reward=zeros,
        value=zeros,
        terminated=zeros > 0,
        truncated=zeros > 0,
        final_value=zeros,
    )
    rollout = AdvantageMinibatch(trajectories=t, advantages=jax.random.normal(jax.random.key(2), (6, 4)), targets=zeros + 1)
    learner = MinibatchLearner(
        loss=PPOLoss(), optimizer=optax.adamw(0.1, weight_decay=0.5), num_epochs=2, num_minibatches=3
    )
    after, _, _ = eqx.filter_jit(learner)(agent, learner.init(agent), rollout, jax.random.key(3))
    assert eqx.tree_equal(after.statistics, agent.statistics)
    for before, trained in zip(*(jax.tree.leaves(eqx.filter(a.actor_critic, eqx.is_array)) for a in (agent, after))):
        assert np.all(before != trained)

    marked = trainable(agent)
    assert not any(jax.tree.leaves(marked.statistics))
    arrays = [eqx.is_inexact_array(x) for x in jax.tree.leaves(agent.actor_critic)]
    assert jax.tree.leaves(marked.actor_critic) == arrays
    assert isinstance(agent.statistics, RunningMoments)
