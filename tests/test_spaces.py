"""`eqxrl.spaces`: those of other packages made ours, and what is done with them."""

from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.environments import spaces as gymnax_spaces

from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple, as_space, bounds, check_action_space, sample, to_env_action, zeros

BOX = Box(np.array([-1.0, 0.0]), 2.0, (2,))
gym = gymnasium.spaces

OTHERS = {
    "gymnax Discrete": (gymnax_spaces.Discrete(3), Discrete(3)),
    "gymnax Box": (gymnax_spaces.Box(-1, 1, (2,)), Box(-1, 1, (2,))),
    "gymnax Box of arrays": (gymnax_spaces.Box(-jnp.ones(2), jnp.ones(2), (2,)), Box(-1, 1, (2,))),
    "gymnax Dict": (gymnax_spaces.Dict({"a": gymnax_spaces.Discrete(3)}), Dict({"a": Discrete(3)})),
    "gymnax Tuple": (gymnax_spaces.Tuple([gymnax_spaces.Discrete(3)]), Tuple((Discrete(3),))),
    "gymnasium Discrete": (gym.Discrete(3), Discrete(3)),
    "gymnasium Box": (gym.Box(-1, 1, (2,)), Box(-1, 1, (2,))),
    "gymnasium Box of 64 bits": (gym.Box(-1, 1, (2,), np.float64), Box(-1, 1, (2,))),
    "gymnasium image": (gym.Box(0, 255, (4, 4, 3), np.uint8), Box(0, 255, (4, 4, 3), jnp.uint8)),
    "gymnasium MultiDiscrete": (gym.MultiDiscrete([2, 3]), MultiDiscrete((2, 3))),
    "gymnasium Dict": (gym.Dict(b=gym.Discrete(2), a=gym.Box(0, 1, ())), Dict({"a": Box(0, 1, ()), "b": Discrete(2)})),
    "gymnasium Tuple": (gym.Tuple((gym.Discrete(2), gym.Discrete(3))), Tuple((Discrete(2), Discrete(3)))),
    "only n": (SimpleNamespace(n=3), Discrete(3)),
    "n and a shape": (SimpleNamespace(n=np.int64(3), shape=()), Discrete(3)),
    "low, high, shape": (SimpleNamespace(low=-1, high=1, shape=[2]), Box(-1, 1, (2,))),
    "spaces": (SimpleNamespace(spaces={"a": SimpleNamespace(n=3)}), Dict({"a": Discrete(3)})),
}


@pytest.mark.parametrize("case", OTHERS)
def test_spaces_of_others_become_ours(case):
    other, ours = OTHERS[case]
    made = as_space(other)
    assert made == ours and hash(made) == hash(ours) and as_space(made) is made


@pytest.mark.parametrize(
    "space",
    [gym.MultiBinary(3), SimpleNamespace(n=3, shape=(3,)), gym.Text(3), gym.Discrete(3, start=-1), object(), None, 3, jnp.ones(3)],
    ids=["MultiBinary", "like MultiBinary", "Text", "start", "object", "None", "number", "array"],
)
def test_what_is_no_space_is_refused(space):
    with pytest.raises(TypeError, match="no space that is known here|starts at -1, but choices are counted from 0"):
        as_space(space)


