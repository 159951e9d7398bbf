"""envpool: environments that are written in C++, many of them stepped at a time by threads of their own."""

import threading
import warnings
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree, UInt8, UInt32

from eqxrl._extras import extra
from eqxrl.envs.suites._host import KEPT_STEPS, NOT_DRAWN, AbstractHost, OnHost, State, actions_of, blank, leaves_of, numbers_of, rows
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, as_space, map_parts, parts

PACKAGE = "envpool"
NOT_RESTORED = "envpool's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"
OURS = ("num_envs", "batch_size", "seed", "env_seed", "env_type", "gym_reset_return_info", "max_num_players", "base_path", "render_mode")
"""Options that aren't the user's."""
PIXELS = ("from_pixels", "render_width", "render_height", "render_camera_id")
"""Options that `envpool.make` has besides those of the environment."""
LAST = 2**31 - 1
"""The last seed that envpool takes, and the limit of an episode that has none."""


class Stream:
    """One instance of a pool: where it stands, and while that is remembered all that was done since its birth, and each state on the way.
    A reset is an action `None`."""

    def __init__(self, pool: Any, index: int, seed: int):
        self.pool, self.index, self.now, self.over = pool, index, (seed, 0, 0), False
        self.states: list[State] | None = [self.now]
        self.actions: list[Any] = []


