"""`check_env` and `check_spaces` on environments that keep the contract, and on those that break it, each in one way."""

import warnings
from types import SimpleNamespace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from toy_envs import Hooks, Params, Walk, box, discrete

from eqxrl.envs import EnvError, TimeLimit, TimeLimitIsTerminal, adapt, check_env, check_spaces, make

NAMES = [name for name in gymnax.registered_envs if "MNIST" not in name]
QUICK = {"CartPole-v1", "Pendulum-v1", "Catch-bsuite", "FrozenLake-misc"}

BROKEN = {
    "FiveValues": "step returns 5 values.*adapt",
    "NoReset": "no method reset",
    "WrongShape": r"observation of reset is float32\[2\], but observation_space has shape \[3\]",
    "NoFinalObservation": 'no info."final_observation".',
    "FloatFlag": "terminated must be a bool, but is float32",
    "VectorReward": r"reward must be a scalar, but is float32\[2\]",
    "NaNReward": "the reward is not finite",
    "InfiniteObs": "the observation is not finite",
    "DriftingState": r"the state.time is int16\[\] in reset, but int32\[\] in step",
    "OtherStructure": "state of reset and of step differ in structure",
    "StaleFinalObservation": "final_observation.* differs from the observation where the episode goes on",
    "FinalObservationAfterReset": "either step does not reset, or final_observation is taken after",
    "NeverResets": r"after the end of an episode, step returns no first state \(.time goes on\)",
    "KeepsObservation": "after the end of an episode, step returns no first observation",
    "KeepsState": r"after the end of an episode, step returns no first state \(.time goes on\)",
    "SameStart": "every episode of an environment begins at the same state",
    "IgnoresParams": "goes on past the limit of 25 steps",
    "NumpyRandom": "another one uncompiled than under jit",
    "Counts": "another one uncompiled than under jit",
    "NotJittable": "step could not be traced",
    "MixesBatch": "under vmap it differs from one environment at a time",
    "IntegerActions": "policies act in a discrete space .* or a box of floats",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_environments(name):
    with pytest.raises(EnvError, match=f"{name} breaks the contract of an environment in 1 place:\n  1. (.|\n)*{BROKEN[name]}"):
        check_env(getattr(toy_envs, name)())


def test_all_that_is_wrong_is_listed():
    class Bad(toy_envs.FloatFlag):
        def observation_space(self, params):
            return box(-3, 3, (3,))

    with pytest.raises(EnvError, match="in 2 places:\n  1. the observation.*\n  2. terminated"):
        check_env(Bad())

    class BadRun(toy_envs.NaNReward, toy_envs.SameStart):
        pass

    with pytest.raises(EnvError, match="in 2 places:\n  1. the reward.*\n  2. every episode"):
        check_env(BadRun())


@pytest.mark.parametrize(
    "env",
    [Walk(), adapt(Hooks(), Params()), TimeLimit(Walk(), 9), adapt(toy_envs.FiveValues(), Params())],
    ids=["walk", "hooks", "time_limit", "five_values"],
)
def test_environments_that_keep_the_contract(env):
    if type(env).__name__ == "FiveValueStep":
        with pytest.warns(UserWarning, match="a time limit is reported as terminated"):
            check_env(env)
    else:
        check_env(env)


def test_random_numbers_hidden_in_a_method_that_jits_itself():
    """The value that NumPy gave when it was first traced is in the compiled program for good."""

    class Frozen(type(make("CartPole-v1")[0])):
        def reset_env(self, key, params):
            obs, state = super().reset_env(key, params)
            return obs + np.float32(np.random.default_rng().uniform()), state

    with pytest.raises(EnvError, match="another one uncompiled than under jit"):
        check_env(Frozen(), num_steps=30)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_gymnax_environments(name):
    env, params = make(name)
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):  # Swimmer promotes
        warnings.simplefilter("ignore", UserWarning)
        check_env(env, params, num_steps=160)


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
        step_env=lambda self, *args: (*Walk.step_env(self, *args)[:3], jnp.zeros((), bool), {}),
    ),
    "time limit is reported as terminated": TimeLimitIsTerminal(Walk()),
}


@pytest.mark.parametrize("message", ODD)
def test_what_is_only_unusual_is_a_warning(message):
    with pytest.warns(UserWarning, match=message):
        check_env(ODD[message])


def test_state_that_outlasts_the_episode():
    with pytest.warns(UserWarning, match="DeepSea: the state's .total_bad_episodes outlasts the episode"):
        check_env(*make("DeepSea-bsuite"), num_steps=80)


def test_check_spaces():
    check_spaces(Walk(), Params())
    with pytest.raises(TypeError, match="policies act in a discrete space"):
        check_spaces(toy_envs.IntegerActions(), Params())
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