def test_shapes_and_dtypes():
    assert Discrete(3).shape == () and Discrete(3).dtype == jnp.int32
    assert MultiDiscrete(np.array([2, 3])).shape == (2,)
    assert Box(np.zeros(3), 1.0).shape == (3,) and Box(0, 1).shape == () and Box(0, 1).dtype == jnp.float32
    assert Box(0, 1, (2,)) != Box(0, 2, (2,)) and Box(0, 1, (2,)) != Box(0, 1, (2,), jnp.int32) and Box(0, 1, (1,)) != Discrete(1)
    assert repr(Box(np.zeros(2), 1.0)) == "Box(0.0, 1.0, (2,), float32)"
    assert len({Discrete(3), Discrete(3), Discrete(4), BOX, Dict({"a": BOX}), Dict({"a": BOX}), Tuple([BOX]), Tuple((BOX,))}) == 5


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Box(np.zeros(3), 1, (2,)), r"low \[3\] and high \[\], which don't broadcast to \[2\]"),
        (lambda: Discrete(0), "n=0; it must be a whole number of at least 1"),
        (lambda: Discrete(2.5), "n=2.5"),
        (lambda: MultiDiscrete([[2, 3]]), "must be a vector of integers"),
        (lambda: MultiDiscrete([2, 0]), "at least 1"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_bounds_may_be_traced():
    """An environment's parameters, and with them its bounds, may be swept."""

    def clipped(limit):
        space = as_space(gymnax_spaces.Box(-limit, limit, (2,)))
        assert space == as_space(space) and isinstance(hash(space), int) and "traced" in repr(space)
        return to_env_action(space, jnp.array([-7.0, 7.0]))

    np.testing.assert_array_equal(jax.jit(jax.vmap(clipped))(jnp.array([1.0, 2.0])), [[-1, 1], [-2, 2]])


@pytest.mark.parametrize("lead", [(), (4,), (5, 4)])
def test_box_actions_are_clipped(lead):
    action = jnp.broadcast_to(jnp.array([-7.0, 7.0]), (*lead, 2))
    np.testing.assert_array_equal(to_env_action(BOX, action), np.broadcast_to([-1.0, 2.0], (*lead, 2)))
    inside = jnp.broadcast_to(jnp.array([0.25, 1.5]), (*lead, 2))
    np.testing.assert_array_equal(to_env_action(BOX, inside), inside)


@pytest.mark.parametrize("space", [Discrete(5), SimpleNamespace(n=5), gym.Discrete(5)], ids=["ours", "only n", "gymnasium's"])
def test_discrete_actions_are_left_as_they_are(space):
    action = to_env_action(space, jnp.arange(5, dtype=jnp.int16))
    np.testing.assert_array_equal(action, np.arange(5))
    assert action.dtype == jnp.int32


def test_unbounded_boxes_clip_nothing():
    np.testing.assert_array_equal(to_env_action(Box(-jnp.inf, jnp.inf, (1,)), jnp.array([1e30])), np.float32([1e30]))


def test_actions_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2\]"):
        to_env_action(BOX, jnp.zeros((2, 3)))
    for space in (Box(0, 1, (2,), jnp.int32), Tuple((BOX, Box(0, 1, (2,), jnp.int32)))):
        with pytest.raises(TypeError, match="a Box of floats; wrap"):
            to_env_action(space, jnp.zeros(2))
    for space in (Tuple((BOX, BOX)), gymnax_spaces.Tuple((BOX, BOX)), Dict({"a": BOX})):
        with pytest.raises(ValueError, match=r"actions are PyTreeDef\(\*\), but the action space is (Tuple|Dict)"):
            to_env_action(space, jnp.zeros(2))
    with pytest.raises(TypeError, match="no space that is known here"):
        check_action_space(gym.MultiBinary(2))


def test_bounds_have_the_shape_and_dtype_of_the_box():
    low, high = bounds(Box(0, np.array([1, 2]), (3, 2), jnp.uint8))
    np.testing.assert_array_equal(low, np.zeros((3, 2)))
    np.testing.assert_array_equal(high, [[1, 2]] * 3)
    assert low.dtype == high.dtype == jnp.uint8


def test_random_actions():
    draw = jax.vmap(lambda k: sample(Box(np.array([-1.0, -np.inf, 0.0]), np.array([1.0, np.inf, np.inf]), (3,)), k))
    x = np.asarray(draw(jr.split(jr.key(0), 1000)))
    assert np.isfinite(x).all() and -1 <= x[:, 0].min() < -0.9 and 0.9 < x[:, 0].max() <= 1
    assert x[:, 1].min() < -1 and x[:, 2].min() == 0
    assert set(np.asarray(jax.vmap(lambda k: sample(Discrete(3), k))(jr.split(jr.key(0), 50)))) == {0, 1, 2}


def test_random_elements_of_several_parts():
    space = Dict({"a": Tuple((Discrete(3), Box(0, 2, (2,), jnp.uint8))), "b": MultiDiscrete((2, 5)), "c": Box(0, 1, (4,), jnp.bool_)})
    x = jax.vmap(lambda k: sample(space, k))(jr.split(jr.key(0), 200))
    y = zeros(space)
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), ((200, *b.shape), b.dtype)), x, y)
    assert set(np.unique(x["a"][0])) == set(np.unique(x["a"][1])) == {0, 1, 2}
    assert set(np.unique(x["b"][:, 0])) == {0, 1} and set(np.unique(x["b"][:, 1])) == {0, 1, 2, 3, 4}
    assert 0.4 < x["c"].mean() < 0.6
    assert not np.array_equal(x["b"][:, 1] % 3, x["a"][0])  # another key for each part
