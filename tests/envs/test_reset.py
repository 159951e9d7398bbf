"""The reset strategies against `env.step`, and against each other bit by bit."""

import dataclasses

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from toy_envs import Hooks, Params, Walk

from eqxrl.envs import (
    EnvError,
    ResetEveryStep,
    ResetFromPool,
    ResetWhenDone,
    TimeLimit,
    TimeLimitIsTerminal,
    adapt,
    default_reset,
    make,
    separable,
)
from eqxrl.envs._spaces import sample

ENVS, STEPS = 5, 300
NAMES = [name for name in gymnax.registered_envs if "MNIST" not in name]


def rollout(strategy, env, params, key, num_steps=STEPS, num_envs=ENVS):
    """Everything that a random policy sees, `[steps envs ...]`."""
    key, reset_key, refresh_key = jr.split(key, 3)
    obs, state, kept = strategy.init(env, params, jr.split(reset_key, num_envs))
    kept = strategy.refresh(env, params, refresh_key, kept)

    def step(carry, key):
        state, kept = carry
        act_key, step_key = jr.split(key)
        action = jax.vmap(lambda k: sample(env.action_space(params), k))(jr.split(act_key, num_envs))
        out = strategy.step(env, params, jr.split(step_key, num_envs), state, kept, action)
        return (out.env_state, out.reset_state), out

    return (obs, state), jax.lax.scan(step, (state, kept), jr.split(key, num_steps))[1]


def limited(name, limit):
    env, params = make(name)
    return env, params.replace(max_steps_in_episode=limit)


CASES = {
    "cartpole": lambda: limited("CartPole-v1", 30),
    "pendulum": lambda: limited("Pendulum-v1", 17),
    "catch": lambda: make("Catch-bsuite"),
    "scalar observations": lambda: limited("FrozenLake-misc", 9),
    "float limit": lambda: limited("BernoulliBandit-misc", 7.5),
    "time limit": lambda: (TimeLimit(make("CartPole-v1")[0], 9), make("CartPole-v1")[1]),
    "terminal time limit": lambda: (TimeLimitIsTerminal(make("Pendulum-v1")[0]), limited("Pendulum-v1", 9)[1]),
    "hooks": lambda: (adapt(Hooks(), Params(20)), Params(20)),
}


def assert_bitwise_equal(a, b):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


SLOW = {"scalar observations", "float limit", "terminal time limit"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_reset_when_done_is_bit_for_bit_reset_every_step(case, key):
    env, params = CASES[case]()
    run = jax.jit(lambda strategy: rollout(strategy, env, params, key))
    reference, lazy = run(ResetEveryStep()), run(ResetWhenDone())
    assert 3 < reference[1].done.sum() < ENVS * STEPS
    assert_bitwise_equal(reference, lazy)


@pytest.mark.parametrize("strategy", [ResetWhenDone(), pytest.param(ResetFromPool(4), marks=pytest.mark.slow)], ids=repr)
def test_every_seed_of_a_vmap_is_the_run_of_that_seed(strategy, key):
    env, params = CASES["cartpole"]()
    keys = jr.split(key, 3)
    run = jax.jit(jax.vmap(lambda key: rollout(strategy, env, params, key, 60)[1]))(keys)
    alone = jax.jit(lambda key: rollout(strategy, env, params, key, 60)[1])(keys[1])
    assert alone.done.any()
    assert_bitwise_equal(jax.tree.map(lambda x: x[1], run), alone)


def test_parameters_may_be_swept(key):
    env, params = make("Pendulum-v1")
    limits = jnp.array([5, 8])
    run = jax.vmap(lambda n: rollout(ResetWhenDone(), env, params.replace(max_steps_in_episode=n), key, 16)[1].truncated)
    ends = np.asarray(run(limits)).all(-1)
    np.testing.assert_array_equal(ends, [[(t + 1) % n == 0 for t in range(16)] for n in (5, 8)])


def test_final_observation_and_flags():
    """By hand: a walk that is cut off after 3 steps."""
    env, params = Walk(), Params(3, noise=0.0)
    key, push = jr.key(0), jnp.array([2, 2])
    for strategy in (ResetEveryStep(), ResetWhenDone()):
        env = Walk() if isinstance(strategy, ResetEveryStep) else adapt(Hooks(), params)
        obs, state, kept = strategy.init(env, params, jr.split(key, 2))
        start = np.asarray(obs[:, 0])
        for t in range(3):
            out = strategy.step(env, params, jr.split(jr.key(t), 2), state, kept, push)
            state = out.env_state
            np.testing.assert_allclose(out.final_obs[:, 0], start + 0.2 * (t + 1), rtol=1e-5)
        assert out.truncated.all() and out.done.all()
        np.testing.assert_array_equal(state.time, 0)
        assert (np.abs(out.obs[:, 0]) <= 0.5).all() and (out.obs[:, 1] == 0).all()


def test_pool_opens_episodes_from_its_states(key):
    env, params = CASES["cartpole"]()
    strategy = ResetFromPool(4)
    _, out = jax.jit(lambda: rollout(strategy, env, params, key))()
    firsts = np.asarray(out.obs)[np.asarray(out.done)]
    pool = np.asarray(out.reset_state[0][0])
    assert len(np.unique(pool, axis=0)) == 4
    assert {x.tobytes() for x in firsts} == {x.tobytes() for x in pool}
    np.testing.assert_array_equal(np.asarray(out.env_state.time)[np.asarray(out.done)], 0)


def test_pool_is_renewed(key):
    env, params = make("CartPole-v1")
    strategy = ResetFromPool(4)
    _, _, pool = strategy.init(env, params, jr.split(key, 2))
    new = strategy.refresh(env, params, jr.key(1), pool)
    assert not np.isin(np.asarray(new[0]), np.asarray(pool[0])).any()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), pool)
    with pytest.raises(ValueError, match="num_states=0"):
        ResetFromPool(0)


