"""Instances of environments on the host, and which of them a state means."""

import abc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree, UInt8, UInt32

from eqxrl.spaces import parts

KEPT_STEPS = 100_000
"""So many steps, in all, are remembered, as the actions that were taken."""
State = tuple[int, int, int]
"""A seed, how many steps were taken and episodes begun since, and a hash of these."""
Leaves = list[np.ndarray]
"""The arrays of observations or of actions, `[instances ...]`, in JAX's order."""
Way = list[tuple[Leaves | None, np.uint32]]
"""Actions, `None` for a reset, each with the hash of the state that it leads to."""


class AbstractInstances(abc.ABC):
    """Instances of an environment, each made anew by its seed. Nothing else gives them one, so that their random numbers go on from one
    episode to the next."""

    @abc.abstractmethod
    def first(self) -> Leaves:
        """First observations of all of them. Called once, before anything else."""

    @abc.abstractmethod
    def step(self, ids: np.ndarray, actions: Leaves) -> tuple[Leaves, Any, Any, Any]:
        """What actions lead some of them to: observations, rewards, and whether it terminated or truncated."""

    @abc.abstractmethod
    def reset(self, ids: np.ndarray) -> Leaves:
        """First observations of further episodes of some of them, whose episodes are over."""

    @abc.abstractmethod
    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """The first one, where they were made with `render_mode="rgb_array"`."""

    def end(self) -> None:
        """Called when they aren't needed any more."""


class Pool:
    """Instances that were born together."""

    def __init__(self, instances: AbstractInstances, seeds: list[int]):
        self.instances: AbstractInstances | None = instances
        """`None` once they were dropped."""
        self.now, self.over = np.zeros((len(seeds), 3), np.uint32), np.zeros(len(seeds), bool)
        """Where each stands, and whether its episode ended there."""
        self.now[:, 0] = seeds
        self.log: list[tuple[np.ndarray, Leaves | None, np.ndarray]] | None = []
        """Which of them were stepped, by which actions, or reset, and where that led to; `None` once it was forgotten."""

    def way(self, i: int, state: State) -> Way | None:
        """What leads an instance from its birth to a state; `None` if that isn't known."""
        way = []
        for ids, leaves, after in self.log or ():
            for at in np.flatnonzero(ids == i):
                way.append((None if leaves is None else [x[at : at + 1] for x in leaves], after[at, 2]))
                if tuple(after[at].tolist()) == state:
                    return way
        return None


