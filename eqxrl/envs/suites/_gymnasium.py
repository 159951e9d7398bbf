"""gymnasium: environments that aren't written in JAX. They stay on the host; the states here only say which one is meant, and where it
stands, so that stepping is a function of key, state and action there as well."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree, UInt8, UInt32

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._host import Host
from eqxrl.envs.suites._names import unknown

PACKAGE = "gymnasium"


class HostState(eqx.Module):
    on_host: UInt32[Array, " 3"]
    """The seed of the episode, the steps taken since, a hash of their actions."""
    obs: PyTree
    """What was seen last."""


class Gymnasium(eqx.Module):
    """An environment of gymnasium, of which as many are made as there are episodes at a time. It can be vmapped at any depth: whatever is
    stepped together is one call to the host, which steps one after the other.

    A state that was stepped already can be stepped again, otherwise: its episode is played anew from its seed up to there. A state of
    another process, such as that of a run which is resumed, can't be: its first step says that the episode is cut off
    (`truncated`), with the observation that it has and a reward of 0. `info` is empty.
    """

    host: Host = eqx.field(static=True)
    name: str = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    not_restored = "gymnasium's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        return self.reset_where(key, jnp.ones((), bool))

    def reset_where(self, key: Key[Array, ""], needed: Bool[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        seed = jr.bits(key, (), jnp.uint32)
        obs = jax.pure_callback(self.host.reset, self._shapes(), seed, needed, vmap_method="broadcast_all")
        return obs, HostState(jnp.zeros(3, jnp.uint32).at[0].set(seed), obs)

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
        """What gymnasium draws of it, with `render_mode="rgb_array"`."""
        seed, time, history = map(int, state.on_host)
        return self.host.picture((seed, time, history))


def names() -> list[str]:
    """Without those that are written in JAX a second time."""
    registry = extra("gymnasium", "gymnasium", "the suite gymnasium").registry
    return [name for name in registry if not name.startswith(("phys2d/", "tabular/"))]


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Gymnasium, None]:
    """With the arguments of `gymnasium.make`, such as `max_episode_steps`."""
    gymnasium: Any = extra("gymnasium", "gymnasium", env_id)
    name = env_id.partition("/")[2]
    if name not in gymnasium.registry and ":" not in name:  # a module to import first, which registers it
        raise unknown("gymnasium", env_id, names())
    try:
        host = Host(partial(gymnasium.make, name, **{"disable_env_checker": True} | env_kwargs))
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id}: {error}") from error
    limit = host.spare[0].spec.max_episode_steps
    return Gymnasium(host, env_id, limit), None
