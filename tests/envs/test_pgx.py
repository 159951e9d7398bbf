"""pgx's games beside pgx used by hand: `pip install 'eqxrl[pgx]'`, or these tests are left out."""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, TimeLimit, env_ids, episode_limit
from eqxrl.spaces import Box, Dict, Discrete

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pgx") is None, reason="pgx isn't installed"),
    pytest.mark.usefixtures("promotion_of_ranks"),
]
EVERY = (
    "2048 animal_shogi backgammon chess connect_four gardner_chess go_9x9 go_19x19 hex kuhn_poker leduc_holdem minatar-asterix "
    "minatar-breakout minatar-freeway minatar-seaquest minatar-space_invaders othello shogi sparrow_mahjong tic_tac_toe"
).split()


def test_names():
    assert env_ids("pgx") == [f"pgx/{name}" for name in EVERY]
    with pytest.raises(ValueError, match="pgx has no environment 'pgx/tictactoe'; did you mean tic_tac_toe"):
        make("pgx/tictactoe")


def first_legal(key, state):
    return jnp.argmax(state.legal_action_mask).astype(jnp.int32)


def some_legal(key, state):
    """Which one depends on the step."""
    mask = state.legal_action_mask
    return jnp.argmax(jnp.cumsum(mask) > (5 * state._step_count + 1) % mask.sum()).astype(jnp.int32)


def test_one_player_beside_pgx():
    """The same keys, the same actions, some of them illegal."""
    import pgx

    env, params = make("pgx/2048")
    by_hand = pgx.make("2048")
    assert env.observation_space(params) == Dict({"observation": Box(False, True, (4, 4, 31), bool), "action_mask": Box(0, 1, (4,), bool)})
    assert env.action_space(params) == Discrete(4)
    keys = jax.random.split(jax.random.key(0), 8)
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    (obs, state), expected = reset(keys, params), jax.jit(jax.vmap(by_hand.init))(keys)
    step, step_by_hand = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None))), jax.jit(jax.vmap(by_hand.step))
    over, ends = np.zeros(8, bool), 0
    for t in range(40):
        keys = jax.random.split(jax.random.key(1 + t), 8)
        action = jax.random.randint(keys[0], (8,), 0, 4)
        obs, state, reward, terminated, truncated, _ = step(keys, state, action, params)
        expected = step_by_hand(expected, action, keys)
        np.testing.assert_array_equal(obs["observation"], expected.observation)
        np.testing.assert_array_equal(obs["action_mask"], expected.legal_action_mask)
        np.testing.assert_array_equal(reward, expected.rewards[:, 0])
        np.testing.assert_array_equal(terminated, expected.terminated)
        assert not truncated.any()
        ends += int((np.asarray(terminated) & ~over & (np.asarray(reward) == -1)).sum())  # an illegal move
        over |= np.asarray(terminated)
    assert ends == over.sum() > 0


def test_a_clock_that_runs_out_is_a_truncation():
    """Freeway has no other end."""
    env, params = make("pgx/minatar-freeway")
    assert episode_limit(params, env) == 2501 and env.observation_space(params) == Box(False, True, (10, 10, 7), bool)

    def body(state, key):
        _, state, _, *ends, _ = env.step(key, state, jax.random.randint(key, (), 0, 3), params)
        return state, (*ends, state.env_state.terminated)

    run = jax.jit(lambda key: jax.lax.scan(body, env.reset(key, params)[1], jax.random.split(key, 2501))[1])
    terminated, truncated, of_pgx = map(np.asarray, run(jax.random.key(0)))
    assert not terminated.any() and truncated[-1] and not truncated[:-1].any()
    np.testing.assert_array_equal(of_pgx, truncated)


def played_by_hand(name, key, opponent, learner):
    """One game in plain Python: the learner's observations, rewards, and the last state."""
    import pgx

    env, _ = make(f"pgx/{name}", opponent=opponent)
    game = pgx.make(name)
    key_init, key_player, _ = jax.random.split(key, 3)
    state, player = game.init(key_init), int(jax.random.randint(key_player, (), 0, game.num_players))
    step, seen, rewards, pending = jax.jit(game.step), [], [], 0.0
    while not state.terminated:
        mine = int(state.current_player) == player
        if mine:
            seen.append(np.asarray(state.observation))
            rewards.append(pending)
        state = step(state, (learner if mine else opponent)(None, state), jax.random.key(0))
        if mine or not rewards:
            pending = float(state.rewards[player]) + (0.0 if mine else pending)
        else:
            pending += float(state.rewards[player])
    return player, seen, rewards[1:] + [pending], state


@pytest.mark.parametrize("name", ["tic_tac_toe", "leduc_holdem"])
def test_a_game_of_two_is_what_it_is_by_hand(name):
    """Whoever begins, and in whichever seat; the players' policies need no keys. The last observation is the learner's, whoever's turn it
    would be."""
    import pgx

    env, params = make(f"pgx/{name}", opponent=first_legal)
    reset, step, game, players, firsts = jax.jit(env.reset), jax.jit(env.step), pgx.make(name), set(), set()
    for i in range(8):
        key = jax.random.key(i)
        player, seen, rewards, last = played_by_hand(name, key, first_legal, some_legal)
        obs, state = reset(key, params)
        assert int(state.env_state.player) == player
        players.add(player)
        firsts.add(int(state.env_state.env_state._step_count))
        for t, (before, reward) in enumerate(zip(seen, rewards, strict=True)):
            np.testing.assert_array_equal(obs["observation"], before)
            action = some_legal(None, state.env_state.env_state)
            obs, state, got, terminated, truncated, _ = step(jax.random.key(0), state, action, params)
            assert got == reward and terminated == (t == len(seen) - 1) and not truncated
        np.testing.assert_array_equal(obs["observation"], game._observe(last, player))
        assert obs["action_mask"].all()
    assert players == {0, 1} and firsts == {0, 1}


