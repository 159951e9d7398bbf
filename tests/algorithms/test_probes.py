"""PPO on environments whose solution is known: value, discounting, observation, action, patience, time limits."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from helpers import quick_jit

from eqxrl import PPO, MLPActorCritic, PPOHParams
from eqxrl.envs import TimeLimitIsTerminal

ITERATIONS = 80
HP = PPOHParams(
    num_envs=8,
    num_steps=32,
    num_epochs=4,
    num_minibatches=4,
    total_timesteps=8 * 32 * ITERATIONS,
    eval_freq=8 * 32 * ITERATIONS,
    num_seeds_per_eval=2,
    learning_rate=optax.linear_schedule(3e-2, 1e-4, ITERATIONS * 16),
    clip_eps=10.0,  # the value of an endless episode is 50, and a clipped value moves by so much an iteration
    gae_lambda=1.0,
    ent_coef=0.0,
    vf_coef=1.0,
)
GAMMAS = {
    "VALUE": 0.9,
    "DISCOUNT": 0.9,
    "OBSERVATION": 0.9,
    "ACTION": 0.9,
    "POLICY": 0.9,
    "PATIENCE": 0.9,
    "PATIENCE, gamma 0.4": 0.4,
    "ENDLESS": 0.98,
}


def network(*spaces, key):
    return MLPActorCritic(*spaces, hidden_sizes=(8,), key=key)


def learn(env, limit, gamma, key):
    """What a trained policy makes of each state: the values, and the probabilities of the second action."""
    hp = dataclasses.replace(HP, gamma=gamma)
    ppo = PPO.create(env=env, env_params=limit, hp=hp, actor_critic=network)
    ts, _ = ppo.train(key, skip_initial_evaluation=True)
    tables = env.env if isinstance(env, TimeLimitIsTerminal) else env
    distribution, value, _ = jax.vmap(lambda obs: ts.agent(obs, ()))(tables.observation)
    return value, jax.nn.softmax(distribution.logits)[:, 1]


@pytest.fixture(scope="module")
def learned():
    """All of them by one program. `{name: (values, probabilities of the second action)}`."""
    envs = jax.tree.map(lambda *x: jnp.stack(x), *(getattr(probe_envs, name.split(",")[0]) for name in GAMMAS))
    limits = probe_envs.Limit(jnp.full(len(GAMMAS), 8))
    keys = jax.random.split(jax.random.key(0), len(GAMMAS))
    values, seconds = quick_jit(eqx.filter_vmap(learn))(envs, limits, jnp.array([*GAMMAS.values()]), keys)
    return {name: (values[i], seconds[i]) for i, name in enumerate(GAMMAS)}


def test_value(learned):
    np.testing.assert_allclose(learned["VALUE"][0][0], 1, atol=0.02)


def test_discounting(learned):
    np.testing.assert_allclose(learned["DISCOUNT"][0][:2], [0.9, 1], atol=0.02)


def test_value_depends_on_the_observation(learned):
    np.testing.assert_allclose(learned["OBSERVATION"][0][:2], [1, -1], atol=0.02)


def test_choice_of_action(learned):
    assert learned["ACTION"][1][0] > 0.98


def test_action_depends_on_the_observation(learned):
    assert learned["POLICY"][1][0] < 0.02 and learned["POLICY"][1][1] > 0.98
    np.testing.assert_allclose(learned["POLICY"][0][:2], [1, 1], atol=0.02)


def test_waiting_for_a_larger_reward_pays_only_if_gamma_is_large(learned):
    value, second = learned["PATIENCE"]
    assert second[0] > 0.98
    np.testing.assert_allclose(value[:2], [0.9, 1], atol=0.02)
    value, second = learned["PATIENCE, gamma 0.4"]
    assert second[0] < 0.02
    np.testing.assert_allclose(value[0], 0.5, atol=0.02)


def test_an_endless_episode_is_worth_more_than_its_time_limit(learned):
    """Reward 1 for ever at gamma 0.98 is worth 50; the limit of 8 steps is where it was cut off, not where it ends."""
    np.testing.assert_allclose(learned["ENDLESS"][0][0], 50, atol=1)


def test_without_bootstrap_it_is_not():
    """The mean of what is left of 8 steps, seen from each of them: about 4.2."""
    args = TimeLimitIsTerminal(probe_envs.ENDLESS), probe_envs.Limit(8), jnp.float32(0.98), jax.random.key(0)
    value, _ = quick_jit(learn)(*args)
    left = [(1 - 0.98**steps) / (1 - 0.98) for steps in range(1, 9)]
    np.testing.assert_allclose(value[0], np.mean(left), atol=0.1)


def test_continuous_action_depends_on_the_observation():
    # at 1e-2 one seed in five becomes sure of its actions before they are right; of 48 at 3e-3 none is off by more than 0.02
    hp = dataclasses.replace(HP, clip_eps=0.2, learning_rate=optax.linear_schedule(3e-3, 1e-4, ITERATIONS * 16), gamma=0.9)
    ppo = PPO.create(
        env=probe_envs.Target(),
        env_params=probe_envs.Limit(8),
        hp=hp,
        actor_critic=lambda *s, key: MLPActorCritic(*s, hidden_sizes=(8,), log_std_init=-1.0, key=key),
    )
    ts, _ = quick_jit(lambda key: ppo.train(key, skip_initial_evaluation=True))(jax.random.key(0))
    act = ppo.make_actor(ts, deterministic=True)
    for target in (-0.4, 0.0, 0.3):
        np.testing.assert_allclose(act(jnp.array([target]), jax.random.key(0)), [target], atol=0.07)
    assert np.exp(ts.agent.head.log_std) < 0.2  # and it has become sure of it
