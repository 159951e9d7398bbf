"""Environments that aren't written in JAX. They stay on the host; the states here only say which one is meant, and where it stands, so
that stepping is a function of key, state and action there as well."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Key, PyTree, UInt8, UInt32

from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._pools import Pools


class HostState(eqx.Module):
    on_host: UInt32[Array, " 3"]
    """A seed, the steps taken and episodes begun since, a hash of these."""
    obs: PyTree
    """What was seen last."""


class OnHost(eqx.Module):
    """An environment on the host, of which as many are made as there are episodes at a time. It can be vmapped at any depth: whatever is
    stepped together is one call to the host.

    A state that was stepped already can be stepped again, otherwise: it is reached anew from its seed. A state of another process, such as
    that of a run which is resumed, can't be: its first step says that the episode is cut off (`truncated`), with the observation that it
    has and a reward of 0. `info` is empty.
    """

    host: Pools = eqx.field(static=True)
    name: str = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    not_restored: str = eqx.field(static=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        seed = jr.bits(key, (), jnp.uint32)
        obs = _call(self.host.reset, self._shapes(), seed)
        return obs, HostState(jnp.zeros(3, jnp.uint32).at[0].set(seed), obs)

    def reset_where(
        self, key: Key[Array, ""], needed: Bool[Array, ""], state: HostState, params: Any = None
    ) -> tuple[PyTree, HostState]:
        shapes = self._shapes(), jax.ShapeDtypeStruct((3,), jnp.uint32)
        obs, on_host = _call(self.host.reset_where, shapes, jr.bits(key, (), jnp.uint32), needed, state.on_host)
        return obs, HostState(on_host, obs)

    def step(self, key: Key[Array, ""], state: HostState, action: PyTree, params: Any = None) -> Transition:
        shapes, (seed, time, _) = (self._shapes(), jax.ShapeDtypeStruct((3,), jnp.uint32)), state.on_host
        obs, (history, flags, reward) = _call(self.host.step, shapes, state.on_host, action)
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


def _call(method: Callable[..., PyTree], shapes: PyTree, *args: Any) -> PyTree:
    """What a function of NumPy arrays returns. On CPU it is given XLA's own memory (copied, since that is XLA's again afterwards), which
    costs a tenth of `jax.pure_callback`."""

    def fill(context: Any, out: Any, *args: Any) -> None:
        made = method(*jax.tree.map(lambda x: np.asarray(x).copy(), args))
        for memory, x in zip(jax.tree.leaves(out), jax.tree.leaves(made), strict=True):
            np.asarray(memory)[...] = x

    def elsewhere(*args: Any) -> PyTree:
        returned = lambda *args: method(*jax.tree.map(np.asarray, args))  # noqa: E731
        return jax.pure_callback(returned, shapes, *args, vmap_method="broadcast_all")

    on_cpu = buffer_callback(fill, shapes, vmap_method="broadcast_all")
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)