@pytest.mark.parametrize("strategy", [ResetWhenDone(), ResetFromPool(3)])
def test_environments_that_are_all_of_one_piece_are_refused(strategy):
    env, params = make("DeepSea-bsuite")
    with pytest.raises(EnvError, match=f"{type(strategy).__name__}.*DeepSea.*use ResetEveryStep"):
        strategy.step(env, params, jr.split(jr.key(0), 2), None, (), jnp.zeros(2, int))


def test_default_reset():
    assert isinstance(default_reset(make("CartPole-v1")[0]), ResetWhenDone)
    assert isinstance(default_reset(make("DeepSea-bsuite")[0]), ResetEveryStep)


@pytest.mark.parametrize("name", NAMES)
def test_every_gymnax_environment_takes_a_step(name):
    env, params = make(name)
    strategy = default_reset(env)
    keys = jr.split(jr.key(0), 3)
    assert separable(env) == (name != "DeepSea-bsuite")

    def run(keys):
        obs, state, kept = strategy.init(env, params, keys)
        action = jax.vmap(lambda k: sample(env.action_space(params), k))(keys)
        return obs, state, strategy.step(env, params, keys, state, kept, action)

    with jax.numpy_rank_promotion("allow"):  # Swimmer promotes
        obs, state, out = jax.eval_shape(run, keys)
    assert out.reward.shape == (3,) and out.reward.dtype == jnp.float32
    assert out.terminated.dtype == out.truncated.dtype == bool
    assert obs.shape == out.obs.shape == out.final_obs.shape and obs.dtype == out.obs.dtype
    # strong and the same in and out, so that a scan, and a second call, fit
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(out.env_state), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert not before.weak_type and not after.weak_type


def test_integer_rewards():
    env, params = make("UmbrellaChain-bsuite")
    out = jax.jit(lambda: rollout(default_reset(env), env, params, jr.key(0), 20)[1])()
    assert out.reward.dtype == jnp.float32 and set(np.unique(out.reward)) == {-1.0, 1.0}


def test_environment_with_arrays_is_vmapped(key):
    """An `eqx.Module` may hold arrays, which `vmap` sweeps like any others."""

    class Drift(eqx.Module):
        speed: jax.Array

        def reset_env(self, key, params):
            return jnp.zeros((1,)), jnp.zeros((), jnp.float32)

        def step_env(self, key, state, action, params):
            state = state + self.speed
            return state[None], state, self.speed, state > 1, {}

        def is_truncated(self, state, params):
            return jnp.zeros((), bool)

        def observation_space(self, params):
            return Walk().observation_space(params)

        def action_space(self, params):
            return Walk().action_space(params)

    def run(speed):
        env = TimeLimit(dataclasses.replace(adapt(Drift(speed), None)), 100)
        return rollout(ResetWhenDone(), env, None, key, 12, 2)[1].terminated.sum(0)

    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(jnp.array([0.26, 0.6])), [[3, 3], [6, 6]])
