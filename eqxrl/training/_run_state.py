"""Where a run stands, as data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl.training._callback import decode_state, encode_state
from eqxrl.training._metrics import Sums, add_metrics

_IN_THE_TREE = ("state", "evaluations")
_NOT_STORED = ("ends", "iteration_size", "pending")


@dataclasses.dataclass
class RunState:
    """Everything that a run needs to go on, besides the algorithm and the callbacks' own state. `stored` puts all of it into a
    checkpoint, and `of` takes it out again: a field that is added here is saved and restored."""

    state: Any
    """The training state, stacked `[seeds ...]` where there are several."""
    num_seeds: int | None
    key_impl: str
    """Of the state's random keys."""
    skip_initial_evaluation: bool
    first_env_step: int
    """Env steps that the state had behind it when the run began."""
    stopped: Bool[np.ndarray, " seeds"] | None
    ends: Int[np.ndarray, " evals"]
    """The algorithm's: iterations after which an evaluation is due."""
    iteration_size: int
    """The algorithm's."""
    iteration: int = 0
    evaluations: list[EvalMetrics] = dataclasses.field(default_factory=list)
    evaluated_at: list[int] = dataclasses.field(default_factory=list)
    """The iterations after which these were made."""
    epoch_ended_at: int = -1
    """The iteration after which callbacks were last told that an epoch ended."""
    stop_reason: str | None = None
    last_row: int = -1
    """The env step of the last row that was logged."""
    sums: Sums = dataclasses.field(default_factory=dict)
    """Of the metrics since the last evaluation."""
    pending: list[tuple[int, Bool[np.ndarray, " seeds"] | None, TrainStepMetrics]] = dataclasses.field(default_factory=list)
    """Metrics that are still on the device: of so many iterations, with these seeds stopped."""

    @property
    def num_iterations(self) -> int:
        return int(self.ends[-1])

    @property
    def epoch(self) -> int:
        return max(0, len(self.evaluations) - (not self.skip_initial_evaluation))

    @property
    def num_epochs(self) -> int:
        return self.epoch + int((self.ends > self.epoch_started_at).sum())

    @property
    def env_steps(self) -> int:
        return self.first_env_step + self.iteration * self.iteration_size

    @property
    def epoch_started_at(self) -> int:
        """The iteration after which the last evaluation was made."""
        return self.evaluated_at[-1] if self.evaluated_at else 0

    @property
    def epoch_ends_at(self) -> int:
        """The iteration after which the next one is due."""
        return int(self.ends[self.ends > self.epoch_started_at][0])

    @property
    def finished(self) -> bool:
        ends_here = self.stop_reason is not None or self.iteration >= self.num_iterations
        return ends_here and self.evaluated_at[-1:] == [self.iteration]

    def where(self) -> str:
        return f"after iteration {self.iteration} of {self.num_iterations}, at {self.env_steps} env steps"

    def fetch(self, more: PyTree = None) -> PyTree:
        """Brings the pending metrics to the host, and `more`, in one transfer; what seeds did after they were stopped doesn't
        count."""
        pending, more = jax.device_get((self.pending, more))
        for num_iterations, stopped, metrics in pending:
            if stopped is not None:
                metrics = jax.tree.map(lambda x: np.where(stopped, np.float32(np.nan), x), metrics)
            self.sums = add_metrics(self.sums, num_iterations, metrics)
        self.pending = []
        return more

    def stored(self) -> tuple[PyTree, dict[str, Any]]:
        """A checkpoint's tree, and its metadata as JSON."""
        self.fetch()
        self.evaluations = jax.device_get(self.evaluations)
        evaluations = jax.tree.map(lambda *x: np.stack(x), *self.evaluations) if self.evaluations else None
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _IN_THE_TREE + _NOT_STORED}
        return {"train_state": self.state, "evaluations": evaluations}, encode_state(settings, "the run")

    @classmethod
    def of(cls, tree: PyTree, metadata: dict[str, Any], algo: Any) -> "RunState":
        """What `stored` returned; the algorithm may have a larger `total_timesteps` now."""
        settings = decode_state(metadata)
        evaluations = [jax.tree.map(lambda x, i=i: x[i], tree["evaluations"]) for i in range(len(settings["evaluated_at"]))]
        sizes = dict(ends=np.cumsum(algo.chunks), iteration_size=algo.iteration_size)
        return cls(state=tree["train_state"], evaluations=evaluations, **sizes, **settings)

    def result(self) -> tuple[Any, EvalMetrics]:
        """The training state, and the evaluations, `[evals episodes]` or `[seeds evals episodes]`."""
        axis = 0 if self.num_seeds is None else 1
        return self.state, jax.tree.map(lambda *x: jnp.stack(x, axis), *self.evaluations)
