"""Instances of environments on the host, and which of them a state means."""

import abc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from eqxrl.spaces import parts

KEPT_STEPS = 100_000
"""So many steps, in all, are remembered, as the actions that were taken."""
GOES_ON = 1 << 31
"""The bit of a seed which says that where an episode ends the next one begins at once."""
State = tuple[int, int, int]
"""A seed, how many steps were taken and episodes begun since, and a hash of these."""
Leaves = list[np.ndarray]
"""The arrays of observations or of actions, `[instances ...]`, in JAX's order."""
Way = list[tuple[Leaves | None, np.ndarray]]
"""Actions, `None` for a reset, each with the state that it leads to."""


class AbstractInstances(abc.ABC):
    """Instances of an environment, each made anew by its seed. Nothing else gives them one, so that their random numbers go on from one
    episode to the next."""

    @abc.abstractmethod
    def first(self) -> Leaves:
        """First observations of all of them. Called once, before anything else."""

    @abc.abstractmethod
    def step(self, ids: np.ndarray, actions: Leaves, obs: Leaves) -> tuple[Any, Any, Any]:
        """What actions lead some of them to: fills in the observations, and returns rewards, and whether it terminated or truncated."""

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
                way.append((None if leaves is None else [x[at : at + 1] for x in leaves], after[at]))
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
        self.leaves, self.structure = jax.tree.flatten(blank(observation_space))
        """An observation of zeros."""

    def reset(self, changed: Leaves, made: Leaves, args: Leaves) -> None:
        """Makes first observations `[n ...]` of seeds `[n]`; their states are `(seed, 0, 0)`."""
        with self.lock:
            _fill(made, slice(None), self._birth(args[0].tolist())[1])

    def reset_where(self, changed: Leaves, made: Leaves, args: Leaves) -> None:
        """Changes observations `[n ...]` and states `[n 3]` to the first ones of what comes after, where that is needed; given where it is,
        `[n]`, seeds for what isn't known here, `[n]`, and the states after, `[n 3]`."""
        (*obs, state), (needed, seeds, after) = changed, args
        with self.lock:
            there, strange = self._stand(state, np.flatnonzero(needed))
            for pool, ids, at in there:
                over = pool.over[ids]
                if not over.all():
                    strange, ids, at = np.sort(np.concatenate([strange, at[~over]])), ids[over], at[over]
                if len(ids):
                    state[at] = after[at]
                    self._begin(pool, ids, after[at], obs, at)
            if len(strange):
                pool, first = self._birth(seeds[strange].tolist())
                _fill(obs, strange, first)
                state[strange] = pool.now

    def step(self, changed: Leaves, made: Leaves, args: Leaves, begins_next: bool = False) -> None:
        """Changes observations `[n ...]` and states `[n 3]` to what actions lead to; given the states after, with the hash of a reset after
        that, `[n 4]`, and the actions, `[n ...]`. Makes rewards, and whether it terminated or truncated, `[n]`, and, if others are to begin
        where one ended, their first observations, `[n ...]`, and anything elsewhere. What isn't known here, or was over, stays where it is,
        and is truncated."""
        (*obs, state), (rewards, terminated, truncated, *first), (then, *actions), n = changed, made, args, len(args[0])
        rewards.fill(0)
        terminated.fill(False)
        truncated.fill(True)
        with self.lock:
            for pool, ids, at in self._stand(state, np.arange(n, dtype=np.int32))[0]:
                if pool.over.any():
                    going = ~pool.over[ids]
                    ids, at = ids[going], at[going]
                if not len(ids):
                    continue
                rows, seen = (slice(None), obs) if len(ids) == n else (at, self._unseen(len(ids)))
                taken, after = [np.array(x[rows]) for x in actions], np.array(then[rows, :3])
                rewards[rows], terminated[rows], truncated[rows] = self._instances(pool).step(ids, taken, seen)
                pool.over[ids] = over = terminated[rows] | truncated[rows]
                state[rows] = after
                self._moved(pool, ids, taken, after)
                if seen is not obs:
                    _fill(obs, at, seen)
                if begins_next and over.any():
                    after = after[over]
                    after[:, 1] += 1
                    after[:, 2] = then[at[over], 3]
                    self._begin(pool, ids[over], after, first, at[over])

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
            only = np.zeros(1, np.int32)
            for action, _ in way[time:]:
                if action is None:
                    instances.reset(only)
                else:
                    instances.step(only, action, self._unseen(1))
            self.drawn = instances, one, state[1]
            return np.asarray(instances.picture(), np.uint8)

    def _stand(self, states: np.ndarray, at: np.ndarray) -> tuple[list[tuple[Pool, np.ndarray, np.ndarray]], np.ndarray]:
        """Instances that stand at the states of the rows `at`: for each pool their numbers, and the rows; and the rows of which that isn't
        known."""
        for pool in reversed(self.pools):
            if len(pool.now) == len(states) and (pool.now == states).all():
                return [(pool, at.astype(np.int32, copy=False), at)], at[:0]
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
                if not ids:
                    continue
                actions, after = zip(*(ways[i][t] for i in ids))
                ids, after, seen = np.asarray(ids, np.int32), np.stack(after), self._unseen(len(ids))
                if reset:
                    self._begin(pool, ids, after, seen, np.arange(len(ids)))
                else:
                    taken = [np.concatenate(x) for x in zip(*actions)]
                    _, terminated, truncated = self._instances(pool).step(ids, taken, seen)
                    pool.over[ids] = terminated | truncated
                    self._moved(pool, ids, taken, after)

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

    def _begin(self, pool: Pool, ids: np.ndarray, after: np.ndarray, obs: Leaves, at: np.ndarray) -> None:
        """Begins episodes of instances, which stand at `after` then, and whose first observations become the rows `at`."""
        _fill(obs, at, self._instances(pool).reset(ids))
        pool.over[ids] = False
        self._moved(pool, ids, None, after)

    def _moved(self, pool: Pool, ids: np.ndarray, actions: Leaves | None, after: np.ndarray) -> None:
        """Remembers what instances did, and that they stand at `after`, `[n 3]`."""
        pool.now[ids] = after
        self.pools.move_to_end(pool)
        if pool.log is not None:
            pool.log.append((ids, actions, after))
            self.kept_steps += len(ids)
        while self.kept_steps > KEPT_STEPS:
            oldest = self.logged.popleft()
            self.kept_steps -= sum(len(x) for x, *_ in oldest.log or ())
            oldest.log = None
            self._bury(oldest)

    def _instances(self, pool: Pool) -> AbstractInstances:
        assert pool.instances is not None
        return pool.instances

    def _unseen(self, n: int) -> Leaves:
        return [np.empty((n, *x.shape), x.dtype) for x in self.leaves]


def _fill(arrays: Leaves, at: Any, new: Leaves) -> None:
    for x, rows in zip(arrays, new, strict=True):
        x[at] = rows


def leaves_of(obs: Any) -> list[Any]:
    """In JAX's order; an `OrderedDict` has another one."""
    if isinstance(obs, dict):
        return [leaf for name in sorted(obs) for leaf in leaves_of(obs[name])]
    return [leaf for part in obs for leaf in leaves_of(part)] if isinstance(obs, tuple) else [obs]


def blank(observation_space: Any) -> PyTree:
    return jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), parts(observation_space))
