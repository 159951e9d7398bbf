"""POPGym's tasks against players that see only observations, against what chance gives in closed form, and against popgym itself."""

import functools
import itertools
from collections import Counter
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import quick_jit

from eqxrl import check_env, make
from eqxrl.envs import ShowLastStep, env_name, episode_limit
from eqxrl.envs.suites import _popgym
from eqxrl.spaces import Discrete

STEPS = {  # the most that an episode of Easy, Medium, Hard takes
    "RepeatFirst": (51, 415, 831),
    "RepeatPrevious": (51, 103, 155),
    "CountRecall": (51, 103, 207),
    "Autoencode": (103, 207, 311),
    "Concentration": (104, 208, 104),
    "HigherLower": (51, 103, 155),
    "MultiarmedBandit": (200, 400, 600),
    "Minesweeper": (14, 30, 54),
}
LENGTHS = {f"popgym/{task}{level}": n for task, ns in STEPS.items() for level, n in zip(("Easy", "Medium", "Hard"), ns, strict=True)}
NAMES = list(LENGTHS)
ENDS_EARLY = ("Concentration", "Minesweeper")


def names(*tasks):
    return [name for name in NAMES if name.removeprefix("popgym/").startswith(tasks)]


# Playing: a player is a function of all observations and all its own actions so far, NumPy arrays [envs ...], and gives actions [envs].


@functools.cache
def compiled(name):
    env, _ = make(name)
    return quick_jit(jax.vmap(lambda key: env.reset(key, None))), quick_jit(jax.vmap(lambda *args: env.step(*args, None)))


def play(name, player, num_envs=64, seed=0, start=None):
    """One episode in each environment. What comes after its end counts for nothing."""
    reset, step = compiled(name)
    obs, state = reset(jr.split(jr.key(seed), num_envs)) if start is None else start
    seen, actions, rewards, going = [jax.tree.map(np.asarray, obs)], [], [], [np.ones(num_envs, bool)]
    terminated = truncated = np.zeros(num_envs, bool)
    for key in jr.split(jr.key(seed + 1), LENGTHS[name]):
        actions.append(np.asarray(player(seen, actions), np.int32) * going[-1])
        obs, state, reward, *ends, _ = step(jr.split(key, num_envs), state, jnp.asarray(actions[-1]))
        seen.append(jax.tree.map(np.asarray, obs))
        rewards.append(np.asarray(reward, np.float64) * going[-1])
        terminated, truncated = (old | (np.asarray(new) & going[-1]) for old, new in zip((terminated, truncated), ends, strict=True))
        going.append(~(terminated | truncated))
    return SimpleNamespace(
        seen=seen, actions=np.array(actions), rewards=np.array(rewards), returns=np.sum(rewards, 0), lengths=np.sum(going, 0),
        terminated=terminated, truncated=truncated,
    )  # fmt: skip


def random_player(name, num_envs, seed=0):
    rng, n = np.random.default_rng(seed), make(name)[0].action_space(None).n
    return lambda seen, actions: rng.integers(0, n, num_envs)


def near(samples, expected, *, sigmas=5):
    """The mean of independent samples."""
    return abs(np.mean(samples) - expected) < sigmas * np.std(samples) / len(samples) ** 0.5


def repeat_first(seen, actions):
    return seen[0]


def repeat_previous(k):
    return lambda seen, actions: seen[-k] if len(seen) >= k else np.zeros_like(seen[0])


def count_recall(seen, actions):
    return sum(card == seen[-1][1] for card, _ in seen)


def autoencode(seen, actions):
    still_watching = [watch.all() for watch, _ in seen]
    cards = [suit for _, suit in seen][: sum(still_watching) + 1]
    return cards[-1] if still_watching[-1] else cards[len(cards) - 1 - (len(seen) - len(cards))]


PERFECT = {
    "RepeatFirst": (repeat_first,) * 3,
    "RepeatPrevious": tuple(map(repeat_previous, (4, 32, 64))),
    "CountRecall": (count_recall,) * 3,
    "Autoencode": (autoencode,) * 3,
}
PERFECT = {f"popgym/{task}{level}": p for task, ps in PERFECT.items() for level, p in zip(("Easy", "Medium", "Hard"), ps, strict=True)}


# Every task.


@pytest.mark.filterwarnings("error")
def quick_first(names):
    """The harder versions, which are the same code with other sizes, are tried with the slow tests."""
    return [name if name.endswith("Easy") else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick_first(NAMES))
def test_contract(name):
    env, params = make(name)
    check_env(env, params, num_steps=2 * LENGTHS[name])


