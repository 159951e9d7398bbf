"""Craftax: its time limit is folded into `done`, and told apart from the other ends here."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Discrete

PACKAGE = "craftax"
NAMES = ("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1", "Craftax-Symbolic-v1", "Craftax-Pixels-v1")


class Craftax(eqx.Module):
    """An environment of Craftax. Its parameters are Craftax's own, whose `max_timesteps` is the time limit. `info` has, where an episode
    ended, 100 for each achievement that was unlocked in it, else 0.

    It is given the bits of keys, not typed keys, with the same numbers: making a world it splits a key that it has drawn from, which JAX's
    check of typed keys (`jax.debug_key_reuse`, in `verify`) would report as the collector's."""

    env: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    reset_pool: int | None = eqx.field(static=True, default=None)

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    def max_steps(self, params: Any) -> Any:
        return (params or self.default_params).max_timesteps

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset_env(jax.random.key_data(key), params or self.default_params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        params = params or self.default_params
        obs, state, reward, _, info = self.env.step_env(jax.random.key_data(key), state, action, params)
        endless = dataclasses.replace(params, max_timesteps=np.iinfo(np.int32).max)
        return obs, state, reward, self.env.is_terminal(state, endless), state.timestep >= params.max_timesteps, info

    def observation_space(self, params: Any = None) -> Box:
        space = self.env.observation_space(params)
        return Box(space.low, space.high, space.shape, space.dtype)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.env.num_actions)

    def picture(self, state: Any, params: Any = None) -> np.ndarray:
        """What the player sees and has."""
        return np.asarray(_renderer("craftax_classic" if "Classic" in self.name else "craftax")(state)).clip(0, 255).astype(np.uint8)


@functools.cache
def _renderer(game: str) -> Any:
    """Squares of 16 pixels. Craftax makes its textures when they are first used, which takes a minute, and keeps them in its folder."""
    renderer: Any = extra(f"craftax.{game}.renderer", "craftax", "a picture")
    return jax.jit(renderer.make_craftax_pixel_renderer(16))


def names() -> list[str]:
    extra("craftax", "craftax", "the suite craftax")
    return list(NAMES)


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Craftax, Any]:
    """With `reset_pool` first states for training, by default 128, since making a world costs as much as 20 to 30 steps; the other argument
    is `static_env_params`, Craftax's own. An environment of pixels makes the textures, see `_renderer`."""
    package: Any = extra("craftax.craftax_env", "craftax", env_id)
    name = env_id.partition("/")[2]
    if name not in NAMES:
        raise unknown("craftax", env_id, NAMES)
    reset_pool = env_kwargs.pop("reset_pool", 128)
    cls = type(package.make_craftax_env_from_name(name, auto_reset=False))
    env = Craftax(cls(**env_kwargs), env_id, reset_pool)
    return env, env.default_params
