"""jumanji: it reports most time limits as ends of the task, and its masks are of whole actions here and of single choices there."""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete, Space

PACKAGE = "jumanji"
JOINT = ("BinPack", "FlatPack", "Minesweeper", "Sudoku", "Tetris")
"""Their actions are several choices, but their masks are of all combinations of them."""
EPISODE_LENGTH = 4000
"""Where jumanji sets no limit. Its longest is as long, Snake's."""
NEVER = np.iinfo(np.int32).max


class Jumanji(eqx.Module):
    """An environment of jumanji.

    - An end by its `time_limit` is `truncated`. Any other is `terminated`: also MultiCVRP's after a number of steps, for which it makes the
      agent pay for what it hasn't visited by then.
    - The observation is a dict, of dicts where jumanji nests; its parts have jumanji's dtypes. The exceptions: `step_count` (`step` in
      SearchAndRescue) is the fraction of the time limit that has passed, as counts of thousands would drown the rest; bytes, which are
      codes of things here and no brightness, are int32; and what has three axes and is no image (`grid`) keeps the first of them only.
      TSP's `position` is -1 before the first city, outside its space: one-hot it is all zeros.
    - `action_mask` is a vector. In `JOINT` the mask is of combinations of choices, and the action is one choice among all combinations,
      in the order of the mask's entries, so that what the mask allows is exactly what is legal. Elsewhere each choice has its part of it.
    - Several agents are one learner, which chooses for all of them. The reward is the sum of theirs.
    - `info` has jumanji's `extras`.
    """

    env: Any = eqx.field(static=True)
    """Its time limit is lifted: what it calls an end is one."""
    name: str = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    joint: tuple[int, ...] | None = eqx.field(static=True)
    """How many there are of each choice, where the mask is joint."""
    spaces: tuple[Space, Space] = eqx.field(static=True)

    @property
    def cheap_reset(self) -> bool:
        return type(self.env).__name__ == "Snake"  # with it 0.98 of its speed by hand, else 0.86

    def __init__(self, env: Any, name: str):
        self.name, self.max_steps, self.env = name, getattr(env, "time_limit", None), copy.copy(env)
        if self.max_steps is not None:
            self.env.time_limit = NEVER
        if type(env).__name__ == "SearchAndRescue":  # where it scales the reward
            reward, limit = env._reward_fn, env.time_limit
            self.env._reward_fn = lambda found, step, _: reward(found, step, limit)
        choices = _choices(env)
        self.joint = choices if type(env).__name__ in JOINT else None
        action: Any = env.action_spec
        if choices is None:
            acts = Box(np.asarray(action.minimum), np.asarray(action.maximum), action.shape, action.dtype)
        elif self.joint or not action.shape:
            acts = Discrete(math.prod(choices))
        else:
            acts = MultiDiscrete(choices, action.dtype)
        self.spaces = _space(env.observation_spec, self.max_steps), acts

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        with scatters_of_other_dtypes():
            state, timestep = self.env.reset(jax.random.key_data(key))  # a typed key in the state would count as used where it is kept
        return _shown(self.env.observation_spec, timestep.observation, self.max_steps), state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        if self.joint is not None:
            action = jnp.stack(jnp.unravel_index(action, self.joint)).astype(self.env.action_spec.dtype)
        state = jax.tree.map(lambda x: x, state)  # some write into the one that they are given
        with scatters_of_other_dtypes():
            state, timestep = self.env.step(state, action)
        obs, truncated = _shown(self.env.observation_spec, timestep.observation, self.max_steps), jnp.zeros((), bool)
        if self.max_steps is not None:
            truncated = (state.step if hasattr(state, "step") else state.step_count) >= self.max_steps
        return obs, state, jnp.sum(timestep.reward), timestep.last(), truncated, dict(timestep.extras)

    def observation_space(self, params: Any = None) -> Space:
        return self.spaces[0]

    def action_space(self, params: Any = None) -> Space:
        return self.spaces[1]

    def picture(self, state: Any, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        """What jumanji's viewer draws, with Matplotlib."""
        from matplotlib import pyplot as plt

        viewer_class = extra("jumanji.viewer", "jumanji", "a picture").MatplotlibViewer

        drawn: list[np.ndarray] = []

        def take(figure: Any) -> None:
            figure.canvas.draw()
            drawn.append(np.array(figure.canvas.buffer_rgba())[..., :3])
            plt.close(figure)

        env = copy.copy(self.env)
        for name, viewer in vars(self.env).items():
            if isinstance(viewer, viewer_class):
                viewer = copy.copy(viewer)
                viewer._display = take
                setattr(env, name, viewer)
        with _off_screen():
            env.render(state)
        return drawn[0]


def names() -> list[str]:
    return sorted(extra("jumanji", "jumanji", "the suite jumanji").registered_environments())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, None]:
    """The arguments are the environment's, such as `time_limit` and `generator`. Besides, `episode_length` cuts off after so many steps, by
    default `EPISODE_LENGTH` where the environment has no `time_limit`."""
    jumanji: Any = extra("jumanji", "jumanji", env_id)
    name = env_id.partition("/")[2]
    if name not in jumanji.registered_environments():
        raise unknown("jumanji", env_id, names())
    episode_length = env_kwargs.pop("episode_length", None)
    env = Jumanji(jumanji.make(name, **env_kwargs), env_id)
    if episode_length is None and env.max_steps is not None:
        return env, None
    return TimeLimit(env, EPISODE_LENGTH if episode_length is None else episode_length), None


