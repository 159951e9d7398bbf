"""Environments that aren't written in JAX. They stay on the host; the states here only say which one is meant, and where it stands, so
that stepping is a function of key, state and action there as well."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Key, PyTree, UInt8, UInt32

from eqxrl._cond import cond_any
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._pools import Pools

_RESET = np.uint32(0x52455345)
"""What a reset is in a hash."""
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""By the bytes of an action's numbers, into which words they are cut up."""


class HostState(eqx.Module):
    on_host: UInt32[Array, " 3"]
    """A seed, the steps taken and episodes begun since, a hash of these."""
    obs: PyTree
    """What was seen last."""
    next: tuple[Bool[Array, ""], PyTree, UInt32[Array, " 3"]]
    """Whether the next episode has begun already, and that one's `obs` and `on_host`; the state's own where it hasn't."""


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
    begins_next: bool = eqx.field(static=True, default=False)
    """Where an episode ends, `step` begins the next one, which the state keeps for `reset_where`: one call to the host for both."""

    def with_resets(self) -> "OnHost":
        return dataclasses.replace(self, begins_next=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        seed = jr.bits(key, (), jnp.uint32)
        obs = _call(self.host.reset, self._shapes(), seed)
        return _standing(obs, jnp.zeros(3, jnp.uint32).at[0].set(seed))

    def reset_where(
        self, key: Key[Array, ""], needed: Bool[Array, ""], state: HostState, params: Any = None
    ) -> tuple[PyTree, HostState]:
        def begin(needed: Any) -> Any:
            shapes = self._shapes(), jax.ShapeDtypeStruct((3,), jnp.uint32)
            asked = jnp.append(state.on_host, hashed(state.on_host[2]))
            return _call(self.host.reset_where, shapes, jr.bits(key, (), jnp.uint32), needed, asked)

        if not self.begins_next:
            return _standing(*begin(needed))
        begun, *there = state.next
        made = cond_any(needed & ~begun, begin, [needed & ~begun], tuple(there))
        return _standing(*jax.tree.map(lambda x, y: jnp.where(begun, x, y), tuple(there), made))

    def step(self, key: Key[Array, ""], state: HostState, action: PyTree, params: Any = None) -> Transition:
        seed, time, history = state.on_host
        then = hashed(history, action)
        anew = hashed(then)
        shapes = self._shapes(), jax.ShapeDtypeStruct((2,), jnp.uint32), self._shapes() if self.begins_next else ()
        step = partial(self.host.step, begins_next=self.begins_next)
        obs, (flags, reward), first = _call(step, shapes, jnp.stack([seed, time, history, then, anew]), action)
        known, terminated, truncated, begun = (flags & bit != 0 for bit in (1, 2, 4, 8))
        obs = jax.tree.map(lambda new, old: jnp.where(known, new, old), obs, state.obs)
        obs, after = _standing(obs, jnp.where(known, jnp.stack([seed, time + 1, then]), state.on_host))
        if self.begins_next:
            after = HostState(after.on_host, obs, (begun, first, jnp.stack([seed, time + 2, anew])))
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


def _standing(obs: PyTree, on_host: UInt32[Array, " 3"]) -> tuple[PyTree, HostState]:
    """An observation, and the state of an episode after which none has begun yet."""
    return obs, HostState(on_host, obs, (jnp.zeros((), jnp.bool_), obs, on_host))


def hashed(history: UInt32[Array, ""], action: PyTree = _RESET) -> UInt32[Array, ""]:
    """The hash of what was done, after an action. Its words of 32 bits are mixed, each in its way, and added up; the rest is MurmurHash3's
    step, which is Austin Appleby's, and anyone's."""
    for leaf in map(jnp.asarray, jax.tree.leaves(action)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf, _UINTS[leaf.dtype.itemsize])
        words = bits.ravel().astype(jnp.uint32)
        words = (words ^ words >> 16) * (2 * jnp.arange(len(words), dtype=jnp.uint32) + jnp.uint32(0xCC9E2D51))
        word = (words ^ words >> 15).sum(dtype=jnp.uint32) * jnp.uint32(0x1B873593)
        history = history ^ word
        history = (history << 13 | history >> 19) * jnp.uint32(5) + jnp.uint32(0xE6546B64)
    return history


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
