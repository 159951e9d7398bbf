"""gymnasium: environments that aren't written in JAX, stepped on the host one after the other."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from eqxrl._extras import extra
from eqxrl.envs.suites._host import OnHost
from eqxrl.envs.suites._names import unknown
from eqxrl.envs.suites._pools import AbstractInstances, Leaves, Pools, blank, leaves_of
from eqxrl.spaces import as_space, parts

PACKAGE = "gymnasium"
NOT_RESTORED = "gymnasium's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"


class Gymnasium(AbstractInstances):
    """Environments of gymnasium, which `make()` gives; those in `spare` are used before a new one is made."""

    def __init__(self, make: Callable[..., Any], spare: list[Any], seeds: list[int], **options: Any):
        if options:  # such as for pictures; pygame would open the sound card
            os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        self.spare, self.seeds = [] if options else spare, seeds
        self.envs = [self.spare.pop() if self.spare else make(**options) for _ in seeds]
        self.blank = blank(as_space(self.envs[0].observation_space))
        self.actions = jax.tree.structure(parts(as_space(self.envs[0].action_space)))
        self.one_array = self.actions == jax.tree.structure(0)

    def first(self) -> Leaves:
        return self._stacked([env.reset(seed=seed)[0] for env, seed in zip(self.envs, self.seeds)])

    def step(self, ids: np.ndarray, actions: Leaves, obs: Leaves) -> tuple[Any, Any, Any]:
        parts = [x.tolist() if x.ndim == 1 else x for x in actions]
        each = parts[0] if self.one_array else map(self.actions.unflatten, zip(*parts))
        steps = [self.envs[i].step(action) for i, action in zip(ids.tolist(), each)]
        seen, reward, terminated, truncated, _ = zip(*steps)
        for x, new in zip(obs, self._stacked(seen), strict=True):
            x[...] = new
        return np.asarray(reward, np.float32), np.asarray(terminated, bool), np.asarray(truncated, bool)

    def reset(self, ids: np.ndarray) -> Leaves:
        return self._stacked([self.envs[i].reset()[0] for i in ids.tolist()])

    def picture(self) -> np.ndarray:
        from gymnasium.error import DependencyNotInstalled

        try:
            return self.envs[0].render()
        except DependencyNotInstalled as error:  # which tells how to install what draws
            raise ImportError(str(error)) from error

    def end(self) -> None:
        self.spare.extend(self.envs)

    def _stacked(self, obs: Any) -> Leaves:
        leaves = [obs] if isinstance(self.blank, np.ndarray) else zip(*map(leaves_of, obs))
        return [np.asarray(x, like.dtype).reshape(len(x), *like.shape) for x, like in zip(leaves, jax.tree.leaves(self.blank))]


def names() -> list[str]:
    """Without those that are written in JAX a second time."""
    registry = extra("gymnasium", "gymnasium", "the suite gymnasium").registry
    return [name for name in registry if not name.startswith(("phys2d/", "tabular/"))]


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[OnHost, None]:
    """With the arguments of `gymnasium.make`, such as `max_episode_steps`, or of the environment, such as `frameskip` of `ALE/Pong-v5`."""
    gymnasium: Any = extra("gymnasium", "gymnasium", env_id)
    name = env_id.partition("/")[2]
    if name.startswith("ALE/"):
        extra("ale_py", "atari", env_id)  # importing it registers its games
    if name not in gymnasium.registry and ":" not in name:  # a module to import first, which registers it
        raise unknown("gymnasium", env_id, names())
    one = partial(gymnasium.make, name, **{"disable_env_checker": True} | env_kwargs)
    try:
        first = one()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id}: {error}") from error
    host = Pools(partial(Gymnasium, one, [first]), as_space(first.observation_space), as_space(first.action_space))
    return OnHost(host, env_id, first.spec.max_episode_steps, NOT_RESTORED), None
