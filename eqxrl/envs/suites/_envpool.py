"""envpool: environments that are written in C++, many of them stepped at a time by threads of their own."""

import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree, UInt8, UInt32

from eqxrl._extras import extra
from eqxrl.envs.suites._host import KEPT_STEPS, NOT_DRAWN, AbstractHost, OnHost, State, action_leaves, blank, hashed, leaves_of, numbers_of
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, as_space, map_parts, parts

PACKAGE = "envpool"
NOT_RESTORED = "envpool's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"
OURS = ("num_envs", "batch_size", "seed", "env_seed", "env_type", "gym_reset_return_info", "max_num_players", "base_path", "render_mode")
"""Options that aren't the user's."""
PIXELS = ("from_pixels", "render_width", "render_height", "render_camera_id")
"""Options that `envpool.make` has besides those of the environment."""
RESET = np.full(1, 0x52455345, np.uint32)
"""What a reset is in a hash."""
LAST = 2**31 - 1
"""The last seed that envpool takes, and the limit of an episode that has none."""


class Pool:
    """Instances that were born together, each with a seed; nothing else gives them one, so that their random numbers go on from one episode
    to the next. A state is the seed, the steps and resets since, and a hash of these."""

    def __init__(self, envs: Any, seeds: list[int]):
        self.envs = envs
        """Of envpool; `None` once they were dropped."""
        self.now, self.over = np.zeros((len(seeds), 3), np.uint32), np.zeros(len(seeds), bool)
        """Where each stands, and whether its episode ended there."""
        self.now[:, 0] = seeds
        self.log: list[tuple[np.ndarray, list[np.ndarray] | None, np.ndarray]] | None = []
        """Which of them were stepped, by which actions, or reset, and where that led to; `None` once it was forgotten."""

    def way(self, i: int, state: State) -> list[Any] | None:
        """What leads an instance from its birth to a state, `None` for a reset; `None` if that isn't known."""
        way = []
        for ids, leaves, after in self.log or ():
            for at in np.flatnonzero(ids == i):
                way.append(None if leaves is None else [x[at : at + 1] for x in leaves])
                if tuple(after[at].tolist()) == state:
                    return way
        return None


