"""envpool: environments that are written in C++, many of them stepped at a time by threads of their own."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eqxrl._extras import extra
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs.suites._host import OnHost
from eqxrl.envs.suites._names import unknown
from eqxrl.envs.suites._pools import GOES_ON, AbstractInstances, Leaves, Pools, leaves_of
from eqxrl.spaces import Box, as_space, map_parts, parts

PACKAGE = "envpool"
NOT_RESTORED = "envpool's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"
OURS = ("num_envs", "batch_size", "seed", "env_seed", "env_type", "gym_reset_return_info", "max_num_players", "base_path", "render_mode")
"""Options that aren't the user's."""
PIXELS = ("from_pixels", "render_width", "render_height", "render_camera_id")
"""Options that `envpool.make` has besides those of the environment."""
MULTIPLIER = 48271
"""Of a seed, for that of the other one that plays in turns with it (Park, Miller and Stockmeyer 1993)."""
LAST = 2**31 - 1
"""The last seed that envpool takes, and the limit of an episode that has none."""


class EnvPool(AbstractInstances):
    """A pool of envpool; `make(num_envs=, seed=)` is its own function.

    Envpool resets what is over instead of stepping it, and a call to it costs as much as the steps of many small environments. So where a
    seed has the bit `GOES_ON`, two play in turns: when an episode ends the other one takes over, at a first observation that is there
    already, and the one that has ended is reset along with the next step. There are twice as many then, which take twice the memory.
    """

    def __init__(self, make: Callable[..., Any], seeds: list[int], **options: Any):
        in_turns = [i for i, seed in enumerate(seeds) if seed & GOES_ON]
        born = [seed % LAST + 1 for seed in seeds] + [seeds[i] * MULTIPLIER % LAST + 1 for i in in_turns]
        self.envs = make(num_envs=len(born), seed=born, **options)
        self.plays, self.waits = np.arange(len(seeds), dtype=np.int32), np.full(len(seeds), -1, np.int32)
        """Of each instance, which of envpool's plays, and which one waits, if any."""
        self.waits[in_turns] = np.arange(len(seeds), len(born))
        self.over = self.plays[:0]
        """Those of envpool's that the next step resets."""
        observations, actions = map(parts, _spaces(self.envs))
        self.structure = jax.tree.structure(actions)
        self.blank_actions = [np.zeros((1, *x.shape), x.dtype) for x in jax.tree.leaves(actions)]
        self.firsts = [np.empty((len(born), *x.shape), x.dtype) for x in jax.tree.leaves(observations)]
        """Of each of envpool's, the observation after its last reset."""

    def first(self) -> Leaves:
        for x, new in zip(self.firsts, leaves_of(self.envs.reset()[0]), strict=True):
            x[...] = new.reshape(x.shape)
        return [x[: len(self.plays)] for x in self.firsts]

    def step(self, ids: np.ndarray, actions: Leaves, obs: Leaves) -> tuple[Any, Any, Any]:
        over, ids = self.over, self.plays[ids]
        if n := len(over):  # before the others, since a reset may take the longest
            ids = np.concatenate([over, ids])
            actions = [np.concatenate([blank.repeat(n, 0), x]) for x, blank in zip(actions, self.blank_actions)]
        seen, reward, terminated, truncated, _ = self.envs.step(self.structure.unflatten(actions), ids)
        for x, firsts, new in zip(obs, self.firsts, leaves_of(seen), strict=True):
            new = new.reshape(len(new), *x.shape[1:])
            x[...] = new[n:]
            if n:
                firsts[over] = new[:n]
        self.over = over[:0]
        return reward[n:], terminated[n:], truncated[n:]

    def reset(self, ids: np.ndarray) -> Leaves:
        """Envpool's own `reset` would also begin anew a game with lives left."""
        has_other = self.waits[ids] >= 0
        in_turns, alone = ids[has_other], ids[~has_other]
        self.plays[in_turns], self.waits[in_turns] = self.waits[in_turns], self.plays[in_turns]
        self.over = np.concatenate([self.over, self.waits[in_turns], self.plays[alone]])
        if len(alone):
            self.step(ids[:0], [x[:0] for x in self.blank_actions], [x[:0] for x in self.firsts])
        return [x[self.plays[ids]] for x in self.firsts]

    def picture(self) -> np.ndarray:
        return self.envs.render(self.plays[:1])[0]


class ChannelsLast(AbstractWrapper):
    """Turns images, whose channels envpool has first."""

    env: Any

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        obs, state = self.env.reset(key, params)
        return self._turned(obs), state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, *rest = self.env.step(key, state, action, params)
        return self._turned(obs), *rest

    def observation_space(self, params: Any = None) -> Any:
        return map_parts(lambda x: _turned_space(x) if _is_image(x) else x, self.env.observation_space(params))

    def _turned(self, obs: Any) -> Any:
        spaces = parts(self.env.observation_space(None))
        return jax.tree.map(lambda space, x: jnp.moveaxis(x, 0, -1) if _is_image(space) else x, spaces, obs)


def _turned_space(space: Box) -> Box:
    low, high = (np.moveaxis(np.broadcast_to(x, space.shape), 0, -1) for x in (space.low, space.high))
    return Box(low, high, dtype=space.dtype)


def _is_image(space: Any) -> bool:
    """With channels first, which are fewer than its rows and columns."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < space.shape[2]


def _unbounded(space: Any) -> Any:
    """Where envpool says that a float is between the least positive and the greatest one, it has no bounds."""
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and (space.low == np.finfo(np.float32).tiny).all():
        return Box(-np.inf, np.inf, space.shape, space.dtype)
    return space


def _spaces(pool: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, that bounds of float64 become float32
        return pool.observation_space, pool.action_space


def names() -> list[str]:
    return list(extra("envpool", "envpool", "the suite envpool").list_all_envs())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[OnHost | ChannelsLast, None]:
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
        host = Pools(born, map_parts(_unbounded, observation_space), as_space(action_space))
    except ImportError as error:
        raise ImportError(f"{env_id}: {error}") from error
    limit = spec.config.max_episode_steps
    env = OnHost(host, env_id, limit if limit < LAST else None, NOT_RESTORED)
    return ChannelsLast(env) if any(map(_is_image, jax.tree.leaves(parts(observation_space)))) else env, None
