"""`adapt`, `separable`, `step` and the wrappers."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper
from toy_envs import FiveValues, Hooks, NotJittable, Params, State, Walk, box

from eqxrl.envs import (
    AutoReset,
    EnvError,
    FiveValueStep,
    TimeLimit,
    TimeLimitIsTerminal,
    adapt,
    check_spaces,
    make,
    separable,
    step,
)

PARAMS = Params(3, noise=0.0)


class LegacyBase:
    """gymnax before 1.0: `step` is the base's, and `done` says all."""

    default_params = PARAMS

    def step(self, key, state, action, params=None):
        key, key_reset = jr.split(key)
        obs, state, reward, done, info = self.step_env(key, state, action, params)
        first = self.reset_env(key_reset, params)
        obs, state = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, (obs, state))
        return obs, state, reward, done, info

    def reset(self, key, params=None):
        return self.reset_env(key, params)


class Legacy(LegacyBase):
    """A walk to the right whose limit is told in `info`."""

    def reset_env(self, key, params):
        state = State(jr.uniform(key, ()), jnp.zeros((), jnp.int32))
        return state.x[None], state

    def step_env(self, key, state, action, params):
        state = State(state.x + 1, state.time + 1)
        cut = state.time >= params.max_steps_in_episode
        return state.x[None], state, jnp.ones((1,)), (state.x > 3) | cut, self.info(cut, state)

    def info(self, cut, state):
        return {"truncated": cut}

    def observation_space(self, params):
        return box(0, 10, (1,))

    action_space = Walk.action_space


class OwnStep(Legacy):
    """Does something of its own after the base's step, as a reward shaping would."""

    def step(self, key, state, action, params=None):
        obs, state, reward, *rest = super().step(key, state, action, params)
        return obs, state, 10 * reward, *rest


class Whole:
    """Neither `step_env` nor `reset_env`: only the whole step."""

    def __init__(self, info):
        self.env, self.info = Legacy(), info

    def reset(self, key, params):
        return self.env.reset(key, params)

    def step(self, key, state, action, params):
        last = self.env.step_env(key, state, action, params)
        values = self.env.step(key, state, action, params)
        return *values[:4], self.info(last[4]["truncated"], last[0])

    def observation_space(self, params):
        return box(0, 10, (1,))

    action_space = Walk.action_space


def last_step(env, params=PARAMS):
    """The step that reaches the limit of 3 from x < 1, or terminates from the side."""
    state = State(jnp.float32(0.5), jnp.int32(2))
    return env.step(jr.key(3), state, jnp.int32(0), params)


def test_six_values_are_left_as_they_are():
    for env in (Walk(), make("CartPole-v1")[0]):
        assert adapt(env, env.default_params) is env


def test_legacy_step_taken_apart():
    env = adapt(Legacy(), PARAMS)
    assert isinstance(env, FiveValueStep) and separable(env)
    check_spaces(env, PARAMS)
    obs, state, reward, terminated, truncated, info = last_step(env)
    assert truncated and not terminated
    np.testing.assert_array_equal(info["final_observation"], [1.5])
    assert obs[0] < 1 and state.time == 0 and state.x == obs[0]
    np.testing.assert_array_equal(obs, last_step(Legacy())[0])  # the reset that the env's own step makes


def test_legacy_step_of_its_own_is_called():
    env = adapt(OwnStep(), PARAMS)
    assert not separable(env)
    obs, _, reward, _, truncated, info = last_step(env)
    assert truncated and reward == 10 and obs[0] < 1
    np.testing.assert_array_equal(info["final_observation"], [1.5])


@pytest.mark.parametrize("name", ["truncated", "truncation", "TimeLimit.truncated"])
@pytest.mark.parametrize("final", ["final_observation", "terminal_observation"])
def test_legacy_info(name, final):
    env = adapt(Whole(lambda cut, obs: {name: cut.astype(jnp.float32), final: obs}), PARAMS)
    assert not separable(env)
    _, _, _, terminated, truncated, info = last_step(env)
    assert truncated and not terminated and truncated.dtype == terminated.dtype == bool
    np.testing.assert_array_equal(info["final_observation"], [1.5])
    # both at once counts as truncated; neither, while the episode goes on
    _, _, _, terminated, truncated, _ = env.step(jr.key(0), State(jnp.float32(0.5), jnp.int32(0)), jnp.int32(0), PARAMS)
    assert not truncated and not terminated