class Pools(AbstractHost):
    """Plays pools of envpool, which `make(num_envs=, seed=, **options)` gives. A birth is dear, so an instance is used for as many episodes
    as come. A state that it has left behind is reached again by another one that is born with the same seed and does the same, as long
    as that is remembered."""

    def __init__(self, make: Callable[..., Any], observation_space: Any, action_space: Any):
        self.make, self.lock = make, threading.Lock()
        self.pools: OrderedDict[Pool, None] = OrderedDict()
        """Those that are played; the one that was played last is the last."""
        self.born: dict[int, list[tuple[Pool, int]]] = {}
        """By seed: the instances, with their numbers, that are played or remembered."""
        self.logged: deque[Pool] = deque()
        """Those that are remembered; the one that was born first is the first."""
        self.kept_steps, self.most = 0, 1
        self.drawn: tuple[Any, tuple[Pool, int] | None, int] | None = None
        """What draws, the instance that it follows, and how far it has come."""
        self.channels_first = [_channels_first(space) for space in jax.tree.leaves(parts(observation_space))]
        self.observation_space, self.action_space = map_parts(_as_seen, observation_space), as_space(action_space)
        self.blank = blank(self.observation_space)

    def reset(self, seed: UInt32[Array, "*batch"]) -> PyTree:
        seeds = np.asarray(seed)
        with self.lock:
            return self._shaped(self._birth(seeds.ravel().tolist())[1], seeds.shape)

    def reset_where(
        self, seed: UInt32[Array, "*batch"], needed: Bool[Array, "*batch"], state: UInt32[Array, "*batch 3"]
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        shape, after = np.shape(seed), np.array(state).reshape(-1, 3)
        obs, asked = self._nothing(len(after)), np.flatnonzero(np.asarray(needed))
        with self.lock:
            there, strange = self._stand(after, asked)
            strange = np.sort(np.concatenate([strange, *(at[~pool.over[ids]] for pool, ids, at in there)]))
            for pool, ids, at in ((pool, ids[pool.over[ids]], at[pool.over[ids]]) for pool, ids, at in there):
                self._fill(obs, at, self._act(pool, ids, None)[0])
                after[at] = pool.now[ids]
            if len(strange):
                pool, first = self._birth(np.asarray(seed).ravel()[strange].tolist())
                self._fill(obs, strange, first)
                after[strange] = pool.now
        return self._shaped(obs, shape), after.reshape(*shape, 3)

    def step(self, state: UInt32[Array, "*batch 3"], action: PyTree) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        shape, states = np.shape(state)[:-1], np.asarray(state).reshape(-1, 3)
        leaves, n = action_leaves(action, self.action_space, len(states)), len(states)
        obs, history, flags, reward = self._nothing(n), states[:, 2].copy(), np.full(n, 4, np.uint32), np.zeros(n, np.float32)
        with self.lock:
            for pool, ids, at in self._stand(states, np.arange(n))[0]:
                going = ~pool.over[ids]
                ids, at = ids[going], at[going]
                if len(ids):
                    seen, reward[at], terminated, truncated = self._act(pool, ids, [x[at] for x in leaves])
                    self._fill(obs, at, seen)
                    history[at], flags[at] = pool.now[ids, 2], 1 + 2 * terminated + 4 * truncated
        return self._shaped(obs, shape), numbers_of(history, flags, reward).reshape(*shape, 3)

    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        with self.lock:
            one, way = self._way(state)
            if way is None:
                raise ValueError(NOT_DRAWN)
            drawn: Any = self.drawn or (None, None, 0)
            envs, before, time = drawn
            if one is None or one != before or time > state[1]:
                envs, time = self._envs([state[0]], render_mode="rgb_array"), 0
                envs.reset()
            for action in way[time:]:
                self._play(envs, np.zeros(1, np.int32), action)
            self.drawn = envs, one, state[1]
            return np.asarray(envs.render()[0], np.uint8)

    def _stand(self, states: np.ndarray, at: np.ndarray) -> tuple[list[tuple[Pool, np.ndarray, np.ndarray]], np.ndarray]:
        """Instances that stand at the states of the rows `at`: for each pool their numbers, and the rows; and the rows of which that isn't
        known."""
        for pool in reversed(self.pools):
            if len(pool.now) == len(states) and (pool.now == states).all():
                return [(pool, at.astype(np.int32), at)], at[:0]
        there: dict[Pool, list[tuple[int, int]]] = {}
        ways, strange = {}, []
        taken: set[tuple[Pool, int]] = set()
        for row in at.tolist():
            state: Any = tuple(states[row].tolist())
            for one in self.born.get(state[0], ()):
                if one[0].envs is not None and one not in taken and tuple(one[0].now[one[1]].tolist()) == state:
                    taken.add(one)
                    there.setdefault(one[0], []).append((one[1], row))
                    break
            else:
                _, way = self._way(state)
                strange, ways = (strange, ways | {row: way}) if way is not None else ([*strange, row], ways)
        if ways:
            pool, _ = self._birth([int(states[row, 0]) for row in ways], there)
            there[pool] = [(i, row) for i, row in enumerate(ways)]
            self._lead(pool, list(ways.values()))
        groups = [(pool, *np.asarray(pairs).T) for pool, pairs in there.items()]
        return [(pool, ids.astype(np.int32), rows) for pool, ids, rows in groups], np.asarray(strange, int)

    def _way(self, state: State) -> tuple[tuple[Pool, int] | None, list[Any] | None]:
        """An instance that came by a state, and what led it there."""
        if state[1] == 0:
            return None, []
        ways = (((pool, i), pool.way(i, state)) for pool, i in self.born.get(state[0], ()))
        return next((found for found in ways if found[1] is not None), (None, None))

    def _lead(self, pool: Pool, ways: list[list[Any]]) -> None:
        """Newborn instances, each its own way."""
        for t in range(max(map(len, ways))):
            for reset in (False, True):
                ids = [i for i, way in enumerate(ways) if t < len(way) and (way[t] is None) == reset]
                if ids:
                    leaves = None if reset else [np.concatenate(x) for x in zip(*(ways[i][t] for i in ids))]
                    self._act(pool, np.asarray(ids, np.int32), leaves)

    def _birth(self, seeds: list[int], needed: Iterable[Pool] = ()) -> tuple[Pool, list[np.ndarray]]:
        """A new pool, and its first observations. Those that are over, or were left alone for long, are dropped, but for the `needed`."""
        self.most = max(self.most, len(seeds))
        size = len(seeds) + sum(len(pool.now) for pool in self.pools)
        for pool in list(self.pools):
            if pool not in needed and (pool.over.all() or size > 4 * self.most):
                size, pool.envs = size - len(pool.now), None
                del self.pools[pool]
                self._bury(pool)
        pool = Pool(self._envs(seeds), seeds)
        self.pools[pool] = None
        self.logged.append(pool)
        for i, seed in enumerate(seeds):
            self.born.setdefault(seed, []).append((pool, i))
        return pool, self._seen(pool.envs.reset()[0])

    def _bury(self, pool: Pool) -> None:
        if pool.envs is None and pool.log is None:
            for i, seed in enumerate(pool.now[:, 0].tolist()):
                self.born[seed].remove((pool, i))
                if not self.born[seed]:
                    del self.born[seed]

    def _envs(self, seeds: list[int], **options: Any) -> Any:
        envs = self.make(num_envs=len(seeds), seed=[seed % LAST + 1 for seed in seeds], **options)
        _spaces(envs)  # envpool asks for them later
        return envs

    def _act(self, pool: Pool, ids: np.ndarray, leaves: list[np.ndarray] | None) -> tuple[list[np.ndarray], Any, Any, Any]:
        """Steps instances, or resets them: observations, rewards, and whether it terminated or truncated."""
        obs, reward, terminated, truncated = self._play(pool.envs, ids, leaves)
        pool.over[ids] = terminated | truncated
        pool.now[ids, 1] += 1
        pool.now[ids, 2] = hashed(pool.now[ids, 2], leaves or [RESET])
        self.pools.move_to_end(pool)
        if pool.log is not None:
            pool.log.append((ids, leaves, pool.now[ids]))
            self.kept_steps += len(ids)
        while self.kept_steps > KEPT_STEPS:
            oldest = self.logged.popleft()
            self.kept_steps -= sum(len(x) for x, *_ in oldest.log or ())
            oldest.log = None
            self._bury(oldest)
        return obs, reward, terminated, truncated

    def _play(self, envs: Any, ids: np.ndarray, leaves: list[np.ndarray] | None) -> tuple[list[np.ndarray], Any, Any, Any]:
        """Envpool resets what is over instead of stepping it; when told to reset it would also begin anew a game with lives left."""
        spaces = parts(self.action_space)
        leaves = leaves or [np.zeros((len(ids), *x.shape), x.dtype) for x in jax.tree.leaves(spaces)]
        obs, reward, terminated, truncated, _ = envs.step(jax.tree.unflatten(jax.tree.structure(spaces), leaves), ids)
        return self._seen(obs), reward, terminated, truncated

    def _seen(self, obs: Any) -> list[np.ndarray]:
        like = zip(leaves_of(obs), jax.tree.leaves(self.blank), self.channels_first)
        seen = [(np.moveaxis(x, 1, -1) if first else x).astype(blank.dtype, copy=False) for x, blank, first in like]
        return [x.reshape((len(x), *blank.shape)) for x, blank in zip(seen, jax.tree.leaves(self.blank))]

    def _nothing(self, n: int) -> list[np.ndarray]:
        return [np.zeros((n, *x.shape), x.dtype) for x in jax.tree.leaves(self.blank)]

    def _fill(self, obs: list[np.ndarray], at: np.ndarray, new: list[np.ndarray]) -> None:
        for i, x in enumerate(new):
            if len(x) == len(obs[i]):
                obs[i] = x
            else:
                obs[i][at] = x

    def _shaped(self, obs: list[np.ndarray], shape: tuple[int, ...]) -> PyTree:
        leaves = [x.reshape((*shape, *x.shape[1:])) for x in obs]
        return jax.tree.unflatten(jax.tree.structure(self.blank), leaves)


def _channels_first(space: Any) -> bool:
    """Of an image, whose channels are fewer than its rows and columns."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < space.shape[2]


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
        host = Pools(partial(envpool.make_gymnasium, name, **env_kwargs), *_spaces(spec))
    except ImportError as error:
        raise ImportError(f"{env_id}: {error}") from error
    limit = spec.config.max_episode_steps
    return OnHost(host, env_id, limit if limit < LAST else None, NOT_RESTORED), None
