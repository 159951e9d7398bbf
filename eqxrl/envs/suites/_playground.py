"""MuJoCo Playground: its environments know of no time limit, and its own wrapper resets to the same first state each time, so it isn't used."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites import _bodies
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Dict, Space

PACKAGE = "mujoco_playground"


class Playground(eqx.Module):
    """An environment of MuJoCo Playground, without a time limit. Most end only where the simulation breaks down. `info` has its metrics,
    such as the parts of the reward."""

    env: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    space: Space = eqx.field(static=True)
    reset_pool: int | None = eqx.field(static=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        state = self.env.reset(key)
        return state.obs, state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        state = self.env.step(jax.tree.map(lambda x: x, state), action)  # it writes into the dicts of the state that it is given
        return state.obs, state, state.reward, state.done > 0, jnp.zeros((), bool), state.metrics

    def observation_space(self, params: Any = None) -> Space:
        return self.space

    def action_space(self, params: Any = None) -> Box:
        return Box(-1.0, 1.0, (self.env.action_size,))

    def picture(self, state: Any, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        data = state.data
        return _bodies.draw(self.env.mj_model, data.qpos, data.mocap_pos, data.mocap_quat)


def names() -> list[str]:
    return list(_suite("the suite playground")._envs)


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[TimeLimit, None]:
    """Those of the dm_control suite; Playground's others download their bodies. `config_overrides` is a dict of what differs from the
    environment's configuration. There `impl` is "jax" by default, as Playground's own, "warp", is for Nvidia's devices, and `episode_length`
    is 1,000: steps of `ctrl_dt` seconds each. `reset_pool` first states for training are kept, by default 256, since a reset costs as much as
    a step, or as hundreds."""
    suite = _suite(env_id)
    name = env_id.partition("/")[2]
    if name not in suite._envs:
        raise unknown("playground", env_id, suite._envs)
    reset_pool = env_kwargs.pop("reset_pool", 256)
    overrides = {"impl": "jax", **(env_kwargs.pop("config_overrides", None) or {})}
    if overrides.get("action_repeat", 1) != 1:
        raise ValueError(f"{env_id} got action_repeat={overrides['action_repeat']}, which it would ignore: pass a longer ctrl_dt")
    env = suite.load(name, config_overrides=overrides, **env_kwargs)
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    return TimeLimit(Playground(env, env_id, _space(obs), reset_pool), env._config.episode_length), None


def _suite(user: str) -> Any:
    return extra("mujoco_playground._src.dm_control_suite", "playground", user)


def _space(obs: Any) -> Space:
    if isinstance(obs, dict):
        return Dict({name: _space(part) for name, part in obs.items()})
    return Box(-jnp.inf, jnp.inf, obs.shape, obs.dtype)
