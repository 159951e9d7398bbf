"""SAC and TD3: each loss against NumPy, what moves and what doesn't, exploration, and learning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_jit, same, with_limit

from eqxrl import LinearSchedule, Replayed
from eqxrl.algorithms import REPPO, SAC, TD3, SACHParams, TD3HParams
from eqxrl.learners import NoTarget
from eqxrl.losses import HistogramMinimum, TruncatedQuantiles
from eqxrl.nn import ActionValue, DeterministicActor, HLGauss, MixedNoise, OrnsteinUhlenbeckNoise, QNetwork, StochasticActor, trainable

SIZES = dict(num_envs=2, num_steps=4, updates_per_iteration=3, buffer_size=64, batch_size=5, learning_starts=16, num_seeds_per_eval=2,
             total_timesteps=80, eval_freq=40)  # fmt: skip
SMALL = lambda kind, **options: lambda *spaces, key: kind(*spaces, hidden_sizes=(16,), key=key, **options)  # noqa: E731
KEY = jax.random.key(0)


def sac(env="Pendulum-v1", critic=ActionValue, reduction=None, target_update=None, options=None, action_noise=None, **hp):
    outputs = {} if reduction is None or critic is QNetwork else dict(out_size=reduction.outputs)
    critic = SMALL(critic, **outputs, **(options or {}))
    parts = dict(reduction=reduction, target_update=target_update, action_noise=action_noise)
    return SAC.create(env, hp=SACHParams(**SIZES, **hp), actor=SMALL(StochasticActor), critic=critic, **parts)


def discrete(**hp):
    return sac("CartPole-v1", QNetwork, **hp)


def crossq(**hp):
    return sac(target_update=NoTarget(), options=dict(batch_renorm=True), **hp)


def td3(action_noise=None, reduction=None, **hp):
    critic = SMALL(ActionValue, out_size=1 if reduction is None else reduction.outputs)
    parts = dict(actor=SMALL(DeterministicActor), critic=critic, action_noise=action_noise, reduction=reduction)
    return TD3.create("Pendulum-v1", hp=TD3HParams(**{**SIZES, **hp}), **parts)


ALGORITHMS = {"sac": sac, "discrete": discrete, "tqc": lambda: sac(reduction=TruncatedQuantiles(5, 1)), "td3": td3, "crossq": crossq,
              "sac with lasting noise": lambda: sac(action_noise=OrnsteinUhlenbeckNoise()),
              "td3 with lasting noise": lambda: td3(OrnsteinUhlenbeckNoise()),
              "td3 with mixed noise and histograms": lambda: td3(MixedNoise(), HistogramMinimum(HLGauss(-30.0, 0.0, 11)))}  # fmt: skip


def batch_of(algo, n=40, seed=0):
    rng = np.random.default_rng(seed)
    flags = rng.random((2, n)) < 0.3
    obs_space, action_space = algo.spaces
    action = rng.integers(0, 2, n) if algo.spaces[1].shape == () else rng.uniform(-2, 2, (n, *action_space.shape))
    return Replayed(
        obs=jnp.asarray(rng.normal(size=(n, *obs_space.shape)), jnp.float32),
        action=jnp.asarray(action, jnp.int32 if action_space.shape == () else jnp.float32),
        reward=jnp.asarray(rng.normal(size=n), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(n, *obs_space.shape)), jnp.float32),
        terminated=jnp.asarray(flags[0]), truncated=jnp.asarray(flags[1]),
        discount=jnp.asarray(rng.choice([0.99, 0.97], n), jnp.float32), weight=jnp.asarray(rng.uniform(0.5, 1, n), jnp.float32),
    )  # fmt: skip


def apart(algo):
    """A learner whose target networks are others than its networks."""
    learner = algo.init_learner(KEY)
    return eqx.tree_at(lambda x: x.target, learner, algo.init_learner(jax.random.key(1)).target)


def mlp(net, x):
    """`[batch in]` through one member's layers, in float64."""
    layers = [(np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64)) for layer in net.layers]
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    return x @ layers[-1][0].T + layers[-1][1]


def each(ensemble):
    return [jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, ensemble.members) for i in range(ensemble.size)]


def values(ensemble, obs, action):
    """Pendulum's: actions between -2 and 2. `[members batch outputs]`"""
    return np.stack([mlp(net, np.concatenate([obs, np.asarray(action, np.float64) / 2], axis=1)) for net in each(ensemble)])