def test_legacy_that_says_nothing_of_truncation_terminates():
    _, _, _, terminated, truncated, _ = last_step(adapt(Whole(lambda cut, obs: {}), PARAMS))
    assert terminated and not truncated


def test_legacy_that_truncates_and_hides_the_last_observation_is_refused():
    with pytest.raises(EnvError, match="Whole.step reports truncation but not the observation before the reset"):
        adapt(Whole(lambda cut, obs: {"truncation": cut}), PARAMS)


def test_delegated_hooks_do_not_count():
    """A legacy wrapper that changes the state must not be stepped through what it delegates to."""

    class Delegating:
        def __init__(self, env):
            self._env = env

        def __getattr__(self, name):
            return getattr(self._env, name)

        def reset(self, key, params):
            obs, state = self._env.reset(key, params)
            return 2 * obs, (state,)

        def step(self, key, state, action, params):
            obs, state, *rest, info = self._env.step(key, state[0], action, params)
            return 2 * obs, (state,), *rest, {}

    env = adapt(Delegating(Legacy()), PARAMS)
    assert not separable(env)
    check_spaces(env, PARAMS)


def test_adapt_refuses_what_it_cannot_know():
    class Four(Walk):
        def spoil(self, *values):
            return values[:4]

    class Nothing:
        pass

    with pytest.raises(TypeError, match="Four.step returned 4 values, but"):
        adapt(Four(), PARAMS)
    with pytest.raises(TypeError, match="Nothing has no method step, .* step_env, reset_env, is_truncated"):
        adapt(Nothing(), None)
    with pytest.raises(EnvError, match="NotJittable.step could not be traced .TracerBoolConversionError"):
        adapt(NotJittable(), PARAMS)


