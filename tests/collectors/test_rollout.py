"""The rollout collector against a plain Python loop, which steps one environment after another with the same keys."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import probe_envs
import pytest
from helpers import quick_jit

from eqxrl import MLPActorCritic, RolloutCollector, TransitionCollector, make
from eqxrl.collectors import RewardScaling
from eqxrl.envs import AbstractStepper, ResetWhenDone, vec_step
from eqxrl.nn import AbstractActorCritic, ActorCriticPolicy, Categorical, NormalizedActorCritic, observe

ENVS, STEPS = 3, 10
KEY = 4  # with it some of the episodes of `memory` end at a rollout's last step, and some go on


class Memory(AbstractActorCritic):
    """A recurrent policy that sums up what it has seen, and counts: how the sum looks tells since when."""

    weight: jax.Array

    def __call__(self, obs, carry):
        total, count = carry
        total, count = total + obs, count + 1
        return Categorical(jnp.stack([0.1 * jnp.sum(total), 0.2 * count])), self.weight @ total + 100.0 * count, (total, count)

    def initial_carry(self):
        return jnp.full(2, 0.5), jnp.zeros((), jnp.int32)


def mlp(env, params, key):
    return MLPActorCritic(env.observation_space(params), env.action_space(params), hidden_sizes=(5,), key=key)


def case(name):
    """An environment whose episodes end often, in a rollout of 10 steps, and a policy."""
    if name == "memory":
        return probe_envs.CHAIN, probe_envs.Limit(3), Memory(jnp.array([1.0, 10.0]))
    if name == "chain":
        env, params = probe_envs.CHAIN, probe_envs.Limit(3)
    else:
        env, params = make(name)
        params = params.replace(max_steps_in_episode=4)
        if name == "CartPole-v1":
            params = params.replace(theta_threshold_radians=0.05)
    return env, params, mlp(env, params, jax.random.key(7))


def loop(env, params, agent, key, rollouts):
    """Everything that a collector stores, and some that it doesn't, as NumPy arrays `[rollouts * steps envs ...]`."""
    rng, *reset_keys = jax.random.split(key, 1 + ENVS)
    obs, states = zip(*(env.reset(k, params) for k in reset_keys), strict=True)
    obs, states = list(obs), list(states)
    carries = [agent.initial_carry()] * ENVS
    space, rows = env.action_space(params), []
    for t in range(rollouts * STEPS):
        if t % STEPS == 0:
            keys = jax.random.split(rng, 2 + STEPS + STEPS * 2 * ENVS)
            rng, action_keys, env_keys = keys[0], keys[2 : 2 + STEPS], keys[2 + STEPS :].reshape(STEPS, 2, ENVS)
        before = jax.tree.map(lambda *x: np.stack(x), *carries)
        seen = [agent(o, c) for o, c in zip(obs, carries, strict=True)]
        distribution = jax.tree.map(lambda *x: jnp.stack(x), *(d for d, _, _ in seen))
        carries = [c for _, _, c in seen]
        actions = distribution.sample(action_keys[t % STEPS])
        row = []
        for i, (key_step, key_reset) in enumerate(env_keys[t % STEPS].T):
            sent = actions[i] if hasattr(space, "n") else jnp.clip(actions[i], space.low, space.high)
            after, states[i], reward, terminated, truncated, _ = env.step(key_step, states[i], sent, params)
            final = 0.0
            if truncated and not terminated:
                final = agent(after, carries[i])[1]
            row.append(
                dict(
                    obs=obs[i],
                    next_obs=after,
                    action=actions[i],
                    log_prob=distribution.log_prob(actions)[i],
                    reward=jnp.reshape(reward, ()),
                    value=seen[i][1],
                    terminated=terminated,
                    truncated=truncated,
                    final_value=final,
                )
            )
            obs[i] = after
            if terminated or truncated:
                obs[i], states[i] = env.reset(key_reset, params)
                carries[i] = agent.initial_carry()
        rows.append({"carry": before, **{name: np.stack([r[name] for r in row]) for name in row[0]}})
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "carry"}
    return stacked, [row["carry"] for row in rows], np.stack(obs)


