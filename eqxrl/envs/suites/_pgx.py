"""pgx: games of one player, and games of several, which the learner plays against opponents that are part of the environment."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._extras import extra
from eqxrl._typing import strong, typed
from eqxrl.envs._protocol import Transition
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Dict, Discrete, Space

PACKAGE = "pgx"
LIMITS = {"animal_shogi": 256, "chess": 512, "gardner_chess": 256, "minatar-freeway": 2501, "shogi": 512}
"""Steps, of all players together, after which a game is stopped though nobody won."""
EPISODE_LENGTH = 4000
"""Where pgx sets no limit."""
INTEGERS = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def uniform(key: Key[Array, ""], state: Any) -> Int[Array, ""]:
    """An opponent that takes any legal action."""
    return jr.categorical(key, jnp.where(state.legal_action_mask, 0.0, -jnp.inf)).astype(jnp.int32)


@typed
class PgxState(eqx.Module):
    env_state: PyTree
    """pgx's."""
    player: Int[Array, ""]
    """Who the learner is."""
    reward: Float[Array, ""]
    """What the learner won or lost before its first action, which its first step pays."""


class Pgx(eqx.Module):
    """A game of pgx. A step is the learner's action and those of its opponents until it is its turn again; the reward is what it wins by
    all of them. The learner's seat is drawn at reset.

    - The observation is a dict of `observation`, always as the learner sees it, and `action_mask`; MinAtar's, where every action is always
      legal, is the image alone. After the end all actions are legal.
    - pgx reports any end as a termination. One after the number of steps in `LIMITS`, by which the game has no winner, is `truncated`, a
      draw by the rules on that very step, too. All others are `terminated`: an illegal action, which loses the game; Go's after
      2 · size² moves, as the score is counted then.
    - `info` is empty.
    """

    env: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    opponent: Callable = uniform
    """`opponent(key, state) -> action`, of all the others. `state` is pgx's: its `observation` and `legal_action_mask` are those of whoever
    acts."""

    @property
    def max_steps(self) -> int | None:
        """The learner's. In games of two with a limit the players take turns."""
        limit = LIMITS.get(self.env.id)
        return None if limit is None else -(-limit // self.env.num_players)

    def __hash__(self) -> int:
        """Of all but the opponent's arrays, which can't be hashed."""
        return hash((Pgx, self.env, self.name, *(x for x in jax.tree.leaves(self.opponent) if not eqx.is_array(x))))

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, PgxState]:
        if self.env.num_players == 1:
            state, player, reward = self.env.init(key), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        else:
            key_init, key_player, key = jr.split(key, 3)
            player = jr.randint(key_player, (), 0, self.env.num_players)
            state, reward = self._until_turn(key, self.env.init(key_init), player, jnp.zeros((), jnp.float32))
        return self._shown(state, player), PgxState(env_state=state, player=player, reward=reward)

    def step(self, key: Key[Array, ""], state: PgxState, action: Any, params: Any = None) -> Transition:
        player = state.player
        if self.env.num_players == 1:
            after = self.env.step(state.env_state, action, key)
            reward, won = after.rewards[0], jnp.zeros((), bool)
        else:
            key_step, key = jr.split(key)
            after = self.env.step(state.env_state, action, key_step)
            after, reward = self._until_turn(key, after, player, state.reward + after.rewards[player])
            won = jnp.any(after.rewards != 0)
        at_limit = after._step_count >= LIMITS.get(self.env.id, INTEGERS[1])
        terminated, truncated = after.terminated & (won | ~at_limit), after.terminated & at_limit
        now = PgxState(env_state=after, player=player, reward=jnp.zeros((), jnp.float32))
        return self._shown(after, player), now, reward, terminated, truncated, {}

    def observation_space(self, params: Any = None) -> Space:
        state = jax.eval_shape(self.env.init, jr.key(0))
        dtype = state.observation.dtype
        low, high = (0, 1) if dtype == jnp.bool_ else (-np.inf, np.inf) if jnp.issubdtype(dtype, jnp.floating) else INTEGERS
        space = Box(low, high, state.observation.shape, dtype)
        return Dict({"observation": space, "action_mask": Box(0, 1, state.legal_action_mask.shape, bool)}) if self._masks else space

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.env.num_actions)

    @property
    def _masks(self) -> bool:
        return not self.env.id.startswith("minatar-")

    def _until_turn(self, key: Any, state: Any, player: Any, reward: Any) -> tuple[Any, Any]:
        """The opponents act, and the reward grows by what `player` wins by it."""

        def theirs(carry: Any) -> Any:
            return ~carry[1].terminated & (carry[1].current_player != player)

        def act(carry: Any) -> Any:
            key, state, reward = carry
            key, key_act, key_step = jr.split(key, 3)
            state = self.env.step(state, self.opponent(key_act, state), key_step)
            return key, strong(state), reward + state.rewards[player]

        return jax.lax.while_loop(theirs, act, (key, strong(state), reward))[1:]

    def _shown(self, state: Any, player: Any) -> Any:
        if not self._masks:
            return state.observation
        # At the end it may be another's turn, whose observation `state.observation` is.
        return {"observation": self.env._observe(state, player), "action_mask": state.legal_action_mask}


def names() -> list[str]:
    return list(extra("pgx", "pgx", "the suite pgx").available_envs())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, None]:
    """- `opponent`: see `Pgx`; by default one that takes any legal action.
    - `episode_length` cuts off after so many of the learner's steps, by default `EPISODE_LENGTH` where pgx has no limit.
    - The others are arguments of the game's class, such as `sticky_action_prob` of MinAtar's and `size` and `komi` of go.
    """
    pgx: Any = extra("pgx", "pgx", env_id)
    name = env_id.partition("/")[2]
    if name not in pgx.available_envs():
        raise unknown("pgx", env_id, pgx.available_envs())
    opponent, episode_length = env_kwargs.pop("opponent", uniform), env_kwargs.pop("episode_length", None)
    game = pgx.make(name)
    env = Pgx(type(game)(**env_kwargs) if env_kwargs else game, env_id, opponent)
    if episode_length is None and env.max_steps is not None:
        return env, None
    return TimeLimit(env, EPISODE_LENGTH if episode_length is None else episode_length), None
