"""MuJoCo Playground, its dm_control suite: as brax's, its environments know of no time limit, and its own wrapper, which by default
resets to the same first state each time, isn't used. Its other suites, locomotion and manipulation, clone a repository from the net and
aren't served."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from eqxrl._extras import extra
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites import _bodies
from eqxrl.envs.suites._brax import AbstractBrax
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Dict, Space

PACKAGE = "mujoco_playground"


class Playground(AbstractBrax):
    """An environment of MuJoCo Playground. Most end only where the simulation breaks down."""

    env: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    space: Space = eqx.field(static=True)
    reset_pool: int | None = eqx.field(static=True)

    def observation_space(self, params: Any = None) -> Space:
        return self.space

    def picture(self, state: Any, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        data = state.data
        return _bodies.draw(self.env.mj_model, data.qpos, data.mocap_pos, data.mocap_quat)


def names() -> list[str]:
    return list(_suite("the suite playground").ALL_ENVS)


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[TimeLimit, None]:
    """Those of its dm_control suite, and what is registered there; the other two download their bodies. The arguments are those of its
    `load`, for the most `config_overrides`, a dict such as `{"episode_length": 500}`; what differs from its own defaults is `impl`, "jax",
    as "warp" is for Nvidia's devices. `episode_length` counts steps, of `ctrl_dt` seconds each. `reset_pool` first states are kept for
    training, by default 256, since a reset costs as much as a step, or as 150 of them (CheetahRun)."""
    suite = _suite(env_id)
    name = env_id.partition("/")[2]
    if name not in suite.ALL_ENVS:
        raise unknown("playground", env_id, suite.ALL_ENVS)
    reset_pool = env_kwargs.pop("reset_pool", 256)
    ours = {} if "config" in env_kwargs else {"impl": "jax"}
    env = suite.load(name, config_overrides=ours | dict(env_kwargs.pop("config_overrides", None) or {}), **env_kwargs)
    if env._config.action_repeat != 1:
        raise ValueError(f"{env_id} got action_repeat={env._config.action_repeat}, which its step doesn't read; pass a longer ctrl_dt")
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    return TimeLimit(Playground(env, env_id, _space(obs), reset_pool), env._config.episode_length), None


def _suite(user: str) -> Any:
    return extra("mujoco_playground", "playground", user).dm_control_suite


def _space(obs: Any) -> Space:
    if isinstance(obs, dict):
        return Dict({name: _space(part) for name, part in obs.items()})
    return Box(-jnp.inf, jnp.inf, obs.shape, obs.dtype)
