import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Key

from eqxrl._structs import EvalMetrics
from eqxrl.nn import AbstractActorCritic


class AbstractEvaluator(eqx.Module):
    """Plays whole episodes with a policy."""

    @abc.abstractmethod
    def __call__(self, env: Any, env_params: Any, agent: AbstractActorCritic, key: Key[Array, ""]) -> EvalMetrics:
        """**Returns:** return and length of each episode, `[episodes]`."""
