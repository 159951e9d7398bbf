"""NaN and infinity where there should be numbers."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from eqxrl._structs import TrajectoryCollectionState
from eqxrl._typing import T
from eqxrl.buffers import BufferState


def assert_finite(x: T, **named: Any) -> T:
    """For `hp.debug`: stops the run, inside the compiled program, at the first NaN or infinity, and names where it is."""
    for name, tree in named.items():
        for where, leaf in floats(name, tree).items():
            x = eqx.error_if(x, ~jnp.all(jnp.isfinite(leaf)), f"not finite: {where}")
    return x


def floats(name: str, tree: PyTree) -> dict[str, Any]:
    """The float arrays of metrics, or of a training state, by path; without what environments keep to themselves and what has been
    put into a buffer."""
    leaves: dict[str, Any] = {}
    for path, x in jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, TrajectoryCollectionState | BufferState)):
        where = name + jax.tree_util.keystr(path)
        if isinstance(x, TrajectoryCollectionState):
            for field, value in vars(x).items():
                leaves |= {} if field in ("env_state", "reset_state") else floats(f"{where}.{field}", value)
        elif eqx.is_inexact_array(x):
            leaves[where] = x
    return leaves


def warn_unless_finite(algo: Any, metrics: Any, ts: Any) -> None:
    """Looks at what `train` is about to return: metrics, `[evals]`, and the final state. Under a transformation there is nothing to
    look at yet."""
    leaves = floats("metrics", metrics) | floats("state", ts)
    if any(isinstance(x, Tracer) for x in leaves.values()):
        return
    bad = {name: np.flatnonzero(~np.isfinite(x)) for name, x in jax.device_get(leaves).items() if not np.isfinite(x).all()}
    if not bad:
        return
    in_time = {name: index[0] for name, index in bad.items() if name.startswith("metrics")}
    name = min(in_time, key=in_time.__getitem__) if in_time else next(iter(bad))
    interval = in_time.get(name, len(algo.chunks) - 1)
    begin, end = (int(np.sum(algo.chunks[:i])) * algo.iteration_size for i in (interval, interval + 1))
    warnings.warn(
        f"{name} isn't finite from interval {interval + 1} of {len(algo.chunks)} on (env steps {begin} to {end} of this call), so what "
        "is returned is no result. A lower learning rate or max_grad_norm may help; hp.debug=True stops where it begins",
        stacklevel=3,
    )