class Pools(AbstractHost):
    """Plays pools of envpool, which `make(seeds, **options)` gives: instances that are born together, each with a seed. Nothing else gives
    them one, so that their random numbers go on from one episode to the next, and a birth is dear. A state is the seed of a birth, the
    steps and resets since, and a hash of these. One that its instance has left behind is reached again by an instance that is born with
    the same seed, and does the same again, as long as that is remembered."""

    def __init__(self, make: Callable[..., Any], observation_space: Any, action_space: Any):
        self.make, self.lock = make, threading.Lock()
        self.pools: OrderedDict[Any, list[Stream]] = OrderedDict()
        """The one that was played last is the last."""
        self.now: dict[State, Stream] = {}
        """By where they stand."""
        self.past: dict[State, Stream] = {}
        """By each state on their way that is remembered."""
        self.remembered: deque[Stream] = deque()
        """The one that was born first is the first."""
        self.kept_steps, self.most = 0, 1
        self.drawn: tuple[Any, State] | None = None
        self.channels_first = [_channels_first(space) for space in jax.tree.leaves(parts(observation_space))]
        self.observation_space, self.action_space = map_parts(_as_seen, observation_space), as_space(action_space)
        self.blank = blank(self.observation_space)

    def reset(self, seed: UInt32[Array, "*batch"]) -> PyTree:
        seeds = np.asarray(seed)
        with self.lock:
            return self._shaped(self._born(seeds.ravel().tolist())[0], seeds.shape)

    def reset_where(
        self, seed: UInt32[Array, "*batch"], needed: Bool[Array, "*batch"], state: UInt32[Array, "*batch 3"]
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        shape, states = rows(state)
        obs, after = self._nothing(len(states)), np.asarray(states, np.uint32)
        asked, seeds = np.flatnonzero(np.asarray(needed)), np.asarray(seed).ravel().tolist()
        with self.lock:
            streams = dict(zip(asked.tolist(), self._take([states[i] for i in asked])))
            known, strange = ([i for i, stream in streams.items() if (stream is None) == x] for x in (False, True))
            for at, new in (
                (known, lambda: self._act([streams[i] for i in known], None, [zlib.crc32(b"reset", states[i][2]) for i in known])),
                (strange, lambda: self._born([seeds[i] for i in strange])),
            ):
                if at:
                    first, of = new()[:2]
                    after[at] = [stream.now for stream in of]
                    for x, y in zip(obs, first):
                        x[at] = y
        return self._shaped(obs, shape), after.reshape(*shape, 3)

    def step(self, state: UInt32[Array, "*batch 3"], action: PyTree) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        shape, states = rows(state)
        leaves, histories = actions_of(action, self.action_space, states)
        with self.lock:
            streams = self._take(states, ended=False)
            at = [i for i, stream in enumerate(streams) if stream is not None]
            obs, reward, flags = self._nothing(len(states)), np.zeros(len(states), np.float32), np.full(len(states), 4, np.uint32)
            history = np.asarray([x[2] for x in states], np.uint32)
            if at:
                ids = slice(None) if len(at) == len(states) else np.asarray(at)
                going, done = [streams[i] for i in at], [histories[i] for i in at]
                seen, _, reward[ids], terminated, truncated = self._act(going, [x[ids] for x in leaves], done)
                flags[ids], history[ids] = 1 + 2 * terminated + 4 * truncated, done
                for x, y in zip(obs, seen):
                    x[ids] = y
        return self._shaped(obs, shape), numbers_of(history, flags, reward).reshape(*shape, 3)

    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        with self.lock:
            stream = self.past.get(state)
            if stream is None and state[1]:
                raise ValueError(NOT_DRAWN)
            pool, before = self.drawn or (None, None)
            if before is None or stream is None or self.past.get(before) is not stream or before[1] > state[1]:
                pool, before = self._pool([state[0]], render_mode="rgb_array"), (state[0], 0, 0)
                pool.reset()
            for action in stream.actions[before[1] : state[1]] if stream else []:
                self._play(pool, np.zeros(1, np.int32), None if action is None else [x[None] for x in action])
            self.drawn = pool, state
            return np.asarray(pool.render()[0], np.uint8)

    def _pool(self, seeds: list[int], **options: Any) -> Any:
        pool = self.make(num_envs=len(seeds), seed=[seed % LAST + 1 for seed in seeds], **options)
        _spaces(pool)  # envpool asks for them later
        return pool

    def _born(self, seeds: list[int]) -> tuple[list[np.ndarray], list[Stream]]:
        """First observations, of a new pool. Pools that are over, or were left alone for long, are dropped."""
        self.most = max(self.most, len(seeds))
        over = [pool for pool, streams in self.pools.items() if all(stream.over for stream in streams)]
        for pool in over:
            self._drop(pool)
        while self.pools and sum(map(len, self.pools.values())) + len(seeds) > 4 * self.most:
            self._drop(next(iter(self.pools)))
        pool = self._pool(seeds)
        self.pools[pool] = streams = [Stream(pool, i, seed) for i, seed in enumerate(seeds)]
        for stream in streams:
            self.now[stream.now] = self.past[stream.now] = stream
        self.remembered.extend(streams)
        return self._play(pool, np.arange(len(seeds), dtype=np.int32), None)[0], streams

    def _drop(self, pool: Any) -> None:
        for stream in self.pools.pop(pool):
            stream.pool = None
            if self.now.get(stream.now) is stream:
                del self.now[stream.now]

    def _take(self, states: list[State], ended: bool = True) -> list[Stream | None]:
        """A stream that stands at each state; `None` where that isn't known, or where an episode ended, unless `ended`."""
        streams = [self.now.pop(state, None) for state in states]
        if not ended:
            for i, stream in enumerate(streams):
                if stream is not None and stream.over:
                    self.now[stream.now], streams[i] = stream, None
        lacking, ways = [], []
        for i, (state, stream) in enumerate(zip(states, streams)):
            if stream is None and (ended or state not in self.now):
                past = self.past.get(state)
                if past is not None and (ended or not past.over or past.now != state):
                    lacking, ways = [*lacking, i], [*ways, (past.actions[: state[1]], past.states[: state[1] + 1])]
                elif past is None and state[1] == 0:
                    lacking, ways = [*lacking, i], [*ways, ([], [state])]
        if lacking:
            anew = self._born([states[i][0] for i in lacking])[1]
            for t in range(max(len(actions) for actions, _ in ways)):
                for reset in (False, True):
                    going = [k for k, (actions, _) in enumerate(ways) if t < len(actions) and (actions[t] is None) == reset]
                    if going:
                        leaves = None if reset else [np.stack(x) for x in zip(*(ways[k][0][t] for k in going))]
                        self._act([anew[k] for k in going], leaves, [ways[k][1][t + 1][2] for k in going])
            for i, stream in zip(lacking, anew):
                del self.now[stream.now]
                streams[i] = stream
                if stream.over and not ended:
                    self.now[stream.now], streams[i] = stream, None
        return streams

    def _act(self, streams: list[Any], leaves: list[np.ndarray] | None, histories: list[int]) -> tuple[Any, Any, Any, Any, Any]:
        """Steps streams, of any pools, or resets them: observations, the streams, rewards, and whether it terminated or truncated."""
        groups: dict[Any, list[int]] = {}
        for i, stream in enumerate(streams):
            groups.setdefault(stream.pool, []).append(i)
        outs = []
        for pool, at in groups.items():
            ids = np.asarray([streams[i].index for i in at], np.int32)
            actions = leaves if leaves is None or len(groups) == 1 else [x[at] for x in leaves]
            outs.append(self._play(pool, ids, actions))
            self.pools.move_to_end(pool)
        if len(outs) > 1:
            back = np.argsort(np.concatenate(list(groups.values())))
            outs = [jax.tree.map(lambda *x: np.concatenate(x)[back], *outs)]
        obs, reward, terminated, truncated = outs[0]
        for i, (stream, history, over) in enumerate(zip(streams, histories, (terminated | truncated).tolist())):
            seed, time, _ = stream.now
            stream.now, stream.over = (seed, time + 1, history), over
            self.now[stream.now] = stream
            if stream.states is not None:
                stream.states.append(stream.now)
                stream.actions.append(None if leaves is None else [x[i] for x in leaves])
                self.past[stream.now] = stream
                self.kept_steps += 1
        while self.kept_steps > KEPT_STEPS:
            self._forget(self.remembered.popleft())
        return obs, streams, reward, terminated, truncated

    def _forget(self, stream: Stream) -> None:
        self.kept_steps -= len(stream.actions)
        for state in stream.states or ():
            if self.past.get(state) is stream:
                del self.past[state]
        stream.states, stream.actions = None, []

    def _play(self, pool: Any, ids: np.ndarray, leaves: list[np.ndarray] | None) -> tuple[Any, Any, Any, Any]:
        """Steps instances of one pool, or resets them: observations, rewards, and whether it terminated or truncated."""
        if leaves is None:
            obs, no = pool.reset(ids)[0], np.zeros(len(ids), bool)
            reward, terminated, truncated = no.astype(np.float32), no, no
        else:
            action = jax.tree.unflatten(jax.tree.structure(parts(self.action_space)), leaves)
            obs, reward, terminated, truncated, _ = pool.step(action, ids)
        like = zip(leaves_of(obs), jax.tree.leaves(self.blank), self.channels_first)
        obs = [(np.moveaxis(x, 1, -1) if first else x).astype(y.dtype, copy=False).reshape((len(ids), *y.shape)) for x, y, first in like]
        return obs, reward, terminated, truncated

    def _nothing(self, n: int) -> list[np.ndarray]:
        return [np.zeros((n, *x.shape), x.dtype) for x in jax.tree.leaves(self.blank)]

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
