"""One agent on several devices. Here one device does the work of all; what several compute is compared with that in processes of their
own, since CPU cores become devices once."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import arrays, same, tiny

from eqxrl import MLPActorCritic, PPOHParams, make
from eqxrl._devices import AXIS
from eqxrl.collectors import Curriculum, DataParallelCollector, RewardScaling, RolloutCollector
from eqxrl.envs import ResetFromPool
from eqxrl.learners import (
    AbstractLearner,
    AdaptiveKL,
    DataParallelLearner,
    MinibatchLearner,
    flatten,
    gradient_update,
    init_learner_state,
    mean_over_devices,
)
from eqxrl.losses import PPOLoss
from eqxrl.nn import GRUActorCritic, RunningMoments
from eqxrl.testing import check_collector, check_learner
from eqxrl.verification._copies import reduced

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def cartpole():
    env, env_params = make("CartPole-v1")
    spaces = env.observation_space(env_params), env.action_space(env_params)
    return env, env_params, MLPActorCritic(*spaces, key=KEY)


def rollout_of(cartpole, collector, num=1):
    state = collector.init(*cartpole, KEY)
    for _ in range(num):
        state, rollout = collector(*cartpole, state)
    return state, rollout


@pytest.mark.parametrize("stepper", [None, ResetFromPool(5)], ids=["no pool", "pool"])
def test_collects_what_each_device_would_by_itself(cartpole, stepper):
    """Two rollouts, with the same keys; rewards are scaled by statistics of all."""
    inner = RolloutCollector(3, 16, **({} if stepper is None else {"stepper": stepper}))
    both = DataParallelCollector(inner, 2)
    assert (both.num_envs, both.num_steps) == (6, 16)
    together = both.init(*cartpole, KEY)
    alone = [inner.init(*cartpole, key) for key in jax.random.split(KEY, 3)[1:]]
    for _ in range(2):
        keys = jax.random.split(together.rng, 3)
        together, rollout = both(*cartpole, together)
        episodes = []
        for i in range(2):
            alone[i], own = inner(*cartpole, dataclasses.replace(alone[i], rng=keys[1 + i]))
            mine = slice(3 * i, 3 * i + 3)
            same(jax.tree.map(lambda x: x[:, mine], rollout.trajectories), own.trajectories, rtol=1e-5, atol=1e-6)
            same(rollout.last_obs[mine], own.last_obs, rtol=1e-5, atol=1e-6)
            same(jax.tree.map(lambda x: x[i], together.reset_state), alone[i].reset_state, rtol=1e-5, atol=1e-6)
            episodes.append(own.episodes)
        same(rollout.episodes, jax.tree.map(jnp.add, *episodes))
    assert not np.array_equal(rollout.trajectories.obs[:, :3], rollout.trajectories.obs[:, 3:])
    assert int(together.global_step) == 2


def test_rewards_are_scaled_by_the_statistics_of_all(cartpole):
    inner = RolloutCollector(3, 16, reward_scaling=RewardScaling(gamma=0.9))
    state, rollout = rollout_of(cartpole, DataParallelCollector(inner, 2), 3)
    plain = rollout_of(cartpole, DataParallelCollector(dataclasses.replace(inner, reward_scaling=None), 2), 3)[1].trajectories
    scale = rollout.trajectories.reward / plain.reward
    np.testing.assert_allclose(scale, scale[0, 0], rtol=1e-6)
    assert state.rms_state.moments.count == 3 * 6 * 16 and state.rms_state.returns.shape == (6,)


@pytest.mark.parametrize("first", [0.0, 7.0], ids=["the first batch", "a later one"])
def test_moments_count_what_all_devices_have_seen(first):
    x = 1e3 + jax.random.normal(KEY, (4, 5, 3)).at[..., 2].set(0.0)
    moments = RunningMoments(jnp.full((3,), first), jnp.ones((3,)), jnp.asarray(first))
    each = jax.vmap(moments.update, axis_name=AXIS)(x)
    for i in range(4):
        same(jax.tree.map(lambda leaf: leaf[i], each), moments.update(x.reshape(-1, 3)), rtol=1e-5, atol=1e-6)
    if not first:
        assert not each.var[:, 2].any()  # exactly 0 for what never changes


def estimate_of(cartpole, num_envs=4, num_steps=8):
    algo = tiny(num_envs=num_envs, num_steps=num_steps, num_minibatches=1)
    ts = algo.init_train_state(0)
    return ts.agent, algo.estimate_advantages(*algo.get_batch(ts, 0))


def test_the_gradient_is_that_of_all_samples(cartpole):
    """With a loss that is a mean over samples."""
    agent, estimate = estimate_of(cartpole)
    inner = MinibatchLearner(PPOLoss(normalize_advantages=False), optax.sgd(0.1), num_epochs=3, num_minibatches=1)
    learned = [x(agent, x.init(agent), estimate, KEY) for x in (inner, DataParallelLearner(inner, 2))]
    same(learned[1][:2], learned[0][:2], rtol=1e-4, atol=1e-6)
    assert any(not np.allclose(x, y, atol=1e-3) for x, y in zip(arrays(learned[0][0]), arrays(agent)))
    for name, x in learned[0][2].items():
        np.testing.assert_allclose(learned[1][2][name], x, rtol=1e-3, atol=1e-5, err_msg=name)


def test_all_devices_leave_out_the_same_updates(cartpole):
    """Since the divergence that decides on them is the mean over all samples."""
    agent, estimate = estimate_of(cartpole)
    loss = PPOLoss(normalize_advantages=False)
    inner = MinibatchLearner(loss, optax.sgd(1.0), num_epochs=4, num_minibatches=1, target_kl=1e-4)
    one, two = (x(agent, x.init(agent), estimate, KEY) for x in (inner, DataParallelLearner(inner, 2)))
    assert 0 < one[2]["updates_made"] < 1 and two[2]["updates_made"] == one[2]["updates_made"]
    same(two[:2], one[:2], rtol=1e-4, atol=1e-6)


def test_the_coefficient_of_a_penalty_follows_the_divergence_of_all(cartpole):
    agent, estimate = estimate_of(cartpole)
    inner = AdaptiveKL(MinibatchLearner(PPOLoss(normalize_advantages=False), optax.sgd(1.0), num_epochs=3, num_minibatches=1))
    one, two = (x(agent, x.init(agent), estimate, KEY) for x in (inner, DataParallelLearner(inner, 2)))
    np.testing.assert_allclose(two[2]["rollout_kl"], one[2]["rollout_kl"], rtol=1e-3)
    same(two[1].opt_state[1], one[1].opt_state[1])


class OneStep(AbstractLearner):
    optimizer: optax.GradientTransformation
    by_hand: bool = eqx.field(static=True)
    averaged: bool = eqx.field(static=True)

    def init(self, agent):
        return init_learner_state(self.optimizer, agent)

    def __call__(self, agent, state, rollout, key):
        if not self.by_hand:
            return gradient_update(PPOLoss(), self.optimizer, agent, state, flatten(rollout))
        scale = 1 + jnp.mean(rollout.advantages)
        scale = mean_over_devices(scale) if self.averaged else scale
        return jax.tree.map(lambda x: scale * x if eqx.is_inexact_array(x) else x, agent), state, {}


@pytest.mark.parametrize("by_hand, averaged", [(False, False), (True, True)])
def test_learners_of_ones_own(cartpole, by_hand, averaged):
    agent, estimate = estimate_of(cartpole)
    learner = DataParallelLearner(OneStep(optax.sgd(0.1), by_hand, averaged), 2)
    learned, _, _ = learner(agent, learner.init(agent), estimate, KEY)
    assert [x.shape for x in arrays(learned)] == [x.shape for x in arrays(agent)]
    assert any(not np.array_equal(x, y) for x, y in zip(arrays(learned), arrays(agent)))


def test_a_learner_that_would_end_with_another_policy_on_each_device_is_refused(cartpole):
    agent, estimate = estimate_of(cartpole)
    learner = DataParallelLearner(OneStep(optax.sgd(0.1), by_hand=True, averaged=False), 2)
    with pytest.raises(ValueError, match="OneStep ends with another policy or learner's state on each of 2 devices.*mean_over_devices"):
        learner(agent, learner.init(agent), estimate, KEY)


def test_a_curriculum_knows_the_steps_of_all_devices():
    """On either side of the devices."""
    env, env_params = make("CartPole-v1")
    policy = MLPActorCritic(env.observation_space(env_params), env.action_space(env_params), key=KEY)

    def shorter(env_params, env_steps):
        return env_params.replace(max_steps_in_episode=jnp.where(env_steps >= 32, 1, 500))

    inner, ended = RolloutCollector(2, 4), []
    for outer in (Curriculum(DataParallelCollector(inner, 2), shorter), DataParallelCollector(Curriculum(inner, shorter), 2)):
        state = outer.init(env, env_params, policy, KEY)
        each = []
        for _ in range(3):
            state, rollout = outer(env, env_params, policy, state)
            each.append(bool(rollout.trajectories.truncated.all()))
        ended.append(each)
    assert ended == [[False, False, True]] * 2  # 16 env steps a rollout


@pytest.mark.parametrize("sizes, message", [
    (dict(num_envs=3), r"num_envs \(3\) must be divisible by num_devices \(2\); remainder 1"),
    (dict(num_envs=2, num_steps=3, num_minibatches=2), r"\(2 / 2 \* 3\) must be divisible by num_minibatches \(2\); remainder 1"),
])
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        PPOHParams(num_devices=2, **sizes)


def test_environments_that_can_not_be_divided(cartpole):
    agent, estimate = estimate_of(cartpole, num_envs=3)
    learner = DataParallelLearner(MinibatchLearner(PPOLoss(), optax.sgd(0.1), num_epochs=1, num_minibatches=1), 2)
    with pytest.raises(ValueError, match=r"3 environments must be divisible by num_devices \(2\)"):
        learner(agent, learner.init(agent), estimate, KEY)


@pytest.mark.parametrize("actor_critic", [MLPActorCritic, GRUActorCritic])
def test_seeds_side_by_side_are_what_each_is(actor_critic):
    algo = tiny(num_envs=4, num_steps=8, num_minibatches=2, num_devices=2, total_timesteps=64, normalize_observations=True,
                actor_critic=actor_critic)
    keys = jax.random.split(KEY, 2)
    both = eqx.filter_vmap(algo.train)(keys)
    same(jax.tree.map(lambda x: x[1] if eqx.is_array(x) else x, both), algo.train(keys[1]), rtol=1e-4, atol=1e-5)


def test_the_kit_judges_what_each_device_does():
    learner = MinibatchLearner(PPOLoss(), optax.adam(1e-2), num_epochs=2, num_minibatches=3)
    check_learner(DataParallelLearner(learner, 2))
    check_collector(DataParallelCollector(RolloutCollector(3, 16), 2))
    with pytest.raises(AssertionError, match="epochs in different orders"):
        check_learner(DataParallelLearner(dataclasses.replace(learner, permutation=lambda key, n: jnp.arange(n)), 2))


def test_verify_judges_a_copy_for_one_device():
    parallel = dict(num_envs=4, num_devices=2)
    assert reduced(tiny(**parallel)).hp.num_devices == 1
    inner = RolloutCollector(2, 8)
    own = reduced(tiny(**parallel, collector=DataParallelCollector(inner, 2)))
    assert (own.collector.num_devices, own.collector.num_envs, own.hp.num_envs) == (1, 6, 6)


SCRIPT = """
import logging, re, tempfile, warnings
import eqxrl; eqxrl.set_cpu_flags(2)
import equinox as eqx, jax, numpy as np
from unittest import mock
from helpers import same, tiny
from eqxrl.training import Callback, Trainer
warnings.simplefilter("error")
sizes = dict(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=2, num_seeds_per_eval=2, eval_freq=64)
algo = tiny(**sizes, num_devices=2, total_timesteps=256, normalize_observations=True, normalize_rewards=True)
devices = lambda tree: {len(x.devices()) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))}

