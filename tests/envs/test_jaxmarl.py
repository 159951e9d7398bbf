"""JaxMARL's environments beside JaxMARL used by hand: `pip install 'eqxrl[jaxmarl]'`, or these tests are left out."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from eqxrl import check_env, make
from eqxrl.envs import env_ids, episode_limit
from eqxrl.nn import SharedAgents
from eqxrl.spaces import Box, Dict, MultiDiscrete, sample, zeros

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="JaxMARL isn't installed"),
    pytest.mark.usefixtures("promotion_of_ranks"),
]
BRAX = ["ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3"]
EVERY = (
    "HeuristicEnemySMAX MPE_simple_facmac_3a_v1 MPE_simple_facmac_6a_v1 MPE_simple_facmac_9a_v1 MPE_simple_facmac_v1 "
    "MPE_simple_reference_v3 MPE_simple_speaker_listener_v4 MPE_simple_spread_v3 MPE_simple_v3 hanabi jaxnav overcooked overcooked_v2 "
    "switch_riddle"
).split()


def test_names():
    assert set(env_ids("jaxmarl")) == {f"jaxmarl/{name}" for name in EVERY + BRAX}
    with pytest.raises(ValueError, match="jaxmarl has no environment 'jaxmarl/MPE_simple_spread_v2'; did you mean .*MPE_simple_spread_v3"):
        make("jaxmarl/MPE_simple_spread_v2")
    with pytest.raises(ValueError, match="has no layout 'kitchen'; there are cramped_room, "):
        make("jaxmarl/overcooked", layout="kitchen")


@pytest.mark.parametrize(
    "name, why",
    [
        ("MPE_simple_tag_v3", "is played by predators against prey"), ("SMAX", "HeuristicEnemySMAX is the task of one"),
        ("coin_game", "pays each agent for itself"), ("storm_2p", "pays each agent for itself"),
    ],
)
def test_agents_that_play_against_each_other(name, why):
    with pytest.raises(ValueError, match=f"jaxmarl/{name} .*{why}.*only tasks that it shares are served: MPE_simple_v3, "):
        make(f"jaxmarl/{name}")


def test_it_is_imported_without_a_word():
    """JaxMARL prints while it is imported, and then replaces `sys.stdout`."""
    script = """
import sys
from eqxrl import make
kept = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
make("jaxmarl/MPE_simple_v3")
assert kept == (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout == ""


def play(name, steps, num_episodes, by_hand_kwargs=None, **kwargs):
    """Both played with the same keys and the same legal actions at random: what each gave, `[episodes steps ...]`."""
    import jaxmarl

    env, params = make(f"jaxmarl/{name}", **kwargs)
    by_hand, space = jaxmarl.make(name, **(kwargs if by_hand_kwargs is None else by_hand_kwargs)), env.action_space(params)

    def pick(key, obs):
        if not isinstance(obs, dict):
            return sample(space, key)
        mask = obs["action_mask"].reshape(len(space.nvec), -1)
        return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf)).astype(jnp.int32)

    def step(carry, key):
        obs, state, theirs = carry
        action = pick(key, obs)
        obs, state, reward, terminated, truncated, _ = env.step(key, state, action, params)
        actions = {agent: zeros(by_hand.action_space(agent)) for agent in by_hand.agents} | dict(zip(env.team, action))
        for agent in actions:
            actions[agent] = actions[agent][: by_hand.action_space(agent).shape[0]] if action.ndim > 1 else actions[agent]
        expected, theirs, rewards, dones, _ = by_hand.step_env(key, theirs, actions)
        return (obs, state, theirs), (obs, reward, terminated, truncated, expected, rewards, dones["__all__"], theirs)

    def episode(key):
        key, reset_key = jax.random.split(key)
        obs, state = env.reset(reset_key, params)
        expected, theirs = by_hand.reset(reset_key)
        return (obs, expected), jax.lax.scan(step, (obs, state, theirs), jax.random.split(key, steps))[1]

    return env, by_hand, jax.device_get(quick_jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), num_episodes)))


