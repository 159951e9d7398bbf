"""Learning curves: the statistics are scipy's, the picture is whole and of the size asked for."""

import jax.numpy as jnp
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from eqxrl.viz import Curve, bootstrap_interval, iqm, plot_learning_curves


@pytest.fixture
def figures(monkeypatch):
    """The figures saved, to look at what was drawn."""
    saved = []
    savefig = Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def random_returns(seeds, points, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 50.0, size=(seeds, points))


def test_iqm():
    x = random_returns(11, 5)
    np.testing.assert_allclose(iqm(x), stats.trim_mean(x, 0.25, axis=0))
    np.testing.assert_allclose(iqm(x, axis=1), stats.trim_mean(x, 0.25, axis=1))
    assert (np.abs(iqm(x) - x.mean(0)) > 0.1).all()
    assert iqm(jnp.array([0.0, 1.0, 3.0, 100.0])) == 2.0  # the lowest and the highest quarter cut
    assert isinstance(iqm(x[:, 0]), np.ndarray) and iqm(x[:, 0]).shape == ()


def test_iqm_leaves_nans_out():
    x = random_returns(9, 3)
    x[:, 0] = np.nan
    x[:2, 1] = np.nan
    np.testing.assert_allclose(iqm(x), [np.nan, stats.trim_mean(x[2:, 1], 0.25), stats.trim_mean(x[:, 2], 0.25)])


def test_bootstrap_interval_is_scipys():
    x = random_returns(12, 4)
    low, high = bootstrap_interval(x, num_resamples=20_000)
    for axis, data in ((0, x), (1, x.T)):
        theirs = stats.bootstrap(
            (data,),
            lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
            axis=axis,
            n_resamples=20_000,
            method="percentile",
        ).confidence_interval
        # 2 % of the width: what two times 20,000 resamples differ by.
        np.testing.assert_allclose([low, high], theirs, atol=0.03 * (high - low).max())
    np.testing.assert_array_equal(bootstrap_interval(x.T, axis=1), bootstrap_interval(x))
    narrow = bootstrap_interval(x, confidence=0.5)
    assert (narrow[0] > low).all() and (narrow[1] < high).all()


def test_bootstrap_interval_of_little():
    x = np.array([[7.0, 1.0, np.nan], [7.0, np.nan, np.nan], [7.0, np.nan, np.nan]])
    np.testing.assert_array_equal(bootstrap_interval(x), [[7.0, np.nan, np.nan]] * 2)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        bootstrap_interval(x, confidence=95)


def test_several_runs_of_different_lengths_with_gaps(tmp_path, figures):
    many, few, one = random_returns(8, 30), random_returns(3, 12), random_returns(1, 7)
    few[:, 0] = np.nan
    few[0, 5] = np.nan
    runs = {
        "many": (np.linspace(0, 2e6, 30), many),
        "few": Curve(jnp.arange(12) * 100_000, jnp.array(few)),
        "one": (np.arange(7) * 300_000, one),
    }
    before = matplotlib.get_backend(), matplotlib.pyplot.get_fignums()
    path = plot_learning_curves(runs, tmp_path / "new" / "curves.png", title="CartPole-v1", ylabel="return", figsize=(6, 3))
    assert (matplotlib.get_backend(), matplotlib.pyplot.get_fignums()) == before
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as image:
        assert image.size == (900, 450)
        assert np.asarray(image.convert("L")).std() > 5

    (ax,) = figures[0].axes
    lines = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["many"].get_ydata(), stats.trim_mean(many, 0.25, axis=0))
    np.testing.assert_allclose(lines["few"].get_xdata(), np.arange(1, 12) * 100_000)  # not the point of NaNs only
    np.testing.assert_allclose(lines["few"].get_ydata()[4], few[1:, 5].mean(), rtol=1e-6)
    np.testing.assert_allclose(lines["one"].get_ydata(), one[0])
    assert len({line.get_color() for line in lines.values()}) == 3
    assert len(ax.get_lines()) == len(runs) + 3  # the three seeds of `few`, one by one
    bands = [path.vertices for band in ax.collections for path in band.get_paths()]
    assert len(bands) == 2 and all(len(band) and np.isfinite(band).all() for band in bands)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["many", "few", "one"]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert "500k" in labels and "1M" in labels
    assert ax.get_ylabel() == "return" and ax.get_title(loc="left") == "CartPole-v1"
    assert "1 to 8 seeds" in ax.get_title(loc="right")


def test_one_run_of_one_seed(tmp_path, figures):
    path = plot_learning_curves({"PPO": (np.arange(5), random_returns(1, 5))}, tmp_path / "curves.png")
    with Image.open(path) as image:
        assert image.size == (1050, 660)
    (ax,) = figures[0].axes
    assert ax.get_legend() is None and len(ax.get_lines()) == 1
    assert ax.get_title(loc="right") == ""  # nothing to say of seeds
    assert not any(len(path.vertices) for band in ax.collections for path in band.get_paths())


def test_many_runs_can_be_told_apart(tmp_path, figures):
    plot_learning_curves({str(i): (np.arange(4), random_returns(6, 4, i)) for i in range(9)}, tmp_path / "curves.png")
    (ax,) = figures[0].axes
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}) == 9


def test_bad_arguments(tmp_path):
    run = (np.arange(5), random_returns(2, 5))
    with pytest.raises(ValueError, match="runs is empty"):
        plot_learning_curves({}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match=r"writes a \.png file, got the path '.*curves\.pdf'"):
        plot_learning_curves({"PPO": run}, tmp_path / "curves.pdf")
    with pytest.raises(TypeError, match="(?s)returns.*seeds points"):
        plot_learning_curves({"PPO": (np.arange(6), run[1])}, tmp_path / "curves.png")
    with pytest.raises(TypeError, match="(?s)returns.*seeds points"):
        Curve(np.arange(5), np.zeros(5))
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def interrupted(figure, unfinished, **kwargs):
        unfinished.write_bytes(b"half a pict")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plot_learning_curves({"PPO": (np.arange(5), random_returns(2, 5))}, path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"
