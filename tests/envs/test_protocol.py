"""The protocol, `as_environment`, the adapter of gymnax, and the wrappers."""

import copy
import functools

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy_envs
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper, StickyActionWrapper
from gymnax.wrappers.compat import LegacyStepAPIWrapper
from jaxtyping import Array, Float, Int
from toy_envs import Params, Walk

import eqxrl
from eqxrl.envs import (
    AbstractWrapper,
    EnvError,
    Environment,
    Gymnax,
    TimeLimit,
    TimeLimitIsTerminal,
    as_environment,
    check_env,
    check_spaces,
    env_name,
    episode_limit,
    make,
)

PARAMS = Params(3, noise=0.0)
CartPole = type(gymnax.make("CartPole-v1")[0])


def test_environments_are_left_as_they_are():
    for env in (Walk(), TimeLimit(Walk(), 9), make("CartPole-v1")[0]):
        assert as_environment(env, env.default_params) is env and as_environment(env) is env
        assert isinstance(env, Environment)
    assert not isinstance(3, Environment)


@pytest.mark.parametrize("wrap", [lambda env: env, LogWrapper, FlattenObservationWrapper, StickyActionWrapper])
def test_what_is_gymnaxs_is_wrapped(wrap):
    raw = wrap(gymnax.make("CartPole-v1")[0])
    env = as_environment(raw)
    assert isinstance(env, Gymnax) and env.env is raw and env == as_environment(raw)


def test_what_is_no_environment():
    class Nothing:
        pass

    class Half(Walk):
        action_space = None

    with pytest.raises(TypeError, match="Nothing has no method reset, step, observation_space, action_space;"):
        as_environment(Nothing())
    with pytest.raises(TypeError, match="Half has no method action_space;"):
        as_environment(Half())
    with pytest.raises(TypeError, match=r"a tuple of 2 as env; .* env, env_params = make\(...\), then env=env, env_params=env_params"):
        as_environment(make("CartPole-v1"), None)
    with pytest.raises(TypeError, match="is the class Walk; pass an instance of it"):
        as_environment(Walk)
    with pytest.raises(TypeError, match="is 'CartPole-v1'; pass it as env_id"):
        as_environment("CartPole-v1")


def test_five_values():
    with pytest.raises(EnvError, match="FiveValues.step returns 5 values.*terminated.* from a time limit .truncated."):
        as_environment(toy_envs.FiveValues())
    with pytest.raises(EnvError, match="LegacyStepAPIWrapper can be left out"):
        as_environment(LegacyStepAPIWrapper(gymnax.make("CartPole-v1")[0]))


def test_a_step_that_resets_itself_is_refused_where_it_says_so():
    class OnesOwnWrapper:
        """Around gymnax, but known to nobody as such."""

        def __init__(self, env):
            self.inner = env

        def __getattr__(self, name):
            return getattr(self.inner, name)

    with pytest.raises(EnvError, match="OnesOwnWrapper.step gives info.*never reset in step.*wrap eqxrl.envs.Gymnax"):
        as_environment(OnesOwnWrapper(gymnax.make("CartPole-v1")[0]))
    check_env(OnesOwnWrapper(make("CartPole-v1")[0]), num_steps=40)


class Scaled(AbstractWrapper):
    """A wrapper of the user's own."""

    env: object

    def reset(self, key, params=None):
        obs, state = self.env.reset(key, params)
        return 2 * obs, state

    def step(self, key, state, action, params=None):
        obs, *rest = self.env.step(key, state, action, params)
        return 2 * obs, *rest


def test_wrappers_of_ones_own():
    check_env(Scaled(make("CartPole-v1")[0]), num_steps=40)
    check_spaces(TimeLimit(Scaled(Gymnax(FlattenObservationWrapper(gymnax.make("Catch-bsuite")[0]))), 4))
    with pytest.raises(EnvError, match="Scaled wraps CartPole of gymnax, which resets itself; wrap eqxrl.envs.Gymnax"):
        as_environment(TimeLimit(Scaled(gymnax.make("CartPole-v1")[0]), 4))


def test_errors_name_a_wrapper_of_ones_own():
    class Broken(Scaled):
        def step(self, key, state, action, params=None):
            return self.env.step(key, state, action, params)[:4]

    with pytest.raises(EnvError, match="^Broken.step returns 4 values"):
        as_environment(TimeLimitIsTerminal(Broken(Walk())))


