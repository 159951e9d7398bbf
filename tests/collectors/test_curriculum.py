"""A curriculum against its collector in each of the environments that the schedule goes through."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, same, small, tiny

from eqxrl import DQN, PPO, DQNHParams, PPOHParams, RolloutCollector, Trainer, TransitionCollector, make
from eqxrl.collectors import Curriculum
from eqxrl.envs import RandomizeParams, ResetFromPool
from eqxrl.testing import check_collector

ENVS, STEPS = 3, 8


def growing(env_params, env_steps):
    """Short poles, which are as long as they should be after 48 env steps."""
    return env_params.replace(length=env_params.length * jnp.clip(env_steps / 48, 0.25, 1.0))


def curriculum(hp):
    return Curriculum(RolloutCollector(hp.num_envs, hp.num_steps), growing)


@pytest.fixture(scope="module")
def ppo():
    return tiny(collector=curriculum, total_timesteps=4 * ENVS * STEPS, eval_freq=2 * ENVS * STEPS)


@pytest.mark.parametrize("stepper", [None, ResetFromPool(4)], ids=["when done", "pool"])
def test_each_rollout_is_of_its_own_parameters(stepper):
    inner = RolloutCollector(ENVS, STEPS) if stepper is None else RolloutCollector(ENVS, STEPS, stepper)
    env, params = make("CartPole-v1")
    agent = small(env.observation_space(params), env.action_space(params), key=jax.random.key(1))
    collector = Curriculum(inner, growing)
    assert (collector.num_envs, collector.num_steps) == (ENVS, STEPS)
    ours, theirs = quick_jit(collector), quick_jit(inner)
    state = collector.init(env, params, agent, jax.random.key(0))
    same(state, inner.init(env, params.replace(length=0.125), agent, jax.random.key(0)))
    for length in (0.125, 0.25, 0.5, 0.5):  # after 0, 24, 48, 72 env steps
        # A length that is an array, as the schedule's is: numbers written into a program round differently.
        after, rollout = theirs(env, params.replace(length=jnp.float32(length)), agent, state)
        state, own = ours(env, params, agent, state)
        same((state, own), (after, rollout), rtol=1e-5, atol=1e-6)
        with pytest.raises(AssertionError):
            same(own, theirs(env, params.replace(length=jnp.float32(0.9)), agent, state)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [RolloutCollector, TransitionCollector])
def test_contract(inner):
    """With parameters that stay: the kit replays an environment whose parameters it knows."""
    check_collector(Curriculum(inner(4, 16), lambda params, env_steps: params))


def test_evaluations_are_of_the_algorithms_own_task():
    """A schedule that ends every episode at once is seen in rollouts, not in evaluations."""
    fall = lambda params, env_steps: params.replace(theta_threshold_radians=0.0 * params.theta_threshold_radians)  # noqa: E731
    hp = PPOHParams(num_envs=ENVS, num_steps=STEPS, num_minibatches=1, num_epochs=1, num_seeds_per_eval=2)
    ppo = PPO.create("CartPole-v1", hp=hp, actor_critic=small, collector=Curriculum(RolloutCollector(ENVS, STEPS), fall))
    ts = ppo.init_train_state(0)
    ts, metrics = quick_jit(ppo.iteration)(ts, jnp.int32(0))
    assert metrics.episodes.count == metrics.episodes.total_length == ENVS * STEPS
    assert np.all(quick_jit(ppo.eval_callback)(ts).episode_length > 1)


@pytest.mark.slow
def test_train_fit_resume_and_seeds_agree(ppo, tmp_path):
    """Bit for bit, also where a run goes on in the middle of the schedule; each of several seeds as alone."""
    trained = ppo.train(1)
    same(trained, Trainer().fit(ppo, 1))
    shorter = dataclasses.replace(ppo, hp=dataclasses.replace(ppo.hp, total_timesteps=ppo.hp.total_timesteps // 2))
    Trainer(folder=tmp_path).fit(shorter, 1)
    same(Trainer(folder=tmp_path).fit(ppo, resume=True)[0], trained[0])
    members, _ = eqx.filter_vmap(ppo.train)(jax.vmap(jax.random.key)(jnp.arange(2)))
    same(jax.tree.map(lambda x: x[1], eqx.filter(members, eqx.is_array)), trained[0], rtol=1e-4, atol=1e-5)


def test_nothing_recompiles(ppo):
    """Neither over the run, nor for other numbers in a schedule that is a module."""

    class Growing(eqx.Module):
        steps: jax.Array

        def __call__(self, env_params, env_steps):
            return env_params.replace(length=env_params.length * jnp.clip(env_steps / self.steps, 0.25, 1.0))

    collect = quick_jit(eqx.debug.assert_max_traces(lambda c, *args: c(*args), max_traces=1))
    env, params = ppo.env, ppo.env_params
    agent = small(env.observation_space(params), env.action_space(params), key=jax.random.key(1))
    rewards = []
    for steps in (48.0, 480.0):
        collector = Curriculum(RolloutCollector(ENVS, STEPS), Growing(jnp.float32(steps)))
        state = collector.init(env, params, agent, jax.random.key(0))
        for _ in range(3):
            state, rollout = collect(collector, env, params, agent, state)
        rewards.append(state.last_obs)
    assert not np.array_equal(*rewards)


def test_randomised_parameters_of_an_episode_outlast_the_rollout():
    """A curriculum of distributions: what an episode began with holds until it ends."""

    def sample(key, params):
        return params.replace(length=params.length * jax.random.uniform(key, (), jnp.float32, 0.9, 1.0))

    env, params = make("CartPole-v1")
    agent = small(env.observation_space(params), env.action_space(params), key=jax.random.key(1))
    env, params = RandomizeParams(env, sample), params.replace(max_steps_in_episode=4)
    collector = Curriculum(RolloutCollector(ENVS, 3), lambda p, env_steps: p.replace(length=1.0 + env_steps))
    state, collect, lengths = collector.init(env, params, agent, jax.random.key(0)), quick_jit(collector), []
    for _ in range(3):
        lengths.append(np.asarray(state.env_state.params.length))
        state, _ = collect(env, params, agent, state)
    first, going_on, later = lengths
    np.testing.assert_array_equal(first, going_on)
    assert np.all((0.9 <= first) & (first <= 1)) and np.all(later > 9)


@pytest.mark.parametrize(
    "schedule, message",
    [
        (lambda p, n: p.replace(length=jnp.ones(2)), r"schedule turned params.length from float into float32\[2\]; it may change values"),
        (lambda p, n: p.replace(max_steps_in_episode=n + 1), "turned params.max_steps_in_episode from int into float32"),
        (lambda p, n: p.length, "Curriculum's schedule must return parameters of the structure"),
    ],
)
def test_schedules_that_do_not_fit(schedule, message):
    with pytest.raises(TypeError, match=message):
        tiny(collector=Curriculum(RolloutCollector(ENVS, STEPS), schedule))


def test_sizes_are_compared_with_the_hyperparameters():
    with pytest.raises(ValueError, match="collector has num_envs=4, but hp has num_envs=3"):
        tiny(collector=Curriculum(RolloutCollector(4, STEPS), growing))


def test_off_policy_too():
    DQN.create(
        "CartPole-v1", hp=DQNHParams(num_envs=2), collector=lambda hp: Curriculum(TransitionCollector(hp.num_envs, hp.num_steps), growing)
    )
