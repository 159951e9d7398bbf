"""Environments that aren't written in JAX. They stay on the host; the states here only say which one is meant, and where it stands, so
that stepping is a function of key, state and action there as well."""

import abc
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree, UInt8, UInt32

from eqxrl.envs._protocol import Transition
from eqxrl.spaces import as_space, parts

KEPT_STEPS = 100_000
"""So many steps, in all, of episodes that nobody plays are remembered, as the actions that were taken."""
State = tuple[int, int, int]
"""A seed, how many steps were taken since, and a hash of their actions."""


NOT_DRAWN = "this state can't be drawn: another process played its episode, or it is too long ago"


class AbstractHost(abc.ABC):
    """Plays environments: many at a time, whichever of them and in whatever order they are asked for. What is answered follows from what
    is asked, where a seed and the actions since say all of a state."""

    observation_space: Any
    action_space: Any
    blank: PyTree
    """An observation of zeros."""

    @abc.abstractmethod
    def reset(self, seed: UInt32[Array, "*batch"]) -> PyTree:
        """First observations, `[*batch ...]`; their states are `(seed, 0, 0)`."""

    @abc.abstractmethod
    def reset_where(
        self, seed: UInt32[Array, "*batch"], needed: Bool[Array, "*batch"], state: UInt32[Array, "*batch 3"]
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        """First observations and states of what comes after `state`; anything where they aren't needed."""

    @abc.abstractmethod
    def step(self, state: UInt32[Array, "*batch 3"], action: PyTree) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        """What actions `[*batch ...]` lead to: the observations, and of each step the hash of its state, its flags (1 where it was taken,
        plus 2 if terminated, 4 if truncated) and the bits of its reward, a float32. What isn't flagged 1 is filler: the episode was
        over, or isn't known here. Few arrays, since each costs as much as a step of a small environment."""

    @abc.abstractmethod
    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """**Raises:** `ValueError` for a state of another process, or of long ago."""


class HostState(eqx.Module):
    on_host: UInt32[Array, " 3"]
    """A seed, the steps taken since, a hash of their actions."""
    obs: PyTree
    """What was seen last."""


class OnHost(eqx.Module):
    """An environment on the host, of which as many are made as there are episodes at a time. It can be vmapped at any depth: whatever is
    stepped together is one call to the host.

    A state that was stepped already can be stepped again, otherwise: it is reached anew from its seed. A state of another process, such as
    that of a run which is resumed, can't be: its first step says that the episode is cut off (`truncated`), with the observation that it
    has and a reward of 0. `info` is empty.
    """

    host: AbstractHost = eqx.field(static=True)
    name: str = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    not_restored: str = eqx.field(static=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        seed = jr.bits(key, (), jnp.uint32)
        obs = jax.pure_callback(self.host.reset, self._shapes(), seed, vmap_method="broadcast_all")
        return obs, HostState(jnp.zeros(3, jnp.uint32).at[0].set(seed), obs)

    def reset_where(
        self, key: Key[Array, ""], needed: Bool[Array, ""], state: HostState, params: Any = None
    ) -> tuple[PyTree, HostState]:
        seed, shapes = jr.bits(key, (), jnp.uint32), (self._shapes(), jax.ShapeDtypeStruct((3,), jnp.uint32))
        obs, on_host = jax.pure_callback(self.host.reset_where, shapes, seed, needed, state.on_host, vmap_method="broadcast_all")
        return obs, HostState(on_host, obs)

    def step(self, key: Key[Array, ""], state: HostState, action: PyTree, params: Any = None) -> Transition:
        shapes, (seed, time, _) = (self._shapes(), jax.ShapeDtypeStruct((3,), jnp.uint32)), state.on_host
        obs, numbers = jax.pure_callback(self.host.step, shapes, state.on_host, action, vmap_method="broadcast_all")
        history, flags, reward = numbers
        known, terminated, truncated = (flags & bit != 0 for bit in (1, 2, 4))
        obs = jax.tree.map(lambda new, old: jnp.where(known, new, old), obs, state.obs)
        after = HostState(jnp.stack([seed, time + known, history]), obs)
        return obs, after, jax.lax.bitcast_convert_type(reward, jnp.float32), terminated, truncated, {}

    def _shapes(self) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.host.blank)

    def observation_space(self, params: Any = None) -> Any:
        return self.host.observation_space

    def action_space(self, params: Any = None) -> Any:
        return self.host.action_space

    def picture(self, state: HostState, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        """What the suite draws of it, with `render_mode="rgb_array"`."""
        seed, time, history = map(int, state.on_host)
        return self.host.picture((seed, time, history))


class Episode:
    """What was done since a seed, each state on the way, and the environment that plays it, if one does."""

    def __init__(self, env: Any, seed: int):
        self.env, self.states, self.actions, self.over = env, [(seed, 0, 0)], [], False

    def step(self, action: Any, history: int) -> Any:
        seed, time, _ = self.states[-1]
        self.states.append((seed, time + 1, history))
        self.actions.append(action)
        return self.env.step(action)


class Host(AbstractHost):
    """Plays environments of gymnasium's interface, which `make()` gives, one after the other. Each episode has a seed of its own: a state
    that its episode has left behind is reached again by playing the actions anew from there."""

    def __init__(self, make: Callable[..., Any]):
        env = make()
        self.make, self.lock, self.spare = make, threading.Lock(), [env]
        self.fresh: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        """By seed: an environment that was just reset, and its first observation."""
        self.episodes: dict[State, Episode] = {}
        """By each of their states."""
        self.going: OrderedDict[State, Episode] = OrderedDict()
        """Those that are played, by where they stand; the one that was stepped last is the last."""
        self.left: deque[Episode] = deque()
        """Those that are over, or were left alone for long."""
        self.kept_steps, self.most_going = 0, 1
        self.drawn: tuple[Any, State] | None = None
        self.observation_space, self.action_space = as_space(env.observation_space), as_space(env.action_space)
        self.blank = blank(self.observation_space)

    def reset(self, seed: UInt32[Array, "*batch"]) -> PyTree:
        return self._resets(np.asarray(seed), np.ones(np.shape(seed), bool))

    def reset_where(
        self, seed: UInt32[Array, "*batch"], needed: Bool[Array, "*batch"], state: UInt32[Array, "*batch 3"]
    ) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        seeds, fresh = np.asarray(seed), np.zeros((*np.shape(seed), 3), np.uint32)
        fresh[..., 0] = seeds
        return self._resets(seeds, np.asarray(needed)), fresh

    def _resets(self, seeds: UInt32[np.ndarray, "*batch"], needed: Bool[np.ndarray, "*batch"]) -> PyTree:
        """First observations; zeros where they aren't needed."""
        with self.lock:
            asked = zip(seeds.ravel().tolist(), needed.ravel().tolist())
            obs = [self._reset(s, 2 * seeds.size) if x else None for s, x in asked]
        return self._stacked(obs, seeds.shape)

    def step(self, state: UInt32[Array, "*batch 3"], action: PyTree) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        shape, at = np.shape(state)[:-1], np.asarray(state).reshape(-1, 3)
        leaves, structure = action_leaves(action, self.action_space, len(at)), jax.tree.structure(action)
        states, histories = list(map(tuple, at.tolist())), hashed(at[:, 2], leaves).tolist()
        actions = [structure.unflatten(row) for row in zip(*(x.tolist() if x.ndim == 1 else x for x in leaves))]
        with self.lock:
            self.most_going = max(self.most_going, 4 * len(states))
            obs, history, flags, reward = zip(*map(self._step, states, actions, histories))
        return self._stacked(obs, shape), numbers_of(history, flags, reward).reshape(*shape, 3)

    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        with self.lock:
            actions = self._actions(state)
            if actions is None:
                raise ValueError(NOT_DRAWN)
            for device in ("SDL_AUDIODRIVER", "SDL_VIDEODRIVER"):  # pygame would open the sound card
                os.environ.setdefault(device, "dummy")
            env, before = self.drawn or (self.make(render_mode="rgb_array"), None)
            episode = self.episodes.get(state)
            if before is None or episode is None or self.episodes.get(before) is not episode or before[1] > state[1]:
                env.reset(seed=state[0])
                before = (state[0], 0, 0)
            for action in actions[before[1] :]:
                env.step(action)
            self.drawn = env, state
            return np.asarray(env.render(), np.uint8)

    def _reset(self, seed: int, keep: int) -> Any:
        """The first observation. The environment is kept for the first step, unless more than `keep` are."""
        if seed not in self.fresh:
            env = self.spare.pop() if self.spare else self.make()
            self.fresh[seed] = env, env.reset(seed=seed)[0]
        self.fresh.move_to_end(seed)
        while len(self.fresh) > keep:
            self.spare.append(self.fresh.popitem(last=False)[1][0])
        return self.fresh[seed][1]

    def _step(self, state: State, action: Any, history: int) -> tuple[Any, int, int, float]:
        episode = self.going.pop(state, None)
        if episode is None:
            known, actions = self.episodes.get(state), self._actions(state)
            if actions is None or (known is not None and known.over and state == known.states[-1]):
                return None, state[2], 4, 0.0
            self._reset(state[0], len(self.fresh) + 1)
            episode = Episode(self.fresh.pop(state[0])[0], state[0])
            self.episodes[episode.states[0]] = episode
            for old, then in zip(actions, known.states[1:] if known else ()):
                episode.step(old, then[2])
                self.episodes[then] = episode
        obs, reward, terminated, truncated, _ = episode.step(action, history)
        now = episode.states[-1]
        self.episodes[now] = self.going[now] = episode
        episode.over = bool(terminated or truncated)
        if episode.over or len(self.going) > self.most_going:
            self._leave(self.going.pop(now) if episode.over else self.going.popitem(last=False)[1])
        return obs, history, 1 + 2 * bool(terminated) + 4 * bool(truncated), reward

    def _leave(self, episode: Episode) -> None:
        self.spare.append(episode.env)
        episode.env = None
        self.left.append(episode)
        self.kept_steps += len(episode.actions)
        while self.kept_steps > KEPT_STEPS and len(self.left) > 1:
            oldest = self.left.popleft()
            self.kept_steps -= len(oldest.actions)
            for state in oldest.states:
                if self.episodes.get(state) is oldest:
                    del self.episodes[state]

    def _actions(self, state: State) -> list[Any] | None:
        """Those that lead to it from its seed; `None` where its episode isn't known."""
        episode = self.episodes.get(state)
        return episode.actions[: state[1]] if episode else [] if state[1] == 0 else None

    def _stacked(self, obs: Any, shape: tuple[int, ...]) -> PyTree:
        """Observations of gymnasium, or `None`, as arrays `[*shape ...]`."""
        rows = [jax.tree.leaves(self.blank) if x is None else leaves_of(x) for x in obs]
        leaves = [np.asarray(x, like.dtype).reshape((*shape, *like.shape)) for x, like in zip(zip(*rows), jax.tree.leaves(self.blank))]
        return jax.tree.unflatten(jax.tree.structure(self.blank), leaves)


def leaves_of(obs: Any) -> list[Any]:
    """In JAX's order; an `OrderedDict` has another one."""
    if isinstance(obs, dict):
        return [leaf for name in sorted(obs) for leaf in leaves_of(obs[name])]
    return [leaf for part in obs for leaf in leaves_of(part)] if isinstance(obs, tuple) else [obs]


def blank(observation_space: Any) -> PyTree:
    return jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), parts(observation_space))


