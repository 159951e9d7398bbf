"""Eight tasks of memory, with the rules, sizes and rewards of popgym 1.0.7: Morad et al. 2023, https://arxiv.org/abs/2303.01859.

Returns lie in [-1, 1]. Nothing shows what was done before: policies that must know it (in MultiarmedBandit, Concentration, Minesweeper)
see it with `eqxrl.envs.ShowLastStep` around the task.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Int8, Int32, Key, UInt8

from eqxrl._typing import Scalar
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Discrete, Tuple

PACKAGE = None
DECK, COLORS, SUITS, RANKS = 52, 2, 4, 13
NOT_ASKED = -1
Dealt = tuple[Int[Array, "observations parts"], Int[Array, " steps"]]
"""What is shown, and the right answer to each but the last."""


def size(default: Any) -> Any:
    return eqx.field(static=True, default=default)


def shuffled(key: Key[Array, ""], num_decks: int, num_kinds: int) -> Int8[Array, " cards"]:
    """The kinds of all cards in random order, as many of each."""
    return jr.permutation(key, (jnp.arange(DECK * num_decks) % num_kinds).astype(jnp.int8))


def plus_or_minus(right: Bool[Array, ""], num_rewards: int) -> Scalar:
    """The same amount for right and wrong, so that all of `num_rewards` right give 1."""
    return jnp.where(right, 1 / num_rewards, -1 / num_rewards).astype(jnp.float32)


class Rules(NamedTuple):
    shown: tuple[int, ...]
    """How many values each part of the observation has."""
    num_actions: int
    num_steps: int
    num_rewards: int
    """Each is 1 over this, or minus that."""


class QuizState(eqx.Module):
    shown: Int8[Array, "observations parts"]
    answers: Int8[Array, " steps"]
    time: Int32[Array, ""]


class AbstractQuiz(eqx.Module):
    """A task in which no action changes what is seen: cards are dealt one by one, and each step asks for an answer. All of it is laid out
    at the start. After the last card the episode has terminated; this is reported as truncated as well, since it is at `max_steps`."""

    name: eqx.AbstractVar[str]
    num_decks: eqx.AbstractVar[int]

    @abc.abstractmethod
    def rules(self) -> Rules: ...

    @abc.abstractmethod
    def deal(self, key: Key[Array, ""]) -> Dealt: ...

    @property
    def num_cards(self) -> int:
        return DECK * self.num_decks

    @property
    def max_steps(self) -> int:
        return self.rules().num_steps

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, QuizState]:
        shown, answers = self.deal(key)
        state = QuizState(shown.astype(jnp.int8), answers.astype(jnp.int8), jnp.zeros((), jnp.int32))
        return self.observe(state), state

    def step(self, key: Key[Array, ""], state: QuizState, action: Any, params: Any = None) -> Transition:
        answer = state.answers[state.time]
        reward = jnp.where(answer == NOT_ASKED, 0, plus_or_minus(answer == action, self.rules().num_rewards))
        state = QuizState(state.shown, state.answers, state.time + 1)
        ended = state.time >= len(state.answers)
        return self.observe(state), state, reward, ended, ended, {}

    def observe(self, state: QuizState) -> Any:
        row = state.shown[state.time].astype(jnp.int32)
        return row[0] if row.size == 1 else tuple(row[i] for i in range(row.size))

    def observation_space(self, params: Any = None) -> Discrete | Tuple:
        parts = [Discrete(n) for n in self.rules().shown]
        return parts[0] if len(parts) == 1 else Tuple(parts)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.rules().num_actions)


class RepeatFirst(AbstractQuiz):
    """Name the suit of the first card, at each step of one way through the decks. The observation is the suit of the card just dealt. What
    matters is the episode's first observation, in the end 50 (Easy), 414 or 830 (Hard) steps back."""

    name: str = size("RepeatFirst")
    num_decks: int = size(1)

    def rules(self) -> Rules:
        return Rules((SUITS,), SUITS, self.num_cards - 1, self.num_cards - 1)

    def deal(self, key: Key[Array, ""]) -> Dealt:
        cards = shuffled(key, self.num_decks, SUITS)
        return cards[:, None], jnp.full(self.max_steps, cards[0])


class RepeatPrevious(AbstractQuiz):
    """Name the suit of the k-th last card, counting the one in sight, at each step of one way through the decks; before there are k cards,
    the reward is 0. The observation is the suit of the card just dealt. What matters is `k - 1` steps back: 3 (Easy), 31 or 63 (Hard).

    **Raises:** `ValueError` for a `k` that isn't from 1 to the number of cards less 1.
    """

    name: str = size("RepeatPrevious")
    num_decks: int = size(1)
    k: int = size(4)

    def __check_init__(self):
        if not 1 <= self.k < self.num_cards:
            raise ValueError(f"{self.name} got k={self.k}; with {self.num_cards} cards it must be from 1 to {self.num_cards - 1}")

    def rules(self) -> Rules:
        return Rules((SUITS,), SUITS, self.num_cards - 1, self.num_cards - self.k)

    def deal(self, key: Key[Array, ""]) -> Dealt:
        cards = shuffled(key, self.num_decks, SUITS)
        return cards[:, None], jnp.concatenate([jnp.full(self.k - 1, NOT_ASKED, jnp.int8), cards[: -self.k]])