def ends(run, limit):
    """Checks rewards and ends until the first end of each episode. Which kinds of ends there were, and the steps until them."""
    _, reward, terminated, truncated, _, rewards, done, _ = run
    np.testing.assert_array_equal(truncated, np.arange(reward.shape[1]) + 1 >= limit + np.zeros_like(reward))
    kinds, lengths = set(), []
    for e in range(len(reward)):
        last = int(np.argmax(done[e]))
        assert done[e, last] and not (terminated | truncated)[e, :last].any() and (terminated | truncated)[e, last]
        kinds.add((bool(terminated[e, last]), bool(truncated[e, last])))
        lengths.append(last + 1)
    return kinds, lengths


def test_spread_ends_by_its_time_limit_alone():
    """After a step more than `max_steps`, as in JaxMARL. The reward is the mean of the agents'."""
    env, by_hand, ((first, expected_first), run) = play("MPE_simple_spread_v3", 9, 4, max_steps=8)
    assert episode_limit(None, env) == 9 and episode_limit(None, make("jaxmarl/MPE_simple_spread_v3")[0]) == 26
    assert env.observation_space() == Box(-jnp.inf, jnp.inf, (3, 18)) and env.action_space() == MultiDiscrete([5, 5, 5])
    for ours, theirs in ((first, expected_first), (run[0], run[4])):
        np.testing.assert_allclose(ours, np.stack([theirs[agent] for agent in by_hand.agents], axis=-2), rtol=1e-5, atol=1e-6)
    rewards = np.stack([run[5][agent] for agent in by_hand.agents])
    np.testing.assert_allclose(run[1], rewards.mean(0), rtol=1e-5)
    assert not np.allclose(rewards[0], rewards[1]) and ends(run, 9) == ({(False, True)}, [9] * 4)
    assert len(np.unique(first[:, 0, 2])) == 4


def test_the_riddle_ends_both_ways():
    env, by_hand, (_, run) = play("switch_riddle", 6, 64)
    np.testing.assert_array_equal(run[0], np.stack([run[4][agent] for agent in by_hand.agents], axis=-2))
    np.testing.assert_allclose(run[1], run[5]["agent_0"], rtol=1e-6)
    kinds, lengths = ends(run, 6)
    assert {(True, False), (False, True), (True, True)} == kinds and min(lengths) == 1 and max(lengths) == 6
    np.testing.assert_array_equal(run[2], run[1] != 0)  # somebody told


def test_rows_and_choices_of_different_length():
    env, _, (_, run) = play("MPE_simple_speaker_listener_v4", 3, 2)
    assert env.action_space() == MultiDiscrete([3, 5])
    np.testing.assert_allclose(run[0][:, :, 0, :3], run[4]["speaker_0"], rtol=1e-5)
    np.testing.assert_allclose(run[0][:, :, 1], run[4]["listener_0"], rtol=1e-5, atol=1e-6)
    assert not run[0][:, :, 0, 3:].any()


