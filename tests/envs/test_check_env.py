"""`check_env` and `check_spaces` on environments that keep the contract, and on those that break it, each in one way."""

import warnings
from types import SimpleNamespace

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper
from toy_envs import Params, Walk, box, discrete

from eqxrl.envs import EnvError, TimeLimit, TimeLimitIsTerminal, as_environment, check_env, check_spaces, make

NAMES = [name for name in gymnax.registered_envs if "MNIST" not in name]
QUICK = {"CartPole-v1", "Pendulum-v1", "Catch-bsuite", "FrozenLake-misc", "DeepSea-bsuite"}

BROKEN = {
    "WrongShape": r"observation of reset is float32\[2\], but observation_space has shape \[3\]",
    "UnknownSpace": "observation_space: namespace.* is no space that is known here",
    "FloatFlag": "terminated must be a bool, but is float32",
    "VectorReward": r"reward must be a scalar, but is float32\[2\]",
    "TextInfo": r"info must be a dict of arrays, but info\['event'\] is none",
    "NoInfo": "info must be a dict of arrays, but is NoneType",
    "NaNReward": "the reward is not finite",
    "InfiniteObs": "the observation is not finite",
    "DriftingState": r"the state.time is int16\[\] in reset, but int32\[\] in step",
    "OtherStructure": "state of reset and of step differ in structure",
    "ResetsItself": "where an episode ends, step returns what reset does; never reset in step",
    "IgnoresParams": "goes on past the limit of 25 steps",
    "ForgetsItsLimit": "goes on past the limit of 20 steps: report truncated at max_steps",
    "NumpyRandom": "another result for the same key when it is run again, or traced anew",
    "Counts": "another result for the same key when it is run again, or traced anew",
    "MixesBatch": "under vmap it does otherwise in another place, beside others",
    "IsOtherAlone": "under vmap it differs from one environment at a time in what is seen",
    "CountsItsNeighbours": "under vmap it does otherwise in another place, beside others",
}
REFUSED = {
    "IntegerActions": "IntegerActions.action_space: .* policies act in .* a Box of floats",
    "BinaryActions": r"BinaryActions.action_space: .* is no space that is known here; .* MultiDiscrete\(\[2\] \* n\)",
    "FiveValues": "FiveValues.step returns 5 values, but must return .*terminated.*truncated",
    "FourValues": "FourValues.step returns 4 values, but must return .obs, state, reward, terminated, truncated, info.$",
    "NoReset": "NoReset has no method reset",
    "ThreeValuesOfReset": "ThreeValuesOfReset.reset must return .obs, state., not 3 values",
    "NotJittable": "NotJittable.step could not be traced .TracerBoolConversionError",
    "KeepsTheLastObservation": "never reset in step: return the observation and the state that the action led to",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_environments(name):
    with pytest.raises(EnvError, match=f"{name} breaks the contract of an environment in 1 place:\n  1. (.|\n)*{BROKEN[name]}"):
        check_env(getattr(toy_envs, name)())


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(TimeLimitIsTerminal(env), 9)], ids=["bare", "wrapped"])
def test_what_create_refuses_is_refused_in_the_same_words(name, wrap):
    env = wrap(getattr(toy_envs, name)())
    for check in (check_env, check_spaces, as_environment):
        with pytest.raises((EnvError, TypeError), match=REFUSED[name]):
            check(env)


def test_all_that_is_wrong_is_listed():
    class Bad(toy_envs.FloatFlag):
        def observation_space(self, params):
            return box(-3, 3, (3,))

    with pytest.raises(EnvError, match="in 2 places:\n  1. the observation.*\n  2. terminated"):
        check_env(Bad())

    class BadRun(toy_envs.NaNReward, toy_envs.IgnoresParams):
        pass

    with pytest.raises(EnvError, match="in 2 places:\n  1. the reward.*\n  2. an episode goes on"):
        check_env(BadRun())


def test_errors_and_warnings_name_the_users_class_and_no_wrapper():
    with pytest.raises(EnvError, match="^NaNReward breaks"):
        check_env(TimeLimitIsTerminal(TimeLimit(toy_envs.NaNReward(), 9)))
    with pytest.raises(EnvError, match="^WrongShape breaks"):
        check_spaces(TimeLimit(toy_envs.WrongShape(), 9), Params())
    with pytest.warns(UserWarning, match="^Walk: a time limit"):
        check_env(TimeLimitIsTerminal(Walk()))


def test_what_amplifies_rounding_is_only_unusual():
    with pytest.warns(UserWarning, match="^RoundsOtherwise: under vmap it differs from one environment at a time by more than rounding;"):
        check_env(toy_envs.RoundsOtherwise())


@pytest.mark.parametrize("env", [Walk(), TimeLimit(Walk(), 9)], ids=["walk", "time_limit"])
def test_environments_that_keep_the_contract(env):
    check_env(env)


def test_a_seed_will_do_for_a_key():
    check_env(Walk(), num_steps=80, key=3)


def test_an_environment_without_parameters():
    class Bare(Walk):
        default_params = property()
        max_steps = 20

        def step(self, key, state, action, params):
            assert params is None
            return super().step(key, state, action, Params(self.max_steps))

    check_env(Bare())
    check_spaces(Bare())


