"""navix's environments beside navix used by hand: `pip install 'eqxrl[navix]'`, or these tests are left out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from eqxrl import check_env, make
from eqxrl.envs import ResetWhenDone, env_ids, episode_limit
from eqxrl.spaces import bounds

pytestmark = pytest.mark.skipif(importlib.util.find_spec("navix") is None, reason="navix isn't installed")
TURN, FORWARD = 1, 2
FAMILIES = ("Empty-5x5", "DoorKey-5x5", "FourRooms", "KeyCorridorS3R1", "LavaGapS5", "SimpleCrossingS9N1", "Dynamic-Obstacles-5x5",
            "DistShift1", "GoToDoor-5x5")


def test_names():
    import navix

    assert env_ids("navix") == [f"navix/{name}" for name in navix.registry()] and "navix/Navix-DoorKey-5x5-v0" in env_ids("navix")
    with pytest.raises(ValueError, match="navix has no environment 'navix/Empty-5x5-v0'; did you mean .*Navix-Empty-5x5-v0"):
        make("navix/Empty-5x5-v0")


def test_steps_and_both_kinds_of_end_are_those_of_navix():
    """navix's own step resets only in the step after an end. Some walk to the goal, in 5 steps at the least; the rest run out of time."""
    import navix

    env, params = make("navix/Navix-Empty-5x5-v0", max_steps=12)
    by_hand = navix.make("Navix-Empty-5x5-v0", max_steps=12)
    assert episode_limit(params, env) == 12
    its_own = lambda: jax.numpy_rank_promotion("allow")  # noqa: E731  (navix relies on it)
    keys, actions = jax.random.split(jax.random.key(0), 32), np.array(jax.random.randint(jax.random.key(1), (12, 32), 0, 3))
    shortest = [FORWARD, FORWARD, TURN, FORWARD, FORWARD]
    actions[:, 0] = [*shortest, *[FORWARD] * 7]
    actions[:, 1] = [*[6] * 7, *shortest]  # reaches it with the last step
    obs, state = quick_jit(lambda: jax.vmap(env.reset, (0, None))(keys, params))()
    step = quick_jit(lambda state, action: jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params))
    step_by_hand = quick_jit(jax.vmap(by_hand.step))
    with its_own():
        expected = quick_jit(jax.vmap(by_hand.reset))(keys)
    np.testing.assert_array_equal(obs, expected.observation)

    going, terminations, truncations, both = np.ones(32, bool), 0, 0, 0
    for t in range(12):
        obs, state, reward, terminated, truncated, _ = step(state, jnp.asarray(actions[t]))
        with its_own():
            expected = step_by_hand(expected, jnp.asarray(actions[t]))
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        np.testing.assert_array_equal(np.asarray(obs)[going], np.asarray(expected.observation)[going])
        np.testing.assert_array_equal(np.asarray(reward)[going], np.asarray(expected.reward)[going])
        np.testing.assert_array_equal(terminated[going], (expected.step_type == 2)[going])
        np.testing.assert_array_equal((truncated & ~terminated)[going], (expected.step_type == 1)[going])
        assert truncated[going].all() == (t == 11)
        np.testing.assert_array_equal(np.asarray(reward)[going], terminated[going])  # a return is a success or none
        terminations, truncations = terminations + (going & terminated).sum(), truncations + (going & truncated & ~terminated).sum()
        both += (going & truncated & terminated).sum()
        going &= ~(terminated | truncated)
    assert not going.any() and terminations > 0 and truncations > 0 and both > 0


def test_a_reset_gives_a_new_beginning_and_keeps_what_the_episode_ended_with():
    env, params = make("navix/Navix-Empty-Random-16x16-v0", max_steps=2)
    stepper = ResetWhenDone()
    _, state, reset_state = quick_jit(lambda: stepper.init(env, params, jax.random.split(jax.random.key(1), 8)))()
    step = quick_jit(lambda keys, state, kept: stepper.step(env, params, keys, state, kept, jnp.full((8,), FORWARD)))
    firsts = [np.asarray(state.observation)]
    for t in range(4):
        out = step(jax.random.split(jax.random.key(2 + t), (2, 8)), state, reset_state)
        state, reset_state = out.env_state, out.reset_state
        if t % 2:
            assert out.truncated.all() and (np.asarray(out.obs) != np.asarray(out.final_obs)).any((1, 2, 3)).all()
            firsts.append(np.asarray(out.obs))
    assert len(np.unique(np.concatenate(firsts), axis=0)) > 16


@pytest.mark.parametrize("function", ["symbolic", "symbolic_first_person", "categorical_first_person", "rgb"])
def test_observations_lie_in_their_space(function):
    import navix

    env, params = make("navix/Navix-KeyCorridorS3R1-v0", observation_fn=getattr(navix.observations, function))
    obs, _ = quick_jit(jax.vmap(lambda key: env.reset(key, params)))(jax.random.split(jax.random.key(0), 16))
    space = env.observation_space(params)
    obs, low, high = map(np.asarray, (obs, *bounds(space)))
    assert (obs.shape[1:], obs.dtype) == (space.shape, space.dtype) and (obs >= low).all() and (obs <= high).all()


def test_an_observation_of_ones_own():
    import navix

    look = lambda state: jnp.float32(state.get_player().position)  # noqa: E731
    env, _ = make("navix/Navix-Empty-5x5-v0", observation_fn=look, observation_space=navix.spaces.Continuous.create((2,), 0.0, 4.0))
    assert repr(env.observation_space()) == "Box(0.0, 4.0, (2,), float32)"


def test_pictures():
    import navix

    env, params = make("navix/Navix-DoorKey-6x6-v0")
    _, state = env.reset(jax.random.key(0), params)
    assert state.state.cache is None  # which a picture is drawn with
    with jax.numpy_rank_promotion("allow"):
        by_hand = navix.make("Navix-DoorKey-6x6-v0", observation_fn=navix.observations.rgb).reset(jax.random.key_data(jax.random.key(0)))
    np.testing.assert_array_equal(env.picture(state, params), by_hand.observation)
    after = env.step(jax.random.key(0), state, TURN, params)[1]
    before, after = env.picture(jax.device_get(state), params), env.picture(after, params)
    assert before.shape == (48, 48, 3) and before.dtype == np.uint8
    changed = (before != after).any(-1).nonzero()
    assert len(changed[0]) and all((8 <= x).all() and (x < 16).all() for x in changed)  # the player's place, in the second row and column


@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_it_keeps_to_the_contract(name):
    check_env(*make(f"navix/Navix-{name}-v0", max_steps=20))
