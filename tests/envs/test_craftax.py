"""Craftax's environments beside Craftax used by hand: `pip install 'eqxrl[craftax]'`, or these tests are left out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from eqxrl import check_env, make
from eqxrl.envs import ResetFromPool, ResetWhenDone, check_spaces, default_stepper, env_ids, episode_limit

pytestmark = pytest.mark.skipif(importlib.util.find_spec("craftax") is None, reason="craftax isn't installed")
CLASSIC = "craftax/Craftax-Classic-Symbolic-v1"
LEFT, RIGHT = 1, 2


def test_names():
    with pytest.raises(ValueError, match="craftax has no environment 'craftax/Craftax-Symbolic'; did you mean Craftax-Symbolic-v1"):
        make("craftax/Craftax-Symbolic")
    assert CLASSIC in env_ids("craftax")


def test_parameters_are_craftax_s_own():
    env, params = make(CLASSIC)
    assert episode_limit(params, env) == episode_limit(None, env) == params.max_timesteps == 10_000
    assert episode_limit(params.replace(max_timesteps=5), env) == 5
    assert default_stepper(env) == ResetFromPool(128) and default_stepper(make(CLASSIC, reset_pool=0)[0]) == ResetWhenDone()


def test_episodes_end_as_they_do_in_craftax():
    """In the lava, or without health, or after four steps, or in the lava after four steps."""
    from craftax.craftax_classic.constants import BlockType
    from craftax.craftax_classic.envs.craftax_symbolic_env import CraftaxClassicSymbolicEnvNoAutoReset

    env, params = make(CLASSIC)
    params, by_hand = params.replace(max_timesteps=4), CraftaxClassicSymbolicEnvNoAutoReset()
    keys = jax.random.split(jax.random.key(0), 4)

    @quick_jit
    def begin(keys):
        return tuple(jax.vmap(reset, in_axes=(0, None))(keys, params) for reset in (env.reset, by_hand.reset))

    @quick_jit
    def step(keys, state, action):
        return tuple(jax.vmap(step, in_axes=(0, 0, 0, None))(keys, state, action, params) for step in (env.step, by_hand.step))

    (obs, state), expected = begin(keys)
    same((obs, state), expected)
    assert len({x.tobytes() for x in np.asarray(state.map)}) == 4
    row, column = np.asarray(state.player_position[0])
    lava = state.map.at[:, row, column - 1].set(BlockType.LAVA.value)
    state = state.replace(map=lava, player_health=state.player_health.at[2].set(0))
    # Left is the lava: at once, never, never, at the end.
    actions = np.array([[LEFT, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, LEFT]])
    flags = []
    for t in range(4):
        (obs, after, reward, terminated, truncated, info), expected = step(keys, state, actions[t])
        same((obs, after, reward, terminated | truncated, info), expected)
        flags.append(np.asarray(terminated) + 2 * np.asarray(truncated))
        state = after
    np.testing.assert_array_equal(flags, [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [3, 2, 3, 3]])
    assert all(isinstance(x, jax.Array) for x in info.values()) and "Achievements/collect_wood" in info


def same(ours, theirs):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=jax.tree_util.keystr(path))  # parameters are traced in the one


@pytest.mark.parametrize("stepper", [ResetFromPool(8), pytest.param(ResetWhenDone(), marks=pytest.mark.slow)], ids=repr)
def test_beginnings_differ(stepper):
    env, params = make(CLASSIC)
    params = params.replace(max_timesteps=2)

    @quick_jit
    def run(key):
        start_key, key = jax.random.split(key)
        _, state, kept = stepper.init(env, params, jax.random.split(start_key, 4))

        def step(carry, key):
            out = stepper.step(env, params, jax.random.split(key, (2, 4)), *carry, jnp.zeros(4, jnp.int32))
            return (out.env_state, out.reset_state), (out.done, out.obs, out.final_obs, out.env_state)

        return jax.lax.scan(step, (state, kept), jax.random.split(key, 4))[1]

    done, obs, final_obs, state = jax.device_get(run(jax.random.key(1)))
    np.testing.assert_array_equal(done, np.repeat([[False], [True], [False], [True]], 4, 1))
    assert (obs == final_obs).all(-1).tolist() == (~done).tolist()
    assert (state.timestep[1::2] == 0).all()
    assert len({x.tobytes() for x in state.map[1::2].reshape(8, -1)}) > 3


@pytest.mark.parametrize("name", [CLASSIC, pytest.param("craftax/Craftax-Symbolic-v1", marks=pytest.mark.slow)])
def test_it_fits_its_spaces(name):
    check_spaces(*make(name))


@pytest.mark.slow
@pytest.mark.timeout(3000)  # textures are made once, and four large programs compiled for each
@pytest.mark.parametrize("name", ["Classic-Symbolic", "Classic-Pixels", "Symbolic", "Pixels"])
def test_it_keeps_to_the_contract(name):
    env, params = make(f"craftax/Craftax-{name}-v1")
    check_env(env, params.replace(max_timesteps=10), num_steps=30)
    _, state = quick_jit(env.reset)(jax.random.key(0), params)
    picture = env.picture(state, params)
    assert picture.dtype == np.uint8 and picture.shape == ((144, 144, 3) if "Classic" in name else (208, 176, 3))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
