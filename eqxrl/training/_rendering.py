from pathlib import Path
from typing import Any

from eqxrl._structs import EvalMetrics
from eqxrl.training._callback import Callback


class EpisodeRendering(Callback):
    """Writes a GIF of an episode, `episode-000004096.gif` after 4096 env steps: before the training, after it, and every so
    many epochs in between. Of several seeds, the first is shown.

    **Raises:** at the start of the run, if the environment can't be drawn.
    """

    def __init__(self, folder: str | Path, *, every_epochs: int | None = None, start: bool = True, end: bool = True):
        if every_epochs is not None and every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1, got {every_epochs}; pass None for no GIFs in between")
        self.folder = Path(folder)
        self.every_epochs = every_epochs
        self.start = start
        self.end = end

    def on_train_start(self, trainer: Any, algo: Any, state: Any) -> None:
        if self.start and trainer.iteration == 0:
            self._render(trainer)

    def on_validation_epoch_end(self, trainer: Any, algo: Any, state: Any, metrics: EvalMetrics) -> None:
        if self.every_epochs is not None and trainer.epoch > 0 and trainer.epoch % self.every_epochs == 0:
            self._render(trainer)

    def on_train_end(self, trainer: Any, algo: Any, state: Any) -> None:
        if self.end:
            self._render(trainer)

    def _render(self, trainer: Any) -> None:
        path = self.folder / f"episode-{trainer.env_steps:09d}.gif"
        if not path.exists():
            algo, state = trainer.member(0)
            algo.visualize(state, path)
