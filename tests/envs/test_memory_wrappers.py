"""Environments in which a policy has to remember, and what helps it to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import Walk

from eqxrl import PPO, PPOHParams, check_env, make, spaces
from eqxrl.algorithms import preset
from eqxrl.envs import EnvError, SelectObservation, ShowLastStep, env_name
from eqxrl.envs._make import NO_VELOCITY
from eqxrl.nn import GRUActorCritic
from eqxrl.training import Run


@pytest.mark.parametrize("env_id", NO_VELOCITY)
def test_velocities_are_hidden(env_id):
    env, params = make(env_id)
    assert make(env_id)[0] is env and env_name(env) == env_id
    check_env(env, params)
    whole, components = make(NO_VELOCITY[env_id][0])[0], jnp.array(NO_VELOCITY[env_id][1])
    key = jax.random.key(0)
    (obs, state), (all_obs, all_state) = env.reset(key, params), whole.reset(key, params)
    action = spaces.sample(whole.action_space(params), key)
    for _ in range(3):
        np.testing.assert_array_equal(obs, all_obs[components])
        obs, state, *rest = env.step(key, state, action, params)
        all_obs, all_state, *others = whole.step(key, all_state, action, params)
        assert rest[:3] == others[:3]
    inner = whole.observation_space(params)
    low, high = (jnp.broadcast_to(x, inner.shape)[components] for x in (inner.low, inner.high))
    np.testing.assert_array_equal(env.observation_space(params).low, low)
    np.testing.assert_array_equal(env.observation_space(params).high, high)


def test_components_that_there_are_not():
    with pytest.raises(EnvError, match=r"SelectObservation got components=\(0, 4\) of an observation of 4"):
        PPO.create(env=SelectObservation(make("CartPole-v1")[0], (0, 4)))
    with pytest.raises(EnvError, match="takes components of a vector, but the observation space is Dict"):
        PPO.create(env=SelectObservation(ShowLastStep(Walk()), (0,)))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_last_step_is_shown(env_id):
    inner, params = make(env_id)
    env = ShowLastStep(inner)
    check_env(env, params)
    key = jax.random.key(0)
    obs, state = env.reset(key, params)
    assert obs["start"] == 1 and obs["reward"] == 0 and not np.any(obs["action"])
    plain, plain_state = inner.reset(key, params)
    for i in range(3):
        np.testing.assert_array_equal(obs["obs"], plain)
        action = spaces.sample(inner.action_space(params), jax.random.key(i))
        obs, state, reward, *_ = env.step(key, state, action, params)
        plain, plain_state, expected, *_ = inner.step(key, plain_state, action, params)
        assert obs["start"] == 0 and obs["reward"] == reward == expected
        np.testing.assert_array_equal(obs["action"], action)
    hp = PPOHParams(num_envs=2, num_steps=4, num_minibatches=1, normalize_observations=True)
    PPO.create(env=env, env_params=params, hp=hp, actor_critic=GRUActorCritic)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_preset_remembers(name):
    algo = preset("CartPoleNoVel-v1", "ppo", name).create()
    assert algo.init_train_state(0).agent.actor_critic.memories[0].initial_carry() is not None
    assert env_name(algo.env) == "CartPoleNoVel-v1"


def test_a_run_that_remembers(tmp_path):
    """Trained, played and drawn from its folder."""
    algo = preset("CartPoleNoVel-v1").create(total_timesteps=512, eval_freq=256, num_seeds_per_eval=2)
    run = Run.new(algo, tmp_path, "run", env_id="CartPoleNoVel-v1")
    run.fit()
    algo, ts = Run(tmp_path / "run").load()
    assert algo.eval_callback(ts).cumulative_reward.shape == (2,)
    algo.visualize(ts, tmp_path / "episode.gif")
    assert (tmp_path / "episode.gif").stat().st_size > 1000