def test_contract_with_the_last_step_shown():
    env = ShowLastStep(make("popgym/MinesweeperEasy")[0])
    check_env(env)
    assert env.observation_space(None).spaces["action"] == Discrete(16) and env_name(env) == "popgym/MinesweeperEasy"


@pytest.mark.parametrize("name", quick_first(NAMES))
def test_names(name):
    env, params = make(name)
    assert env_name(env) == name and params is None and make(name)[0] is env
    assert episode_limit(None, env) == env.max_steps == LENGTHS[name]
    assert not jax.tree.leaves(env)


def test_there_are_no_others():
    assert set(_popgym.TASKS) == set(NAMES)


def test_sizes_can_be_chosen():
    env, _ = make("popgym/RepeatPreviousEasy", k=9)
    assert env.k == 9 and env.num_decks == 1 and make("popgym/RepeatPreviousEasy")[0].k == 4
    for k in (0, 52):
        with pytest.raises(ValueError, match=f"RepeatPreviousEasy got k={k}; with 52 cards it must be from 1 to 51"):
            make("popgym/RepeatPreviousEasy", k=k)


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("popgym/RepeatPrevius", "popgym/RepeatPrevious"),
        ("popgym/repeatfirsteasy", "popgym/RepeatFirstEasy"),
        ("popgym/MineSweeper", "popgym/MinesweeperEasy"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"popgym has no environment '{wrong}'; did you mean .*{near}"):
        make(wrong)


def test_a_name_that_is_near_to_nothing_gets_the_list():
    with pytest.raises(ValueError, match="there are popgym/RepeatFirstEasy, .*popgym/MinesweeperHard"):
        make("popgym/qqqq")


@pytest.mark.parametrize("name", quick_first(NAMES))
def test_other_keys_give_other_episodes(name):
    reset, _ = compiled(name)
    keys = jr.split(jr.key(3), 16)
    once, again = reset(keys), reset(keys)
    assert eqx.tree_equal(once, again)
    states = zip(*(np.asarray(x) for x in jax.tree.leaves(once[1])), strict=True)
    assert len({b"".join(x.tobytes() for x in state) for state in states}) >= 14