trained = algo.train(5)
with jax.default_device(jax.devices()[0]):
    by_one = algo.train(5)
assert devices(trained[0]) == {2} and devices(by_one[0]) == {1}
same(trained, by_one, rtol=1e-4, atol=1e-5)

compiled = []
log = logging.getLogger("jax._src.dispatch")
log.setLevel("DEBUG")
log.addFilter(lambda record: compiled.extend(re.findall(r"XLA compilation of jit.(init|iterate|evaluate)", record.getMessage())))
fitted = Trainer().fit(algo, 5)
log.setLevel("WARNING")
same(fitted, trained)
assert sorted(compiled) == ["evaluate", "init", "iterate"], compiled

class Sees(Callback):
    shapes = set()
    def on_train_batch_end(self, trainer, algo, state, outputs, batch, batch_idx):
        self.shapes.add(batch.trajectories.reward.shape)
same(Trainer([Sees()]).fit(algo, 5), fitted)
assert Sees.shapes == {(8, 4)}

class Killed(Callback):
    def on_validation_epoch_end(self, trainer, *_):
        if trainer.epoch == 2:
            raise KeyboardInterrupt
with tempfile.TemporaryDirectory() as folder:
    try:
        Trainer([Killed()], folder=folder).fit(algo, 5)
    except KeyboardInterrupt:
        pass
    same(Trainer(folder=folder).fit(algo, resume=True), fitted)
    with warnings.catch_warnings(record=True) as told, mock.patch.object(jax, "device_count", lambda: 1):
        warnings.simplefilter("always")
        longer = tiny(**sizes, num_devices=2, total_timesteps=320, normalize_observations=True, normalize_rewards=True)
        Trainer(folder=folder).fit(longer, resume=True)
    assert any("num_devices: recorded 2, now 1" in str(x.message) for x in told), told

keys = jax.random.split(jax.random.key(1), 2)
seeds = Trainer().fit(algo, keys)
same(jax.tree.map(lambda x: x[1] if eqx.is_array(x) else x, seeds), algo.train(keys[1]), rtol=1e-4, atol=1e-5)
"""


def test_two_devices_compute_what_one_does_for_both():
    """But for rounding; the trainer and `train` agree bit for bit, compile each program once, and go on from a checkpoint."""
    from sweeps.test_devices import run

    run(SCRIPT, flags="")  # with those that compile quickly, `train` and `fit` differ in rounding
