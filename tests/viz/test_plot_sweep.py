"""The picture of a sweep."""

import numpy as np
import pytest
from PIL import Image

from eqxrl.viz import Curve, plot_sweep
from eqxrl.viz._sweep import _positions


def curves(num, seeds=3):
    rng = np.random.default_rng(0)
    return [Curve(env_steps=np.arange(4) * 1000, returns=rng.normal(10 * i, 5, (seeds, 4))) for i in range(num)]


def test_a_panel_for_the_curves_and_one_for_each_name(tmp_path):
    shapes = []
    for names in (1, 2, 3, 4):
        path = plot_sweep({f"x{i}": np.geomspace(1e-4, 1, 6).tolist() for i in range(names)}, curves(6), tmp_path / "x.png")
        with Image.open(path) as picture:
            shapes.append(picture.size)
    (w1, h1), (w2, h2), (w3, h3), (w4, h4) = shapes
    assert w1 < w2 == w3 == w4 and h1 == h2 < h3 == h4


def test_the_best_is_orange_and_what_diverged_is_marked(tmp_path):
    """A point with a NaN among its seeds is never the best, however good the others were."""
    drawn = curves(3)
    ruined = Curve(env_steps=drawn[0].env_steps, returns=np.where(np.arange(12).reshape(3, 4) == 3, np.nan, 1000.0))
    orange = []
    for some in (drawn, [*drawn, ruined], [ruined]):
        path = plot_sweep({"x": list(range(len(some)))}, some, tmp_path / "x.png", title="$CartPole")
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        orange.append((np.abs(pixels - (213, 94, 0)).sum(-1) < 10).sum())
    assert orange[0] > 200 and orange[1] > 200 and orange[2] == 0


def test_values_stand_where_they_can_be_told_apart():
    assert _positions([True, False, True]) == ([1.0, 0.0, 1.0], ["False", "True"])
    assert _positions([0, 0.01, 0]) == ([0.0, 1.0, 0.0], ["0", "0.01"])
    assert _positions([4, 16, 4]) == ([0.0, 1.0, 0.0], ["4", "16"])
    assert _positions([None, 0.5]) == ([0.0, 1.0], ["None", "0.5"])
    assert _positions([1e-4, 1e-2]) == ([1e-4, 1e-2], [])


def test_each_name_needs_a_value_for_each_curve(tmp_path):
    with pytest.raises(ValueError, match="each name needs a value for each of 3 curves, got {'x': 2}"):
        plot_sweep({"x": [1, 2]}, curves(3), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
