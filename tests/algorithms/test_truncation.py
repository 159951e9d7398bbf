"""Truncation pays. Pendulum's episodes are only ever cut off: whoever takes its time limit for an end is wrong about each.
The exact case is in `test_probes.py`."""

import equinox as eqx
import jax
import optax
import pytest
import scipy.stats

from eqxrl import PPO, EpisodeEvaluator, PPOHParams, make
from eqxrl.envs import TimeLimitIsTerminal

SEEDS = 16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pendulum_is_learned_better_with_bootstrap():
    hp = PPOHParams(
        num_envs=16,
        num_steps=256,
        num_minibatches=32,
        num_epochs=10,
        total_timesteps=196_608,
        eval_freq=196_608,
        gamma=0.98,
        clip_eps=0.2,
        ent_coef=0.0,
        max_grad_norm=0.5,
        clip_value=False,  # values of minus some hundreds aren't learned in steps of 0.2
    )
    rate = optax.linear_schedule(1e-3, 0.0, hp.num_updates)
    hp = eqx.tree_at(lambda hp: hp.learning_rate, hp, rate)
    env, env_params = make("Pendulum-v1")
    returns = []
    for one in (env, TimeLimitIsTerminal(env)):
        ppo = PPO.create(env=one, env_params=env_params, hp=hp, evaluator=EpisodeEvaluator(num_episodes=128))
        keys = jax.random.split(jax.random.key(0), SEEDS)
        _, metrics = eqx.filter_vmap(lambda key, ppo=ppo: ppo.train(key, skip_initial_evaluation=True))(keys)
        returns.append(metrics.cumulative_reward[:, -1].mean(-1))
    with_bootstrap, without = returns
    p = scipy.stats.mannwhitneyu(with_bootstrap, without, alternative="greater").pvalue
    print(f"\nwith bootstrap {with_bootstrap.mean():.0f}, without {without.mean():.0f}, p = {p:.1g}")
    assert p < 0.01
    assert with_bootstrap.mean() > -250
