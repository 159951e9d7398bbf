"""Where a run stands, as data; and how it begins: anew, from a training state, or from its checkpoints."""

import dataclasses
import errno
import functools
import hashlib
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import as_key
from eqxrl.algorithms import AbstractAlgorithm
from eqxrl.algorithms._finite import floats
from eqxrl.algorithms._memory import check_fits, size_of, state_size
from eqxrl.training import _programs as programs
from eqxrl.training._callback import decode_state, encode_state
from eqxrl.training._checkpoints import Checkpoints, Foreign, newest, set_aside
from eqxrl.training._files import CheckpointMismatch, load, read_metadata
from eqxrl.training._metrics import Sums, add_metrics, flat, hyperparameters, mean_metrics
from eqxrl.training._numerics import changes

_APART = ("state", "evaluations", "ends", "iteration_size", "pending")  # in the checkpoint's tree, or known otherwise
_TOTAL = "hp/total_timesteps"


@dataclasses.dataclass
class RunState:
    """All that a run needs to go on, besides the algorithm and the callbacks' own state. `stored` puts it into a checkpoint, and
    `of` takes it out again: a field that is added here is saved and restored."""

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
    num_devices: int = 1
    """That the seeds are spread over; an older checkpoint doesn't tell."""
    started_with: str | None = None
    """The fingerprint of the keys; `None` where it went on from a training state."""
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
        """Brings the pending metrics to the host, and `more`, in one transfer. What stopped seeds did doesn't count."""
        pending, more = jax.device_get((self.pending, more))
        for num_iterations, stopped, metrics in pending:
            if stopped is not None:
                metrics = jax.tree.map(lambda x: np.where(stopped, np.float32(np.nan), x), metrics)
            self.sums = add_metrics(self.sums, num_iterations, metrics)
        self.pending = []
        return more

    def non_finite(self, evaluation: EvalMetrics | None = None, *, of_state_only: bool = False) -> str | None:
        """The first float that isn't finite, of the metrics since the last evaluation, the evaluation and the state; its seeds, those
        that are stopped left out (but of the state alone, all are looked at); and when it was. One small transfer."""
        arrays, each = self.fetch(floats("evaluation", evaluation) | floats("state", self.state)), self.num_seeds is not None
        found = {name: ~np.isfinite(x).all(axis=tuple(range(each, x.ndim))) for name, x in arrays.items()}
        if self.sums and not of_state_only:
            found = {k: ~np.isfinite(x) for k, x in floats("outputs", mean_metrics(self.sums)).items()} | found
        for name, bad in found.items():
            bad = bad if self.stopped is None or of_state_only else bad & ~self.stopped
            if bad.any():
                seeds = "" if self.stopped is None else f" of seed {', '.join(map(str, np.flatnonzero(bad)))}"
                begin = self.first_env_step + self.epoch_started_at * self.iteration_size
                when = f", in interval {self.epoch + 1} of {self.num_epochs}, which began at {begin}"
                return f"{name}{seeds} isn't finite {self.where()}{when if self.iteration > self.epoch_started_at else ''}"
        return None

    def stored(self) -> tuple[PyTree, dict[str, Any]]:
        """A checkpoint's tree, and its metadata as JSON."""
        self.fetch()
        self.evaluations = jax.device_get(self.evaluations)
        evaluations = jax.tree.map(lambda *x: np.stack(x), *self.evaluations) if self.evaluations else None
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _APART}
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
        return self.state, jax.device_put(jax.tree.map(lambda *x: np.stack(x, axis), *self.evaluations))


def load_checkpoint(folder: str | Path, algo: AbstractAlgorithm, *, best: bool = False, axes: PyTree = None) -> tuple[Any, EvalMetrics]:
    """The training state in the newest checkpoint of a run, or in the best one, and the evaluations up to then, shaped as `fit`
    returns them.

    **Arguments:** `folder` as it was given to `Trainer`; the algorithm of the run, and its `axes` if it was a sweep.

    **Raises:** `FileNotFoundError`, `CheckpointMismatch`, `CheckpointDamaged`.
    """
    read = functools.partial(_read, algo, axes)
    return (read(Path(folder) / "best.eqx") if best else newest(Path(folder), read))[0].result()


def _read(algo: AbstractAlgorithm, axes: PyTree, path: Path) -> tuple[RunState, PyTree, dict[str, Any], bool, str]:
    """Where the run stood; the algorithm's axes; the states of the callbacks; whether the algorithm has a larger `total_timesteps`
    than the run, and is otherwise the same; and what this process would compute otherwise than that which wrote it."""
    metadata = read_metadata(path)
    try:
        run, stored = metadata["run"], flat(metadata["hyperparameters"])
        keys, num_evaluations = jax.random.key(0, impl=run["key_impl"]), len(run["evaluated_at"])
        keys = keys if run["num_seeds"] is None else jax.random.split(keys, run["num_seeds"])
    except (KeyError, TypeError, ValueError) as e:
        raise Foreign(f"the checkpoints in {path.parent} weren't written by a Trainer; read them with eqxrl.load") from e
    axes = programs.check_axes(algo, axes, keys)
    present = flat(hyperparameters(algo, None if axes is False else axes))
    changed = {k for k in {*stored, *present} if stored.get(k) != present.get(k)}
    extended = changed == {_TOTAL} and present[_TOTAL] > stored[_TOTAL]
    if changed and not extended:
        lines = [f"\n  {k}: the run has {stored.get(k)}, the algorithm {present.get(k)}" for k in sorted(changed)]
        raise CheckpointMismatch(
            f"the run in {path.parent} isn't one of this algorithm:{''.join(lines)}\nPass the algorithm that it was started with; only "
            "total_timesteps may be larger. To go on with other hyperparameters, pass the state that load_checkpoint returns as "
            "train_state, in a new folder"
        )
    check_fits(algo, state_size(programs.member(algo, axes, 0), run["num_seeds"] or 1), programs.num_devices(run["num_seeds"]))
    state = eqx.filter_eval_shape(programs.init, algo, axes, keys)
    one = eqx.filter_eval_shape(programs.evaluate, algo, axes, state)
    evaluations = jax.tree.map(lambda x: np.zeros((num_evaluations, *x.shape), x.dtype), one) if num_evaluations else None
    tree = load(path, {"train_state": state, "evaluations": evaluations})
    callbacks = {k: decode_state(x) for k, x in metadata["callbacks"].items()}
    return RunState.of(tree, run, programs.member(algo, axes, 0)), axes, callbacks, extended, changes(metadata.get("numerics"))