def test_actions_of_floats_and_agents_that_are_not_learned():
    """facmac's prey; of the speaker's row only as much counts as it says."""
    env, by_hand, (_, run) = play("MPE_simple_facmac_v1", 3, 2)
    assert env.team == tuple(by_hand.adversaries) and env.action_space() == Box(0.0, 1.0, (3, 5))
    np.testing.assert_allclose(run[0], np.stack([run[4][agent] for agent in env.team], axis=-2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run[1], run[5]["adversary_0"], rtol=1e-5)
    env, _, (_, run) = play("MPE_simple_speaker_listener_v4", 3, 2, action_type="Continuous")
    assert env.action_space() == Box(0.0, 1.0, (2, 5))
    np.testing.assert_allclose(run[0][:, :, 1], run[4]["listener_0"], rtol=1e-5, atol=1e-6)


def test_overcooked_shows_that_little_time_is_left():
    env, by_hand, (_, run) = play("overcooked", 45, 2, {"max_steps": 42}, layout="cramped_room", max_steps=42)
    np.testing.assert_array_equal(run[0], np.stack([run[4][agent] for agent in by_hand.agents], axis=-4))
    np.testing.assert_array_equal(run[0][0, :, 0, 0, 0, -1], np.arange(1, 46) > 2)
    assert not run[2].any() and ends(run, 42) == ({(False, True)}, [42] * 2)


@pytest.mark.slow
def test_a_battle_ends_both_ways():
    """SMAX, with masks. Few battles are over after 21 steps, or all would be."""
    env, by_hand, (_, run) = play("HeuristicEnemySMAX", 21, 32, max_steps=20)
    np.testing.assert_allclose(run[0]["observation"], np.stack([run[4][agent] for agent in by_hand.agents], axis=-2), rtol=1e-4, atol=1e-4)
    masks = quick_jit(jax.vmap(jax.vmap(by_hand.get_avail_actions)))(run[7])
    np.testing.assert_array_equal(run[0]["action_mask"], np.concatenate([masks[agent] for agent in by_hand.agents], axis=-1) != 0)
    np.testing.assert_allclose(run[1], run[5]["ally_0"], rtol=1e-4, atol=1e-6)
    kinds, _ = ends(run, 21)
    assert {(True, False), (False, True)} <= kinds


@pytest.mark.slow
def test_hanabi_ends_by_itself():
    sizes = dict(num_colors=2, num_ranks=2, hand_size=2, num_cards_of_rank=np.array([2, 1]), max_info_tokens=3, max_life_tokens=1)
    env, by_hand, (_, run) = play("hanabi", 20, 16, **sizes)
    np.testing.assert_array_equal(run[0]["observation"], np.stack([run[4][agent] for agent in by_hand.agents], axis=-2))
    masks = quick_jit(jax.vmap(jax.vmap(by_hand.get_legal_moves)))(run[7])
    np.testing.assert_array_equal(run[0]["action_mask"], np.concatenate([masks[agent] for agent in by_hand.agents], axis=-1) != 0)
    assert ends(run, episode_limit(None, env))[0] == {(True, False)} and episode_limit(None, env) == 4000


def test_limits_of_ones_own():
    assert episode_limit(None, make("jaxmarl/MPE_simple_v3", episode_length=7)[0]) == 7
    assert episode_limit(None, make("jaxmarl/HeuristicEnemySMAX", scenario="3m")[0]) == 101
    assert make("jaxmarl/HeuristicEnemySMAX", scenario="3m")[0].action_space() == MultiDiscrete([8, 8, 8])


@pytest.mark.parametrize("name, shape", [("MPE_simple_spread_v3", (320, 320, 3)), ("HeuristicEnemySMAX", (320, 320, 3)),
                                         ("overcooked", (128, 160, 3))])
def test_pictures(name, shape):
    env, params = make(f"jaxmarl/{name}")
    picture = env.picture(env.reset(jax.random.key(0), params)[1], params)
    assert picture.shape == shape and picture.dtype == np.uint8 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def test_no_pictures():
    assert not hasattr(make("jaxmarl/switch_riddle")[0], "picture")


def test_it_keeps_to_the_contract():
    check_env(*make("jaxmarl/switch_riddle"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY + ["hopper_3x1"])
def test_every_one_keeps_to_the_contract_and_has_a_policy(name):
    if name in BRAX:
        pytest.importorskip("brax")
    env, params = make(f"jaxmarl/{name}")
    check_env(env, params, num_steps=120 if name in BRAX or name == "hanabi" else min(episode_limit(params, env), 500) + 1)
    space = env.observation_space(params)
    agent = SharedAgents(space, env.action_space(params), ids=True, central=True, hidden_sizes=(4,), key=jax.random.key(0))
    agent(zeros(space), ())
    assert isinstance(space, Dict) == (name in ("hanabi", "HeuristicEnemySMAX"))