class CountRecall(AbstractQuiz):
    """How many cards of the kind that is asked for were dealt so far, the one in sight among them? The observation is the kind (color, suit
    or rank) of the card just dealt, and the kind asked for; the action is the count. An episode goes once through the decks. All cards
    so far matter, in any order."""

    name: str = size("CountRecall")
    num_decks: int = size(1)
    num_kinds: int = size(COLORS)

    def rules(self) -> Rules:
        return Rules((self.num_kinds,) * 2, self.num_cards // self.num_kinds + 1, self.num_cards - 1, self.num_cards - 1)

    def deal(self, key: Key[Array, ""]) -> Dealt:
        cards, queries = (shuffled(k, self.num_decks, self.num_kinds).astype(jnp.int32) for k in jr.split(key))
        counts = jnp.cumsum(jax.nn.one_hot(cards, self.num_kinds, dtype=jnp.int32), axis=0)
        return jnp.stack([cards, queries], axis=1), jnp.take_along_axis(counts, queries[:, None], axis=1)[:-1, 0]


class Autoencode(AbstractQuiz):
    """Watch all cards, then name their suits from the last to the first. The observation is whether to watch (1; the reward is 0 then), and
    the suit of the card just dealt. With the last card, still in sight, the naming begins; afterwards the suit shown is 0. The j-th
    answer, from 0, was seen 2 j steps before: in the end 102 (Easy), 206 or 310 (Hard) steps back."""

    name: str = size("Autoencode")
    num_decks: int = size(1)

    def rules(self) -> Rules:
        return Rules((2, SUITS), SUITS, 2 * self.num_cards - 1, self.num_cards)

    def deal(self, key: Key[Array, ""]) -> Dealt:
        cards, watched = shuffled(key, self.num_decks, SUITS), self.num_cards - 1
        watching = (jnp.arange(2 * self.num_cards) < watched).astype(jnp.int8)
        suits = jnp.concatenate([cards, jnp.zeros_like(cards)])
        return jnp.stack([watching, suits], axis=1), jnp.concatenate([jnp.full(watched, NOT_ASKED, jnp.int8), cards[::-1]])


class HigherLower(AbstractQuiz):
    """Will the next card's rank be higher (0) or lower (1)? Where they are equal, the reward is 0. The observation is the rank of the card
    just dealt; an episode goes once through the decks. The present card alone is worth a return of about 0.5; all cards so far,
    in any order, tell which are left."""

    name: str = size("HigherLower")
    num_decks: int = size(1)

    def rules(self) -> Rules:
        return Rules((RANKS,), 2, self.num_cards - 1, self.num_cards)

    def deal(self, key: Key[Array, ""]) -> Dealt:
        cards = shuffled(key, self.num_decks, RANKS)
        return cards[:, None], jnp.where(cards[1:] == cards[:-1], NOT_ASKED, cards[1:] < cards[:-1])


class BanditState(eqx.Module):
    payouts: Float[Array, " arms"]
    time: Int32[Array, ""]


class MultiarmedBandit(eqx.Module):
    """Find the arm that pays most often; the probabilities are drawn uniformly for each episode. The observation is whether the last
    action paid (0 at the start), the action an arm. A pull that pays gives 1 / `max_steps`, another the negative of that; the episode is
    cut off at `max_steps`. All pulls so far matter, in any order."""

    name: str = size("MultiarmedBandit")
    num_arms: int = size(10)
    max_steps: int = size(200)

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, BanditState]:
        return jnp.zeros((), jnp.int32), BanditState(jr.uniform(key, (self.num_arms,)), jnp.zeros((), jnp.int32))

    def step(self, key: Key[Array, ""], state: BanditState, action: Any, params: Any = None) -> Transition:
        paid, state = jr.uniform(key) < state.payouts[action], BanditState(state.payouts, state.time + 1)
        reward = plus_or_minus(paid, self.max_steps)
        return paid.astype(jnp.int32), state, reward, jnp.array(False), state.time >= self.max_steps, {}

    def observation_space(self, params: Any = None) -> Discrete:
        return Discrete(2)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.num_arms)


class ConcentrationState(eqx.Module):
    cards: Int8[Array, " cards"]
    matched: Bool[Array, " cards"]
    first: Int32[Array, ""]
    """The card that was turned up and waits for its partner; -1 if there is none."""
    time: Int32[Array, ""]


