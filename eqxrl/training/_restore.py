"""Where a run stands, read from its checkpoints."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import EvalMetrics
from eqxrl.algorithms import AbstractOnPolicy, PPOState
from eqxrl.training import _programs as programs
from eqxrl.training._checkpoints import Checkpoints
from eqxrl.training._files import CheckpointDamaged, CheckpointMismatch, read_metadata
from eqxrl.training._metrics import flat, hyperparameters


def load_checkpoint(folder: str | Path, algo: AbstractOnPolicy, *, best: bool = False) -> tuple[PPOState, EvalMetrics]:
    """The training state in the newest checkpoint of a run, or in the best one, and the evaluations up to then, shaped as `fit`
    returns them.

    **Arguments:** `folder` as it was given to `Trainer`; the algorithm of the run.

    **Raises:** `FileNotFoundError`, `CheckpointMismatch`, `CheckpointDamaged`.
    """
    _, state, evaluations = read_run(Path(folder), algo, best=best)
    return state, stack(evaluations, state.rng.ndim > 0)


def read_run(folder: Path, algo: AbstractOnPolicy, *, best: bool = False) -> tuple[dict[str, Any], PPOState, list[EvalMetrics]]:
    """A checkpoint's metadata, training state and evaluations."""
    checkpoints = Checkpoints(folder)
    read = checkpoints.best if best else checkpoints.latest
    metadata = _first_metadata([folder / "best.eqx"] if best else [path for _, path in checkpoints.files()])
    if metadata is None:
        read({})  # raises, and says why none can be read
    try:
        run, stored = metadata["run"], flat(metadata["hyperparameters"])  # pyright: ignore[reportOptionalSubscript]
        num_seeds, skip_initial_evaluation = run["num_seeds"], run["skip_initial_evaluation"]
        keys = jax.random.key(0, impl=run["key_impl"])
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointMismatch(f"the checkpoints in {folder} weren't written by a Trainer; read them with eqxrl.load") from e
    present = flat(hyperparameters(algo))
    changed = [
        f"\n  {k}: the run has {stored.get(k)}, the algorithm {present.get(k)}"
        for k in sorted({*stored, *present})
        if stored.get(k) != present.get(k)
    ]
    if changed:
        raise CheckpointMismatch(
            f"the run in {folder} isn't one of this algorithm:{''.join(changed)}\nPass the algorithm that it was started with. "
            "To go on with other hyperparameters, pass the state that load_checkpoint returns as train_state, in a new folder"
        )
    state = eqx.filter_eval_shape(programs.init, algo, keys if num_seeds is None else jax.random.split(keys, num_seeds))
    like = {"train_state": state, "evaluations": room_for_evaluations(algo, state, skip_initial_evaluation)}
    tree, metadata = read(like)
    evaluations = [jax.tree.map(lambda x, i=i: x[i], tree["evaluations"]) for i in range(metadata["run"]["num_evaluations"])]
    return metadata, tree["train_state"], evaluations


def _first_metadata(paths: list[Path]) -> dict[str, Any] | None:
    for path in paths:
        try:
            return read_metadata(path)
        except (CheckpointDamaged, FileNotFoundError):
            continue
    return None


def room_for_evaluations(algo: AbstractOnPolicy, state: PPOState, skip_initial_evaluation: bool) -> EvalMetrics:
    """Of a whole run, `[evals ...]`, however many there are yet, so that all checkpoints of a run have the same shapes."""
    num_evaluations = len(algo.chunks) + (not skip_initial_evaluation)
    one = eqx.filter_eval_shape(programs.evaluate, (algo, state.rng.ndim > 0), state)
    return jax.tree.map(lambda x: np.zeros((num_evaluations, *x.shape), x.dtype), one)


def stack(evaluations: list[EvalMetrics], stacked: bool) -> EvalMetrics:
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1 if stacked else 0), *evaluations)
