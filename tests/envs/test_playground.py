"""MuJoCo Playground's environments beside it used by hand: `pip install 'eqxrl[playground]'`, or these tests are left out."""

import importlib.util
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import ResetFromPool, ResetWhenDone, default_stepper, env_ids, episode_limit
from eqxrl.spaces import Box, Dict

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("mujoco_playground") is None, reason="MuJoCo Playground isn't installed"),
    pytest.mark.usefixtures("promotion_of_ranks"),
]
NAME = "playground/CartpoleBalance"


def test_names():
    names = env_ids("playground")
    assert {"playground/CartpoleBalance", "playground/CheetahRun", "playground/WalkerWalk"} <= set(names)
    assert not {"playground/Go1JoystickFlatTerrain", "playground/PandaPickCube"} & set(names)
    for wrong in ("CartpoleBalanced", "Go1JoystickFlatTerrain"):
        with pytest.raises(ValueError, match=f"playground has no environment 'playground/{wrong}'"):
            make(f"playground/{wrong}")


def test_it_steps_as_in_playground_until_the_time_limit():
    """Nothing ends Cartpole but a simulation that broke down: one of the episodes is given an impossible speed."""
    from mujoco_playground import dm_control_suite

    env, params = make(NAME, config_overrides={"episode_length": 6})
    by_hand = dm_control_suite.load("CartpoleBalance", config_overrides={"impl": "jax"})
    assert episode_limit(params, env) == 6 and env.env.env._config.impl == "jax"
    keys = jax.random.split(jax.random.key(0), 4)
    (obs, state), expected = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params), jax.jit(jax.vmap(by_hand.reset))(keys)
    np.testing.assert_array_equal(obs, expected.obs)
    assert len(np.unique(np.asarray(obs)[:, 0])) == 4
    step = jax.jit(jax.vmap(lambda *x: env.step(*x, params)))
    step_by_hand = jax.jit(jax.vmap(by_hand.step))
    for t in range(6):
        action = jax.random.uniform(jax.random.key(t), (4, 1), minval=-1.0)
        if t == 3:
            broken = state.env_state.data.qvel.at[1, 1].set(jnp.nan)
            state = eqx.tree_at(lambda state: state.env_state.data.qvel, state, broken)
            expected = eqx.tree_at(lambda state: state.data.qvel, expected, broken)
        obs, state, reward, terminated, truncated, info = step(keys, state, action)
        expected = step_by_hand(expected, action)
        np.testing.assert_allclose(obs, expected.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, expected.reward, rtol=1e-5)
        np.testing.assert_allclose(info["reward/upright"], expected.metrics["reward/upright"], rtol=1e-5)
        np.testing.assert_array_equal(terminated, expected.done)
        np.testing.assert_array_equal(terminated, [False, t >= 3, False, False])
        np.testing.assert_array_equal(truncated, np.full(4, t == 5))


def test_the_pool_can_be_turned_off():
    assert default_stepper(make(NAME)[0]) == ResetFromPool(256)
    assert default_stepper(make(NAME, reset_pool=0)[0]) == ResetWhenDone()


def test_what_configures_it():
    assert episode_limit(None, make(NAME)[0]) == 1000
    env, _ = make(NAME, config_overrides={"ctrl_dt": 0.02, "impl": "jax"})
    assert env.env.env.n_substeps == 2 and episode_limit(None, env) == 1000
    with pytest.raises(ValueError, match="action_repeat=4, which its step doesn't read; pass a longer ctrl_dt"):
        make(NAME, config_overrides={"action_repeat": 4})
    with pytest.raises(KeyError, match="episode_lenght"):
        make(NAME, config_overrides={"episode_lenght": 4})
    with pytest.raises(TypeError, match="gravity"):
        make(NAME, gravity=4)


def test_observations_may_be_dicts(monkeypatch):
    """None of its own is one without a camera, which needs another device; what is registered is served as well."""
    from mujoco_playground import State, dm_control_suite

    class Registered:
        action_size = 2

        def __init__(self, config, config_overrides):
            self._config = SimpleNamespace(**config, **config_overrides)

        def reset(self, key):
            obs = {"state": jnp.zeros(3), "pixels": {"view": jnp.zeros((2, 2, 1), jnp.uint8)}}
            return State(None, obs, jnp.zeros(()), jnp.zeros(()), {}, {})  # pyright: ignore

    monkeypatch.setattr(dm_control_suite, "_envs", dict(dm_control_suite._envs))
    monkeypatch.setattr(dm_control_suite, "_cfgs", dict(dm_control_suite._cfgs))
    dm_control_suite.register_environment("Mine", Registered, lambda: {"action_repeat": 1, "episode_length": 7})  # pyright: ignore
    env, params = make("playground/Mine")
    pixels = Dict({"view": Box(-jnp.inf, jnp.inf, (2, 2, 1), jnp.uint8)})
    assert env.observation_space(params) == Dict({"state": Box(-jnp.inf, jnp.inf, (3,)), "pixels": pixels})
    assert env.action_space(params) == Box(-1.0, 1.0, (2,)) and episode_limit(params, env) == 7


def test_pictures_show_the_cart_and_the_pole():
    """The tip and the foot of the pole, of 1 m, are where a camera at (0, -4, 1) sees them, within its radius of 4.5 cm."""
    env, params = make(NAME)
    state = jax.jit(env.reset)(jax.random.key(0), params)[1]
    scale = 180 / np.tan(np.radians(22.5)) / 4  # pixels per metre
    for x, angle in ((0.0, 0.0), (0.0, 0.5), (-0.6, -0.4), (0.8, 0.2)):
        data = state.env_state.data.replace(qpos=jnp.array([x, angle]))
        picture = env.picture(type(state)(env_state=state.env_state.replace(data=data), time=state.time), params)
        assert picture.shape == (360, 480, 3) and picture.dtype == np.uint8
        rows, columns = np.nonzero(np.diff(picture[..., ::2].astype(int))[..., 0] < -30)  # brown, and nothing else is
        assert abs(rows.min() - (180 - scale * (np.cos(angle) + 0.045))) < 3
        assert abs(columns[rows < rows.min() + 4].mean() - (240 + scale * (x + np.sin(angle)))) < 0.045 * scale
        assert abs(columns[rows > 180].mean() - (240 + scale * x)) < 0.045 * scale


def test_it_keeps_to_the_contract():
    check_env(*make(NAME, config_overrides={"episode_length": 20}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CheetahRun", "FingerTurnHard", "HumanoidWalk", "SwimmerSwimmer6"])
def test_others_keep_to_the_contract(name):
    check_env(*make(f"playground/{name}", config_overrides={"episode_length": 20}), num_steps=40)
