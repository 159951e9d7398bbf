"""REPPO: targets and losses against NumPy, which gradient reaches what, both multipliers, the laws, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arrays, quick_jit, same

from eqxrl import REPPO, REPPOHParams, preset, spaces, verify
from eqxrl.algorithms import MakeNetwork
from eqxrl.envs import TimeLimit
from eqxrl.losses import PathwiseLoss
from eqxrl.nn import HLGauss, SquashedGaussian
from eqxrl.testing._probe import probe

HP = REPPOHParams(
    num_envs=4,
    num_steps=12,
    num_epochs=2,
    num_minibatches=3,
    num_bins=21,
    gamma=0.9,
    td_lambda=0.7,
    temperature=0.3,
    num_seeds_per_eval=2,
    total_timesteps=192,
    eval_freq=96,
)
NETWORKS = dict(
    actor=MakeNetwork("actor", dict(hidden_sizes=(8,), layer_norm=True)),
    critic=MakeNetwork("action_value", dict(hidden_sizes=(8,), layer_norm=True, out_size=21)),
)


ENV = TimeLimit(probe("box")[0].env, 5)  # one may leave the corridor before


def make(env=ENV, **changes):
    return REPPO.create(env=env, hp=dataclasses.replace(HP, **changes), **NETWORKS)


@pytest.fixture(scope="module")
def reppo():
    return make(normalize_rewards=False)


@pytest.fixture(scope="module")
def first(reppo):
    """The state after a rollout, the rollout, its targets, and what they are made of."""

    @quick_jit
    def collect(reppo, key):
        ts, batch = reppo.get_batch(reppo.init_train_state(0), 0)
        t, (policy, critic) = batch.transitions, ts.learner.networks
        drawn = jax.vmap(jax.vmap(policy.actor))(t.next_obs)
        action, log_prob = drawn.sample_and_log_prob(key)
        logits = jax.vmap(jax.vmap(critic))(t.next_obs, action)
        return ts, t, reppo.targets(ts.learner.networks, t, key), logits, log_prob

    return collect(reppo, jax.random.key(3))


def test_targets(first):
    """Backwards from the last step, with the entropy's worth of what comes next, cut where episodes end."""
    ts, t, targets, logits, log_prob = first
    assert np.any(t.terminated) and np.any(t.truncated & ~t.terminated) and not np.all(t.done)
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    value = (p / p.sum(-1, keepdims=True)) @ np.linspace(-20, 20, 21)
    bonus = -0.3 * np.asarray(log_prob, np.float64)  # of actions between -1 and 1
    expected, following = np.zeros((12, 4)), None
    for step in reversed(range(12)):
        cut = np.asarray(t.truncated[step]) | (step == 11)
        mixed = value[step] if step == 11 else np.where(cut, value[step], 0.3 * value[step] + 0.7 * following)
        later = np.where(t.terminated[step], 0.0, bonus[step] + mixed)
        expected[step] = following = np.asarray(t.reward[step]) + 0.9 * later
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-4)


def of_minibatch(reppo, first, key=7):
    """Arguments of the loss, with old distributions of which some are far away and some aren't."""
    ts, t, targets, *_ = first
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (t.obs, t.action, targets))
    old = jax.vmap(ts.learner.networks[0].actor)(flat[0])
    old = dataclasses.replace(old, mean=old.mean + jnp.linspace(0.0, 1.0, 48)[:, None])
    return ts.learner.networks, *flat, old, jax.random.key(key)


