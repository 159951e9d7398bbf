"""What holds of any run, whatever it learns."""

import dataclasses

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from helpers import arrays, quick_jit, same, small, tiny

from eqxrl import GAE, PPO, AbstractAdvantage, PPOHParams
from eqxrl.nn import Categorical

FLOATS = dict(
    learning_rate=[1e-3, 3e-3, 1e-3],
    gamma=[0.9, 0.99, 0.5],
    max_grad_norm=[0.5, jnp.inf, 0.1],
    gae_lambda=[0.95, 0.5, 0.0],
    clip_eps=[0.2, 0.05, 0.1],
    vf_coef=[0.5, 1.0, 0.1],
    ent_coef=[0.01, 0.0, 0.1],
)


def run(ppo, key, iterations=3):
    ts, metrics = ppo.iterations(ppo.init_train_state(key), iterations)
    return ts, metrics, ppo.eval_callback(ts)


@pytest.fixture(scope="module")
def alone():
    """One run, compiled once for all the tests that change no static setting."""
    traces = []

    def counted(ppo, key):
        traces.append(1)
        return run(ppo, key)

    compiled = quick_jit(counted)
    yield lambda ppo, key: compiled(ppo, key)
    assert len(traces) == 1


@pytest.fixture(scope="module")
def ppo():
    return tiny(normalize_observations=True, normalize_rewards=True)


def with_floats(ppo, i):
    return dataclasses.replace(ppo, hp=dataclasses.replace(ppo.hp, **{name: x[i] for name, x in FLOATS.items()}))


def test_vmap_is_the_single_runs_with_one_compile(ppo, alone):
    """Over seeds and over every float hyperparameter at once."""
    traces = []

    @quick_jit
    @eqx.filter_vmap
    def together(hp, key):
        traces.append(1)
        return run(eqx.tree_at(lambda p: p.hp, ppo, hp), key)

    floats = [f.name for f in dataclasses.fields(PPOHParams) if not f.metadata.get("static") and f.default is not None]
    assert set(floats) == set(FLOATS)
    values = [jnp.array(FLOATS[name], jnp.float32) for name in floats]
    swept = eqx.tree_at(lambda hp: [getattr(hp, name) for name in floats], ppo.hp, values)
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), 3)
        results = together(swept, keys)
        for i in range(3):
            single = alone(with_floats(ppo, i), keys[i])
            same(jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, results), single, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1


def test_seeds_differ_and_repeat(ppo, alone):
    first, second, again = (alone(with_floats(ppo, 0), jax.random.key(seed)) for seed in (0, 1, 0))
    same(first, again)
    for a, b in zip(jax.tree.leaves(first[0].agent.actor_critic), jax.tree.leaves(second[0].agent.actor_critic), strict=True):
        assert eqx.is_array(a) and not np.array_equal(a, b)


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_hyperparameter_is_alive(ppo, alone, name):
    base = with_floats(ppo, 0)
    changed = dataclasses.replace(base, hp=dataclasses.replace(base.hp, **{name: FLOATS[name][1]}))
    before, after = (alone(p, jax.random.key(0))[0].agent for p in (base, changed))
    # the critic of a policy that acts the same depends on all but these two, the actor on all
    moved = {"actor"} if name == "ent_coef" else {"actor", "critic"}
    for part in moved:
        old, new = (arrays(getattr(agent.actor_critic, part)) for agent in (before, after))
        assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(old, new, strict=True)), part


STATIC = dict(
    num_epochs=3,
    num_envs=4,
    num_steps=12,
    num_minibatches=6,
    normalize_observations=False,
    normalize_rewards=False,
)


@pytest.mark.parametrize("name", STATIC)
def test_every_size_and_flag_is_alive(ppo, name, alone):
    changed = tiny(**{**dict(normalize_observations=True, normalize_rewards=True), name: STATIC[name]})
    before = alone(with_floats(ppo, 0), jax.random.key(0))
    after = quick_jit(run)(with_floats(changed, 0), jax.random.key(0))
    hp = changed.hp
    assert after[0].learner_state.num_updates == 3 * hp.num_epochs * hp.num_minibatches
    stepped = after[0].data_collection_state
    assert stepped.last_done.shape == (hp.num_envs,)
    assert changed.env_steps(after[0]) == 3 * hp.num_envs * hp.num_steps
    old, new = (
        getattr(ts.agent, "actor_critic", ts.agent).critic[0].weight for ts in (before[0], after[0])
    )
    assert np.abs(old - new).max() > 1e-5


