"""Each example runs as it stands, only shorter."""

import importlib.util
from pathlib import Path

import pytest

from eqxrl import verify

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_advantage_trains_and_a_broken_one_is_named(capsys):
    assert load("custom_advantage").main(20_000) > 100
    error = capsys.readouterr().out.splitlines()[-1]
    for part in ("Broken", "advantages", "float32[16]", "steps=32 envs=16"):
        assert part in error


def test_sweep():
    returns = load("sweep").main(2_000, 2)
    assert returns.shape == (3, 2, 2)


def test_custom_network():
    assert load("custom_network").main(20_000) > 100


def test_custom_algorithm():
    assert load("custom_algorithm").main(60_000) > 100


def test_retrace():
    assert load("retrace").main(20_000) > 100


def test_that_retraces_update_is_not_judged_is_said():
    module = load("retrace")
    report = verify(module.Retrace.create("CartPole-v1", hp=module.RetraceHParams(batch_size=32)), quiet=True)
    said = {check.name: (check.status, check.detail) for check in report.checks}
    assert report.ok and said["update: the update"][0] == "skipped" and "`replay` is overridden" in said["update: the update"][1]


def test_custom_env(tmp_path):
    assert load("custom_env").main(gif_path=tmp_path / "grid.gif") > 0.8


def test_own_loop(capsys):
    assert load("own_loop").main(30) > 50
    assert "action for an upright pole" in capsys.readouterr().out


def test_memory(capsys):
    assert load("memory").main(65_536) > 0.9
    assert "the first action is" in capsys.readouterr().out


def test_masked():
    assert load("masked").main(40_000) > 8.5


def test_curriculum():
    assert load("curriculum").main() > 200


def test_callbacks(tmp_path):
    returns = load("callbacks").main(20_000, tmp_path)
    assert max(returns) > 100
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == len(returns)


def test_lightning_bridge():
    assert load("lightning_bridge").LightningCallback.__doc__  # tests/training/test_lightning.py runs it


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in tested, f"{path.name} has no test"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_every_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60