@pytest.fixture(scope="module", params=["CartPole-v1", "Pendulum-v1", "chain", "memory"])
def collected(request):
    env, params, agent = case(request.param)
    collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS)
    state = quick_jit(collector.init)(env, params, agent, jax.random.key(KEY))
    collect, rollouts, states = quick_jit(collector), [], [state]
    for _ in range(2):
        state, rollout = collect(env, params, agent, state)
        rollouts.append(rollout)
        states.append(state)
    with jax.numpy_rank_promotion("allow"):
        return request.param, rollouts, states, loop(env, params, agent, jax.random.key(KEY), 2)


def test_equals_the_loop(collected):
    name, rollouts, _, (expected, _, last_obs) = collected
    for field, x in expected.items():
        if field != "next_obs":
            ours = np.concatenate([getattr(r.trajectories, field) for r in rollouts])
            assert_equal(ours, x, field)
    np.testing.assert_allclose(rollouts[-1].last_obs, last_obs, rtol=1e-5, atol=1e-5)
    ends = expected["truncated"].astype(int) + 2 * expected["terminated"]
    wanted = {"CartPole-v1": {0, 1, 2}, "Pendulum-v1": {0, 1}, "chain": {0, 1, 2, 3}, "memory": {0, 1, 2, 3}}
    assert wanted[name] <= set(np.unique(ends))  # every kind of end that there is


def assert_equal(ours, expected, field):
    assert ours.shape == expected.shape, field
    if expected.dtype.kind in "bi":
        np.testing.assert_array_equal(ours, expected, err_msg=field)
    else:
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5, err_msg=field)


def test_transitions_equal_the_loop(collected):
    """The same steps as of a rollout, with what each of them led to."""
    name, rollouts, states, (expected, _, _) = collected
    env, params, agent = case(name)
    collector, policy = TransitionCollector(num_envs=ENVS, num_steps=STEPS), ActorCriticPolicy(agent)
    state = quick_jit(collector.init)(env, params, policy, jax.random.key(KEY))
    collect, batches = quick_jit(collector), []
    for rollout in rollouts:
        state, batch = collect(env, params, policy, state)
        batches.append(batch.transitions)
        assert eqx.tree_equal(batch.episodes, rollout.episodes)
        distribution, value = batch.transitions.remembered
        np.testing.assert_allclose(value, rollout.trajectories.value, rtol=1e-4, atol=1e-5)
        log_prob = distribution.log_prob(batch.transitions.action)
        np.testing.assert_allclose(log_prob, rollout.trajectories.log_prob, rtol=1e-4, atol=1e-5)
    for field in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        assert_equal(np.concatenate([getattr(b, field) for b in batches]), expected[field], field)
    first = np.concatenate([b.obs for b in batches])[1:]
    goes_on = ~np.concatenate([b.done for b in batches])[:-1]
    np.testing.assert_array_equal(np.concatenate([b.next_obs for b in batches])[:-1][goes_on], first[goes_on])
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(states[-1]), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            assert ours == theirs
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_final_values_are_there_exactly_where_an_episode_was_cut_off(collected):
    t = collected[1][0].trajectories
    np.testing.assert_array_equal(np.asarray(t.final_value) != 0, t.truncated & ~t.terminated)


def test_state(collected):
    _, rollouts, states, _ = collected
    assert [int(s.global_step) for s in states] == [0, 1, 2]
    for state, rollout in zip(states[1:], rollouts, strict=True):
        np.testing.assert_array_equal(state.last_obs, rollout.last_obs)
        np.testing.assert_array_equal(state.last_done, rollout.last_done)
        np.testing.assert_array_equal(rollout.last_done, rollout.trajectories.done[-1])
    assert not np.any(states[0].last_done)
    keys = [jax.random.key_data(s.rng).tolist() for s in states]
    assert len({tuple(k) for k in keys}) == 3


def test_episodes_are_recounted(collected):
    """Also those that go on from one rollout into the next."""
    _, rollouts, states, _ = collected
    running = None, None
    for state, rollout in zip(states[1:], rollouts, strict=True):
        t = rollout.trajectories
        ended, *running = oracles.episodes(t.reward, t.done, *running)
        assert rollout.episodes.count == len(ended) > 0
        np.testing.assert_allclose(rollout.episodes.total_return, sum(r for r, _ in ended), rtol=1e-5)
        assert rollout.episodes.total_length == sum(length for _, length in ended)
        np.testing.assert_allclose(state.episode_return, running[0], rtol=1e-5)
        np.testing.assert_array_equal(state.episode_length, running[1])


