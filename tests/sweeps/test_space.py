"""What a sweep tries, and how a command line says it."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import log_uniform, uniform
from eqxrl.sweeps._space import points_of
from eqxrl.sweeps._text import parse


def test_a_grid_is_every_combination():
    points = points_of({"a": log_uniform(1e-4, 1e-2, 3), "b": [0, True], "c": uniform(-1, 1, points=2)}, None, 0)
    wanted = list(itertools.product([1e-4, 1e-3, 1e-2], [0, True], [-1.0, 1.0]))
    assert [tuple(x.values()) for x in points] == wanted and list(points[0]) == ["a", "b", "c"]
    assert points[-1]["b"] is True and len(points_of({"a": log_uniform(1, 2)}, None, 0)) == 5


def test_draws_are_even_and_within_the_range():
    """In the logarithm: a tenth of it is below a tenth of the way; and each value of a list comes equally often."""
    points = points_of({"a": log_uniform(1e-4, 1e-2), "b": [0, 1, 2], "c": uniform(2, 4)}, 6000, 3)
    a, b, c = (np.array([x[name] for x in points]) for name in "abc")
    assert a.min() >= 1e-4 and a.max() <= 1e-2 and c.min() >= 2 and c.max() <= 4
    assert abs(np.mean(a < 1e-3) - 0.5) < 0.03 and abs(np.mean(a < 10**-3.8) - 0.1) < 0.02
    assert np.abs(np.bincount(b) / 6000 - 1 / 3).max() < 0.03 and abs(np.mean(c < 2.5) - 0.25) < 0.03
    assert abs(np.corrcoef(np.log(a), c)[0, 1]) < 0.05
    assert points == points_of({"a": log_uniform(1e-4, 1e-2), "b": [0, 1, 2], "c": uniform(2, 4)}, 6000, 3)
    assert points != points_of({"a": log_uniform(1e-4, 1e-2), "b": [0, 1, 2], "c": uniform(2, 4)}, 6000, 4)


def test_values_are_what_float32_makes_of_them():
    """What is written down of a point is what was trained."""
    for x in points_of({"a": log_uniform(1e-5, 1)}, 100, 0):
        assert float(str(np.float32(x["a"]))) == x["a"]


def test_points_one_by_one():
    points = [{"a": np.float32(0.5), "b": 2}, {"b": jnp.int32(3), "a": 0.25}]
    assert points_of(points, None, 0) == [{"a": 0.5, "b": 2}, {"a": 0.25, "b": 3}]


@pytest.mark.parametrize(
    "space, samples, error, named",
    [
        ({}, None, ValueError, "nothing is swept"),
        ([], None, TypeError, "a list of points"),
        ({"a": 3}, None, TypeError, "a takes a list of values, log_uniform"),
        ({"a": []}, None, TypeError, "a takes a list of values"),
        ({"a": "12"}, None, TypeError, "a takes a list of values"),
        ({"a": ["x"]}, None, TypeError, "must be a number, True, False or None, got 'x'"),
        ({"a": [1]}, 0, ValueError, "samples must be at least 1, got 0"),
        ([{"a": 1}], 2, ValueError, "leave it out"),
        ([{"a": 1}, {"b": 1}], None, ValueError, r"the same names, got \['a'\] and \['b'\]"),
    ],
)
def test_nonsense_is_named(space, samples, error, named):
    with pytest.raises(error, match=named):
        points_of(space, samples, 0)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: log_uniform(0, 1), "numbers above 0, got 0; pass uniform"),
        (lambda: uniform(2, 1), "the lower one first, got 2 and 1"),
        (lambda: uniform(1, 1), "the lower one first"),
        (lambda: uniform(0, float("inf")), "two finite numbers"),
        (lambda: uniform(0, 1, points=1), "points=...\\) must be at least 2, got 1"),
    ],
)
def test_a_range_that_is_none(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    "text, like, wanted",
    [
        ("1e-4:1e-2:log", 3e-4, log_uniform(1e-4, 1e-2)),
        ("1e-4:1e-2", 3e-4, uniform(1e-4, 1e-2)),
        ("1e-4:1e-2:log:7", 3e-4, log_uniform(1e-4, 1e-2, 7)),
        ("0:1:3", None, uniform(0, 1, 3)),
        ("0,0.01", 0.0, [0.0, 0.01]),
        ("0.5", 0.0, 0.5),
        ("4,8", 64, [4, 8]),
        ("4", 64, 4),
        ("True,false", True, [True, False]),
    ],
)
def test_on_a_command_line(text, like, wanted):
    got = parse("x", text, like)
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize(
    "text, like, named",
    [
        ("1e-4:x", 0.0, "'x' isn't a number"),
        ("", 0.0, "'' isn't a number"),
        ("1,,2", 0.0, "'' isn't a number"),
        ("4.5", 64, "'4.5' isn't an integer"),
        ("1,0", True, "'1' isn't True or False"),
        ("4:8", 64, "takes a list, such as 4,8"),
        ("1:2:lin", 0.0, "low:high or low:high:log"),
        ("1:2:log:x", 0.0, "low:high or low:high:log"),
        ("1:2:log:3:4", 0.0, "low:high or low:high:log"),
        ("2:1:log", 0.0, "the lower one first, got 2 and 1"),
        ("1:2:1", 0.0, "must be at least 2, got 1"),
        (":2", 0.0, "'' isn't a number"),
    ],
)
def test_what_is_malformed_is_named_with_its_option(text, like, named):
    with pytest.raises(ValueError, match=f"--hp.learning-rate got {text!r}: .*{named}"):
        parse("learning_rate", text, like)
