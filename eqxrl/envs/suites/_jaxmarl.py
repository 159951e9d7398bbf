"""JaxMARL: teams, each of which is one learner here. It reports its time limits as ends, and resets in `step`, which isn't used."""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites._jumanji import scatters_of_other_dtypes
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Dict, MultiDiscrete, Space

PACKAGE = "jaxmarl"
EPISODE_LENGTH = 4000
"""Where JaxMARL sets no limit: in hanabi, which ends by itself as long as moves are legal."""
BRAX_LENGTH = 1000
BRAX = ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3")
MASKS = {"hanabi": "get_legal_moves", "HeuristicEnemySMAX": "get_avail_actions"}
"""The methods that say which actions are legal. The others' is missing or, jaxnav's, says nothing."""
OTHERS = {
    "MPE_simple_tag_v3": "is played by predators against prey",
    "MPE_simple_world_comm_v3": "is played by predators against prey",
    "MPE_simple_crypto_v3": "is played by two against one who listens",
    "MPE_simple_push_v3": "is played by one agent against another",
    "MPE_simple_adversary_v3": "is played by two against one",
    "SMAX": "is played by two armies, both of them learners; HeuristicEnemySMAX is the task of one of them",
    "LearnedPolicyEnemySMAX": "is played against a network of Flax; HeuristicEnemySMAX is the task against rules",
    **{name: "pays each agent for itself, mostly at the cost of the others" for name in ("storm", "storm_2p", "storm_np", "coin_game")},
}
"""What isn't served, and why."""
NAMED = {
    "overcooked": ("layout", "overcooked.layouts", "overcooked_layouts"),
    "HeuristicEnemySMAX": ("scenario", "smax.smax_env", "MAP_NAME_TO_SCENARIO"),
}
"""Arguments that may be names here, and where JaxMARL keeps what they are names of."""
NEVER = np.iinfo(np.int32).max


class JaxMARL(eqx.Module):
    """A task of JaxMARL that a team shares, without its time limit. The learner chooses for all of the team at once.

    - The observation has a row for each agent, `[agents ...]`, float32; where agents see differently much, rows are flat, with zeros at
      their ends. Where not all actions are always legal, it is a dict of `observation` and `action_mask`.
    - The action is a choice for each agent, or, of floats, a row for each; of rows that are longer than that agent's action the end counts
      for nothing. `nn.SharedAgents` is a policy for such teams, the same for every agent.
    - The reward is the mean over the team: what each of them gets, where all get the same.
    - `terminated` is JaxMARL's end of all agents, and `info` JaxMARL's.
    """

    env: Any = eqx.field(static=True)
    """Its time limit is lifted: what it calls an end is one."""
    name: str = eqx.field(static=True)
    team: tuple[str, ...] = eqx.field(static=True)
    """The agents that learn. The others, facmac's prey, do what JaxMARL has them do."""
    legal: Callable[[Any], Any] | None = eqx.field(static=True)
    """What JaxMARL says of a state's legal actions."""
    reset_pool: int | None = eqx.field(static=True)
    spaces: tuple[Space, Space] = eqx.field(static=True)

    def __init__(self, env: Any, name: str):
        self.env, self.name, bare = env, name, name.partition("/")[2]
        self.team = tuple(getattr(env, "adversaries", env.agents))
        self.reset_pool = 256 if bare in BRAX else None
        actions: Any = [env.action_space(agent) for agent in self.team]
        self.legal, choices = None, [int(getattr(action, "n", 0)) for action in actions]
        if all(choices):
            acts, self.legal = MultiDiscrete(choices), getattr(env, MASKS.get(bare, ""), None)
        else:
            widest = max(action.shape[0] for action in actions)
            low, high = (np.stack([_padded(getattr(action, x), action.shape[0], widest) for action in actions]) for x in ("low", "high"))
            acts = Box(low, high, low.shape)
        seen: Any = jax.eval_shape(lambda: self._rows(self._reset(jax.random.key(0))[0]))
        seen = Box(-np.inf, np.inf, seen.shape)
        if self.legal is not None:
            seen = Dict({"observation": seen, "action_mask": Box(0, 1, (sum(choices),), bool)})
        self.spaces = seen, acts

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        obs, state = self._reset(key)
        return self._shown(obs, state), state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        actions = {}
        for agent in self.env.agents:
            shape = self.env.action_space(agent).shape
            row = action[self.team.index(agent)] if agent in self.team else jnp.zeros(shape)
            actions[agent] = row[: shape[0]] if shape else row
        state = jax.tree.map(lambda x: x, state)  # brax writes into the one that it is given
        with scatters_of_other_dtypes():
            obs, state, rewards, dones, info = self.env.step_env(key, state, actions)
        reward = jnp.mean(jnp.stack([jnp.asarray(rewards[agent], jnp.float32) for agent in self.team]))
        return self._shown(obs, state), state, reward, dones["__all__"], jnp.zeros((), bool), info

    def observation_space(self, params: Any = None) -> Space:
        return self.spaces[0]

    def action_space(self, params: Any = None) -> Space:
        return self.spaces[1]

    @property
    def picture(self) -> Callable[[Any, Any], np.ndarray]:
        """Of MPE, SMAX and overcooked."""
        name = self.name.partition("/")[2]
        if not name.startswith("MPE") and not name.endswith("SMAX") and name != "overcooked":
            raise AttributeError(f"no picture of {self.name} can be drawn")
        draw = _draw_mpe if name.startswith("MPE") else _draw_smax if name.endswith("SMAX") else _draw_overcooked
        return lambda state, params=None: draw(self.env, state)

    def _reset(self, key: Key[Array, ""]) -> tuple[Any, Any]:
        with scatters_of_other_dtypes():
            return self.env.reset(key)

    def _rows(self, obs: Any) -> Array:
        rows = [jnp.asarray(obs[agent], jnp.float32) for agent in self.team]
        if len({row.shape for row in rows}) > 1:
            widest = max(row.size for row in rows)
            rows = [jnp.pad(jnp.ravel(row), (0, widest - row.size)) for row in rows]
        return jnp.stack(rows)

    def _shown(self, obs: Any, state: Any) -> Any:
        if self.legal is None:
            return self._rows(obs)
        legal = self.legal(state)
        return {"observation": self._rows(obs), "action_mask": jnp.concatenate([legal[agent] for agent in self.team]) != 0}


