import builtins
import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

from eqxrl import EpisodeStats, TrainStepMetrics
from eqxrl.training import AbstractLogger, Callback, JSONLLogger, TensorBoardLogger, Trainer, WandbLogger
from eqxrl.training import hyperparameters as describe
from eqxrl.training._metrics import add_metrics, mean_metrics, plain, summarize_training


class Memory(AbstractLogger):
    def __init__(self):
        self.calls = []

    def start(self, hyperparameters, resumed_at):
        self.calls.append(("start", hyperparameters, resumed_at))

    def log(self, env_steps, values):
        self.calls.append(("log", env_steps, dict(values)))

    def close(self):
        self.calls.append(("close",))

    @property
    def rows(self):
        return [call[1:] for call in self.calls if call[0] == "log"]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("keys", ["one", "three"])
def test_any_number_of_loggers_get_everything_once_at_the_true_step(algo, keys, request):
    keys = request.getfixturevalue(keys)
    first, second = Memory(), Memory()
    _, metrics = Trainer(loggers=[first, second]).fit(algo, keys)
    assert repr(first.calls) == repr(second.calls)
    assert [call[0] for call in first.calls] == ["start", *["log"] * 5, "close"]
    assert first.calls[0][1:] == (describe(algo), None)
    assert [step for step, _ in first.rows] == [24 * i for i in (0, 2, 4, 6, 7)]
    for k, (_, values) in enumerate(first.rows):
        returns = np.float64(metrics.cumulative_reward[..., k, :])
        np.testing.assert_allclose(values["eval/return_mean"], returns.mean(-1), rtol=1e-6)
        np.testing.assert_allclose(values["eval/return_std"], returns.std(-1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values["eval/return_iqm"], returns.mean(-1), rtol=1e-6)  # of two episodes both count
        np.testing.assert_allclose(values["eval/length_mean"], metrics.episode_length[..., k, :].mean(-1))
        assert np.shape(values["eval/return_mean"]) == keys.shape
        assert ("train/entropy" in values) == (k > 0)
        assert k == 0 or np.shape(values["train/entropy"]) == keys.shape


def test_the_step_goes_on_with_the_state(algo, one):
    logger = Memory()
    state, _ = Trainer().fit(algo, one)
    Trainer(loggers=[logger]).fit(algo, train_state=state, skip_initial_evaluation=True)
    steps = [step for step, _ in logger.rows]
    assert steps == [24 * (7 + i) for i in (2, 4, 6, 7)] and all(type(step) is int for step in steps)


def test_no_episode_is_no_return(tmp_path):
    count = jnp.array([0.0, 3.0])
    means = {"entropy": jnp.ones(2), "mine": jnp.full(2, jnp.inf)}
    outputs = TrainStepMetrics(means=means, episodes=EpisodeStats(count=count, total_return=2 * count, total_length=count))
    sums = add_metrics(add_metrics({}, 1, outputs), 4, outputs)
    logger = JSONLLogger(tmp_path / "m.jsonl")
    logger.start({}, None)
    logger.log(24, {k: plain(x) for k, x in summarize_training(mean_metrics(sums)).items()})
    logger.close()
    (row,) = rows(logger.path)
    assert row["train/episode_return"] == [None, 2] and row["train/episode_length"] == [None, 1]
    assert row["train/num_episodes"] == [0, 6]
    assert row["train/entropy"] == [1, 1] and row["train/mine"] == [None, None]
    (row,) = table(tmp_path / "m.csv")
    assert (row["train/episode_return/seed_0"], row["train/episode_return/seed_1"], row["train/mine/seed_0"]) == ("", "2.0", "")


@pytest.mark.parametrize("keys", ["one", "three"])
def test_jsonl_and_csv_say_the_same(algo, keys, request, tmp_path):
    Trainer(loggers=[JSONLLogger(tmp_path / "a/m.jsonl")]).fit(algo, request.getfixturevalue(keys))
    lines, cells = rows(tmp_path / "a/m.jsonl"), table(tmp_path / "a/m.csv")
    assert len(lines) == len(cells) == 5
    assert list(cells[0])[0] == "env_steps"
    for line, row in zip(lines, cells, strict=True):
        flat = {}
        for name, x in line.items():
            flat |= {f"{name}/seed_{i}": y for i, y in enumerate(x)} if isinstance(x, list) else {name: x}
        assert {k: None if v == "" else float(v) for k, v in row.items() if k in flat} == flat
        assert all(v == "" for k, v in row.items() if k not in flat)
    tree = json.loads((tmp_path / "a/m.hyperparameters.json").read_text())
    assert tree == describe(algo)


def test_hyperparameters_are_a_readable_tree(algo):
    tree = describe(algo)
    assert tree["algorithm"] == "PPO" and tree["env"] == "CartPole-v1"
    assert tree["hp"]["learning_rate"] == 0.0003 and tree["hp"]["num_envs"] == 3 and tree["hp"]["max_grad_norm"] == "inf"
    assert tree["env_params"]["max_steps_in_episode"] == 7
    assert tree["parts"]["actor_critic"] == "small"
    json.dumps(tree, allow_nan=False)


def test_a_file_is_never_overwritten(algo, one, tmp_path):
    logger = JSONLLogger(tmp_path / "m.jsonl")
    logger.path.write_text("precious\n")
    with pytest.raises(FileExistsError, match="pass another path"):
        Trainer(loggers=[logger]).fit(algo, one)
    assert logger.path.read_text() == "precious\n" and list(tmp_path.iterdir()) == [logger.path]


def test_the_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    logger = JSONLLogger(tmp_path / "m.jsonl")
    logger.start({}, None)
    logger.log(1, {"a": 1.0})
    assert not (tmp_path / "m.csv").exists()
    logger.close()
    assert (tmp_path / "m.csv").read_text() == "env_steps,a\n1,1.0\n"
    logger = JSONLLogger(tmp_path / "m.jsonl")  # goes on: a row that is logged again, and a new column
    logger.path.write_text(logger.path.read_text() + '{"env_steps": 2, "a": 2.0}\n{"env_steps": 3, "a"')
    logger.start({}, 1)
    logger.log(2, {"b": [3.0, float("nan")], "a": True})
    with monkeypatch.context() as m:
        m.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            logger.close()
    assert (tmp_path / "m.csv").read_text() == "env_steps,a\n1,1.0\n"
    logger.close()
    assert (tmp_path / "m.csv").read_text() == "env_steps,a,b/seed_0,b/seed_1\n1,1.0,,\n2,True,3.0,\n"


def test_a_run_without_rows_has_a_table_without_rows(tmp_path):
    logger = JSONLLogger(tmp_path / "m.jsonl")
    logger.start({}, None)
    logger.close()
    assert table(tmp_path / "m.csv") == []


def test_what_a_logger_does_to_its_values_is_no_matter_to_the_next(algo, one):
    class Greedy(Memory):
        def log(self, env_steps, values):
            super().log(env_steps, values)
            values.clear()

    first, second = Greedy(), Memory()
    Trainer(loggers=[first, second]).fit(algo, one)
    assert repr(first.rows) == repr(second.rows) and len(second.rows[1][1]) > 5


def test_a_logger_that_fails_is_mentioned_once_and_the_others_go_on(algo, one):
    class Unreachable(Memory):
        def log(self, env_steps, values):
            super().log(env_steps, values)
            raise ConnectionError("no route to host")

    bad, good = Unreachable(), Memory()
    with pytest.warns(UserWarning) as warned:
        state, _ = Trainer(loggers=[bad, good]).fit(algo, one)
    (warning,) = warned
    assert "Unreachable.log failed" in str(warning.message) and "no route to host" in str(warning.message)
    assert len(good.rows) == len(bad.rows) == 5 and good.calls[-1] == bad.calls[-1] == ("close",)
    same(state, Trainer().fit(algo, one)[0])


def test_a_logger_that_can_not_start_is_left_out(algo, one):
    class Unreachable(Memory):
        def start(self, hyperparameters, resumed_at):
            raise ConnectionError("no route to host")

    bad, good = Unreachable(), Memory()
    with pytest.warns(UserWarning, match="Unreachable.start failed"):
        Trainer(loggers=[bad, good]).fit(algo, one)
    assert bad.calls == [] and len(good.rows) == 5


def test_a_file_that_can_not_be_made_is_an_error_before_training(algo, one, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Trainer(loggers=[JSONLLogger(tmp_path / "file/m.jsonl")]).fit(algo, one)


def test_a_full_disk_is_no_reason_to_stop_training(algo, one, tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"

    def full(file, mode="r", *args, open=builtins.open, **kwargs):
        if file == path and mode == "a":
            raise OSError(28, "No space left on device", str(file))
        return open(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.warns(UserWarning, match="JSONLLogger.log failed .*No space left"):
        state, _ = Trainer(loggers=[JSONLLogger(path)]).fit(algo, one)
    same(state, Trainer().fit(algo, one)[0])


def test_loggers_are_closed_after_an_error(algo, one):
    logger = Memory()
    wrong = type("Wrong", (Callback,), {"on_train_start": lambda *_: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        Trainer([wrong], [logger]).fit(algo, one)
    assert logger.calls[-1] == ("close",)


def test_callbacks_can_log(algo, three):
    class Mine(Callback):
        def on_train_epoch_start(self, trainer, algo, state):
            trainer.log({"mine/number": 1.5, "mine/of_seeds": np.arange(3), "mine/device": jax.numpy.float32(0.1)})

        def on_fit_end(self, trainer, algo, state):
            trainer.log({"mine/end": True})

    logger = Memory()
    Trainer([Mine()], [logger]).fit(algo, three)
    for _, values in logger.rows[1:5]:
        assert (values["mine/number"], values["mine/of_seeds"], values["mine/device"]) == (1.5, [0, 1, 2], 0.1)
        assert "eval/return_mean" in values
    assert logger.rows[5:] == [(24 * 7, {"mine/end": True})]


def test_a_full_disk_leaves_no_half_rows(tmp_path):
    """The file may grow no further than a few bytes into the next row."""
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "metrics", resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = JSONLLogger(path)
    writer.start({}, None)
    for step in (0, 1):
        writer.log(step, {"a": 1.5, "b": 2.5})
    whole = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 4, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            writer.log(2, {"a": 1.5, "b": 2.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    writer.log(3, {"a": 1.5, "b": 2.5})
    assert path.read_bytes().startswith(whole) and path.read_bytes().count(b"\n") == whole.count(b"\n") + 1


def test_tensorboard(algo, three, tmp_path):
    tensorboardX = pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    Trainer(loggers=[TensorBoardLogger(tmp_path), memory := Memory()]).fit(algo, three)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    values = [(e.step, v.tag, v) for e in events for v in e.summary.value]
    assert "learning_rate" in next(str(v) for _, tag, v in values if tag.startswith("hyperparameters"))
    got = {(step, tag): v.simple_value for step, tag, v in values if not tag.startswith("hyperparameters")}
    for step, row in memory.rows:
        for i, x in enumerate(row["eval/return_mean"]):
            assert got[step, f"eval/return_mean/seed_{i}"] == pytest.approx(x)
    assert len(got) == len(values) - 1  # each once
    assert tensorboardX


def test_wandb_offline(algo, one, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    log = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda self, data, step=None: (logged.append((step, data)), log(self, data, step=step))
    )
    logger = WandbLogger(mode="offline", project="test", dir=str(tmp_path))
    Trainer(loggers=[logger, memory := Memory()]).fit(algo, one)
    assert logged == [(step, {k: v for k, v in values.items() if v == v}) for step, values in memory.rows]
    assert logger._run.config["hp"]["num_envs"] == 3
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert run.stat().st_size > 0


@pytest.mark.parametrize("logger, package", [(TensorBoardLogger, "tensorboardX"), (WandbLogger, "wandb")])
def test_a_missing_extra_is_named(logger, package, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extra = package.lower().removesuffix("x")
    with pytest.raises(ImportError, match=rf"pip install 'eqxrl\[{extra}\]'"):
        logger(folder=tmp_path)