def test_evaluations_are_as_many_and_as_long_as_asked_for():
    ppo = tiny(num_seeds_per_eval=5, eval_freq=2 * 24, total_timesteps=6 * 24)
    _, evaluations = eqx.filter_eval_shape(ppo.train, jax.random.key(0))
    assert evaluations.cumulative_reward.shape == evaluations.episode_length.shape == (1 + 3, 5)


def test_jit_is_no_jit():
    """All of Python's steps taken one by one, in a run so small that this ends."""
    hp = PPOHParams(
        num_envs=2,
        num_steps=3,
        num_epochs=1,
        num_minibatches=2,
        normalize_observations=True,
        normalize_rewards=True,
    )
    ppo = PPO.create(env=probe_envs.CHAIN, env_params=probe_envs.Limit(2), hp=hp, actor_critic=small)
    ts = quick_jit(lambda ppo, key: ppo.init_train_state(key))(ppo, jax.random.key(0))
    compiled = quick_jit(lambda ppo, ts: ppo.iteration(ts, 0))(ppo, ts)
    with jax.disable_jit():
        plain = ppo.iteration(ts, 0)
    same(plain, compiled, rtol=1e-5, atol=1e-5)


def test_no_key_is_used_twice(ppo):
    with jax.debug_key_reuse(True):
        with pytest.raises(jax.errors.KeyReuseError):  # that it would be noticed, in a loop
            jax.jit(lambda key: jax.lax.scan(lambda key, _: (key, jax.random.normal(key)), key, length=2))(jax.random.key(0))
        ts = quick_jit(lambda ppo, key: ppo.init_train_state(key))(ppo, jax.random.key(0))
        step = quick_jit(lambda ppo, ts: (ppo.eval_callback(ts), ppo.iteration(ts, 0)))
        for i in range(3):
            _, (ts, _) = step(ppo, ts)


def test_no_key_is_used_twice_in_continuous_actions():
    ppo = tiny("Pendulum-v1")
    with jax.debug_key_reuse(True):
        quick_jit(lambda ppo, key: run(ppo, key))(ppo, jax.random.key(0))


def test_the_order_of_the_environments_does_not_matter(ppo):
    """Advantages are permuted with them; an update on the whole rollout at once is the same but for rounding."""
    ppo = tiny(num_minibatches=1, num_epochs=2)
    order = np.array([2, 0, 1])
    ts, batch = quick_jit(lambda ppo, key: ppo.get_batch(ppo.init_train_state(key), 0))(ppo, jax.random.key(0))
    permuted = dataclasses.replace(
        batch,
        trajectories=jax.tree.map(lambda x: x[:, order], batch.trajectories),
        last_done=batch.last_done[order],
        last_obs=batch.last_obs[order],
    )
    step = quick_jit(lambda ppo, ts, batch: (ppo.estimate_advantages(ts, batch), ppo.training_step(0, ts, batch)))
    (estimate, (after, _)), (other_estimate, (other, _)) = (step(ppo, ts, b) for b in (batch, permuted))
    same(estimate.advantages[:, order], other_estimate.advantages, rtol=1e-6, atol=1e-6)
    same(estimate.targets[:, order], other_estimate.targets, rtol=1e-6, atol=1e-6)
    same(after.agent, other.agent, rtol=1e-4, atol=1e-5)


def test_the_policys_statistics_are_of_each_observation_once(ppo):
    ts = quick_jit(lambda ppo, key: ppo.init_train_state(key))(ppo, jax.random.key(0))
    step = quick_jit(lambda ppo, ts: (ppo.get_batch(ts, 0)[1].trajectories.obs, ppo.iteration(ts, 0)[0]))
    seen = []
    for _ in range(3):
        obs, ts = step(ppo, ts)
        seen.append(np.asarray(obs, np.float64))
    seen = np.concatenate(seen).reshape(-1, 4)
    moments = ts.agent.statistics
    assert moments.count == len(seen) == 3 * 24
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.var, seen.var(0), rtol=1e-4)


