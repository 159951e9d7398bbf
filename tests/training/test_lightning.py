"""`examples/lightning_bridge.py`. The test marked slow uses Lightning itself, which isn't among the test dependencies: it brings torch.

pip install torch --index-url https://download.pytorch.org/whl/cpu
pip install -e '.[lightning]'
pytest -m slow -n 0 tests/training/test_lightning.py
"""

import csv
import runpy
from pathlib import Path

import pytest
from helpers import same

from eqxrl.training import Trainer
from eqxrl.training._callback import overrides

bridge = runpy.run_path(str(Path(__file__).parents[2] / "examples/lightning_bridge.py"))
LightningCallback, LightningLogger = bridge["LightningCallback"], bridge["LightningLogger"]


class LightningsCallback:
    """As Lightning's, which is called `Callback`."""

    def setup(self, trainer, module, stage): ...

    def on_fit_start(self, trainer, module): ...

    def on_fit_end(self, trainer, module): ...

    def on_train_start(self, trainer, module): ...

    def on_train_end(self, trainer, module): ...

    def on_train_epoch_start(self, trainer, module): ...

    def on_train_epoch_end(self, trainer, module): ...

    def on_train_batch_start(self, trainer, module, batch, batch_idx): ...

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx): ...

    def on_validation_start(self, trainer, module): ...

    def on_validation_epoch_start(self, trainer, module): ...

    def on_validation_epoch_end(self, trainer, module): ...

    def on_validation_end(self, trainer, module): ...

    def teardown(self, trainer, module, stage): ...


LightningsCallback.__name__ = "Callback"


class Recording(LightningsCallback):
    def __init__(self):
        self.calls = []

    def setup(self, trainer, module, stage):
        self.calls.append(("setup", stage, trainer.is_global_zero, trainer.max_epochs))

    def on_train_epoch_start(self, trainer, module):
        self.calls.append(("epoch", trainer.current_epoch, trainer.global_step, trainer.num_training_batches, trainer.training))

    def on_validation_end(self, trainer, module):
        self.calls.append(("validated", trainer.current_epoch, round(trainer.progress_bar_metrics["return"], 3)))
        trainer.should_stop = trainer.current_epoch == 2

    def teardown(self, trainer, module, stage):
        self.calls.append(("teardown", stage))


def test_a_lightning_callback_is_called_with_what_it_asks_for(algo, one):
    callback = Recording()
    trainer = Trainer([LightningCallback(callback)])
    _, metrics = trainer.fit(algo, one)
    means = [round(float(x), 3) for x in metrics.cumulative_reward.mean(-1)]
    assert callback.calls == [
        ("setup", "fit", True, 4),
        ("validated", 0, means[0]),
        ("epoch", 0, 0, 2, True),
        ("validated", 1, means[1]),
        ("epoch", 1, 48, 2, True),
        ("validated", 2, means[2]),
        ("teardown", "fit"),
    ]
    assert trainer.stop_reason == "Recording set should_stop"


def test_only_a_lightning_callback_that_looks_at_batches_gets_them(algo, one):
    class Batches(LightningsCallback):
        seen = 0

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen += (
                outputs.means["entropy"].shape == () and batch.trajectories.reward.shape == (8, 3) and batch_idx == self.seen % 2
            )

    batches = Batches()
    same(Trainer([LightningCallback(batches)]).fit(algo, one), Trainer().fit(algo, one))
    assert batches.seen == 7
    assert overrides(LightningCallback(Batches()), "on_train_batch_end")
    assert not overrides(LightningCallback(Batches()), "on_train_batch_start")
    assert not overrides(LightningCallback(Recording()), "on_train_batch_end")


def test_a_lightning_logger(algo, three):
    class Logger:
        def __init__(self):
            self.metrics, self.ended = [], None

        def log_hyperparams(self, params):
            self.params = params

        def log_metrics(self, metrics, step):
            self.metrics.append((step, metrics))

        def finalize(self, status):
            self.ended = status

    logger = Logger()
    _, metrics = Trainer(loggers=[LightningLogger(logger)]).fit(algo, three)
    assert logger.params["hp"]["num_envs"] == 3 and logger.ended == "success"
    assert [step for step, _ in logger.metrics] == [0, 48, 96, 144, 168]
    assert logger.metrics[-1][1]["eval/return_mean"] == pytest.approx(float(metrics.cumulative_reward[:, -1].mean()))
    assert "train/entropy" in logger.metrics[-1][1] and all(type(x) is float for _, row in logger.metrics for x in row.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_lightnings_own_progress_bar_and_csv_logger(algo, one, tmp_path, capsys):
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    bar = RichProgressBar(console_kwargs={"force_terminal": True, "width": 120})
    trainer = Trainer([LightningCallback(bar)], [LightningLogger(CSVLogger(tmp_path, name="run", version="0"))])
    same(trainer.fit(algo, one), Trainer().fit(algo, one))
    text = capsys.readouterr().out
    assert "Epoch 3/3" in text and "1/1" in text and "return: " in text
    with open(tmp_path / "run/0/metrics.csv") as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == [0, 48, 96, 144, 168]
    assert float(table[-1]["train/entropy"]) > 0
    assert "num_envs: 3" in (tmp_path / "run/0/hparams.yaml").read_text()