@pytest.mark.parametrize("name", quick_first(names("Repeat", "HigherLower")))
def test_decks_are_dealt_whole(name):
    cards = np.array(play(name, random_player(name, 4), 4).seen)
    num_kinds = make(name)[0].observation_space(None).n
    for column in cards.T:
        assert np.bincount(column, minlength=num_kinds).tolist() == [len(cards) // num_kinds] * num_kinds
    assert (np.sort(cards[:52], 0) != np.sort(cards[-52:], 0)).any() or len(cards) == 52  # several decks are one deck


# What chance gives.


def random_minesweeper(num_cells, num_mines):
    """The expected return of random cells: over the number of cells viewed, step by step."""
    free = num_cells - num_mines
    viewed, total = {0: 1.0}, 0.0
    for _ in range(free):
        after = Counter()
        for v, p in viewed.items():
            new, again, mine = (free - v) / num_cells, v / num_cells, num_mines / num_cells
            total += p * (new / free - again * 0.5 / (free - 2) - mine * (0.5 + 1 / free))
            after[v] += p * again
            after[v + 1] += p * new
        viewed = {v: p for v, p in after.items() if v < free}
    return total


def random_concentration(num_cards, num_kinds):
    """The expected return of random cards. A state: how many of each kind are unmatched, sorted; how many like the one that waits."""
    states, total = {((num_cards // num_kinds,) * num_kinds, 0): 1.0}, 0.0
    for _ in range(2 * num_cards):
        after = Counter()
        for (left, waiting), p in states.items():
            is_open = num_cards - sum(left)
            if not waiting:
                total -= p * is_open / num_cards / (2 * num_cards)
                after[left, 0] += p * is_open / num_cards
                for n in left:
                    after[left, n] += p * n / num_cards
                continue
            pair = (waiting - 1) / num_cards
            total += p * (pair * 2 / num_cards - (1 - pair) / num_cards)
            after[left, 0] += p * (1 - pair)
            rest = list(left)
            rest.remove(waiting)
            after[tuple(sorted([*rest, waiting - 2])), 0] += p * pair
        states = {state: p for state, p in after.items() if p and sum(state[0])}
    return total


CHANCE = {
    "RepeatFirst": lambda env: -1 / 2,
    "RepeatPrevious": lambda env: -1 / 2,
    "CountRecall": lambda env: 2 / (env.num_cards / env.num_kinds + 1) - 1,
    "Autoencode": lambda env: -1 / 2,
    "HigherLower": lambda env: 0,
    "MultiarmedBandit": lambda env: 0,
    "Concentration": lambda env: random_concentration(52 * env.num_decks, env.num_kinds),
    "Minesweeper": lambda env: random_minesweeper(env.num_rows**2, env.num_mines),
}


@pytest.mark.parametrize("name", quick_first(NAMES))
def test_a_random_player_gets_what_chance_gives(name):
    env, _ = make(name)
    played = play(name, random_player(name, 256), 256)
    assert near(played.returns, CHANCE[type(env).__name__](env))
    assert (np.abs(played.returns) <= 1 + 1e-6).all()
    if type(env).__name__ in ENDS_EARLY:
        assert played.lengths.max() <= LENGTHS[name] and (played.truncated == (played.lengths == LENGTHS[name]) & ~played.terminated).all()
    else:
        assert (played.lengths == LENGTHS[name]).all() and played.truncated.all()
        assert (played.terminated == (type(env).__name__ != "MultiarmedBandit")).all()


# What memory gives.


@pytest.mark.parametrize("name", quick_first(PERFECT))
def test_a_perfect_memory_answers_everything(name):
    right = play(name, PERFECT[name], 16)
    np.testing.assert_allclose(right.returns, 1, rtol=1e-5)
    assert (right.rewards >= 0).all() and len(np.unique(right.rewards)) <= 2
    n = make(name)[0].action_space(None).n
    wrong = play(name, lambda *args: (PERFECT[name](*args) + 1) % n, 16)
    np.testing.assert_allclose(wrong.returns, -1, rtol=1e-5)
    np.testing.assert_array_equal(wrong.rewards, -right.rewards)


@pytest.mark.parametrize("name, steps_back", zip(names("RepeatPrevious"), (3, 31, 63), strict=True))
def test_how_far_back_it_matters(name, steps_back):
    """Who remembers a step more or less does no better than chance: a fourth right, a little less since cards aren't put back."""
    for off in (-1, 1):
        assert play(name, repeat_previous(steps_back + 1 + off), 64).returns.mean() < -0.4
    rewards = play(name, repeat_previous(steps_back + 1), 4).rewards
    assert not rewards[:steps_back].any() and rewards[steps_back:].all()


def ranks_left(seen, num_decks):
    """How many are left of higher and of lower rank than the last card, `[envs]` each."""
    left = 4 * num_decks - sum(np.eye(13, dtype=int)[rank] for rank in seen)
    ranks = np.arange(13)
    return [np.sum(left * beyond, 1) for beyond in (ranks > seen[-1][:, None], ranks < seen[-1][:, None])]


@pytest.mark.parametrize("name", quick_first(names("HigherLower")))
def test_counting_ranks(name):
    num_decks = make(name)[0].num_decks
    num_cards, expected = 52 * num_decks, []

    def count(seen, actions):
        higher, lower = ranks_left(seen, num_decks)
        expected.append(np.abs(higher - lower) / (num_cards - len(seen)) / num_cards)
        return higher < lower

    counting, promised = play(name, count, 256).returns, np.sum(expected, 0)
    assert near(counting - promised, 0)
    # Without counting: for each rank that the present card can have, the others that are higher less those that are lower.
    alone = sum(abs(4 * num_decks * (12 - 2 * r)) for r in range(13)) / 13 / num_cards
    assert near(play(name, lambda seen, actions: seen[-1] > 6, 256).returns, alone)
    assert promised.mean() > alone and not near(promised, alone)


@pytest.mark.parametrize("name", quick_first(names("MultiarmedBandit")))
def test_bandits_pay_who_remembers_which_arm_did(name):
    """Thompson's sampling. At most, the best of n arms in expectation: n / (n + 1) pays."""
    n, rng, envs = make(name)[0].num_arms, np.random.default_rng(0), 128
    pulls, paid = np.zeros((2, envs, n))

    def thompson(seen, actions):
        if actions:
            pulls[np.arange(envs), actions[-1]] += 1
            paid[np.arange(envs), actions[-1]] += seen[-1]
        return rng.beta(1 + paid, 1 + pulls - paid).argmax(1)

    returns = play(name, thompson, envs).returns
    best = 2 * n / (n + 1) - 1
    assert 0.7 * best < returns.mean() < best + 0.02
    same_arm = play(name, lambda seen, actions: np.arange(envs) % n, envs).returns
    assert np.std(same_arm) > 0.45  # uniform in [-1, 1], about 0.58: each arm keeps its odds


def test_payouts_are_probabilities():
    env, _ = make("popgym/MultiarmedBanditEasy")
    state = eqx.tree_at(lambda s: s.payouts, env.reset(jr.key(0), None)[1], jnp.array([0.0, 0.3, 1.0] + [0.5] * 7))
    pull = quick_jit(jax.vmap(lambda key, arm: env.step(key, state, arm, None)[0], (0, None)))
    shares = [float(pull(jr.split(jr.key(0), 4000), jnp.array(arm)).mean()) for arm in range(3)]
    np.testing.assert_allclose(shares, [0, 0.3, 1], atol=0.03)


def concentration(known):
    """Turns up a pair if it knows one, else what it hasn't seen. `known`: kinds, -1 where they aren't, `[envs cards]`; it is filled in."""

    def act(seen, actions):
        shown = seen[-1].sum(-1) > 0
        known[shown] = seen[-1].argmax(-1)[shown]
        return [one(known[i], [a[i] for a in actions]) for i in range(len(known))]

    def one(kinds, mine):
        gone = {card for pair in zip(mine[::2], mine[1::2]) if kinds[pair[0]] == kinds[pair[1]] for card in pair}
        left = [card for card in range(len(kinds)) if card not in gone and kinds[card] >= 0]
        unknown = [card for card in range(len(kinds)) if kinds[card] < 0]
        if len(mine) % 2:
            candidates = [card for card in left if kinds[card] == kinds[mine[-1]] and card != mine[-1]]
        else:
            candidates = [card for card in left if [kinds[other] for other in left].count(kinds[card]) > 1]
        return (candidates + unknown + [0])[0]

    return act


@pytest.mark.parametrize("name", quick_first(names("Concentration")))
def test_pairs_are_found_by_who_remembers_them(name):
    n = 52 * make(name)[0].num_decks
    known = np.full((8, n), -1)
    first = play(name, concentration(known), 8)
    failed = (first.lengths - n) / 2  # turns
    assert first.terminated.all() and (failed <= n / 2).all() and failed.any(), "each failed turn shows two new cards"
    np.testing.assert_allclose(first.returns, 1 - failed / n, rtol=1e-5)
    again = play(name, concentration(known), 8)  # the same keys, so the same cards, which are known by now
    assert (again.lengths == n).all() and again.terminated.all()
    np.testing.assert_allclose(again.returns, 1, rtol=1e-5)


@pytest.mark.parametrize("name", quick_first(names("Concentration")))
def test_the_same_card_again_costs_everything(name):
    worst = play(name, lambda seen, actions: np.zeros(4), 4)
    np.testing.assert_allclose(worst.returns, -1, rtol=1e-5)
    assert worst.truncated.all() and not worst.terminated.any()
    assert (np.array([x.sum() for x in worst.seen[1:]]) == 4).all() and worst.seen[0].sum() == 0


@pytest.mark.parametrize("name", quick_first(names("Minesweeper")))
def test_who_knows_the_mines_views_all_the_rest(name):
    """They are found by trying each cell first, in episodes of the same key, which end at once at a mine."""
    env, _ = make(name)
    cells, envs = env.num_rows**2, 4
    reset, step = compiled(name)
    start = reset(jr.split(jr.key(0), envs))
    tried = [step(jr.split(jr.key(0), envs), start[1], jnp.full(envs, cell)) for cell in range(cells)]
    mines = np.array([out[3] for out in tried]).T
    assert (mines.sum(1) == env.num_mines).all()
    board = np.pad(mines.reshape(envs, env.num_rows, env.num_rows), ((0, 0), (1, 1), (1, 1)))
    for cell, (obs, *_) in enumerate(tried):
        row, column = divmod(cell, env.num_rows)
        np.testing.assert_array_equal(obs, board[:, row : row + 3, column : column + 3].sum((1, 2)))
    free = [np.flatnonzero(~row) for row in mines]
    best = play(name, lambda seen, actions: [f[len(actions)] for f in free], envs)
    np.testing.assert_allclose(best.returns, 1, rtol=1e-5)
    assert best.terminated.all() and not best.truncated.any() and (best.lengths == LENGTHS[name]).all()
    last = LENGTHS[name] - 1
    worst = play(name, lambda seen, actions: [row.argmax() if len(actions) == last else f[0] for row, f in zip(mines, free)], envs)
    np.testing.assert_allclose(worst.returns, -1, rtol=1e-5)


def test_minesweeper_by_elimination():
    """All 120 boards of Easy, less those that contradict what was seen: the safest cell next."""
    boards = np.array([[cell in mines for cell in range(16)] for mines in itertools.combinations(range(16), 2)])
    padded = np.pad(boards.reshape(-1, 4, 4), ((0, 0), (1, 1), (1, 1)))
    counts = sum(padded[:, r : r + 4, c : c + 4].astype(int) for r in range(3) for c in range(3)).reshape(-1, 16)

    def safest(seen, actions):
        chosen = []
        for i in range(len(seen[0])):
            possible = np.ones(len(boards), bool)
            for a, count in zip(actions, seen[1:], strict=True):
                possible &= (counts[:, a[i]] == count[i]) & ~boards[:, a[i]]
            risk = boards[possible].mean(0) if possible.any() else np.zeros(16)
            risk[[a[i] for a in actions]] = 2
            chosen.append(risk.argmin())
        return chosen

    played = play("popgym/MinesweeperEasy", safest, 64)
    assert played.returns.mean() > 0.6 > random_minesweeper(16, 2) + 0.6


# popgym itself.


def same_episode(name, theirs, monkeypatch):
    """Our start of the episode that popgym has just begun."""
    env, _ = make(name)
    if name in names("MultiarmedBandit"):
        theirs.bandits = (theirs.bandits > 0.5).astype(np.float32)  # pays always or never: their chance isn't ours
        obs, state = env.reset(jr.key(0), None)
        return obs, eqx.tree_at(lambda s: s.payouts, state, jnp.asarray(theirs.bandits))
    if name in names("Minesweeper"):
        obs, state = env.reset(jr.key(0), None)
        return obs, eqx.tree_at(lambda s: s.mines, state, jnp.asarray(theirs.hidden_grid.ravel() == 1))
    decks = iter([theirs.value_deck, theirs.query_deck] if name in names("CountRecall") else [theirs.deck])
    dealt_from = 1 if name in names("Concentration") else -1  # cards that are dealt are taken from the end

    def shuffled(key, num_decks, num_kinds):
        deck = next(decks)
        kinds = {2: deck.colors_idx, 4: deck.suits_idx, 13: deck.ranks_idx}[num_kinds]
        return jnp.asarray(kinds[deck.idx[::dealt_from]], jnp.int8)

    monkeypatch.setattr(_popgym, "shuffled", shuffled)
    start = env.reset(jr.key(0), None)
    monkeypatch.undo()
    return start


@pytest.mark.parametrize("name", quick_first(NAMES))
def test_against_popgym(name, monkeypatch):
    """Step by step, with the same cards and the same actions: observations, rewards, and how the episode ends."""
    popgym = pytest.importorskip("popgym")
    env, bare = make(name)[0], name.removeprefix("popgym/").replace("Minesweeper", "MineSweeper")
    theirs = {cls.__name__: cls for cls in popgym.envs.ALL}[bare]
    envs = [theirs() for _ in range(3)]
    first = [x.reset(seed=seed)[0] for seed, x in enumerate(envs)]
    starts = [same_episode(name, x, monkeypatch) for x in envs]
    known = np.full((3, 52 * getattr(env, "num_decks", 1)), -1)
    clever = concentration(known) if name in names("Concentration") else PERFECT.get(name)
    random, rng = random_player(name, 3), np.random.default_rng(1)

    def player(seen, actions):
        return random(seen, actions) if clever is None or rng.random() < 0.1 else clever(seen, actions)

    ours = play(name, player, 3, start=jax.tree.map(lambda *x: jnp.stack(x), *starts))

    def seen_by_us(t, i):
        obs = jax.tree.map(lambda x: x[i], ours.seen[t])
        if name in names("Concentration"):
            return np.where(obs.any(-1), obs.argmax(-1), env.num_kinds)
        return np.asarray(obs)

    for i, x in enumerate(envs):
        np.testing.assert_array_equal(seen_by_us(0, i), first[i])
        for t in range(ours.lengths[i]):
            action = ours.actions[t, i]
            obs, reward, terminated, truncated, _ = x.step(divmod(action, env.num_rows) if bare.startswith("Mine") else action)
            np.testing.assert_array_equal(seen_by_us(t + 1, i), obs)
            np.testing.assert_allclose(ours.rewards[t, i], reward, rtol=1e-5, atol=1e-9)
            assert (terminated or truncated) == (t == ours.lengths[i] - 1)
        assert terminated == ours.terminated[i]
        if name in names("MultiarmedBandit", *ENDS_EARLY):  # the others say both
            assert truncated == ours.truncated[i]