def test_the_critics_loss_of_sac_in_numpy():
    algo = sac(temperature=0.3)
    learner, batch = apart(algo), batch_of(algo)
    _, errors, metrics = algo.update(learner, batch, jnp.int32(0), KEY)
    action, log_prob = jax.vmap(learner.actor)(batch.next_obs).sample_and_log_prob(jax.random.split(KEY)[0])
    following = values(learner.target, batch.next_obs, action)[..., 0].min(0) - 0.3 * np.asarray(log_prob)
    targets = np.asarray(batch.reward) + np.asarray(batch.discount) * np.where(batch.terminated, 0, following)
    now = values(learner.critics, batch.obs, batch.action)[..., 0]
    loss = np.mean(np.asarray(batch.weight) * ((now - targets[None]) ** 2).sum(0))
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(errors, np.abs(now.min(0) - targets), rtol=1e-3, atol=1e-4)
    action, log_prob = jax.vmap(learner.actor)(batch.obs).sample_and_log_prob(jax.random.split(KEY)[1])
    aimed = values(learner.critics, batch.obs, action)[..., 0].min(0)
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(0.3 * np.asarray(log_prob) - aimed), rtol=1e-4)


def test_the_losses_of_discrete_sac_in_numpy():
    algo = discrete(temperature=0.3)
    learner, batch = apart(algo), batch_of(algo)
    _, _, metrics = algo.update(learner, batch, jnp.int32(0), KEY)

    def policy(obs):
        logits = mlp(learner.actor, np.asarray(obs, np.float64))
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    p = policy(batch.next_obs)
    old = np.stack([mlp(net, np.asarray(batch.next_obs, np.float64)) for net in each(learner.target)]).min(0)
    following = (p * (old - 0.3 * np.log(p))).sum(-1)
    targets = np.asarray(batch.reward) + np.asarray(batch.discount) * np.where(batch.terminated, 0, following)
    now = np.stack([mlp(net, np.asarray(batch.obs, np.float64)) for net in each(learner.critics)])
    taken = now[:, np.arange(40), batch.action]
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(np.asarray(batch.weight) * ((taken - targets[None]) ** 2).sum(0)), rtol=1e-4)
    p = policy(batch.obs)
    np.testing.assert_allclose(metrics["actor_loss"], np.mean((p * (0.3 * np.log(p) - now.min(0))).sum(-1)), rtol=1e-4)


def test_the_critics_loss_of_td3_in_numpy():
    algo = td3(target_noise=0.3, target_noise_clip=0.2)
    learner, batch = apart(algo), batch_of(algo)
    _, errors, metrics = algo.update(learner, batch, jnp.int32(1), KEY)  # 1: the actor waits
    action = 2 * np.tanh(mlp(learner.target[0], np.asarray(batch.next_obs, np.float64)))
    noise = np.clip(0.3 * np.asarray(jax.random.normal(KEY, action.shape)), -0.2, 0.2)
    assert (np.abs(noise) == np.float32(0.2)).any() or np.isclose(np.abs(noise).max(), 0.2)
    action = np.clip(action + 2 * noise, -2, 2)
    following = values(learner.target[1], batch.next_obs, action)[..., 0].min(0)
    targets = np.asarray(batch.reward) + np.asarray(batch.discount) * np.where(batch.terminated, 0, following)
    now = values(learner.critics, batch.obs, batch.action)[..., 0]
    loss = np.mean(np.asarray(batch.weight) * ((now - targets[None]) ** 2).sum(0))
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(errors, np.abs(now.min(0) - targets), rtol=1e-3, atol=1e-4)


def standardised(net, x):
    """`[batch in]` through one member's layers, by the batch's statistics, which are given as well; in float64."""
    seen = []
    for i, layer in enumerate(net.layers):
        x = np.maximum(x, 0) if i else x
        seen.append((x.mean(0), x.var(0)))
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
        x = x @ np.asarray(layer.linear.weight, np.float64).T + np.asarray(layer.linear.bias)
    return x[:, 0], seen