def test_hidden_states(collected):
    """The rollout keeps the one that it began with, after a reset where the last rollout ended an episode; from there the
    policy can be replayed."""
    name, rollouts, _, (_, carries, _) = collected
    if name != "memory":
        assert jax.tree.leaves(rollouts[0].initial_carry) == []
        return
    for i, rollout in enumerate(rollouts):
        jax.tree.map(np.testing.assert_array_equal, rollout.initial_carry, carries[i * STEPS])
    assert np.any(rollouts[0].last_done) and not np.all(rollouts[0].last_done)
    agent, t = case(name)[2], rollouts[1].trajectories

    def replay(carry, step):
        obs, done = step
        _, value, carry = jax.vmap(agent)(obs, carry)
        fresh = jax.tree.map(lambda x: jnp.repeat(x[None], ENVS, axis=0), agent.initial_carry())
        carry = jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (b.ndim - 1)), a, b), fresh, carry)
        return carry, value

    _, value = jax.lax.scan(replay, rollouts[1].initial_carry, (t.obs, t.done))
    np.testing.assert_array_equal(value, t.value)


def test_the_action_is_stored_as_drawn_and_sent_clipped():
    env, params = make("Pendulum-v1")
    agent = eqx.tree_at(lambda a: a.head.log_std, mlp(env, params, jax.random.key(0)), jnp.array([2.0]))
    collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS)
    state = collector.init(env, params, agent, jax.random.key(0))
    _, rollout = quick_jit(collector)(env, params, agent, state)
    t = rollout.trajectories
    assert np.abs(t.action).max() > 4  # torque is bounded by 2
    distribution, _, _ = jax.vmap(jax.vmap(lambda obs: agent(obs, ())))(t.obs)
    np.testing.assert_allclose(t.log_prob, distribution.log_prob(t.action), rtol=1e-5)
    # Pendulum's cost holds 0.001 times the square of the clipped torque; gymnax would clip it for us, so ask a stricter one
    cosine, sine, speed = np.moveaxis(np.asarray(t.obs, np.float64), -1, 0)
    angle = np.arctan2(sine, cosine)
    torque = np.clip(t.action[..., 0], -2, 2)
    np.testing.assert_allclose(t.reward, -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2), rtol=1e-3, atol=1e-4)


def test_an_environment_never_gets_an_action_from_outside_its_space():
    class Echo(probe_envs.Target):
        """The reward is the action."""

        def step(self, key, state, action, params):
            obs, state, _, terminated, truncated, info = probe_envs.Target().step(key, state, action, params)
            return obs, state, action[0], terminated, truncated, info

    env, params = Echo(), probe_envs.Limit(5)
    agent = MLPActorCritic(
        env.observation_space(params), env.action_space(params), hidden_sizes=(), log_std_init=2.0, key=jax.random.key(0)
    )
    collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS)
    _, rollout = quick_jit(collector)(env, params, agent, collector.init(env, params, agent, jax.random.key(0)))
    t = rollout.trajectories
    assert np.abs(t.action).max() > 1
    np.testing.assert_array_equal(t.reward, np.clip(t.action[..., 0], -1, 1))