def test_random_numbers_hidden_in_a_method_that_jits_itself():
    """The value that NumPy gave when it was first traced is in the compiled program for good."""

    class Frozen(type(gymnax.make("CartPole-v1")[0])):
        def reset_env(self, key, params):
            obs, state = super().reset_env(key, params)
            return obs + np.float32(np.random.default_rng().uniform()), state

    for env in (Frozen(), TimeLimit(Frozen(), 9)):
        with pytest.raises(EnvError, match="Frozen breaks .*(.|\n)*or traced anew"):
            check_env(env, num_steps=30)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_gymnax_environments(name):
    env, params = gymnax.make(name)  # as they are, resetting themselves: whatever create takes
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):  # Swimmer promotes
        warnings.simplefilter("ignore", UserWarning)
        check_env(env, params, num_steps=160)


@pytest.mark.parametrize("wrap", [LogWrapper, FlattenObservationWrapper])
def test_wrappers_of_gymnax(wrap):
    with pytest.warns(UserWarning, match="^Catch: the observation of reset is float32, observation_space says int32"):
        check_env(wrap(gymnax.make("Catch-bsuite")[0]), num_steps=30)


def test_a_gymnax_environment_that_says_the_wrong_last_observation():
    """One with a step of its own, whose `final_observation` is the one after the reset."""

    class Stale(type(gymnax.make("CartPole-v1")[0])):
        def get_obs(self, state, params=None, key=None):
            return jnp.stack([state.theta, 1.0 * state.time, 0.0, 0.0])

        def step(self, key, state, action, params=None):
            obs, *rest, info = super().step(key, state, action, params)
            return obs, *rest, {**info, "final_observation": obs}

    with pytest.raises(EnvError, match="Stale breaks .*(.|\n)*never reset in step"):
        check_env(Stale(), num_steps=40)


@pytest.mark.parametrize("name", NAMES)
def test_spaces_of_gymnax_environments(name):
    with jax.numpy_rank_promotion("allow"):
        check_spaces(*make(name))


def variant(**methods):
    return type("Odd", (Walk,), methods)()


ODD = {
    "reward is int32.*made a float32": variant(spoil=lambda self, o, s, r, *rest: (o, s, jnp.int32(1), *rest)),
    r"reward is float32\[1\], an array of one number": variant(spoil=lambda self, o, s, r, *rest: (o, s, r[None], *rest)),
    "observation_space says int32": variant(observation_space=lambda self, params: box(-3, 3, (2,), jnp.int32)),
    "outside the bounds": variant(observation_space=lambda self, params: box(-0.1, 3, (2,))),
    "no episode ended within": variant(
        is_truncated=lambda self, state, params: jnp.zeros((), bool),
        default_params=SimpleNamespace(noise=0.0),
        spoil=lambda self, o, s, r, *rest: (o, s, r, jnp.zeros((), bool), jnp.zeros((), bool), {}),
    ),
    "time limit is reported as terminated": TimeLimitIsTerminal(Walk()),
}


@pytest.mark.parametrize("message", ODD)
def test_what_is_only_unusual_is_a_warning(message):
    with pytest.warns(UserWarning, match=message):
        check_env(ODD[message])


def test_a_task_may_end_where_it_began():
    """There and back again, from the same place each time and with no clock in the state."""

    class Home(Walk):
        def reset(self, key, params):
            return jnp.zeros((2,)), (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

        def step(self, key, state, action, params):
            place, way = state
            way = jnp.where(place + 1 > 3, 1, way)
            place = jnp.where(way == 1, place - 1, place + 1)
            home = place <= 0
            way = jnp.where(home, 0, way)
            return jnp.stack([place, place]).astype(jnp.float32), (place, way), -1.0, home, jnp.zeros((), bool), {}

    with pytest.warns(UserWarning, match="where an episode ends, step returns what reset does"):
        check_env(Home())


def test_check_spaces():
    check_spaces(Walk(), Params())
    with pytest.raises(EnvError, match=r"WrongShape breaks .*\n.*float32\[2\].*shape \[3\]"):
        check_spaces(toy_envs.WrongShape(), Params())


def nested(shape):
    parts = {"near": box(-3, 3, (2,)), "far": SimpleNamespace(spaces=[discrete(4), box(0, 1, shape)])}
    return variant(
        observe=lambda self, state: {"near": jnp.stack([state.x] * 2), "far": (state.time, jnp.zeros((3,)))},
        observation_space=lambda self, params: SimpleNamespace(spaces=parts),
    )


def test_observations_of_several_parts():
    check_spaces(nested((3,)), Params())
    with pytest.raises(EnvError, match=r"part 'far', part 1 is float32\[3\], but observation_space has shape \[2\]"):
        check_spaces(nested((2,)), Params())
    missing = variant(
        observe=lambda self, state: {"near": state.x},
        observation_space=nested((3,)).observation_space,
    )
    with pytest.raises(EnvError, match=r"the parts \['near'\], its space \['far', 'near'\]"):
        check_spaces(missing, Params())


@pytest.mark.parametrize(
    "action_space",
    [SimpleNamespace(n=3), gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (), np.float64)],
    ids=["only n", "gymnasium's", "a number"],
)
def test_action_spaces_that_pass_the_checks_can_be_acted_in(action_space):
    check_env(variant(action_space=lambda self, params: action_space), num_steps=80)