def test_the_losses_of_crossq_in_numpy():
    algo = crossq(temperature=0.3)
    learner, batch = algo.init_learner(KEY), batch_of(algo)
    assert learner.target is None
    after, errors, metrics = algo.update(learner, batch, jnp.int32(0), KEY)
    keys = jax.random.split(KEY)
    action, log_prob = jax.vmap(learner.actor)(batch.next_obs).sample_and_log_prob(keys[0])
    together = np.concatenate([np.hstack([o, np.asarray(a) / 2]) for o, a in ((batch.obs, batch.action), (batch.next_obs, action))])
    now, then = np.split(np.stack([standardised(net, together)[0] for net in each(learner.critics)]), 2, axis=1)
    following = then.min(0) - 0.3 * np.asarray(log_prob)
    targets = np.asarray(batch.reward) + np.asarray(batch.discount) * np.where(batch.terminated, 0, following)
    loss = np.mean(np.asarray(batch.weight) * ((now - targets[None]) ** 2).sum(0))
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(errors, np.abs(now.min(0) - targets), rtol=1e-3, atol=1e-4)
    action, log_prob = jax.vmap(learner.actor)(batch.obs).sample_and_log_prob(keys[1])
    aimed = []
    for net, new in zip(each(learner.critics), each(after.critics), strict=True):
        x = np.hstack([batch.obs, np.asarray(action) / 2]).astype(np.float64)
        for i, (layer, new_layer, (mean, var)) in enumerate(zip(net.layers, new.layers, standardised(net, together)[1], strict=True)):
            statistics = new_layer.norm.statistics
            np.testing.assert_allclose(statistics.mean, 0.01 * mean, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(statistics.var, 0.99 + 0.01 * var, rtol=1e-4)
            assert statistics.count == 1
            x = ((np.maximum(x, 0) if i else x) - 0.01 * mean) / np.sqrt(0.99 + 0.01 * var + 1e-3)
            x = x @ np.asarray(layer.linear.weight, np.float64).T + np.asarray(layer.linear.bias)
        aimed.append(x[:, 0])
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(0.3 * np.asarray(log_prob) - np.min(aimed, axis=0)), rtol=1e-4)


@pytest.mark.parametrize("env, critic", [("Pendulum-v1", ActionValue), ("CartPole-v1", QNetwork)])
def test_without_a_target_network_it_is_the_network_as_it_stands(env, critic):
    """So an update is that from where the target network is still a copy, to its last gradient."""
    with_copy, without = (sac(env, critic, target_update=x, temperature=0.3) for x in (None, NoTarget()))
    learner, batch = with_copy.init_learner(KEY), batch_of(with_copy)
    alone = dataclasses.replace(learner, target=None)
    same(without.init_learner(KEY), alone)
    for a, b in zip(gradients(with_copy, learner, batch), gradients(without, alone, batch), strict=True):
        same(a, b, rtol=1e-4, atol=1e-6)
    (_, errors, metrics), (_, *want) = (f.update(x, batch, jnp.int32(0), KEY) for f, x in ((without, alone), (with_copy, learner)))
    same((errors, metrics), tuple(want), rtol=1e-4, atol=1e-5)


def test_the_targets_of_crossq_have_no_gradient():
    """Although they come of the same pass: the critics' gradient is that of their values of the batch, given the targets as numbers."""
    algo = crossq(temperature=0.3)
    learner, batch = algo.init_learner(KEY), batch_of(algo)
    _, critics, _ = gradients(algo, learner, batch)
    key = jax.random.split(KEY)[0]
    action, log_prob = jax.vmap(learner.actor)(batch.next_obs).sample_and_log_prob(key)
    together = jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, action])
    then = learner.critics.on_batch(*together)[0][:, 40:, 0].min(0) - 0.3 * log_prob
    targets = batch.reward + batch.discount * jnp.where(batch.terminated, 0.0, then)

    def loss(critics):
        now = critics.on_batch(*together)[0][:, :40, 0]
        return jnp.mean(batch.weight * jnp.sum((now - targets[None]) ** 2, axis=0))

    want = eqx.filter_grad(loss)(learner.critics)
    for a, b in zip(critics.members.layers, want.members.layers, strict=True):
        same((a.linear, a.norm.weight, a.norm.bias), (b.linear, b.norm.weight, b.norm.bias), rtol=1e-3, atol=1e-5)


def test_nobody_else_takes_a_batch_renorm():
    with pytest.raises(ValueError, match=r"SAC got a network with a BatchRenorm.*only SAC with target_update=NoTarget\(\) does"):
        sac(options=dict(batch_renorm=True))
    critic = SMALL(ActionValue, batch_renorm=True)
    with pytest.raises(ValueError, match="TD3 got a network with a BatchRenorm, whose running statistics it would never move"):
        TD3.create("Pendulum-v1", critic=critic)
    with pytest.raises(ValueError, match="REPPO got a network with a BatchRenorm"):
        REPPO.create("Pendulum-v1", critic=SMALL(ActionValue, batch_renorm=True, out_size=151))