def test_the_first_observation_is_normalised_and_counted():
    env, params, inner = case("CartPole-v1")
    agent = NormalizedActorCritic(inner, jnp.zeros(4))
    collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS)
    state = collector.init(env, params, agent, jax.random.key(0))
    first = state.last_obs
    collect, seen = quick_jit(collector), []
    for _ in range(2):
        counted = agent
        state, rollout = collect(env, params, agent, state)
        seen.append(rollout.trajectories.obs)
        agent = observe(agent, rollout.trajectories.obs)
    np.testing.assert_array_equal(seen[0][0], first)
    everything = np.concatenate(seen).reshape(-1, 4).astype(np.float64)
    assert agent.statistics.count == len(everything) == 2 * STEPS * ENVS
    np.testing.assert_allclose(agent.statistics.mean, everything.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(agent.statistics.var, everything.var(0), rtol=1e-4)
    # frozen within the rollout: all of it, its first observation and last value included, was seen with the same statistics
    t = rollout.trajectories
    normalised = (np.asarray(t.obs) - counted.statistics.mean[None, None]) / np.sqrt(counted.statistics.var + 1e-8)[None, None]
    distribution, value, _ = jax.vmap(jax.vmap(lambda obs: inner(obs, ())))(jnp.asarray(np.clip(normalised, -10, 10)))
    np.testing.assert_allclose(t.value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(t.log_prob, distribution.log_prob(t.action), rtol=1e-4, atol=1e-5)


def test_scaled_rewards_and_raw_returns():
    env, params, agent = case("chain")
    plain = RolloutCollector(num_envs=ENVS, num_steps=STEPS)
    scaled = dataclasses.replace(plain, reward_scaling=RewardScaling(gamma=0.9))
    rollouts = []
    for collector in (plain, scaled):
        state = collector.init(env, params, agent, jax.random.key(0))
        collect = quick_jit(collector)
        state, first = collect(env, params, agent, state)
        rollouts.append((first, collect(env, params, agent, state)[1]))
    for (a, b), scaling in [(pair, RewardScaling(gamma=0.9)) for pair in zip(*rollouts, strict=True)][:1]:
        expected = scaling(scaling.init(ENVS), a.trajectories.reward, a.trajectories.done)[1]
        np.testing.assert_allclose(b.trajectories.reward, expected, rtol=1e-5)
    for a, b in zip(*rollouts, strict=True):
        assert eqx.tree_equal(a.episodes, b.episodes)  # in the environment's own units
        assert not np.allclose(a.trajectories.reward, b.trajectories.reward)
        assert eqx.tree_equal(a.trajectories.obs, b.trajectories.obs)


def test_scaled_rewards_of_transitions():
    """Scaled like a rollout's, from one collection to the next; all else stays as it is."""
    env, params, agent = case("chain")
    policy, scaling = ActorCriticPolicy(agent), RewardScaling(gamma=0.9)
    plain, scaled = (TransitionCollector(num_envs=ENVS, num_steps=STEPS, reward_scaling=x) for x in (None, scaling))
    collected, running = [], scaling.init(ENVS)
    for collector in (plain, scaled):
        collect, state = quick_jit(collector), collector.init(env, params, policy, jax.random.key(0))
        state, first = collect(env, params, policy, state)
        collected.append((first, collect(env, params, policy, state)[1]))
    for a, b in zip(*collected, strict=True):
        running, expected = scaling(running, a.transitions.reward, a.transitions.done)
        np.testing.assert_allclose(b.transitions.reward, expected, rtol=1e-5)
        assert eqx.tree_equal(dataclasses.replace(b.transitions, reward=a.transitions.reward), a.transitions)
        assert eqx.tree_equal(a.episodes, b.episodes)


def test_vmapped_over_seeds_each_is_its_single_run():
    env, params, agent = case("CartPole-v1")
    collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS)

    def run(key):
        state, _ = collector(env, params, agent, collector.init(env, params, agent, key))
        return collector(env, params, agent, state)

    keys = jax.random.split(jax.random.key(0), 4)
    together, one = quick_jit(jax.vmap(run))(keys), quick_jit(run)
    for i in range(4):
        alone = one(keys[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            if jnp.issubdtype(a.dtype, jnp.floating):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
            elif not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(a[i], b)


class ResetEveryStep(AbstractStepper):
    """What a reset only where episodes end must not differ from."""

    def init(self, env, env_params, keys):
        return *jax.vmap(env.reset, in_axes=(0, None))(keys, env_params), ()

    def step(self, env, env_params, keys, env_state, reset_state, action):
        stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[0], env_state, action, env_params)
        first = jax.vmap(env.reset, in_axes=(0, None))(keys[1], env_params)
        return vec_step(stepped, reset_state, lambda: first)

    def refresh(self, env, env_params, key, reset_state):
        return reset_state


def test_the_reset_strategy_is_a_part():
    env, params, agent = case("CartPole-v1")
    results = []
    for stepper in ({}, {"stepper": ResetEveryStep()}, {"stepper": ResetWhenDone()}):
        collector = RolloutCollector(num_envs=ENVS, num_steps=STEPS, **stepper)
        state = collector.init(env, params, agent, jax.random.key(0))
        results.append(quick_jit(collector)(env, params, agent, state)[1])
    assert eqx.tree_equal(*results)
    assert np.any(results[0].trajectories.done)


def test_bad_sizes():
    for sizes in (dict(num_envs=0, num_steps=1), dict(num_envs=1, num_steps=-2)):
        for collector in (RolloutCollector, TransitionCollector):
            with pytest.raises(ValueError, match="must be at least 1, got"):
                collector(**sizes)
