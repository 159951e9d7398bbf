"""XLand-MiniGrid's environments beside itself used by hand: `pip install 'eqxrl[xminigrid]'`, or these tests are left out."""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, env_ids, episode_limit

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xminigrid") is None, reason="xminigrid isn't installed")
FORWARD, TURN = 0, 1
FAMILIES = ("MiniGrid-Empty-5x5", "MiniGrid-EmptyRandom-5x5", "MiniGrid-DoorKey-5x5", "MiniGrid-FourRooms", "MiniGrid-LockedRoom",
            "MiniGrid-MemoryS8", "MiniGrid-Playground", "MiniGrid-Unlock", "MiniGrid-UnlockPickUp", "MiniGrid-BlockedUnlockPickUp",
            "XLand-MiniGrid-R1-9x9", "XLand-MiniGrid-R4-9x9")


def test_names():
    assert "xminigrid/MiniGrid-Empty-8x8" in env_ids("xminigrid")
    with pytest.raises(ValueError, match="xminigrid has no environment 'xminigrid/Empty-5x5'; did you mean .*MiniGrid-Empty-5x5"):
        make("xminigrid/Empty-5x5")


def test_steps_and_both_kinds_of_end_are_those_of_xminigrid():
    """Some walk to the goal, in 5 steps at the least; the rest run out of time."""
    import xminigrid

    env, params = make("xminigrid/MiniGrid-Empty-5x5", max_steps=12)
    by_hand, its_params = xminigrid.make("MiniGrid-Empty-5x5", max_steps=12)
    assert episode_limit(params, env) == 12
    keys, actions = jax.random.split(jax.random.key(0), 32), np.array(jax.random.randint(jax.random.key(1), (12, 32), 0, 3))
    shortest = [FORWARD, FORWARD, TURN, FORWARD, FORWARD]
    actions[:, 0] = [*shortest, *[FORWARD] * 7]
    actions[:, 1] = [*[3] * 7, *shortest]  # reaches it with the last step, after trying to pick up what isn't there
    (obs, state), expected = quick_jit(
        lambda: (jax.vmap(env.reset, (0, None))(keys, params), jax.vmap(by_hand.reset, (None, 0))(its_params, keys))
    )()
    np.testing.assert_array_equal(obs, expected.observation)

    @quick_jit
    def step(state, expected, action):
        ours = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        return ours, jax.vmap(by_hand.step, (None, 0, 0))(its_params, expected, action)

    going, terminations, truncations, both = np.ones(32, bool), 0, 0, 0
    for t in range(12):
        (obs, state, reward, terminated, truncated, _), expected = step(state, expected, jnp.asarray(actions[t]))
        terminated, truncated, last = np.asarray(terminated), np.asarray(truncated), np.asarray(expected.last())
        np.testing.assert_array_equal(obs, expected.observation)
        np.testing.assert_array_equal(reward, expected.reward)
        np.testing.assert_array_equal((terminated | truncated)[going], last[going])
        np.testing.assert_array_equal(terminated[going], (last & (np.asarray(expected.discount) == 0))[going])
        assert truncated[going].all() == (t == 11)
        np.testing.assert_allclose(np.asarray(reward)[going], np.where(terminated, 1 - 0.9 * (t + 1) / 12, 0)[going], rtol=1e-6)
        terminations, truncations = terminations + (going & terminated).sum(), truncations + (going & truncated & ~terminated).sum()
        both += (going & truncated & terminated).sum()
        going &= ~(terminated | truncated)
    assert not going.any() and terminations > 0 and truncations > 0 and both > 0


def test_a_reset_gives_a_new_beginning_and_keeps_what_the_episode_ended_with():
    env, params = make("xminigrid/MiniGrid-EmptyRandom-16x16", max_steps=2)
    stepper = ResetWhenDone()
    _, state, reset_state = quick_jit(lambda: stepper.init(env, params, jax.random.split(jax.random.key(1), 8)))()
    step = quick_jit(lambda keys, state, kept: stepper.step(env, params, keys, state, kept, jnp.full((8,), FORWARD)))
    firsts = [np.asarray(state.state.agent.position)]
    for t in range(4):
        out = step(jax.random.split(jax.random.key(2 + t), (2, 8)), state, reset_state)
        state, reset_state = out.env_state, out.reset_state
        if t % 2:
            assert out.truncated.all() and (np.asarray(out.obs) != np.asarray(out.final_obs)).any()
            firsts.append(np.asarray(state.state.agent.position))
    assert len(np.unique(np.concatenate(firsts), axis=0)) > 16


def test_a_ruleset_is_the_task_and_can_be_swept():
    """Two tasks at once: to be on a tile, by its number. The agent stands on a floor, the one of the two that is such a tile."""
    from xminigrid.core.constants import TILES_REGISTRY, Colors, Tiles
    from xminigrid.core.goals import AgentOnTileGoal
    from xminigrid.core.rules import EmptyRule
    from xminigrid.types import RuleSet

    def ruleset(tile, color):
        goal, rules = AgentOnTileGoal(tile=TILES_REGISTRY[tile, color]).encode(), EmptyRule().encode()[None]
        return RuleSet(goal=goal, rules=rules, init_tiles=TILES_REGISTRY[:1, 0])

    one, other = ruleset(Tiles.FLOOR, Colors.BLACK), ruleset(Tiles.GOAL, Colors.GREEN)
    env, _ = make("xminigrid/XLand-MiniGrid-R1-9x9", ruleset=one)
    two = eqx.tree_at(lambda env: env.env_params.ruleset, env, jax.tree.map(lambda *x: jnp.stack(x), one, other))

    def once(env):
        _, state = env.reset(jax.random.key(0), None)
        return [env.step(jax.random.key(1), state, jnp.int32(action), None)[3] for action in (FORWARD, TURN)]

    moved, _ = quick_jit(jax.vmap(once))(two)
    assert moved.tolist() == [True, False]


def test_pictures():
    env, params = make("xminigrid/MiniGrid-DoorKey-6x6")
    _, state = env.reset(jax.random.key(0), params)
    after = env.step(jax.random.key(0), state, TURN, params)[1]
    before, after = env.picture(state, params), env.picture(jax.device_get(after), params)
    assert before.shape == (192, 192, 3) and before.dtype == np.uint8 and (before != after).any()


@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_it_keeps_to_the_contract(name):
    check_env(*make(f"xminigrid/{name}", max_steps=20))