class Pools:
    """Plays pools of instances, which `make(seeds, **options)` gives, many at a time, in whatever order they are asked for. What is
    answered follows from what is asked, since a seed and what was done since say all of a state.

    A birth is dear, so an instance is used for as many episodes as come. A state that it has left behind is reached again by another one
    that is born with the same seed and does the same, as long as that is remembered.
    """

    def __init__(self, make: Callable[..., AbstractInstances], observation_space: Any, action_space: Any):
        self.make, self.lock = make, threading.Lock()
        self.pools: OrderedDict[Pool, None] = OrderedDict()
        """Those that are played; the one that was played last is the last."""
        self.born: dict[int, list[tuple[Pool, int]]] = {}
        """By seed: the instances, with their numbers, that are played or remembered."""
        self.logged: deque[Pool] = deque()
        """Those that are remembered; the one that was born first is the first."""
        self.kept_steps, self.most = 0, 1
        self.drawn: tuple[Any, tuple[Pool, int] | None, int] = (None, None, 0)
        """What draws, the instance that it follows, and how far it has come."""
        self.observation_space, self.action_space = observation_space, action_space
        self.blank = blank(observation_space)
        """An observation of zeros."""
        self.leaves, self.structure = jax.tree.flatten(self.blank)
        self.action_shapes = [space.shape for space in jax.tree.leaves(parts(action_space))]

    def reset(self, seed: UInt32[np.ndarray, "*batch"]) -> PyTree:
        """First observations, `[*batch ...]`; their states are `(seed, 0, 0)`."""
        with self.lock:
            return self._shaped(self._birth(seed.ravel().tolist())[1], seed.shape)

    def reset_where(
        self, seed: UInt32[np.ndarray, "*batch"], needed: Bool[np.ndarray, "*batch"], state: UInt32[np.ndarray, "*batch 4"]
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        """First observations and states of what comes after `state`, which is given with the hash of that; anything where they aren't
        needed."""
        asked = state.reshape(-1, 4)
        after, obs, needs = asked[:, :3].copy(), self._nothing(len(asked)), np.flatnonzero(needed)
        with self.lock:
            there, strange = self._stand(after, needs)
            for pool, ids, at in there:
                over = pool.over[ids]
                if not over.all():
                    strange, ids, at = np.sort(np.concatenate([strange, at[~over]])), ids[over], at[over]
                if len(ids):
                    self._fill(obs, at, self._act(pool, ids, None, asked[at, 3])[0])
                    after[at] = pool.now[ids]
            if len(strange):
                pool, first = self._birth(seed.ravel()[strange].tolist())
                self._fill(obs, strange, first)
                after[strange] = pool.now
        return self._shaped(obs, seed.shape), after.reshape(*seed.shape, 3)

    def step(
        self, state: UInt32[np.ndarray, "*batch 5"], action: PyTree, begins_next: bool = False
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 2"], PyTree]:
        """What actions `[*batch ...]` lead to from states, which are given with the hash of the state after, and of a reset after that: the
        observations; of each step its flags (1 where it was taken, plus 2 if terminated, 4 if truncated, 8 if another episode begins)
        and the bits of its reward, a float32; and, if others are to begin where one ended, their first observations. What isn't flagged 1
        is filler: the episode was over, or isn't known here. Few arrays, since each costs as much as a step of a small environment."""
        batch, asked = state.shape[:-1], state.reshape(-1, 5)
        n = len(asked)
        leaves = [x.reshape(n, *shape) for x, shape in zip(jax.tree.leaves(action), self.action_shapes)]
        obs, first, numbers = self._nothing(n), self._nothing(n), np.zeros((n, 2), np.uint32)
        numbers[:, 0] = 4
        with self.lock:
            for pool, ids, at in self._stand(asked[:, :3], np.arange(n))[0]:
                if pool.over.any():
                    going = ~pool.over[ids]
                    ids, at = ids[going], at[going]
                if len(ids):
                    seen, reward, terminated, truncated = self._act(pool, ids, [x[at] for x in leaves], asked[at, 3])
                    self._fill(obs, at, seen)
                    numbers[at, 0] = 1 + 2 * terminated + 4 * truncated
                    numbers[at, 1] = np.asarray(reward, np.float32).view(np.uint32)
                    if begins_next and len(ended := np.flatnonzero(pool.over[ids])):
                        ids, at = ids[ended], at[ended]
                        self._fill(first, at, self._act(pool, ids, None, asked[at, 4])[0])
                        numbers[at, 0] += 8
        return self._shaped(obs, batch), numbers.reshape(*batch, 2), self._shaped(first, batch) if begins_next else ()

    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """**Raises:** `ValueError` for a state of another process, or of long ago."""
        with self.lock:
            one, way = self._way(state)
            if way is None:
                raise ValueError("this state can't be drawn: another process played its episode, or it is too long ago")
            instances, before, time = self.drawn
            if one is None or one != before or time > state[1]:
                instances, time = self.make([state[0]], render_mode="rgb_array"), 0
                instances.first()
            for action, _ in way[time:]:
                _play(instances, np.zeros(1, np.int32), action)
            self.drawn = instances, one, state[1]
            return np.asarray(instances.picture(), np.uint8)

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
                if one[0].instances is not None and one not in taken and tuple(one[0].now[one[1]].tolist()) == state:
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

    def _way(self, state: State) -> tuple[tuple[Pool, int] | None, Way | None]:
        """An instance that came by a state, and what led it there."""
        if state[1] == 0:
            return None, []
        ways = (((pool, i), pool.way(i, state)) for pool, i in self.born.get(state[0], ()))
        return next((found for found in ways if found[1] is not None), (None, None))

    def _lead(self, pool: Pool, ways: list[Way]) -> None:
        """Newborn instances, each its own way."""
        for t in range(max(map(len, ways))):
            for reset in (False, True):
                ids = [i for i, way in enumerate(ways) if t < len(way) and (way[t][0] is None) == reset]
                if ids:
                    actions, hashes = zip(*(ways[i][t] for i in ids))
                    leaves = None if reset else [np.concatenate(x) for x in zip(*actions)]
                    self._act(pool, np.asarray(ids, np.int32), leaves, np.asarray(hashes))

    def _birth(self, seeds: list[int], needed: Iterable[Pool] = ()) -> tuple[Pool, Leaves]:
        """A new pool, and its first observations. Those that are over, or were left alone for long, are dropped, but for the `needed`. Each
        device has pools of its own, of the seeds that are trained there."""
        self.most = max(self.most, len(seeds))
        enough = 4 * self.most * jax.local_device_count()
        size = len(seeds) + sum(len(pool.now) for pool in self.pools)
        for pool in list(self.pools):
            if pool not in needed and (pool.over.all() or size > enough):
                size -= len(pool.now)
                del self.pools[pool]
                if pool.instances is not None:
                    pool.instances.end()
                pool.instances = None
                self._bury(pool)
        pool = Pool(instances := self.make(seeds), seeds)
        self.pools[pool] = None
        self.logged.append(pool)
        for i, seed in enumerate(seeds):
            self.born.setdefault(seed, []).append((pool, i))
        return pool, instances.first()

    def _bury(self, pool: Pool) -> None:
        if pool.instances is None and pool.log is None:
            for i, seed in enumerate(pool.now[:, 0].tolist()):
                self.born[seed].remove((pool, i))
                if not self.born[seed]:
                    del self.born[seed]

    def _act(self, pool: Pool, ids: np.ndarray, leaves: Leaves | None, hashes: np.ndarray) -> tuple[Leaves, Any, Any, Any]:
        """Steps instances, or resets them: observations, rewards, and whether it terminated or truncated."""
        obs, reward, terminated, truncated = _play(pool.instances, ids, leaves)
        pool.over[ids] = terminated | truncated
        after = pool.now[ids]
        after[:, 1] += 1
        after[:, 2] = hashes
        pool.now[ids] = after
        self.pools.move_to_end(pool)
        if pool.log is not None:
            pool.log.append((ids, leaves, after))
            self.kept_steps += len(ids)
        while self.kept_steps > KEPT_STEPS:
            oldest = self.logged.popleft()
            self.kept_steps -= sum(len(x) for x, *_ in oldest.log or ())
            oldest.log = None
            self._bury(oldest)
        return obs, reward, terminated, truncated

    def _nothing(self, n: int) -> Leaves:
        return [np.zeros((n, *x.shape), x.dtype) for x in self.leaves]

    def _fill(self, obs: Leaves, at: np.ndarray, new: Leaves) -> None:
        for i, x in enumerate(new):
            if len(x) == len(obs[i]):
                obs[i] = x
            else:
                obs[i][at] = x

    def _shaped(self, obs: Leaves, shape: tuple[int, ...]) -> PyTree:
        return self.structure.unflatten([x.reshape((*shape, *x.shape[1:])) for x in obs])


def _play(instances: Any, ids: np.ndarray, leaves: Leaves | None) -> tuple[Leaves, Any, Any, Any]:
    if leaves is None:
        return instances.reset(ids), np.zeros(len(ids), np.float32), np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    return instances.step(ids, leaves)


def leaves_of(obs: Any) -> list[Any]:
    """In JAX's order; an `OrderedDict` has another one."""
    if isinstance(obs, dict):
        return [leaf for name in sorted(obs) for leaf in leaves_of(obs[name])]
    return [leaf for part in obs for leaf in leaves_of(part)] if isinstance(obs, tuple) else [obs]


def blank(observation_space: Any) -> PyTree:
    return jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), parts(observation_space))
