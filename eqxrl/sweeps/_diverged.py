from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from eqxrl.algorithms._finite import floats
from eqxrl.training import Callback


class Diverged(Callback):
    """Ends a member of a sweep whose state isn't finite any more, and lets the others go on: its floats that aren't finite become 0,
    so that the rest can be saved, and the member is stopped. `state["since"]`: after which iteration, for each; -1 for those that are
    well."""

    def setup(self, trainer: Any, algo: Any, state: Any) -> None:
        self.state = {"since": np.full(trainer.num_seeds, -1, np.int32)}

    def on_train_epoch_end(self, trainer: Any, algo: Any, state: Any, outputs: Any) -> None:
        bad = np.asarray(_bad(state)) & (self.state["since"] < 0)
        if bad.any():
            self.state["since"] = np.where(bad, np.int32(trainer.iteration), self.state["since"])
            # The run itself goes on, even if nobody is left, so that all have as many evaluations.
            trainer.stopped = trainer.stopped | bad
            trainer.state = _cleared(state, jnp.asarray(bad))


@eqx.filter_jit
def _bad(state: Any) -> Bool[Array, " seeds"]:
    return jnp.any(jnp.stack([jnp.any(~jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in floats("", state).values()]), axis=0)


@eqx.filter_jit
def _cleared(state: Any, bad: Bool[Array, " seeds"]) -> Any:
    def leaf(x: Any) -> Any:
        return jnp.where(bad.reshape(-1, *[1] * (x.ndim - 1)) & ~jnp.isfinite(x), 0, x) if eqx.is_inexact_array(x) else x

    return jax.tree.map(leaf, state)
