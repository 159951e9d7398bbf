"""The evaluator against a plain Python loop over episodes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest
from helpers import quick_jit

from eqxrl import EpisodeEvaluator, MLPActorCritic, make
from eqxrl.envs import TimeLimit
from eqxrl.nn import AbstractActorCritic, ActorCriticPolicy, Categorical, NormalizedActorCritic, observe

EPISODES = 5


class Alternating(AbstractActorCritic):
    """A recurrent policy: which action is next depends on the last one alone."""

    def __call__(self, obs, carry):
        return Categorical(jnp.stack([carry, 1.0 - carry])), jnp.sum(obs), 1.0 - carry

    def initial_carry(self):
        return jnp.ones((), jnp.float32)


def mlp(env, params, **kwargs):
    return MLPActorCritic(
        env.observation_space(params), env.action_space(params), hidden_sizes=(5,), key=jax.random.key(7), **kwargs
    )


def loop(env, params, agent, key, limit, deterministic):
    key, reset_key = jax.random.split(key)
    obs, states = zip(*(env.reset(k, params) for k in jax.random.split(reset_key, EPISODES)), strict=True)
    obs, states, space = list(obs), list(states), env.action_space(params)
    carries, done = [agent.initial_carry()] * EPISODES, [False] * EPISODES
    returns, lengths = np.zeros(EPISODES), np.zeros(EPISODES, int)
    while not all(done) and lengths.max() < limit:
        key, action_key, step_key = jax.random.split(key, 3)
        seen = [agent(o, c) for o, c in zip(obs, carries, strict=True)]
        carries = [c for _, _, c in seen]
        distribution = jax.tree.map(lambda *x: jnp.stack(x), *(d for d, _, _ in seen))
        actions = distribution.mode() if deterministic else distribution.sample(action_key)
        for i, k in enumerate(jax.random.split(step_key, EPISODES)):
            if done[i]:
                continue
            k, _ = jax.random.split(k)
            action = actions[i] if hasattr(space, "n") else jnp.clip(actions[i], space.low, space.high)
            obs[i], states[i], reward, terminated, truncated, _ = env.step(k, states[i], action, params)
            returns[i] += float(jnp.reshape(reward, ()))
            lengths[i] += 1
            done[i] = bool(terminated | truncated)
    return returns, lengths


def cartpole(limit=12):
    env, params = make("CartPole-v1")
    return env, params.replace(max_steps_in_episode=limit, theta_threshold_radians=0.12)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", ["cartpole", "pendulum", "alternating"])
def test_equals_the_loop(name, deterministic):
    if name == "cartpole":
        env, params = cartpole()
        agent = observe(NormalizedActorCritic(mlp(env, params), jnp.zeros(4)), jax.random.normal(jax.random.key(1), (9, 4)))
    elif name == "pendulum":
        env, params = make("Pendulum-v1")
        params = params.replace(max_steps_in_episode=6)
        agent = mlp(env, params, log_std_init=1.0)
    else:
        env, params, agent = probe_envs.CHAIN, probe_envs.Limit(9), Alternating()
    evaluator = EpisodeEvaluator(num_episodes=EPISODES, deterministic=deterministic)
    metrics = quick_jit(evaluator)(env, params, ActorCriticPolicy(agent), jax.random.key(2))
    with jax.numpy_rank_promotion("allow"):
        returns, lengths = loop(env, params, agent, jax.random.key(2), int(params.max_steps_in_episode), deterministic)
    np.testing.assert_array_equal(metrics.episode_length, lengths)
    np.testing.assert_allclose(metrics.cumulative_reward, returns, rtol=1e-4)
    assert len(set(lengths)) > 1 or name == "pendulum"


def test_stochastic_and_deterministic_differ():
    env, params = make("Pendulum-v1")
    params = params.replace(max_steps_in_episode=6)
    policy, key = ActorCriticPolicy(mlp(env, params, log_std_init=1.0)), jax.random.key(0)
    likeliest = EpisodeEvaluator(num_episodes=EPISODES)
    drawn = dataclasses.replace(likeliest, deterministic=False)
    assert likeliest.deterministic
    returns = [evaluator(env, params, policy, key).cumulative_reward for evaluator in (likeliest, drawn)]
    assert np.all(returns[0] != returns[1])


def test_episodes_stop_at_the_limit():
    """The environment's own, which may be a float or traced, that of a wrapper, or the evaluator's."""
    endless, agent = probe_envs.ENDLESS, ActorCriticPolicy(mlp(probe_envs.ENDLESS, None))
    evaluate = quick_jit(lambda *args, **kwargs: EpisodeEvaluator(num_episodes=3, **kwargs)(*args, jax.random.key(0)))

    class Float(eqx.Module):
        max_steps_in_episode: float = eqx.field(static=True, default=7.5)

    class Unlimited(probe_envs.Tabular):
        """No episode of it ever ends."""

        def step(self, key, state, action, params):
            return super().step(key, state, action, probe_envs.Limit(2**30))

    unlimited = Unlimited(**{f.name: getattr(endless, f.name) for f in dataclasses.fields(endless)})
    for expected, metrics in [
        (7, evaluate(endless, probe_envs.Limit(7), agent)),
        (8, evaluate(unlimited, Float(), agent)),
        (4, evaluate(TimeLimit(unlimited, max_steps=4), None, agent)),
        (5, evaluate(unlimited, None, agent, max_steps=5)),
        (3, evaluate(endless, probe_envs.Limit(7), agent, max_steps=3)),
    ]:
        np.testing.assert_array_equal(metrics.episode_length, [expected] * 3)
        np.testing.assert_array_equal(metrics.cumulative_reward, [expected] * 3)
    limits = jax.vmap(lambda limit: evaluate(endless, limit, agent))(probe_envs.Limit(jnp.array([2, 6])))
    np.testing.assert_array_equal(limits.episode_length, [[2] * 3, [6] * 3])


def test_without_a_limit_it_does_not_begin():
    agent = ActorCriticPolicy(mlp(probe_envs.ENDLESS, None))
    with pytest.raises(ValueError, match=r"Tabular has no episode limit.*max_steps=\.\.\."):
        EpisodeEvaluator(num_episodes=3)(probe_envs.ENDLESS, None, agent, jax.random.key(0))


def test_bad_sizes():
    for sizes in (dict(num_episodes=0), dict(num_episodes=2, max_steps=0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            EpisodeEvaluator(**sizes)