def test_the_unit_of_the_reward_does_not_matter_once_rewards_are_scaled():
    hp = PPOHParams(num_envs=3, num_steps=8, num_epochs=2, num_minibatches=4, num_seeds_per_eval=2, normalize_rewards=True)
    results = []
    train = quick_jit(run)
    for unit in (1.0, 64.0):
        env = dataclasses.replace(probe_envs.CHAIN, reward=unit * probe_envs.CHAIN.reward)
        ppo = PPO.create(env=env, env_params=probe_envs.Limit(3), hp=hp, actor_critic=small)
        results.append(train(ppo, jax.random.key(0)))
    (one, metrics, evaluation), (other, other_metrics, other_evaluation) = results
    same(one.agent, other.agent, rtol=1e-4, atol=1e-5)
    same(64 * metrics.episodes.total_return, other_metrics.episodes.total_return, rtol=1e-5)  # these are in the environment's unit
    same(64 * evaluation.cumulative_reward, other_evaluation.cumulative_reward, rtol=1e-5)


def test_schedules_take_effect():
    """Coefficients that change after the first iteration: each iteration is that of a run with constant coefficients."""
    updates = 2 * 4

    def jump(before, after):
        return optax.piecewise_constant_schedule(before, {updates: after / before})

    scheduled = tiny(clip_eps=jump(0.2, 0.01), ent_coef=jump(0.02, 0.3))
    constant = tiny(clip_eps=0.2, ent_coef=0.02)
    step, constant_step = (quick_jit(lambda ppo, ts: ppo.iteration(ts, 0)) for _ in range(2))
    ts = quick_jit(lambda ppo, key: ppo.init_train_state(key))(constant, jax.random.key(0))
    for clip_eps, ent_coef in [(0.2, 0.02), (0.01, 0.3)]:
        constant = dataclasses.replace(constant, hp=dataclasses.replace(constant.hp, clip_eps=clip_eps, ent_coef=ent_coef))
        expected = constant_step(constant, ts)
        ts, metrics = step(scheduled, ts)
        same((ts, metrics), expected, rtol=1e-5, atol=1e-6)


def test_the_learning_rates_schedule():
    """Updates of Adam under a constant gradient are the learning rate itself, but for its epsilon."""
    hp = PPOHParams(num_envs=3, num_steps=8, num_epochs=2, num_minibatches=4, total_timesteps=50)
    assert hp.num_updates == 3 * 2 * 4
    optimizer = tiny(learning_rate=optax.linear_schedule(1e-2, 0.0, hp.num_updates)).learner.optimizer
    gradient = jnp.array([3.0, -4.0])
    state = optimizer.init(gradient)
    for k in range(hp.num_updates + 2):
        update, state = optimizer.update(gradient, state)
        rate = 1e-2 * max(0.0, 1 - k / hp.num_updates)
        np.testing.assert_allclose(update, [-rate, rate], rtol=1e-4, atol=1e-8)


class NaNAt(AbstractAdvantage):
    """GAE, with one NaN."""

    inner: GAE = dataclasses.field(default_factory=GAE)

    def __call__(self, rollout, last_value):
        advantages, targets = self.inner(rollout, last_value)
        return advantages.at[1, 1].set(jnp.nan), targets


def test_debug_stops_at_the_first_nan_and_names_it():
    for debug in (False, True):
        ppo = tiny(debug=debug, num_epochs=1, num_minibatches=1, advantage=NaNAt())
        step = quick_jit(lambda ppo, key: ppo.iteration(ppo.init_train_state(key), 0))
        if debug:
            with pytest.raises(RuntimeError, match=r"not finite: batch\.advantages"):
                jax.block_until_ready(step(ppo, jax.random.key(0)))
        else:
            assert np.isnan(step(ppo, jax.random.key(0))[0].agent.actor[0].weight).any()


@pytest.mark.parametrize("env_id", sorted(set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}))
def test_every_environment_trains_without_nan(env_id):
    hp = PPOHParams(num_envs=2, num_steps=6, num_epochs=1, num_minibatches=2, num_seeds_per_eval=2, normalize_rewards=True)
    with jax.numpy_rank_promotion("allow"), jax.debug_nans(True):  # Swimmer relies on it
        ppo = PPO.create(env_id, hp=hp, actor_critic=small)
        ts, metrics = quick_jit(lambda ppo, key: ppo.iterations(ppo.init_train_state(key), 2))(ppo, jax.random.key(0))
    assert ts.data_collection_state.global_step == 2 and ts.learner_state.num_updates == 4
    assert all(np.isfinite(x).all() for x in arrays((ts.agent, metrics)))
    assert np.all(ts.agent.critic[0].bias != 0)
    obs = jax.tree.map(lambda x: x[0], ts.data_collection_state.last_obs)
    assert isinstance(ts.agent(obs, ())[0], Categorical) == hasattr(ppo.env.action_space(ppo.env_params), "n")