def start(
    folder: Path | None, algo: Any, rng: Any, train_state: Any, skip_initial_evaluation: bool, resume: bool, axes: PyTree
) -> tuple[RunState, PyTree, dict[str, Any] | None]:
    """Where a run stands when `Trainer.fit` is called with these arguments; the algorithm's axes; and, if it goes on from a
    checkpoint, the states of its callbacks."""
    if not isinstance(algo, AbstractAlgorithm):
        got = algo.__name__ if isinstance(algo, type) else type(algo).__name__
        raise TypeError(f"fit takes an algorithm first, such as PPO.create('CartPole-v1'), got {got}")
    if train_state is not None and not hasattr(train_state, "rng"):
        raise TypeError(f"train_state must be a training state, the first of the two that fit returns, got {type(train_state).__name__}")
    if resume and folder is None:
        raise ValueError("resume=True needs a folder to resume from; pass Trainer(folder=...)")
    if folder is not None and Checkpoints(folder).files():
        if resume:
            return _resumed(folder, algo, axes)
        why = "this folder holds a run; pass fit(..., resume=True) to go on with it, or another folder"
        raise FileExistsError(errno.EEXIST, why, str(folder))
    if rng is None and train_state is None:
        if resume:
            raise FileNotFoundError(errno.ENOENT, "there is no run to resume in this folder; pass rng to start one", str(folder))
        raise ValueError("pass either rng, a key or a seed, to start anew, or train_state, to go on from it")
    keys = as_key(rng) if train_state is None else train_state.rng  # pyright: ignore[reportArgumentType]
    axes = programs.check_axes(algo, axes, keys)
    one, num_seeds = programs.on_one_device(programs.member(algo, axes, 0)), keys.shape[0] if keys.ndim else None
    size = state_size(one, num_seeds or 1) if train_state is None else size_of(train_state)
    check_fits(one, size, programs.num_devices(num_seeds))
    if train_state is None:
        algo, keys = programs.spread(axes, algo, keys)
        state = programs.init(algo, axes, keys)
    else:
        _, state = programs.spread(False if axes is False else None, None, copy(train_state))
    stopped = None if num_seeds is None else np.zeros(num_seeds, bool)
    run = RunState(
        state=state, key_impl=str(jax.random.key_impl(state.rng)), num_seeds=num_seeds, stopped=stopped,
        num_devices=programs.num_devices(num_seeds, one),
        skip_initial_evaluation=skip_initial_evaluation, first_env_step=one.env_steps(state),
        started_with=fingerprint(keys) if train_state is None else None,
        ends=np.cumsum(one.chunks), iteration_size=one.iteration_size,
    )
    return run, axes, None


def _resumed(folder: Path, algo: AbstractAlgorithm, axes: PyTree) -> tuple[RunState, PyTree, dict[str, Any]]:
    run, axes, callbacks, extended, changed = newest(folder, functools.partial(_read, algo, axes))
    for iteration, path in Checkpoints(folder).files():
        if iteration > run.iteration:  # it is damaged, and would be in the way of the next one
            set_aside(path)
    if (now := programs.num_devices(run.num_seeds, algo)) != run.num_devices:
        changed = "; ".join(filter(None, [changed, f"num_devices: recorded {run.num_devices}, now {now}"]))
        run.num_devices = now
    if changed:
        why = f"the numbers of the run in {folder} may differ from here on, in their last digits or altogether"
        warnings.warn(f"{why}, since this isn't what computed them so far: {changed}", stacklevel=5)
    if lost := getattr(algo.env, "not_restored", None):
        warnings.warn(f"the run in {folder} goes on otherwise than if it hadn't been cut off: {lost}", stacklevel=5)
    if run.stop_reason is not None and extended:
        run.stop_reason = None
        if run.stopped is not None and run.stopped.all():  # seeds that were stopped before the others stay so
            run.stopped[:] = False
    elif run.stop_reason is not None:
        how = f"pass an algorithm whose total_timesteps is above {algo.hp.total_timesteps}, and is otherwise the same"
        why = f"the run in {folder} was stopped ({run.stop_reason}) {run.where()}"
        warnings.warn(f"{why}, and stays so; to go on with it, {how}", stacklevel=5)
    return run, axes, callbacks


def fingerprint(keys: Key[Array, "..."]) -> str:
    return hashlib.sha256(np.asarray(jax.random.key_data(keys)).tobytes()).hexdigest()[:16]


def copy(tree: PyTree) -> PyTree:
    """For a state whose buffers are about to be donated."""
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array_like(x) and hasattr(x, "dtype") else x, tree)