def test_the_loss_is_the_one_in_numpy(reppo, first):
    learned, obs, action, targets, old, key = of_minibatch(reppo, first)
    policy, critic = learned
    policy = eqx.tree_at(lambda p: p.log_kl_coef, policy, jnp.log(0.5))
    loss, metrics = quick_jit(reppo.loss)((policy, critic), obs, action, targets, old, key)
    new = jax.vmap(policy.actor)(obs)
    drawn, log_prob = new.sample_and_log_prob(key)
    histogram = reppo.loss.histogram
    value = np.asarray(histogram.to_value(jax.vmap(critic)(obs, drawn)), np.float64)
    std, old_std = (np.exp(np.asarray(x.log_std, np.float64)) for x in (new, old))
    shift = np.asarray(old.mean, np.float64) - np.asarray(new.mean)
    kl = np.sum(np.log(std / old_std) + (old_std**2 + shift**2) / (2 * std**2) - 0.5, axis=-1)
    assert 0 < np.sum(kl < 0.1) < 48
    actor = np.where(kl < 0.1, 0.3 * np.asarray(log_prob, np.float64) - value, 0.5 * kl).mean()
    entropy = -np.asarray(log_prob, np.float64).mean()
    multipliers = 0.3 * (entropy + 0.5 * 2) + 0.5 * (0.1 - kl.mean())  # two numbers in an action, -0.5 nats for each
    logits = np.asarray(jax.vmap(critic)(obs, action), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cross = -(np.asarray(histogram.to_probabilities(targets)) * log_p).sum(-1).mean()
    np.testing.assert_allclose(loss, actor + multipliers + cross, rtol=1e-4)
    np.testing.assert_allclose([metrics["kl"], metrics["entropy"], metrics["critic_loss"]], [kl.mean(), entropy, cross], rtol=1e-4)


def test_which_gradient_reaches_what(reppo, first):
    learned, obs, action, targets, old, key = of_minibatch(reppo, first)
    params, static = eqx.partition(learned, eqx.is_inexact_array)

    def of_policy(params):
        policy, critic = eqx.combine(params, static)
        return reppo.loss.of_policy(policy, critic, obs, old, key)[0]

    def with_critic(params):
        return reppo.loss(eqx.combine(params, static), obs, action, targets, old, key)[0]

    alone, together = (quick_jit(jax.grad(f))(params) for f in (of_policy, with_critic))
    assert all(np.all(x == 0) for x in arrays(alone[1])) and all(np.any(x != 0) for x in arrays(together[1]))
    assert all(np.any(x != 0) for x in arrays(alone[0]))
    same(alone[0], together[0], rtol=1e-5, atol=1e-7)  # the critic's loss moves the critic alone


def test_where_the_kl_divergence_is_beyond_its_bound_the_critic_has_no_say(reppo, first):
    learned, obs, action, targets, old, key = of_minibatch(reppo, first)
    policy, critic = learned
    params, static = eqx.partition(policy.actor, eqx.is_inexact_array)

    def slope(sign, shift):
        far = dataclasses.replace(old, mean=old.mean + shift)
        other = eqx.tree_at(lambda c: c.layers[-1].weight, critic, replace_fn=lambda x: sign * x)

        def loss(params):
            actor = eqx.combine(params, static)
            return reppo.loss.of_policy(eqx.tree_at(lambda p: p.actor, policy, actor), other, obs, far, key)[0]

        return quick_jit(jax.grad(loss))(params)

    same(slope(1, 5.0), slope(-1, 5.0))
    assert not eqx.tree_equal(slope(1, 0.0), slope(-1, 0.0))


@pytest.mark.parametrize("above", [True, False])
def test_multipliers_move_towards_their_bounds(first, above):
    """Entropy above its target: a nat of it is worth less. Divergence above its bound: a nat of it costs more."""
    sign = 1 if above else -1
    loss = PathwiseLoss(HLGauss(-20.0, 20.0, 21), target_entropy=-sign * 1e3, kl_bound=1e-6 if above else 1e3)
    (policy, critic), obs, action, targets, old, key = of_minibatch(None, first)

    def of(multipliers):
        changed = eqx.tree_at(lambda p: (p.log_temperature, p.log_kl_coef), policy, multipliers)
        return loss((changed, critic), obs, action, targets, old, key)[0]

    of_temperature, of_kl_coef = quick_jit(jax.grad(of))((policy.log_temperature, policy.log_kl_coef))
    assert np.sign(of_temperature) == sign and np.sign(of_kl_coef) == -sign  # descent goes the other way


def test_an_iteration_moves_all_there_is(reppo):
    """Both multipliers too, as the entropy and the divergence say; the targets are those of before."""
    step = quick_jit(lambda algo, ts: algo.iteration(ts, 0))
    for kl_bound, sign in ((1e-9, 1), (1e3, -1)):
        algo = make(normalize_rewards=False, kl_bound=kl_bound, target_entropy=-sign * 50.0)
        ts = algo.init_train_state(0)
        after, metrics = step(algo, ts)
        for old, new in zip(arrays(ts.learner.networks), arrays(after.learner.networks), strict=True):
            assert not np.array_equal(old, new)
        (policy, _), (before, _) = after.learner.networks, ts.learner.networks
        assert np.sign(policy.log_temperature - before.log_temperature) == -sign
        assert np.sign(policy.log_kl_coef - before.log_kl_coef) == sign
        assert int(after.num_updates) == 2 * 3 and int(after.num_iterations) == 1
        assert all(np.isfinite(x) for x in metrics.means.values())


def test_entropy_is_counted_as_if_bounds_were_one():
    """An action's bounds don't change what is learned: of two environments, one takes actions that are ten times as large."""

    class Larger(type(ENV.env)):
        def action_space(self, params):
            return spaces.Box(-10.0, 10.0, (2,))

        def step(self, key, state, action, params):
            return super().step(key, state, action / 10, params)

    larger = TimeLimit(Larger(ENV.env.action), ENV.max_steps)
    two = [make(env) for env in (ENV, larger)]
    learned = [quick_jit(lambda algo: algo.iterations(algo.init_train_state(0), 2)[0].learner.networks)(algo) for algo in two]
    same(*learned, rtol=1e-3, atol=1e-4)


def test_actions_are_drawn_or_the_mode(reppo, first):
    ts, t, *_ = first
    policy, obs = reppo.policy(ts), t.obs[0]
    distribution = jax.vmap(ts.learner.networks[0].actor)(obs)
    assert isinstance(distribution, SquashedGaussian)
    same(policy(obs, (), None)[0], distribution.mode())
    same(policy(obs, (), jax.random.key(1))[0], distribution.sample(jax.random.key(1)))
    assert reppo.make_actor(ts)(obs[0], jax.random.key(0)).shape == (2,)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"num_envs \* num_steps \(24\) must be divisible by num_minibatches \(5\); remainder 4"):
        REPPOHParams(num_envs=4, num_steps=6, num_minibatches=5)
    with pytest.raises(ValueError, match="REPPOHParams.value_low must be below REPPOHParams.value_high, got 3 and 3"):
        REPPOHParams(value_low=3.0, value_high=3.0)
    with pytest.raises(TypeError, match="values actions of a Box"):
        REPPO.create("CartPole-v1", hp=HP)
    with pytest.raises(ValueError, match="HLGauss has 33 bins"):
        make(num_bins=33)


def test_two_halves_are_the_whole_bit_for_bit():
    algo = make()
    half = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, total_timesteps=96))
    whole, _ = algo.train(jax.random.key(0))
    first, evaluations = half.train(jax.random.key(0))
    second, _ = half.train(train_state=first)
    same(second, whole)
    assert evaluations.cumulative_reward.shape == (2, 2) and int(whole.num_iterations) == 4


def test_vmap_over_seeds():
    algo = make()
    keys = jax.random.split(jax.random.key(0), 3)

    def run(algo, key):
        return algo.iterations(algo.init_train_state(key), 2)[0].learner.networks

    together = quick_jit(eqx.filter_vmap(run, in_axes=(None, 0)))(algo, keys)
    alone = quick_jit(run)
    for i in range(3):
        same(jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, together), alone(algo, keys[i]), rtol=1e-3, atol=1e-4)


def test_the_laws():
    report = verify(make(), quiet=True)
    assert report.ok, report


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pendulum_is_learned():
    """The whole table: `python benchmarks/learning.py --algo reppo`."""
    algo = preset("Pendulum-v1", "reppo").create(eval_freq=147_456)
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 5))
    assert np.mean(metrics.cumulative_reward[:, -1]) >= -175