@pytest.mark.slow
def test_what_is_won_or_lost_before_the_first_action_is_paid_by_it():
    """In mahjong a discard of one opponent can win the game for the other."""
    env, params = make("pgx/sparrow_mahjong")
    keys = jax.random.split(jax.random.key(0), 400)
    obs, state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params)
    over = np.asarray(state.env_state.env_state.terminated)
    assert 0 < over.sum() < 200
    lost = jax.vmap(lambda state: state.env_state.env_state.rewards[state.env_state.player])(state)
    _, _, reward, terminated, truncated, _ = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))(
        keys, state, jnp.argmax(obs["action_mask"], -1), params)
    assert terminated[over].all() and not truncated.any()
    np.testing.assert_array_equal(reward[over], lost[over])
    assert (np.asarray(reward)[over] != 0).any()


def test_an_illegal_action_loses():
    env, params = make("pgx/tic_tac_toe")
    keys = jax.random.split(jax.random.key(0), 8)
    obs, state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    _, state, reward, terminated, *_ = step(keys, state, jnp.argmax(obs["action_mask"], -1), params)
    assert not terminated.any() and (reward == 0).all()
    taken = jnp.argmin(state.env_state.env_state.legal_action_mask, axis=-1)
    _, _, reward, terminated, truncated, _ = step(keys, state, taken, params)
    assert terminated.all() and (reward == -1).all() and not truncated.any()


def test_opponents_act_at_random_among_what_is_legal():
    """After the learner's first corner the answer is anywhere else, each place about as often."""
    env, params = make("pgx/tic_tac_toe")
    keys = jax.random.split(jax.random.key(0), 800)
    _, state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params)
    begins = np.asarray(state.env_state.env_state._step_count == 0)
    boards = np.asarray(state.env_state.env_state._x.board)[~begins]
    counts = (boards >= 0).sum(0)
    assert 300 < begins.sum() < 500 and (counts.sum() == len(boards)) and counts.min() > 20 and counts.max() < 80


@pytest.mark.slow
def test_games_stopped_without_a_winner_are_truncated():
    """Of animal shogi's clock two steps are left: it stops with the learner's or after the opponent's step, and what ends it before is a
    termination."""
    from pgx import animal_shogi, gardner_chess
    from pgx._src.games import chess, shogi

    from eqxrl.envs.suites._pgx import LIMITS

    own = [x.MAX_TERMINATION_STEPS for x in (animal_shogi, chess, gardner_chess, shogi)]
    assert own == [LIMITS[x] for x in ("animal_shogi", "chess", "gardner_chess", "shogi")]
    env, params = make("pgx/animal_shogi")
    assert episode_limit(params, env) == env.max_steps == 128
    keys = jax.random.split(jax.random.key(0), 16)
    obs, state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    for count, cut_off in ((100, False), (254, True)):
        game = state.env_state.replace(_step_count=jnp.full(16, count) + state.env_state._step_count)
        late = eqx.tree_at(lambda state: state.env_state, state, game)
        after = step(keys, late, jnp.argmax(obs["action_mask"], -1), params)
        assert (after[4] == cut_off).all() and not after[3].any() and (after[2] == 0).all()
        illegal = step(keys, late, jnp.argmin(obs["action_mask"], -1), params)
        assert illegal[3].all() and (illegal[2] == -1).all() and not illegal[4][state.env_state._step_count == 0].any()


def test_a_reset_gives_a_new_beginning_and_keeps_what_the_episode_ended_with():
    env, params = make("pgx/2048", episode_length=3)
    assert isinstance(env, TimeLimit) and episode_limit(params, env) == 3 and episode_limit(params, make("pgx/2048")[0]) == 4000
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(1), 4)
    obs, state, reset_state = stepper.init(env, params, keys)
    firsts = [np.asarray(obs["observation"])]
    step = jax.jit(lambda keys, state, reset_state, action: stepper.step(env, params, keys, state, reset_state, action))
    for t in range(6):
        out = step(jax.random.split(jax.random.key(2 + t), (2, 4)), state, reset_state, jnp.argmax(obs["action_mask"], axis=-1))
        obs, state, reset_state = out.obs, out.env_state, out.reset_state
        if t % 3 == 2:
            assert out.truncated.all() and not np.array_equal(obs["observation"], out.final_obs["observation"])
            firsts.append(np.asarray(obs["observation"]))
    assert len(np.unique(np.concatenate(firsts).reshape(12, -1), axis=0)) > 8


@pytest.mark.parametrize("name", ["tic_tac_toe", "minatar-breakout"])
def test_it_keeps_to_the_contract(name):
    check_env(*make(f"pgx/{name}"))


def test_arguments_of_the_game():
    assert make("pgx/minatar-breakout", sticky_action_prob=0.0, use_minimal_action_set=False)[0].action_space(None) == Discrete(6)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_one_keeps_to_the_contract(name):
    assert f"pgx/{name}" in env_ids("pgx")
    check_env(*make(f"pgx/{name}", episode_length=100))