class Concentration(eqx.Module):
    """Pairs: turn up two cards, one at a step; two of a kind (color or rank) stay open. The observation is a row for each card, the one-hot
    of its kind if it is open, else zeros; the action is a card. A pair gives 2 / n with n cards. Another turn costs 1 / 2n for each step
    of it: two that differ, the same card twice, a card that was open, which ends the turn at once. Terminated when all are matched,
    cut off after 2n steps. All cards seen so far matter, and where they lie."""

    name: str = size("Concentration")
    num_decks: int = size(1)
    num_kinds: int = size(COLORS)

    @property
    def max_steps(self) -> int:
        return 2 * DECK * self.num_decks

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, ConcentrationState]:
        cards = shuffled(key, self.num_decks, self.num_kinds)
        state = ConcentrationState(cards, cards < 0, jnp.array(-1, jnp.int32), jnp.zeros((), jnp.int32))
        return self.observe(cards, state.matched), state

    def step(self, key: Key[Array, ""], state: ConcentrationState, action: Any, params: Any = None) -> Transition:
        cards, matched, first = state.cards, state.matched, state.first
        index, action = jnp.arange(cards.size), jnp.asarray(action, jnp.int32)
        turned, is_second, was_open = (index == action) | (index == first), first >= 0, matched[action]
        pair = is_second & ~was_open & (first != action) & (cards[first] == cards[action])
        ended = is_second | was_open
        cost = jnp.where(ended, (1 + is_second) / self.max_steps, 0.0)
        obs, matched = self.observe(cards, matched | turned), matched | (turned & pair)
        state = ConcentrationState(cards, matched, jnp.where(ended, -1, action), state.time + 1)
        return obs, state, jnp.where(pair, 2 / cards.size, -cost), jnp.all(matched), state.time >= self.max_steps, {}

    def observe(self, cards: Int8[Array, " cards"], is_open: Bool[Array, " cards"]) -> UInt8[Array, "cards kinds"]:
        return jax.nn.one_hot(jnp.where(is_open, cards, -1), self.num_kinds, dtype=jnp.uint8)

    def observation_space(self, params: Any = None) -> Box:
        return Box(0, 1, (DECK * self.num_decks, self.num_kinds), jnp.uint8)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(DECK * self.num_decks)


class MinesweeperState(eqx.Module):
    mines: Bool[Array, " cells"]
    viewed: Bool[Array, " cells"]
    time: Int32[Array, ""]


class Minesweeper(eqx.Module):
    """View every cell without a mine. The observation is the number of mines in the 3 x 3 cells around the one that was chosen, itself
    included (0 at the start); the action is a cell, row by row. With n cells that are free, a new one gives 1 / n, one already viewed
    costs 0.5 / (n - 2), a mine 0.5 + 1 / n. Terminated at a mine and when all is viewed, cut off after n steps. All that was viewed so far
    matters."""

    name: str = size("Minesweeper")
    num_rows: int = size(4)
    num_mines: int = size(2)

    @property
    def max_steps(self) -> int:
        return self.num_rows**2 - self.num_mines

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, MinesweeperState]:
        mines = jr.permutation(key, jnp.arange(self.num_rows**2) < self.num_mines)
        return jnp.zeros((), jnp.int32), MinesweeperState(mines, jnp.zeros_like(mines), jnp.zeros((), jnp.int32))

    def step(self, key: Key[Array, ""], state: MinesweeperState, action: Any, params: Any = None) -> Transition:
        (row, column), (rows, columns) = (divmod(x, self.num_rows) for x in (action, jnp.arange(self.num_rows**2)))
        near = state.mines & (jnp.abs(rows - row) <= 1) & (jnp.abs(columns - column) <= 1)
        hit, again = state.mines[action], state.viewed[action]
        reward = jnp.where(again, -0.5 / (self.max_steps - 2), 1 / self.max_steps)
        reward = jnp.where(hit, -0.5 - 1 / self.max_steps, reward)
        state = MinesweeperState(state.mines, state.viewed.at[action].set(~hit), state.time + 1)
        terminated = hit | jnp.all(state.viewed | state.mines)
        return jnp.sum(near, dtype=jnp.int32), state, reward, terminated, ~terminated & (state.time >= self.max_steps), {}

    def observation_space(self, params: Any = None) -> Discrete:
        return Discrete(min(self.num_mines, 9) + 1)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.num_rows**2)


SIZES: dict[Any, tuple[tuple[int, ...], ...]] = {  # of Easy, Medium, Hard: the fields after `name`
    RepeatFirst: ((1,), (8,), (16,)),
    RepeatPrevious: ((1, 4), (2, 32), (3, 64)),
    CountRecall: ((1, COLORS), (2, SUITS), (4, RANKS)),
    Autoencode: ((1,), (2,), (3,)),
    Concentration: ((1, COLORS), (2, COLORS), (1, RANKS)),
    HigherLower: ((1,), (2,), (3,)),
    MultiarmedBandit: ((10, 200), (20, 400), (30, 600)),
    Minesweeper: ((4, 2), (6, 6), (8, 10)),
}
LEVELS = ("Easy", "Medium", "Hard")
TASKS = {f"popgym/{cls.__name__}{LEVELS[i]}": (cls, sizes) for cls, of_level in SIZES.items() for i, sizes in enumerate(of_level)}


def names() -> list[str]:
    return [name.partition("/")[2] for name in TASKS]


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, None]:
    if env_id not in TASKS:
        raise unknown("popgym", env_id, TASKS)
    cls, sizes = TASKS[env_id]
    return dataclasses.replace(cls(env_id, *sizes), **env_kwargs), None
