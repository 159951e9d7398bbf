import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from eqxrl._typing import KeyLike, as_key
from eqxrl.envs import NeverReset, as_environment, env_name, episode_limit
from eqxrl.envs._protocol import innermost_state, layers
from eqxrl.viz._draw import OWN, RENDERERS, gym_pictures, require_pygame, with_title
from eqxrl.viz._files import written_whole
from eqxrl.viz._writers import WRITERS, require_av

LAST_FRAME_S = 1.5
"""How long the last frame stays, before a GIF starts over."""
CHUNK = 500
"""At most so many steps are played before it is asked whether the episode is over."""


def render_episode(
    env: Any, env_params: PyTree, act: Callable, path: str | os.PathLike, key: KeyLike, *,
    max_steps: int | None = None, max_frames: int = 500, fps: float | int | None = None,
) -> Path:
    """Play one episode and write it to `path` as a GIF or an MP4: the first state, then the state after each step, the last of them
    the one in which the episode ended. The title counts steps and the return so far (undiscounted, in the env's own
    reward units).

    **Arguments:**

    - `env`, `env_params`: as `create` takes them; an env with a method `picture(state, params) -> uint8 [height width 3]`, or one that
        `gymnax.visualize` can draw, or a wrapper of one that keeps the inner env's state as its own or in a field
        `env_state`. Of gymnax's own wrappers the last state can't be had: the last frame repeats the one before, under
        its own title.
    - `act`: `act(obs, rng) -> action` for one observation, traceable; the action is already clipped for the env. With a method
        `initial_carry`, as what `make_actor` returns has, it is `act(obs, rng, carry) -> action, carry`. If it is a
        pytree (an `eqx.Module` or `eqx.Partial`), rendering again with other weights compiles nothing new.
    - `path`: ends in `.gif` or `.mp4`; its folder is created where it's missing. It only appears once it's whole.
    - `max_steps`: stop here if the episode hasn't ended before.
    - `max_frames`: of a longer episode so many states are drawn, evenly spread from the first to the last. Pictures are at most
        960 pixels wide and high.
    - `fps`: at most 50, which is what viewers play; by default Gymnasium's for classic control and 10 or fewer for the rest.

    **Returns:** the path.

    **Raises:** `ValueError` for an env that can't be drawn, a picture that is none, a path that ends in neither, a bad
    `max_steps`, `max_frames` or `fps`, or no `max_steps` where the env has no time limit; `ImportError` for classic
    control without pygame, or an MP4 without PyAV. All but the second before anything compiles.
    """
    env, name = as_environment(env, env_params), env_name(env)
    drawn_env = env if hasattr(env, "picture") else next((layer for layer in layers(env) if env_name(layer) in RENDERERS), env)
    renderer = OWN if hasattr(env, "picture") else RENDERERS.get(env_name(drawn_env))
    if renderer is None:
        raise ValueError(
            f"no picture of {name} can be drawn; give its class a method picture(state, params) that returns uint8 pixels "
            f"[height width 3]. Without one these can be drawn: {', '.join(RENDERERS)}"
        )
    limits = [limit for limit in (max_steps, episode_limit(env_params, env)) if limit is not None]
    if not limits:
        raise ValueError(f"{name} has no time limit, so its episode might never end; pass max_steps")
    if min(limits) < 1:
        raise ValueError(f"max_steps must be at least 1, got {min(limits)}")
    if max_frames < 2:
        raise ValueError(f"max_frames must be at least 2 (the first and the last state), got {max_frames}")
    fps = renderer.fps if fps is None else fps
    if not 0 < fps <= 50:
        raise ValueError(f"fps must be above 0 and at most 50 (viewers slow faster GIFs down), got {fps}")
    if renderer.pictures is gym_pictures:
        require_pygame()

    if Path(path).suffix.lower() == ".mp4":
        require_av()
    with written_whole(path, *WRITERS) as unfinished:
        first, chunks = _play(env, env_params, act, as_key(key), min(limits))
        rewards, over = (np.concatenate([chunk[i] for chunk in chunks])[: min(limits)] for i in (1, 2))
        length = min(int((~over).sum()) + 1, len(over))
        returns = np.concatenate([[0.0], rewards[:length].cumsum(dtype=np.float64)])
        shown = np.linspace(0, length, min(length + 1, max_frames)).round().astype(int)
        lost = over[length - 1] and getattr(env, "whole_step", False)
        drawn = np.minimum(shown, length - 1) if lost else shown
        size = len(chunks[0][1])
        env_states = (first if t == 0 else jax.tree.map(lambda x: x[(t - 1) % size], chunks[(t - 1) // size][0]) for t in drawn)
        pictures = renderer.pictures(drawn_env, env_params, env_states if renderer is OWN else map(innermost_state, env_states))
        titled = (with_title(picture, name, f"step {t}   return {returns[t]:.2f}") for t, picture in zip(shown, pictures))
        durations = [1 / fps] * (len(shown) - 1) + [LAST_FRAME_S]
        WRITERS[Path(path).suffix.lower()](unfinished, titled, durations)
    return Path(path)


def _play(env: Any, env_params: PyTree, act: Callable, key: Key[Array, ""], num_steps: int) -> tuple[PyTree, list[Any]]:
    """The first state, and chunks of: for each step the state that it led to, its reward, and whether the episode was over after it. They
    go on to the chunk in which the episode ends, or to `num_steps`; what follows these is filler. A limit may be far beyond where
    episodes end, and its states more than fit into memory."""
    reset_key, key = jax.random.split(key)
    num_chunks = -(-num_steps // CHUNK)
    keys = jax.random.split(key, (num_chunks, -(-num_steps // num_chunks)))
    carried = _begin(env, env_params, act, reset_key)
    first, chunks = jax.device_get(jax.tree.map(lambda x: x[0], carried[1])), []
    for chunk in keys:
        carried, played = _go_on(env, env_params, act, carried, chunk)
        chunks.append(jax.device_get(played))
        if chunks[-1][2][-1]:
            break
    return first, chunks


@eqx.filter_jit
def _begin(env: Any, env_params: PyTree, act: Callable, key: Key[Array, ""]) -> Any:
    obs, env_state, _ = NeverReset().init(env, env_params, key[None])
    return obs, env_state, jnp.zeros((1,), bool), act.initial_carry() if _remembers(act) else ()  # pyright: ignore[reportFunctionMemberAccess]


@eqx.filter_jit
def _go_on(
    env: Any, env_params: PyTree, act: Callable, carried: Any, keys: Key[Array, " steps"]
) -> tuple[Any, tuple[PyTree, Float[Array, " steps"], Bool[Array, " steps"]]]:
    def one_step(carry: Any, key: Any) -> Any:
        obs, env_state, over, memory = carry
        act_key, step_key = jax.random.split(key)
        one = jax.tree.map(lambda x: x[0], obs)
        action, memory = act(one, act_key, memory) if _remembers(act) else (act(one, act_key), memory)
        action = jax.tree.map(lambda x: x[None], action)
        after = NeverReset().step(env, env_params, jax.random.split(step_key, (2, 1)), env_state, (), action)
        over |= after.done
        return (after.obs, after.env_state, over, memory), (after.env_state, after.reward, over)

    carried, played = jax.lax.scan(one_step, carried, keys)
    return carried, jax.tree.map(lambda x: x[:, 0], played)


def _remembers(act: Callable) -> bool:
    return hasattr(act, "initial_carry")
