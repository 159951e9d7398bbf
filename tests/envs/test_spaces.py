import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.environments import spaces
from toy_envs import Params, Walk, box, discrete

from eqxrl.envs import TimeLimit, TimeLimitIsTerminal, episode_limit, is_box, is_discrete, make, to_env_action
from eqxrl.envs._spaces import sample

BOX = spaces.Box(np.array([-1.0, 0.0]), 2.0, (2,))


@pytest.mark.parametrize("package", [spaces, gymnasium.spaces])
def test_spaces_are_told_apart_by_their_attributes(package):
    three, line = package.Discrete(3), package.Box(-1, 1, (2,))
    both = package.Tuple((three, line))
    assert [is_discrete(x) for x in (three, line, both)] == [True, False, False]
    assert [is_box(x) for x in (three, line, both)] == [False, True, False]


@pytest.mark.parametrize("lead", [(), (4,), (5, 4)])
def test_box_actions_are_clipped(lead):
    action = jnp.broadcast_to(jnp.array([-7.0, 7.0]), (*lead, 2))
    np.testing.assert_array_equal(to_env_action(BOX, action), np.broadcast_to([-1.0, 2.0], (*lead, 2)))
    inside = jnp.broadcast_to(jnp.array([0.25, 1.5]), (*lead, 2))
    np.testing.assert_array_equal(to_env_action(BOX, inside), inside)


def test_discrete_actions_are_left_as_they_are():
    action = to_env_action(discrete(5), jnp.arange(5, dtype=jnp.int16))
    np.testing.assert_array_equal(action, np.arange(5))
    assert action.dtype == jnp.int32


def test_unbounded_boxes_clip_nothing():
    np.testing.assert_array_equal(to_env_action(box(-jnp.inf, jnp.inf, (1,)), jnp.array([1e30])), np.float32([1e30]))


def test_actions_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2\]"):
        to_env_action(BOX, jnp.zeros((2, 3)))
    for space in (box(0, 1, (2,), jnp.int32), spaces.Tuple((BOX, BOX)), object()):
        with pytest.raises(TypeError, match="discrete space .* or a box of floats"):
            to_env_action(space, jnp.zeros(2))


def test_random_actions():
    draw = jax.vmap(lambda k: sample(box(np.array([-1.0, -np.inf, 0.0]), np.array([1.0, np.inf, np.inf]), (3,)), k))
    x = np.asarray(draw(jr.split(jr.key(0), 1000)))
    assert np.isfinite(x).all() and -1 <= x[:, 0].min() < -0.9 and 0.9 < x[:, 0].max() <= 1
    assert x[:, 1].min() < -1 and x[:, 2].min() == 0
    assert set(np.asarray(jax.vmap(lambda k: sample(discrete(3), k))(jr.split(jr.key(0), 50)))) == {0, 1, 2}


@pytest.mark.parametrize(
    "limit, expected",
    [(100, 100), (100.0, 100), (7.5, 8), (jnp.array(3), 3), (np.float32(3), 3), (None, None), (np.inf, None), (np.nan, None)],
)
def test_episode_limit(limit, expected):
    result = episode_limit(Params(limit))
    assert result == expected and type(result) is type(expected)
    assert episode_limit(Params(limit), TimeLimit(Walk(), 5)) == min(5, expected or 5)


def test_episode_limit_of_the_bernoulli_bandit_is_a_float():
    assert episode_limit(make("BernoulliBandit-misc")[1]) == 100


def test_episode_limit_where_there_is_no_number():
    assert episode_limit(None) is None and episode_limit(object()) is None
    assert episode_limit(None, TimeLimit(Walk(), 5)) == 5
    assert episode_limit(None, TimeLimit(TimeLimitIsTerminal(TimeLimit(Walk(), 5)), 9)) == 5
    with pytest.raises(ValueError, match=r"shape \[2\].*vmap"):
        episode_limit(Params(jnp.array([1, 2])))


def test_episode_limit_may_be_traced():
    np.testing.assert_array_equal(jax.vmap(lambda n: episode_limit(Params(n)))(jnp.array([4, 9])), [4, 9])
    limit = jax.vmap(lambda n: episode_limit(Params(n), TimeLimit(Walk(), 5)))(jnp.array([4, 9]))
    np.testing.assert_array_equal(limit, [4, 5])