def gradients(algo, learner, batch):
    """What one step of plain gradient descent takes from each network."""
    algo = dataclasses.replace(algo, parts=algo.parts | dict(optimizer=optax.sgd(1.0)))
    networks = learner.actor, learner.critics, learner.log_temperature
    params = eqx.filter(networks, trainable(networks))
    learner = eqx.tree_at(lambda x: x.opt_state, learner, optax.sgd(1.0).init(params))
    after, *_ = algo.update(learner, batch, jnp.int32(0), KEY)
    diff = lambda a, b: jax.tree.map(lambda x, y: x - y, *(eqx.filter(z, eqx.is_inexact_array) for z in (a, b)))  # noqa: E731
    return [diff(getattr(learner, name), getattr(after, name)) for name in ("actor", "critics", "log_temperature")]


@pytest.mark.parametrize("make", [sac, discrete])
def test_each_network_learns_from_its_own_loss(make):
    """The critics' gradient is that of their loss alone, although the actor's flows through them; the target networks have none."""
    algo = make(temperature=0.3)
    learner, batch = apart(algo), batch_of(algo)
    actor, critics, _ = gradients(algo, learner, batch)
    fewer = dataclasses.replace(batch, weight=0 * batch.weight)  # the critics' loss is a mean of nothing
    alone, none, _ = gradients(algo, learner, fewer)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(none))
    assert any(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(critics))
    for a, b in zip(jax.tree.leaves(actor), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(actor))


@pytest.mark.parametrize("make, uniform", [(sac, 1.0), (discrete, np.log(2))])
def test_the_temperature_goes_to_where_the_entropy_is_the_target(make, uniform):
    for target, falls in ((uniform - 3, True), (uniform + 3, False)):
        algo = make(temperature=0.3, target_entropy=target)
        learner = algo.init_learner(KEY)
        after, _, metrics = algo.update(learner, batch_of(algo), jnp.int32(0), KEY)
        assert bool(after.log_temperature < learner.log_temperature) == falls, (target, metrics["entropy"])
    algo = make(temperature=0.3, learn_temperature=False)
    learner = algo.init_learner(KEY)
    after, _, metrics = algo.update(learner, batch_of(algo), jnp.int32(0), KEY)
    assert after.log_temperature == learner.log_temperature
    np.testing.assert_allclose(metrics["temperature"], 0.3, rtol=1e-6)


def test_entropy_is_that_of_actions_scaled_to_one():
    """Pendulum's torque is between -2 and 2: twice as wide, log 2 more."""
    np.testing.assert_allclose(sac()._target_entropy(), -1 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(sac(target_entropy=0.5)._target_entropy(), 0.5 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(discrete()._target_entropy(), 0.7 * np.log(2), rtol=1e-6)


def test_the_actor_of_td3_waits():
    algo = td3(policy_delay=3)
    learner, batch = algo.init_learner(KEY), batch_of(algo)
    update = quick_jit(lambda algo, learner, n: algo.update(learner, batch, n, KEY)[0])
    for n in range(7):
        after = update(algo, learner, jnp.int32(n))
        assert not eqx.tree_equal(after.critics, learner.critics)
        still = eqx.tree_equal((after.actor, after.target), (learner.actor, learner.target))
        assert bool(still) == (n % 3 != 0), n
        if n == 3:
            trees = after.target, learner.target, (after.actor, after.critics)
            for a, b, c in zip(*(jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in trees), strict=True):
                np.testing.assert_allclose(a, 0.995 * b + 0.005 * c, rtol=1e-4, atol=1e-7)
        learner = after


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * ("noise" in x)) for x in ALGORITHMS])
def test_it_runs_and_two_halves_are_the_whole_bit_for_bit(name):
    algo = ALGORITHMS[name]()
    half = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, total_timesteps=40))
    whole, metrics = algo.train(KEY)
    first, _ = half.train(KEY)
    second, _ = half.train(train_state=first)
    same(second, whole)
    assert int(whole.num_updates) == 3 * (10 - 2 + 1) and np.isfinite(metrics.cumulative_reward).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_exploration(name):
    """At random before learning starts, then by the policy; never in an evaluation."""
    algo = ALGORITHMS[name]()
    learner = algo.init_learner(KEY)
    obs = batch_of(algo).obs
    at = lambda n: algo.behaviour(learner, jnp.int32(n))  # noqa: E731
    memory = jax.tree.map(lambda x: jnp.repeat(x[None], len(obs), axis=0), at(0).initial_carry())
    assert [bool(at(n).random) for n in range(4)] == [True, True, False, False]
    same(at(0)(obs, memory, None)[0], at(3)(obs, memory, None)[0])
    drawn, quiet = at(3)(obs, memory, KEY)[0], at(3)(obs, memory, None)[0]
    assert not np.array_equal(drawn, quiet) and not np.array_equal(drawn, at(0)(obs, memory, KEY)[0])


