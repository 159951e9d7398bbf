"""How many agents can be trained at once."""

import math
from typing import Any

import equinox as eqx
import jax

from eqxrl.algorithms._memory import bytes_in, free_bytes

_MARGIN = 4
"""So many times an agent's state and rollout: gradients, the optimiser's temporaries, minibatches, what a scan and an evaluation keep."""
_SHARE = 0.5
"""Of the free memory."""


def bytes_of(algo: Any) -> int:
    """An estimate for one agent, from the shapes of its state and of what an iteration collects."""
    key = jax.random.key(0)
    state = eqx.filter_eval_shape(algo.init_train_state, key)
    _, batch = eqx.filter_eval_shape(algo.get_batch, state, 0)
    return _MARGIN * bytes_in((state, batch))


def chunk_size(num_rows: int, most: int, num_devices: int) -> int:
    """Of as few equal chunks as hold so many rows, at most `most` each, a multiple of the devices' number."""
    most = max(most // num_devices, 1) * num_devices
    each = math.ceil(num_rows / math.ceil(num_rows / most))
    return math.ceil(each / num_devices) * num_devices


def fits(algo: Any) -> int:
    """How many agents the free memory is enough for."""
    return max(int(_SHARE * free_bytes() / bytes_of(algo)), 1)
