"""Environments that aren't written in JAX. They stay on the host; the states here only say which one is meant, and where it stands, so
that stepping is a function of key, state and action there as well."""

import dataclasses
from collections.abc import Callable, Mapping
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
from eqxrl.envs.suites._pools import GOES_ON, Pools

_RESET = np.uint32(0x52455345)
"""What a reset is in a hash."""
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""By the bytes of an action's numbers, into which words they are cut up."""


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
    has and a reward of 0. `info` is empty, but for what `begins_next` puts there.
    """

    host: Pools = eqx.field(static=True)
    name: str = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    not_restored: str = eqx.field(static=True)
    begins_next: bool = eqx.field(static=True, default=False)
    """Where an episode ends, `step` begins the next one, which `info["next"]` has for `reset_where`: one call to the host for both."""

    def with_resets(self) -> "OnHost":
        return dataclasses.replace(self, begins_next=True)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[PyTree, HostState]:
        seed = self._seed(key)
        _, obs = _call(self.host.reset, [], self._shapes(), [seed])
        return self._standing(obs, jnp.zeros(3, jnp.uint32).at[0].set(seed))

    def reset_where(
        self, key: Key[Array, ""], needed: Bool[Array, ""], state: HostState, params: Any = None, info: Mapping[str, Any] | None = None
    ) -> tuple[PyTree, HostState]:
        there = [*jax.tree.leaves(state.obs), state.on_host]
        after = _after(state.on_host, hashed(state.on_host[2]))

        def begin(needed: Any) -> Any:
            return _call(self.host.reset_where, there, [], [needed, self._seed(key), after])[0]

        if info is None or "next" not in info:
            made = begin(needed)
        else:
            begun, *first = info["next"]
            made = cond_any(needed & ~begun, begin, [needed & ~begun], there)
            made = [jnp.where(begun, x, y) for x, y in zip([*first, after], made, strict=True)]
        return self._standing(made[:-1], made[-1])

    def step(self, key: Key[Array, ""], state: HostState, action: PyTree, params: Any = None) -> Transition:
        then = _after(state.on_host, hashed(state.on_host[2], action))
        step = partial(self.host.step, begins_next=self.begins_next)
        there = [*jax.tree.leaves(state.obs), state.on_host]
        args = [jnp.append(then, hashed(then[2])), *jax.tree.leaves(action)]
        shapes = [jax.ShapeDtypeStruct((), x) for x in (jnp.float32, jnp.bool_, jnp.bool_)]
        (*obs, on_host), made = _call(step, there, shapes + (self._shapes() if self.begins_next else []), args)
        reward, terminated, truncated, *first = made
        begun = (terminated | truncated) & (on_host[1] == then[1])
        info = {"next": (begun, *first)} if self.begins_next else {}
        return *self._standing(obs, on_host), reward, terminated, truncated, info

    def _seed(self, key: Key[Array, ""]) -> UInt32[Array, ""]:
        seed = jr.bits(key, (), jnp.uint32)
        return seed | jnp.uint32(GOES_ON) if self.begins_next else seed & ~jnp.uint32(GOES_ON)

    def _standing(self, obs: list[Array], on_host: UInt32[Array, " 3"]) -> tuple[PyTree, HostState]:
        tree = self.host.structure.unflatten(obs)
        return tree, HostState(on_host, tree)

    def _shapes(self) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.host.leaves]

    def observation_space(self, params: Any = None) -> Any:
        return self.host.observation_space

    def action_space(self, params: Any = None) -> Any:
        return self.host.action_space

    def picture(self, state: HostState, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        """What the suite draws of it, with `render_mode="rgb_array"`."""
        seed, time, history = map(int, state.on_host)
        return self.host.picture((seed, time, history))


def _after(on_host: UInt32[Array, " 3"], history: UInt32[Array, ""]) -> UInt32[Array, " 3"]:
    """Where it stands after one more step, or reset."""
    return jnp.stack([on_host[0], on_host[1] + 1, history])


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


def _call(method: Callable[..., None], changed: list[Array], made: list[jax.ShapeDtypeStruct], args: list[Array]) -> tuple[Any, Any]:
    """`method(changed, made, args)`, of lists of NumPy arrays, `[n ...]` however it is vmapped: it changes those it is given, and fills in
    those of the shapes `made`, and both are returned. It may keep none of them: on CPU they are XLA's own memory, which costs a tenth of
    `jax.pure_callback`."""
    num_changed, rank = len(changed), jnp.ndim(args[0])

    def run(out: list[np.ndarray], args: list[np.ndarray]) -> None:
        if (depth := args[0].ndim - rank) != 1:
            out, args = ([x.reshape(-1, *x.shape[depth:]) for x in arrays] for arrays in (out, args))
        method(out[:num_changed], out[num_changed:], args)

    def here(context: Any, out: Any, *given: Any) -> None:
        run([np.asarray(x) for x in out], [np.asarray(x) for x in given[num_changed:]])

    def elsewhere(*given: Any) -> list[Any]:
        def fill(*given: Any) -> list[np.ndarray]:
            args = [np.asarray(x) for x in given[num_changed:]]
            batch = args[0].shape[: args[0].ndim - rank]
            out = [np.array(x) for x in given[:num_changed]] + [np.empty((*batch, *x.shape), x.dtype) for x in made]
            run(out, args)
            return out

        return jax.pure_callback(fill, shapes, *given, vmap_method="broadcast_all")

    shapes = [*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed), *made]
    aliases = {i: i for i in range(num_changed)}
    on_cpu = buffer_callback(here, shapes, vmap_method="broadcast_all", input_output_aliases=aliases)
    out = jax.lax.platform_dependent(*changed, *args, cpu=on_cpu, default=elsewhere)
    return out[:num_changed], out[num_changed:]
