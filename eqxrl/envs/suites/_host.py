"""Environments that aren't written in JAX, played on the host as if they were pure functions."""

import os
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree, UInt8, UInt32

from eqxrl.spaces import as_space, parts

KEPT_STEPS = 100_000
"""So many steps, in all, of episodes that nobody plays are remembered, as the actions that were taken."""
State = tuple[int, int, int]
"""A seed, how many steps were taken since, and a hash of their actions."""


class Episode:
    """What was done since a seed, each state on the way, and the environment that plays it, if one does."""

    def __init__(self, env: Any, seed: int):
        self.env, self.states, self.actions, self.over = env, [(seed, 0, 0)], [], False

    def step(self, action: Any, history: int) -> Any:
        seed, time, _ = self.states[-1]
        self.states.append((seed, time + 1, history))
        self.actions.append(action)
        return self.env.step(action)


class Host:
    """Plays environments of gymnasium's interface, which `make()` gives. A state is a seed, the steps taken since, and a hash of their
    actions. What is answered follows from what is asked, however often and in whatever order: a state that its episode has left
    behind is reached again by playing the actions anew from the seed."""

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
        self.blank = jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), parts(self.observation_space))

    def reset(self, seed: UInt32[Array, "*batch"], needed: Bool[Array, "*batch"]) -> PyTree:
        """First observations, `[*batch ...]`; zeros where they aren't needed."""
        seeds, asked = np.asarray(seed), np.asarray(needed).ravel().tolist()
        with self.lock:
            obs = [self._reset(s, 2 * seeds.size) if x else None for s, x in zip(seeds.ravel().tolist(), asked)]
        return self._stacked(obs, seeds.shape)

    def step(self, state: UInt32[Array, "*batch 3"], action: PyTree) -> tuple[PyTree, UInt32[np.ndarray, "*batch 3"]]:
        """What actions `[*batch ...]` lead to: the observations, and of each step the hash of its state, its flags (1 where it was taken,
        plus 2 if terminated, 4 if truncated) and the bits of its reward, a float32. What isn't flagged 1 is filler: the episode was
        over, or isn't known here. Few arrays, since each costs as much as a step of a small environment."""
        states = np.asarray(state)
        shape, states = states.shape[:-1], list(map(tuple, states.reshape(-1, 3).tolist()))
        actions, histories = self._actions_of(action, states)
        with self.lock:
            self.most_going = max(self.most_going, 4 * len(states))
            obs, history, flags, reward = zip(*map(self._step, states, actions, histories))
        reward = np.asarray(reward, np.float32).view(np.uint32)
        numbers = np.stack([np.asarray(history, np.uint32), np.asarray(flags, np.uint32), reward], axis=-1)
        return self._stacked(obs, shape), numbers.reshape(*shape, 3)

    def picture(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """**Raises:** `ValueError` for a state of another process, or of long ago."""
        with self.lock:
            actions = self._actions(state)
            if actions is None:
                raise ValueError("this state can't be drawn: another process played its episode, or it is too long ago")
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

    def _actions_of(self, action: PyTree, states: list[State]) -> tuple[list[Any], list[int]]:
        """An action for each state, as gymnasium takes it, and the hash of the state that it leads to."""
        leaves, n = [np.asarray(x) for x in jax.tree.leaves(action)], len(states)
        leaves = [x.reshape(n, *space.shape) for x, space in zip(leaves, jax.tree.leaves(parts(self.action_space)))]
        structure = jax.tree.structure(action)
        actions = [structure.unflatten(row) for row in zip(*(x.tolist() if x.ndim == 1 else x for x in leaves))]
        done = [b"".join(x[i].tobytes() for x in leaves) for i in range(n)]
        return actions, [zlib.crc32(x, history) for x, (*_, history) in zip(done, states)]

    def _stacked(self, obs: Any, shape: tuple[int, ...]) -> PyTree:
        """Observations of gymnasium, or `None`, as arrays `[*shape ...]`."""
        rows = [jax.tree.leaves(self.blank) if x is None else _leaves(x) for x in obs]
        leaves = [np.asarray(x, like.dtype).reshape((*shape, *like.shape)) for x, like in zip(zip(*rows), jax.tree.leaves(self.blank))]
        return jax.tree.unflatten(jax.tree.structure(self.blank), leaves)


def _leaves(obs: Any) -> list[Any]:
    """In JAX's order; an `OrderedDict` has another one."""
    if isinstance(obs, dict):
        return [leaf for name in sorted(obs) for leaf in _leaves(obs[name])]
    return [leaf for part in obs for leaf in _leaves(part)] if isinstance(obs, tuple) else [obs]