def _choices(env: Any) -> tuple[int, ...] | None:
    """How many there are of each choice of an action; `None` where actions are floats."""
    spec = env.action_spec
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return None
    if hasattr(spec, "num_values"):
        return tuple(np.atleast_1d(spec.num_values).tolist())
    num_agents, num_choices = env.observation_spec.action_mask.shape  # MultiCVRP's bounds allow one node more than there are
    return (num_choices,) * num_agents


def _space(spec: Any, limit: int | None, name: str = "") -> Space:
    if spec._specs:
        return Dict({part: _space(inner, limit, part) for part, inner in spec._specs.items()})
    if hasattr(spec, "num_values") and not _is_time(name):
        return Discrete(spec.num_values, spec.dtype)
    low, high = (np.broadcast_to(x, spec.shape) for x in _bounds(spec))
    low, high = (np.asarray(_array(spec, x, limit, name)) for x in (low, high))
    return Box(low, high, low.shape, low.dtype)


def _shown(spec: Any, obs: Any, limit: int | None, name: str = "") -> Any:
    """An observation as its space says."""
    if spec._specs:
        return {part: _shown(inner, getattr(obs, part), limit, part) for part, inner in spec._specs.items()}
    return _array(spec, obs, limit, name)


def _array(spec: Any, x: Any, limit: int | None, name: str) -> Array:
    if _is_time(name):
        return jnp.asarray(x, jnp.float32) / (spec.maximum if limit is None else limit)
    x = jnp.asarray(x, jnp.int32 if spec.dtype == jnp.uint8 else spec.dtype)
    if name == "action_mask":
        return jnp.ravel(x)
    return x.reshape(x.shape[0], -1) if x.ndim == 3 and name != "grid" else x


def _bounds(spec: Any) -> tuple[Any, Any]:
    if hasattr(spec, "minimum"):
        return np.asarray(spec.minimum), np.asarray(spec.maximum)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
    return -np.inf, np.inf


def _is_time(name: str) -> bool:
    return name in ("step", "step_count")


@contextlib.contextmanager
def scatters_of_other_dtypes() -> Iterator[None]:
    """BinPack's, which JAX warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
        yield


@contextlib.contextmanager
def _off_screen() -> Iterator[None]:
    """pyplot opens no windows, and draws half as large as jumanji asks for."""
    import matplotlib
    from matplotlib import pyplot as plt

    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    try:
        with warnings.catch_warnings(), plt.rc_context({"figure.dpi": 50}):
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive", UserWarning)
            yield
    finally:
        plt.switch_backend(backend)
