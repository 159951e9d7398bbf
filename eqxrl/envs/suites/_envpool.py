"""envpool: environments that are written in C++, many of them stepped at a time by threads of their own."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from eqxrl._extras import extra
from eqxrl.envs.suites._host import OnHost
from eqxrl.envs.suites._names import unknown
from eqxrl.envs.suites._pools import AbstractInstances, Leaves, Pools, leaves_of
from eqxrl.spaces import Box, as_space, map_parts, parts

PACKAGE = "envpool"
NOT_RESTORED = "envpool's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"
OURS = ("num_envs", "batch_size", "seed", "env_seed", "env_type", "gym_reset_return_info", "max_num_players", "base_path", "render_mode")
"""Options that aren't the user's."""
PIXELS = ("from_pixels", "render_width", "render_height", "render_camera_id")
"""Options that `envpool.make` has besides those of the environment."""
LAST = 2**31 - 1
"""The last seed that envpool takes, and the limit of an episode that has none."""


class EnvPool(AbstractInstances):
    """A pool of envpool; `make(num_envs=, seed=)` is its own function."""

    def __init__(self, make: Callable[..., Any], seeds: list[int], **options: Any):
        self.envs = make(num_envs=len(seeds), seed=[seed % LAST + 1 for seed in seeds], **options)
        observations, self.actions = map(parts, _spaces(self.envs))
        self.channels_first = [_channels_first(space) for space in jax.tree.leaves(observations)]
        self.shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(jax.tree.map(_as_seen, observations))]

    def first(self) -> Leaves:
        return self._seen(self.envs.reset()[0])

    def step(self, ids: np.ndarray, actions: Leaves) -> tuple[Leaves, Any, Any, Any]:
        obs, reward, terminated, truncated, _ = self.envs.step(jax.tree.unflatten(jax.tree.structure(self.actions), actions), ids)
        return self._seen(obs), reward, terminated, truncated

    def reset(self, ids: np.ndarray) -> Leaves:
        """Envpool resets what is over instead of stepping it; when told to reset it would also begin anew a game with lives left."""
        return self.step(ids, [np.zeros((len(ids), *x.shape), x.dtype) for x in jax.tree.leaves(self.actions)])[0]

    def picture(self) -> np.ndarray:
        return self.envs.render()[0]

    def _seen(self, obs: Any) -> Leaves:
        leaves = [_channels_last(x) if first else x for x, first in zip(leaves_of(obs), self.channels_first)]
        return [x.reshape((len(x), *shape)).astype(dtype, copy=False) for x, (shape, dtype) in zip(leaves, self.shapes)]


def _channels_first(space: Any) -> bool:
    """Of an image, whose channels are fewer than its rows and columns."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < space.shape[2]


def _channels_last(images: np.ndarray) -> np.ndarray:
    """Channel by channel, which NumPy copies faster than all at once."""
    out = np.empty((len(images), *images.shape[2:], images.shape[1]), images.dtype)
    for i in range(images.shape[1]):
        out[..., i] = images[:, i]
    return out


def _as_seen(space: Any) -> Any:
    """Channels last. Where envpool says that a float is between the least positive and the greatest one, it has no bounds."""
    if not isinstance(space, Box):
        return space
    low, high = (np.broadcast_to(x, space.shape) for x in (space.low, space.high))
    if np.issubdtype(space.dtype, np.floating) and (low == np.finfo(np.float32).tiny).all():
        low, high = np.full(space.shape, -np.inf), np.full(space.shape, np.inf)
    if not _channels_first(space):
        return Box(low, high, space.shape, space.dtype)
    return Box(*(np.moveaxis(x, 0, -1) for x in (low, high)), dtype=space.dtype)


def _spaces(pool: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, that bounds of float64 become float32
        return pool.observation_space, pool.action_space


def names() -> list[str]:
    return list(extra("envpool", "envpool", "the suite envpool").list_all_envs())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[OnHost, None]:
    """With the options of `envpool.make`, such as `max_episode_steps`, or Atari's `episodic_life` and `frame_skip`.

    **Raises:** `TypeError` for an option that it doesn't have, or that isn't the user's; `ValueError` where several play together.
    """
    envpool: Any = extra("envpool", "envpool", env_id)
    name = env_id.partition("/")[2]
    if name not in envpool.list_all_envs():
        raise unknown("envpool", env_id, envpool.list_all_envs())
    try:
        options = [*envpool.make_spec(name, **{x: env_kwargs[x] for x in PIXELS if x in env_kwargs}).config._fields, *PIXELS]
        for option in env_kwargs:
            if option in OURS or option not in options:
                there = ", ".join(x for x in options if x not in OURS)
                why = "it follows from what is trained and how" if option in OURS else f"there are {there}"
                raise TypeError(f"{env_id} has no option {option!r}; {why}")
        spec = envpool.make_spec(name, **env_kwargs)
        if spec.config.max_num_players > 1:
            raise ValueError(f"{env_id} is played by {spec.config.max_num_players} together; here an environment has one player")
        born = partial(EnvPool, partial(envpool.make_gymnasium, name, **env_kwargs))
        observation_space, action_space = _spaces(spec)
        host = Pools(born, map_parts(_as_seen, observation_space), as_space(action_space))
    except ImportError as error:
        raise ImportError(f"{env_id}: {error}") from error
    limit = spec.config.max_episode_steps
    return OnHost(host, env_id, limit if limit < LAST else None, NOT_RESTORED), None