NAMED = {
    "Walk": Walk(),
    "CartPole-v1": make("CartPole-v1")[0],
    "DeepSea-bsuite": TimeLimit(TimeLimitIsTerminal(make("DeepSea-bsuite")[0]), 5),
    "Mine": type("Other", (Walk,), {"name": "Mine"})(),
    "NotAString": type("NotAString", (Walk,), {"name": 3})(),
    "Raises": type("Raises", (Walk,), {"name": property(lambda self: 1 / 0)})(),
    "int": 3,
    "NoneType": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_names(name):
    assert env_name(NAMED[name]) == name
    if name != "NoneType":
        assert env_name(TimeLimitIsTerminal(TimeLimit(NAMED[name], 3))) == name


# gymnax


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite", "UmbrellaChain-bsuite"])
def test_a_step_is_the_transition_of_gymnaxs_own_step(name, key):
    """Bit for bit, with the first half of its key; and where it ended, nothing was reset."""
    raw, params = gymnax.make(name)
    env, params = Gymnax(raw), params.replace(max_steps_in_episode=25)
    assert not env.whole_step
    _, state = raw.reset(key, params)
    for t in range(30):
        action = raw.action_space(params).sample(jr.key(t))
        _, next_state, *rest, info = raw.step(jr.key(t), state, action, params)
        obs, own_state, *own_rest, own_info = env.step(jr.split(jr.key(t))[0], state, action, params)
        np.testing.assert_array_equal(obs, info["final_observation"])
        assert own_rest == rest and "final_observation" not in own_info
        if rest[1] or rest[2]:
            assert own_state.time == t + 1 and next_state.time == 0
            return
        jax.tree.map(np.testing.assert_array_equal, own_state, next_state)
        state = next_state
    raise AssertionError("no episode ended")


def test_whole_steps(key):
    """Of gymnax's wrappers, and of what overrides its step: the last observation, and no word of it in `info`."""
    inner, params = gymnax.make("Catch-bsuite")
    flat = FlattenObservationWrapper(LogWrapper(inner))
    own = copy.copy(inner)
    own.step = jax.jit(inner.step)
    for raw, shape in ((flat, (50,)), (own, (10, 5)), (gymnax.make("DeepSea-bsuite")[0], (8, 8))):
        env, params = Gymnax(raw), raw.default_params
        assert env.whole_step and TimeLimit(env, 100).whole_step
        state = env.reset(key, params)[1]
        done = False
        while not done:
            obs, next_state, _, terminated, truncated, info = env.step(key, state, 1, params)
            whole = raw.step(key, state, 1, params)
            np.testing.assert_array_equal(obs, whole[5]["final_observation"])
            assert obs.shape == shape and "final_observation" not in info
            state, done = next_state, terminated | truncated
        assert not np.array_equal(obs, whole[0])  # which is that of the next episode


def test_a_step_of_ones_own_without_a_last_observation():
    class Shaped(CartPole):
        def step(self, key, state, action, params=None):
            obs, state, reward, terminated, truncated, _ = super().step(key, state, action, params)
            return obs, state, 10 * reward, terminated, truncated, {}

    class Legacy(Shaped):
        def step(self, *args):
            return super().step(*args)[:5]

    with pytest.raises(EnvError, match='Shaped.step gives no info."final_observation".*or override step_env in place of step'):
        as_environment(Shaped())
    with pytest.raises(EnvError, match="Legacy.step returns 5 values"):
        as_environment(Legacy())


def test_parameters_may_be_left_out():
    env = make("CartPole-v1")[0]
    _, state = env.reset(jr.key(0))
    assert env.step(jr.key(1), state, 1)[2] == 1
    assert env.action_space().n == 2


# wrappers


def test_time_limit_is_terminal(key):
    env = TimeLimitIsTerminal(Walk())
    _, state = env.reset(key, PARAMS)
    for t in range(3):
        plain = Walk().step(jr.key(t), state, 1, PARAMS)
        values = env.step(jr.key(t), state, 1, PARAMS)
        for i in (0, 1, 2, 5):
            jax.tree.map(np.testing.assert_array_equal, values[i], plain[i])
        assert (values[3], values[4]) == (t == 2, False) and plain[4] == (t == 2)
        state = values[1]


@pytest.mark.parametrize("inner", [Walk, lambda: gymnax.make("Pendulum-v1")[0]], ids=["walk", "raw gymnax"])
def test_time_limit(inner, key):
    env, params = TimeLimit(inner(), 2), inner().default_params
    check_spaces(env, params)
    obs, state = env.reset(key, params)
    for t in range(2):
        obs, state, _, terminated, truncated, info = jax.jit(env.step)(jr.key(t), state, jnp.array([1])[0], params)
        assert (terminated, truncated) == (False, t == 1)
    assert state.time == 2 and state.env_state.time == 2  # nothing was reset


def test_both_ends_at_once():
    env = TimeLimit(Walk(), 1)
    _, state = env.reset(jr.key(0), PARAMS)
    state = eqx.tree_at(lambda s: s.env_state.x, state, jnp.float32(0.99))
    _, _, _, terminated, truncated, _ = env.step(jr.key(9), state, 2, PARAMS)
    assert terminated and truncated


def test_time_limit_below_one():
    with pytest.raises(ValueError, match="max_steps=0"):
        TimeLimit(Walk(), 0)


@pytest.mark.parametrize(
    "wrap",
    [Gymnax, TimeLimitIsTerminal, lambda env: TimeLimit(env, 7), lambda env: TimeLimit(TimeLimitIsTerminal(env), 7)],
)
def test_wrappers_copy_hash_and_delegate(wrap):
    inner = gymnax.make("CartPole-v1")[0]
    env = wrap(inner)
    assert type(copy.deepcopy(env)) is type(env) and type(copy.copy(env)) is type(env)
    assert env == wrap(inner) and hash(env) == hash(wrap(inner))
    assert env != wrap(gymnax.make("CartPole-v1")[0])
    assert env.name == "CartPole-v1" and env.default_params == inner.default_params and env.num_actions == 2
    with pytest.raises(AttributeError, match="no_such_thing"):
        env.no_such_thing
    assert not hasattr(env, "picture")


def test_wrapping_anew_does_not_compile_anew(key):
    traces = []

    @eqx.filter_jit
    def dynamic(env):
        traces.append(1)
        return env.reset(key, env.default_params)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def static(env):
        traces.append(1)
        return env.reset(key, env.default_params)[0]

    inner = gymnax.make("CartPole-v1")[0]
    for f in (dynamic, static):
        traces.clear()
        for _ in range(2):
            f(TimeLimit(inner, 7))
        f(TimeLimit(inner, 8))
        assert len(traces) == 2


# time limits


@pytest.mark.parametrize(
    "limit, expected",
    [(100, 100), (100.0, 100), (7.5, 8), (jnp.array(3), 3), (np.float32(3), 3), (None, None), (np.inf, None), (np.nan, None)],
)
def test_episode_limit(limit, expected):
    result = episode_limit(Params(limit))
    assert result == expected and type(result) is type(expected)
    assert episode_limit(Params(limit), TimeLimit(Walk(), 5)) == min(5, expected or 5)


def test_episode_limit_of_the_bernoulli_bandit_is_a_float():
    assert episode_limit(make("BernoulliBandit-misc")[1]) == 100


def test_episode_limit_of_an_environments_own():
    limited = type("Limited", (Walk,), {"max_steps": 7})()
    assert episode_limit(None, limited) == 7 and episode_limit(Params(5), limited) == 5 and episode_limit(Params(9), limited) == 7
    assert episode_limit(None, TimeLimit(limited, 9)) == 7 and episode_limit(None, TimeLimit(limited, 3)) == 3
    assert episode_limit(None, type("Endless", (Walk,), {"max_steps": None})()) is None


def test_episode_limit_where_there_is_no_number():
    assert episode_limit(None) is None and episode_limit(object()) is None
    assert episode_limit(None, TimeLimit(Walk(), 5)) == 5
    assert episode_limit(None, TimeLimit(TimeLimitIsTerminal(TimeLimit(Walk(), 5)), 9)) == 5
    with pytest.raises(ValueError, match=r"shape \[2\].*vmap"):
        episode_limit(Params(jnp.array([1, 2])))


def test_episode_limit_may_be_traced():
    np.testing.assert_array_equal(jax.vmap(lambda n: episode_limit(Params(n)))(jnp.array([4, 9])), [4, 9])
    limit = jax.vmap(lambda n: episode_limit(Params(n), TimeLimit(Walk(), 5)))(jnp.array([4, 9]))
    np.testing.assert_array_equal(limit, [4, 5])


def test_the_example_in_the_docstring_keeps_the_contract():
    code = Environment.__doc__.split("```python")[1].split("```")[0]
    names = dict(eqx=eqx, jax=jax, jnp=jnp, eqxrl=eqxrl, Array=Array, Float=Float, Int=Int)
    exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), names)
    check_env(names["Walk"](), num_steps=300)