def test_the_deviation_of_td3s_noise_goes_by_env_steps():
    """8 in an iteration."""
    algo = td3(exploration_noise=LinearSchedule(0.4, 0.0, 32))
    learner = algo.init_learner(KEY)
    for n, std in ((0, 0.4), (1, 0.3), (3, 0.1), (9, 0.0)):
        np.testing.assert_allclose(algo.behaviour(learner, jnp.int32(n)).policy.noise.std, std, atol=1e-6)
    with pytest.raises(ValueError, match="hp.exploration_noise was set, but no part reads it.*action_noise"):
        td3(OrnsteinUhlenbeckNoise(), exploration_noise=0.3)
    assert td3(lambda hp: OrnsteinUhlenbeckNoise(hp.exploration_noise), exploration_noise=0.3).action_noise.std == np.float32(0.3)


def test_noise_of_the_last_episode_does_not_go_on():
    """A random walk: its deviation grows with the square root of the step, from the start of each episode, across rollouts."""
    algo = td3(OrnsteinUhlenbeckNoise(0.01, theta=0.0), num_envs=64, num_steps=8, learning_starts=0, buffer_size=512)
    algo = with_limit(algo, 10)
    ts = algo.init_train_state(KEY)
    still = eqx.tree_at(lambda a: (a.layers[-1].weight, a.layers[-1].bias), ts.learner.actor, replace_fn=jnp.zeros_like)
    ts, collect, batches = eqx.tree_at(lambda ts: ts.learner.actor, ts, still), quick_jit(lambda ts: algo.get_batch(ts, 0)), []
    for _ in range(5):
        ts, batch = collect(ts)
        batches.append(batch.transitions)
    walk = np.concatenate([t.action[..., 0] for t in batches]).reshape(4, 10, 64) / 2  # Pendulum's torque is up to 2
    assert np.concatenate([t.done for t in batches]).reshape(4, 10, 64)[:, -1].all()
    for episode in walk:
        np.testing.assert_allclose(episode.std(axis=1), 0.01 * np.sqrt(1 + np.arange(10)), rtol=0.35)


def test_what_does_not_fit_is_said():
    with pytest.raises(TypeError, match="acts in a Box of floats.*Discrete"):
        TD3.create("CartPole-v1")
    one = ActionValue(*sac().spaces, key=KEY)
    with pytest.raises(TypeError, match="got a ActionValue where several are made; pass what makes one"):
        SAC.create("Pendulum-v1", critic=one)
    with pytest.raises(TypeError, match="action_noise is added to actions in a Box, but these are Discrete; leave it out"):
        discrete(action_noise=OrnsteinUhlenbeckNoise())
    with pytest.raises(ValueError, match="TruncatedQuantiles needs 5 numbers of each critic, got 1; pass critics with out_size=5"):
        sac("CartPole-v1", QNetwork, TruncatedQuantiles(5, 1))
    with pytest.raises(ValueError, match="Minimum needs 1 numbers of each critic, got 3"):
        SAC.create("Pendulum-v1", critic=SMALL(ActionValue, out_size=3))
    for wrong in (dict(temperature=0.0), dict(tau=1.5), dict(num_critics=0)):
        with pytest.raises(ValueError, match=f"SACHParams.{next(iter(wrong))}"):
            SACHParams(**wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["sac", "td3"])
def test_pendulum_is_learned(name):
    """The whole table: `python benchmarks/learning.py Pendulum-v1 --algo sac`."""
    from eqxrl import preset

    algo = preset("Pendulum-v1", name).create(eval_freq=20_000)
    _, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(jax.random.split(KEY, 2))
    assert metrics.cumulative_reward[:, -1].mean() >= -200