def test_hooks_become_an_environment(key):
    env = adapt(Hooks(), PARAMS)
    assert isinstance(env, AutoReset) and separable(env)
    _, state = env.reset(key, PARAMS)
    for a, b in zip(env.step(key, state, 2, PARAMS), Walk().step(key, state, 2, PARAMS), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_separable():
    cartpole = make("CartPole-v1")[0]
    own = copy.copy(cartpole)
    own.step = jax.jit(cartpole.step)
    assert separable(cartpole) and separable(TimeLimit(TimeLimitIsTerminal(cartpole), 5))
    for env in (make("DeepSea-bsuite")[0], LogWrapper(cartpole), own, Walk(), TimeLimit(LogWrapper(cartpole), 5)):
        assert not separable(env)


@pytest.mark.parametrize("name", ["CartPole-v1", "DeepSea-bsuite", "UmbrellaChain-bsuite"])
def test_step_is_the_transition_of_the_environments_step(name, key):
    env, params = make(name)
    _, state = env.reset(key, params)
    for t in range(30):
        _, next_state, reward, terminated, truncated, info = env.step(jr.key(t), state, 1, params)
        out = step(env, jr.key(t), state, 1, params)
        np.testing.assert_array_equal(out.obs, info["final_observation"])
        assert (out.reward, out.terminated, out.truncated) == (reward, terminated, truncated)
        assert out.done == (terminated | truncated) and out.reward.dtype == jnp.float32
        if out.done:
            if separable(env):
                assert out.env_state.time == t + 1  # nothing was reset
            return
        jax.tree.map(np.testing.assert_array_equal, out.env_state, next_state)
        state = next_state
    raise AssertionError("no episode ended")


def test_step_squeezes_rewards():
    out = step(adapt(Legacy(), PARAMS), jr.key(0), State(jnp.float32(0.5), jnp.int32(2)), 0, PARAMS)
    assert out.reward.shape == () and out.truncated and out.env_state.time == 3


def test_step_without_a_final_observation():
    with pytest.raises(EnvError, match='no info."final_observation".'):
        step(FlatWalk(), jr.key(0), Walk().reset(jr.key(0), PARAMS)[1], 0, PARAMS)


class FlatWalk(Walk):
    def spoil(self, *values):
        return *values[:5], {}


@pytest.mark.parametrize("inner", [Walk, lambda: AutoReset(Hooks())])
def test_time_limit_is_terminal(inner, key):
    env = TimeLimitIsTerminal(inner())
    _, state = env.reset(key, PARAMS)
    for t in range(3):
        plain = inner().step(jr.key(t), state, 1, PARAMS)
        values = env.step(jr.key(t), state, 1, PARAMS)
        for i in (0, 1, 2, 5):
            jax.tree.map(np.testing.assert_array_equal, values[i], plain[i])
        assert (values[3], values[4]) == (t == 2, False) and plain[4] == (t == 2)
        state = values[1]


@pytest.mark.parametrize("inner", [Walk, lambda: AutoReset(Hooks())])
def test_time_limit(inner, key):
    env, params = TimeLimit(inner(), 2), Params(10**6, noise=0.0)
    assert separable(env) == separable(inner())
    check_spaces(env, params)
    obs, state = env.reset(key, params)
    start = obs[0]
    for t in range(2):
        obs, state, _, terminated, truncated, info = jax.jit(env.step)(jr.key(t), state, 1, params)
        assert (terminated, truncated) == (False, t == 1)
        np.testing.assert_allclose(info["final_observation"][0], start, rtol=1e-6)
    assert obs[0] != start and obs[1] == 0 and state.time == 0 and state.env_state.time == 0
    # where the inner episode ends first, the counter starts anew as well
    state = eqx.tree_at(lambda s: s.env_state.x, state, jnp.float32(0.99))
    obs, state, _, terminated, truncated, _ = env.step(jr.key(9), state, 2, params)
    assert (terminated, truncated) == (True, False) and state.time == 0 and abs(obs[0]) <= 0.5


def test_time_limit_below_one():
    with pytest.raises(ValueError, match="max_steps=0"):
        TimeLimit(Walk(), 0)


@pytest.mark.parametrize(
    "wrap",
    [TimeLimitIsTerminal, lambda env: TimeLimit(env, 7), AutoReset, FiveValueStep, lambda env: TimeLimit(AutoReset(env), 7)],
)
def test_wrappers_copy_hash_and_delegate(wrap):
    inner = make("CartPole-v1")[0]
    env = wrap(inner)
    assert type(copy.deepcopy(env)) is type(env) and type(copy.copy(env)) is type(env)
    assert env == wrap(inner) and hash(env) == hash(wrap(inner))
    assert env != wrap(make("CartPole-v1")[0])
    assert env.name == "CartPole-v1" and env.default_params == inner.default_params and env.num_actions == 2
    with pytest.raises(AttributeError, match="no_such_thing"):
        env.no_such_thing


def test_wrapping_anew_does_not_compile_anew(key):
    traces = []

    @eqx.filter_jit
    def dynamic(env):
        traces.append(1)
        return env.reset(key, env.default_params)[0]

    def static(env):
        traces.append(1)
        return env.reset(key, env.default_params)[0]

    static = jax.jit(static, static_argnums=0)
    inner = make("CartPole-v1")[0]
    for f in (dynamic, static):
        traces.clear()
        for _ in range(2):
            f(TimeLimit(inner, 7))
        f(TimeLimit(inner, 8))
        assert len(traces) == 2


def test_gymnax_wrappers_work_whole():
    inner, params = make("Catch-bsuite")
    env = FlattenObservationWrapper(LogWrapper(inner))
    assert adapt(env, params) is env and not separable(env)
    out = step(env, jr.key(1), env.reset(jr.key(0), params)[1], 1, params)
    assert out.obs.shape == (50,)


def test_five_values_of_a_new_environment():
    assert isinstance(adapt(FiveValues(), PARAMS), FiveValueStep)
