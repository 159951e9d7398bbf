import abc
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eqxrl._typing import Scalar, Schedule, check_numbers, field, within


class AbstractHParams(eqx.Module):
    """How an algorithm is configured. Integers and flags are static: they set shapes, or pick a branch. Floats are leaves, which
    `vmap` sweeps without a recompile; those of type `Schedule` may also be a function of the number of gradient updates.
    The docstring of a field is its help text on the command line."""

    total_timesteps: int = field(default=131072)
    """Env steps of the run, over all environments."""
    eval_freq: int = field(default=4096)
    """Env steps between evaluations."""
    num_seeds_per_eval: int = field(default=128)
    """Episodes of an evaluation."""
    debug: bool = field(default=False)
    """Stop at the first NaN or infinity in what was collected, a loss or the policy, and name it; slower."""

    @property
    @abc.abstractmethod
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: the horizon for a schedule that spans it."""

    def __check_init__(self):
        for f in dataclasses.fields(self):
            value, name = getattr(self, f.name), f"{type(self).__name__}.{f.name}"
            if f.type is bool and not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            if f.type is int and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if f.type is int and value < f.metadata.get("at_least", 1):
                raise ValueError(f"{name} must be at least {f.metadata.get('at_least', 1)}, got {value}")
        check_numbers(self)

    def __repr__(self) -> str:
        fields = (f"{f.name}={_show(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(fields)})"


class AbstractMinibatchHParams(AbstractHParams):
    """What algorithms have in common that pass over each rollout several times, in minibatches."""

    learning_rate: eqx.AbstractVar[Schedule]  # pyright: ignore[reportGeneralTypeIssues]

    num_epochs: int = field(default=8)
    """Passes over each rollout."""
    num_envs: int = field(default=64)
    """Environments that are stepped at once."""
    num_steps: int = field(default=64)
    """Steps of each environment in a rollout."""
    num_minibatches: int = field(default=16)
    """Parts that a rollout is cut into for each pass."""

    def __check_init__(self):
        super().__check_init__()  # the sizes themselves, before they are computed with
        samples = self.num_envs * self.num_steps
        if rest := samples % self.num_minibatches:
            by = f"divisible by num_minibatches ({self.num_minibatches}); remainder {rest}"
            raise ValueError(f"num_envs * num_steps ({samples}) must be {by}")

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: the horizon for a schedule that spans it."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps)) * self.num_epochs * self.num_minibatches


class AbstractDataParallelHParams(AbstractMinibatchHParams):
    """What those of them have in common that several devices can work on."""

    num_devices: int = field(default=1)
    """Devices, such as CPU cores, that the environments and each minibatch are divided between: faster where minibatches have about a
    thousand samples. Each device draws keys of its own, so that a run isn't the one that a single device makes. Where there are fewer
    devices, one does the work of all, and the numbers differ in rounding only."""

    def __check_init__(self):
        super().__check_init__()
        if rest := self.num_envs % self.num_devices:
            raise ValueError(f"num_envs ({self.num_envs}) must be divisible by num_devices ({self.num_devices}); remainder {rest}")
        if rest := self.num_envs // self.num_devices * self.num_steps % self.num_minibatches:
            samples = f"num_envs / num_devices * num_steps ({self.num_envs} / {self.num_devices} * {self.num_steps})"
            raise ValueError(f"{samples} must be divisible by num_minibatches ({self.num_minibatches}); remainder {rest}")


class AbstractEpsilonGreedyHParams(AbstractHParams):
    """What those algorithms have in common whose actions are now and then drawn from all of them."""

    epsilon_start: Scalar = field(default=1.0, metadata=within(0.0, 1.0))
    """Probability of a random action at the start."""
    epsilon_end: Scalar = field(default=0.05, metadata=within(0.0, 1.0))
    """The same after `exploration_fraction` of the run, linear in between."""
    exploration_fraction: Scalar = field(default=0.2, metadata=within(0.0, 1.0, open_low=True))
    """Part of the run in which exploration decreases."""

    @property
    def epsilon(self) -> Callable[[Scalar], Scalar]:
        """The probability of a random action after so many env steps."""

        def at(env_steps: Scalar) -> Scalar:
            progress = jnp.clip(env_steps / (self.exploration_fraction * self.total_timesteps), 0.0, 1.0)
            return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * progress

        return at


def _show(x: object) -> str:
    if isinstance(x, jax.Array | np.ndarray) and not isinstance(x, Tracer):
        return str(np.asarray(x).tolist() if np.ndim(x) else np.asarray(x))  # a float32 as its shortest decimal
    return repr(x)
