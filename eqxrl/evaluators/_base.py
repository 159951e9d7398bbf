import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Key

from eqxrl._structs import EvalMetrics
from eqxrl.nn import AbstractPolicy


class AbstractEvaluator(eqx.Module):
    """Plays whole episodes with a policy. One that forgets the worst tenth of what another one played, in full:

        class WithoutTheWorst(AbstractEvaluator):
            inner: AbstractEvaluator

            def __call__(self, env, env_params, policy, key):
                metrics = self.inner(env, env_params, policy, key)
                order = jnp.argsort(metrics.cumulative_reward)[metrics.cumulative_reward.size // 10 :]
                return jax.tree.map(lambda x: x[order], metrics)
    """

    @abc.abstractmethod
    def __call__(self, env: Any, env_params: Any, policy: AbstractPolicy, key: Key[Array, ""]) -> EvalMetrics:
        """**Returns:** return and length of each episode, `[episodes]`."""
