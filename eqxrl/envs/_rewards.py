"""Environments with other rewards. Whoever steps them sees these rewards only: training, the returns of episodes, evaluations too. What
is to change in training alone belongs in the collector, as `RewardScaling` is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from eqxrl._typing import Scalar, as_scalar, describe, field, typed
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs.suites._gymnax import without_reset


class AbstractRewardWrapper(AbstractWrapper):
    """Pays another reward for each step, a function of the environment's own. One that pays half of it, in full:

        class HalfReward(AbstractRewardWrapper):
            env: Any

            def transformed(self, reward):
                return reward / 2
    """

    @abc.abstractmethod
    def transformed(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        """The reward that is paid in place of `reward`; both are float32 scalars."""

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, state, reward, *rest = self.env.step(key, state, action, params)
        return obs, state, self.transformed(jnp.asarray(reward, jnp.float32).reshape(())), *rest


class TransformReward(AbstractRewardWrapper):
    """Pays `function(reward)`, in evaluations too. An `eqx.Module` is such a function as well; its arrays are leaves.

    **Raises:** `TypeError` for a function that doesn't return a scalar.
    """

    env: Any = eqx.field(converter=without_reset)
    function: Callable[[Float[Array, ""]], Any]

    def transformed(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        paid = jnp.asarray(self.function(reward))
        if paid.shape != ():
            raise TypeError(f"TransformReward's function made {describe(paid)} of the reward, which is float32[]; it must return a scalar")
        return paid.astype(jnp.float32)


@typed
class ClipReward(AbstractRewardWrapper):
    """Clips rewards to `[low, high]`, in evaluations too.

    **Raises:** `ValueError` if `low` isn't below `high`.
    """

    env: Any = eqx.field(converter=without_reset)
    low: Scalar = field(default=-1.0)
    high: Scalar = field(default=1.0)

    def __check_init__(self):
        if not (isinstance(self.low, Tracer) or isinstance(self.high, Tracer)) and self.low >= self.high:
            raise ValueError(f"ClipReward got low={self.low:g} and high={self.high:g}; low must be below high")

    def transformed(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.clip(reward, self.low, self.high)


@typed
class ScaleReward(AbstractRewardWrapper):
    """Multiplies rewards by `scale`, in evaluations too."""

    env: Any = eqx.field(converter=without_reset)
    scale: Scalar = eqx.field(converter=as_scalar)

    def transformed(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        return reward * self.scale


class SignReward(AbstractRewardWrapper):
    """Pays -1, 0 or 1, the sign of the reward, in evaluations too. Mnih et al. 2015, https://doi.org/10.1038/nature14236, which calls it
    clipping."""

    env: Any = eqx.field(converter=without_reset)

    def transformed(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sign(reward)