def names() -> list[str]:
    """Those of tasks that a team shares. Those in `BRAX` need brax as well."""
    registered = _jaxmarl("the suite jaxmarl").registered_envs
    return [name for name in registered if name not in OTHERS and not name.startswith("JaxRobotarium")]


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[TimeLimit, None]:
    """The arguments are the environment's, such as `num_agents` and `max_steps`; overcooked's `layout` and SMAX's `scenario` may be names.
    Besides, `episode_length` cuts off after so many steps, by default where JaxMARL ends an episode for its length: after `max_steps`, or
    one more in MPE and SMAX, which compare before they count.

    **Raises:** `ValueError` for agents that play against each other, too.
    """
    jaxmarl = _jaxmarl(env_id)
    name = env_id.partition("/")[2]
    if name in OTHERS:
        served = f"here a team is one learner, so only tasks that it shares are served: {', '.join(names())}"
        raise ValueError(f"{env_id} {OTHERS[name]}; {served}")
    if name not in names():
        raise unknown("jaxmarl", env_id, names())
    length = env_kwargs.pop("episode_length", BRAX_LENGTH if name in BRAX else None)
    if name in BRAX:
        extra("brax", "brax", env_id)
        env_kwargs |= dict(episode_length=None, auto_reset=False)
    argument, module, attribute = NAMED.get(name, ("", "", ""))
    if isinstance(given := env_kwargs.get(argument), str):
        named = getattr(extra(f"jaxmarl.environments.{module}", "jaxmarl", env_id), attribute)
        if given not in named:
            raise ValueError(f"{env_id} has no {argument} {given!r}; there are {', '.join(named)}")
        env_kwargs[argument] = named[given]
    with warnings.catch_warnings():
        # That another one would be better, and that jaxnav's own distances are too long.
        warnings.filterwarnings("ignore", "OvercookedV2 is now released|MABrax is deprecated|Brax System|max_dist_to_goal")
        env = jaxmarl.make(name, **env_kwargs)
    limit = _lift_limit(name, env)
    return TimeLimit(JaxMARL(env, env_id), limit if length is None else length), None


def _lift_limit(name: str, env: Any) -> int:
    """After how many steps the environment, which is changed here, would have ended an episode."""
    env = env._env if name.endswith("SMAX") else env  # both armies, where the limit is
    limit = getattr(env, "max_steps", EPISODE_LENGTH)
    if name.startswith("overcooked"):  # it shows that little time is left
        env.is_terminal = lambda state: state.done
        return limit
    env.max_steps = NEVER
    return limit + name.startswith("MPE") + name.endswith("SMAX")


def _padded(bound: Any, size: int, widest: int) -> np.ndarray:
    return np.pad(np.broadcast_to(np.asarray(bound, np.float32), (size,)), (0, widest - size), mode="edge")


def _jaxmarl(user: str) -> Any:
    """The package. As it is imported it prints, and leaves `sys.__stdout__` in the place of `sys.stdout`."""
    with _kept_streams():
        return extra("jaxmarl", "jaxmarl", user)


@contextlib.contextmanager
def _kept_streams() -> Iterator[None]:
    names = ("stdout", "stderr", "__stdout__", "__stderr__")
    kept = {name: getattr(sys, name) for name in names}
    try:
        for name in ("stdout", "__stdout__"):
            setattr(sys, name, io.StringIO())
        yield
    finally:
        for name, stream in kept.items():
            setattr(sys, name, stream)


def _draw_mpe(env: Any, state: Any) -> np.ndarray:
    return _circles(state.p_pos, env.rad, np.asarray(env.colour) / 255, (-2, 2, -2, 2))


def _draw_smax(env: Any, state: Any) -> np.ndarray:
    """Allies are blue, enemies green."""
    units = state.state
    colours = ["tab:blue"] * env.num_allies + ["tab:green"] * env.num_enemies
    alive = np.flatnonzero(units.unit_alive)
    radii = np.asarray(env.unit_type_radiuses)[np.asarray(units.unit_types)]
    return _circles(units.unit_positions[alive], radii[alive], [colours[i] for i in alive], (0, env.map_width, 0, env.map_height))


def _draw_overcooked(env: Any, state: Any) -> np.ndarray:
    viewer: Any = extra("jaxmarl.viz.overcooked_visualizer", "jaxmarl", "a picture").OvercookedVisualizer
    border = (state.maze_map.shape[0] - env.height) // 2
    grid = np.asarray(state.maze_map)[border:-border, border:-border]
    return viewer._render_grid(grid, agent_dir_idx=np.asarray(state.agent_dir_idx), agent_inv=np.asarray(state.agent_inv))


def _circles(positions: Any, radii: Any, colours: Any, bounds: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(4, 4), dpi=80)
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
    axes.axis(bounds)
    axes.set_axis_off()
    for position, radius, colour in zip(np.asarray(positions), np.asarray(radii), colours, strict=True):
        axes.add_patch(Circle(position, float(radius), color=colour))
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
