"""jumanji's environments beside jumanji used by hand: `pip install 'eqxrl[jumanji]'`, or these tests are left out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, TimeLimit, default_stepper, env_ids, episode_limit
from eqxrl.nn import default_actor_critic
from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete, bounds, parts, zeros

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jumanji") is None, reason="jumanji isn't installed"),
    pytest.mark.usefixtures("promotion_of_ranks"),
]
EVERY = (
    "BinPack-v2 CVRP-v1 Cleaner-v0 Connector-v3 FlatPack-v0 Game2048-v1 GraphColoring-v1 JobShop-v0 Knapsack-v1 LevelBasedForaging-v0 "
    "MMST-v0 Maze-v0 Minesweeper-v0 MultiCVRP-v0 PacMan-v1 RobotWarehouse-v0 RubiksCube-partly-scrambled-v0 RubiksCube-v0 "
    "SearchAndRescue-v0 SlidingTilePuzzle-v0 Snake-v1 Sudoku-v0 Sudoku-very-easy-v0 TSP-v1 Tetris-v0"
).split()
"""All but Sokoban, whose levels are downloaded."""


def test_names():
    assert set(env_ids("jumanji")) == {f"jumanji/{name}" for name in [*EVERY, "Sokoban-v0"]}
    with pytest.raises(ValueError, match="jumanji has no environment 'jumanji/Snake-v7'; did you mean .*Snake-v1"):
        make("jumanji/Snake-v7")


def play(name, pick, steps, keys, **kwargs):
    """Both played with the same keys and the same legal actions: what each gave, `[steps ...]`."""
    import jumanji

    env, params = make(f"jumanji/{name}", **kwargs)
    by_hand = jumanji.make(name, **kwargs)

    def step(carry, key):
        obs, state, expected_state = carry
        action, expected_action = pick(key, obs)
        obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        expected_state, expected = by_hand.step(expected_state, expected_action)
        return (obs, state, expected_state), (obs, reward, terminated, truncated, expected)

    def episode(key):
        key, reset_key = jax.random.split(key)
        obs, state = env.reset(reset_key, params)
        expected_state, expected = by_hand.reset(reset_key)
        return (obs, expected.observation), jax.lax.scan(step, (obs, state, expected_state), jax.random.split(key, steps))[1]

    return env, params, jax.device_get(jax.jit(jax.vmap(episode))(keys))


def legal(key, obs):
    return jax.random.categorical(key, jnp.where(obs["action_mask"], 0.0, -jnp.inf))


def test_snake_ends_as_in_jumanji_but_for_the_time_limit():
    """Among legal moves at random it runs into itself, or is cut off."""
    env, params, (first, run) = play("Snake-v1", lambda key, obs: (jax.random.randint(key, (), 0, 4),) * 2, 12, jax.random.split(
        jax.random.key(0), 32), time_limit=8)
    assert episode_limit(params, env) == env.max_steps == 8
    np.testing.assert_array_equal(first[0]["grid"], first[1].grid)
    assert len(np.unique(first[0]["grid"].reshape(32, -1), axis=0)) > 20
    obs, reward, terminated, truncated, expected = run
    kinds = set()
    for e in range(32):
        for t in range(8):
            for part in ("grid", "action_mask"):
                np.testing.assert_array_equal(obs[part][e, t], getattr(expected.observation, part)[e, t])
            np.testing.assert_allclose(obs["step_count"][e, t], expected.observation.step_count[e, t] / 8)
            assert reward[e, t] == expected.reward[e, t] and truncated[e, t] == (t == 7)
            assert (terminated[e, t] | truncated[e, t]) == (expected.step_type[e, t] == 2) == (expected.discount[e, t] == 0)
            if terminated[e, t] | truncated[e, t]:
                kinds.add((bool(terminated[e, t]), bool(truncated[e, t])))
                break
    assert {(True, False), (False, True)} <= kinds


def test_combinations_of_choices_are_one_choice():
    """Tetris's mask is of rotations and columns together; where no column is left, the game is over."""

    def pick(key, obs):
        action = legal(key, obs)
        return action, jnp.stack([action // 6, action % 6])

    env, params, (_, run) = play("Tetris-v0", pick, 6, jax.random.split(jax.random.key(1), 32), time_limit=6, num_rows=6, num_cols=6)
    assert env.action_space(params) == Discrete(24)
    obs, reward, terminated, truncated, expected = run
    kinds = set()
    for e in range(32):
        for t in range(6):
            np.testing.assert_array_equal(obs["grid"][e, t], expected.observation.grid[e, t])
            np.testing.assert_array_equal(obs["action_mask"][e, t], expected.observation.action_mask[e, t].ravel())
            assert reward[e, t] == expected.reward[e, t]
            assert (terminated[e, t] | truncated[e, t]) == (expected.step_type[e, t] == 2)
            if terminated[e, t] | truncated[e, t]:
                assert terminated[e, t] == (~expected.observation.action_mask[e, t].any()) and truncated[e, t] == (t == 5)
                kinds.add((bool(terminated[e, t]), bool(truncated[e, t])))
                break
    assert {(True, False), (False, True)} <= kinds


def test_several_agents_are_one_learner():
    """Connector tells its ends apart itself: by `discount`. Each agent has its part of the mask."""
    from jumanji.environments.routing.connector.generator import RandomWalkGenerator

    def pick(key, obs):
        action = jax.random.categorical(key, jnp.where(obs["action_mask"].reshape(3, 5), 0.0, -jnp.inf))
        return action, action

    keys = jax.random.split(jax.random.key(2), 32)
    env, params, (_, run) = play("Connector-v3", pick, 12, keys, time_limit=12, generator=RandomWalkGenerator(6, 3))
    assert env.action_space(params) == MultiDiscrete([5, 5, 5]) and episode_limit(params, env) == 12
    obs, reward, terminated, truncated, expected = run
    np.testing.assert_array_equal(obs["action_mask"], expected.observation.action_mask.reshape(32, 12, 15))
    np.testing.assert_allclose(reward, expected.reward.sum(-1), rtol=1e-6, atol=1e-6)
    kinds = set()
    for e in range(32):
        last = int(np.argmax(expected.step_type[e] == 2))
        assert not (terminated | truncated)[e, :last].any() and (terminated | truncated)[e, last] and truncated[e, last] == (last == 11)
        assert terminated[e, last] == (expected.discount[e, last] == 0).all()
        kinds.add((bool(terminated[e, last]), bool(truncated[e, last])))
    assert {(True, False), (False, True)} <= kinds


@pytest.mark.slow
def test_rewards_that_shrink_until_the_time_limit():
    _, _, (_, run) = play("SearchAndRescue-v0", lambda key, obs: (jax.random.uniform(key, (2, 2), minval=-1),) * 2, 40,
                          jax.random.split(jax.random.key(3), 4), time_limit=40)
    np.testing.assert_allclose(run[1], run[4].reward.sum(-1), rtol=1e-5)
    assert (run[1] > 0).any()


def test_a_reset_gives_a_new_beginning_and_keeps_what_the_episode_ended_with():
    env, params = make("jumanji/Snake-v1", time_limit=3)
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(1), 4)
    obs, state, reset_state = stepper.init(env, params, keys)
    firsts = [np.asarray(obs["grid"])]
    step = jax.jit(lambda keys, state, reset_state, action: stepper.step(env, params, keys, state, reset_state, action))
    for t in range(6):
        action = jnp.argmax(obs["action_mask"], axis=-1)
        out = step(jax.random.split(jax.random.key(2 + t), (2, 4)), state, reset_state, action)
        obs, state, reset_state = out.obs, out.env_state, out.reset_state
        if t % 3 == 2:
            assert out.truncated.all() and (out.final_obs["step_count"] == 1).all() and (obs["step_count"] == 0).all()
            firsts.append(np.asarray(obs["grid"]))
    assert len(np.unique(np.concatenate(firsts).reshape(12, -1), axis=0)) > 8


def test_where_jumanji_has_no_time_limit():
    env, params = make("jumanji/TSP-v1")
    assert isinstance(env, TimeLimit) and episode_limit(params, env) == 4000
    assert episode_limit(None, make("jumanji/Snake-v1")[0]) == 4000
    assert episode_limit(None, make("jumanji/Snake-v1", episode_length=9)[0]) == 9


def test_levels_of_ones_own():
    """Sokoban's are downloaded, unless given."""
    from jumanji.environments.routing.sokoban.generator import ToyGenerator

    env, params = make("jumanji/Sokoban-v0", generator=ToyGenerator(), time_limit=20)
    assert env.observation_space(params).spaces["grid"] == Box(0, 4, (10, 10, 2), jnp.int32)
    obs, state = jax.eval_shape(env.reset, jax.random.key(0), params)
    assert obs["grid"].shape == (10, 10, 2) and obs["grid"].dtype == jnp.int32


def test_pictures():
    env, params = make("jumanji/Snake-v1")
    state = env.reset(jax.random.key(0), params)[1]
    picture = env.picture(state, params)
    assert picture.shape == (500, 500, 3) and picture.dtype == np.uint8 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def test_it_keeps_to_the_contract():
    check_env(*make("jumanji/Game2048-v1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_one_keeps_to_the_contract_and_is_seen_by_a_network(name):
    env, params = make(f"jumanji/{name}")
    check_env(env, params, num_steps=max(200, min(episode_limit(params, env), 500) + 1))
    space = env.observation_space(params)
    assert isinstance(space, Dict)
    network = default_actor_critic(space, env.action_space(params), key=jax.random.key(0))
    network(zeros(space), network.initial_carry())

    def within(key):
        """A few random steps; whether each part of what is seen is within its bounds."""
        obs, state = env.reset(key, params)
        seen = [obs]
        for _ in range(3):
            action = zeros(env.action_space(params))
            if "action_mask" in obs and isinstance(env.action_space(params), Discrete):
                action = legal(key, obs).astype(jnp.int32)
            obs, state, *_ = env.step(key, state, action, params)
            seen.append(obs)
        return seen

    for obs in jax.device_get(jax.jit(within)(jax.random.key(0))):
        for (path, part), x in zip(jax.tree.leaves_with_path(parts(space)), jax.tree.leaves(obs), strict=True):
            assert x.dtype == part.dtype, path
            low, high = bounds(part) if isinstance(part, Box) else (-(name == "TSP-v1"), part.n - 1)  # nowhere yet
            assert (x >= low).all() and (x <= high).all(), path


def test_resets_that_cost_less_than_a_branch_are_computed_at_every_step():
    steppers = [default_stepper(make(f"jumanji/{name}")[0]) for name in ("Snake-v1", "Game2048-v1")]
    assert steppers == [ResetWhenDone(every_step=True), ResetWhenDone()]
