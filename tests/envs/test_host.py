"""What environments on the host share, whichever suite they are of."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from eqxrl import PPO, PPOHParams, Trainer, make
from eqxrl.envs import known_suites
from eqxrl.envs._make import SUITES

THERE = [pytest.param(x, marks=pytest.mark.skipif(bool(known_suites()[x]), reason="isn't installed")) for x in ("envpool", "gymnasium")]
pytestmark = pytest.mark.parametrize("suite", THERE)


def ppo(env, params, total_timesteps):
    hp = PPOHParams(
        num_envs=2, num_steps=8, num_minibatches=1, num_epochs=1, total_timesteps=total_timesteps, eval_freq=16, num_seeds_per_eval=2
    )
    return PPO.create(env=env, env_params=params, hp=hp)


def test_two_seeds_train_and_one_is_drawn(suite, tmp_path):
    algo = ppo(*make(f"{suite}/CartPole-v1", max_episode_steps=20), 32)
    state, metrics = Trainer().fit(algo, jax.random.split(jax.random.key(0), 2))
    assert np.isfinite(metrics.cumulative_reward).all() and metrics.cumulative_reward.shape == (2, 3, 2)
    one = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, state)
    assert algo.visualize(one, tmp_path / "episode.gif", jax.random.key(0)).stat().st_size > 1000


def test_a_resumed_run_says_what_it_lost(suite, tmp_path):
    """The second time with a host that has played nothing yet, as in another process."""
    env, params = make(f"{suite}/CartPole-v1")
    Trainer(folder=tmp_path).fit(ppo(env, params, 16), jax.random.key(0))
    other = SUITES[suite].make(f"{suite}/CartPole-v1", {})[0]
    algo = dataclasses.replace(ppo(env, params, 32), env=other)
    with pytest.warns(UserWarning, match=f"goes on otherwise than if it hadn't been cut off: {suite}'s environments can't be saved"):
        state, _ = Trainer(folder=tmp_path).fit(algo, resume=True)
    assert int(algo.env_steps(state)) == 32