def action_leaves(action: PyTree, action_space: Any, n: int) -> list[np.ndarray]:
    """The arrays of `n` actions, `[n ...]`."""
    spaces = jax.tree.leaves(parts(action_space))
    return [np.asarray(x).reshape(n, *space.shape) for x, space in zip(jax.tree.leaves(action), spaces)]


def hashed(history: UInt32[np.ndarray, " n"], leaves: list[np.ndarray]) -> UInt32[np.ndarray, " n"]:
    """The hash of what was done, after actions `[n ...]`. MurmurHash3's step for each 32 bits; it is Austin Appleby's, and anyone's."""
    for leaf in leaves:
        for word in np.ascontiguousarray(leaf).reshape(len(leaf), -1).view(np.uint32).T:
            word = word * np.uint32(0xCC9E2D51)
            history = history ^ ((word << 15 | word >> 17) * np.uint32(0x1B873593))
            history = (history << 13 | history >> 19) * np.uint32(5) + np.uint32(0xE6546B64)
    return history


def numbers_of(history: Any, flags: Any, reward: Any) -> UInt32[np.ndarray, "states 3"]:
    reward = np.asarray(reward, np.float32).view(np.uint32)
    return np.stack([np.asarray(history, np.uint32), np.asarray(flags, np.uint32), reward], axis=-1)
