"""gymnax: its environments reset themselves, which is undone here."""

import contextlib
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from eqxrl.envs._protocol import AbstractWrapper, EnvError, Transition
from eqxrl.envs.suites._names import unknown


class Gymnax(AbstractWrapper):
    """An environment of gymnax, or one of its wrappers, without its automatic reset.

    - An environment that overrides neither `step` nor `reset` of gymnax's `Environment` is stepped with its `step_env` and
      `is_truncated`: what gymnax's own `step` does with the first half of its key. With `ResetWhenDone` around it the
      numbers are those of gymnax, bit for bit.
    - Of gymnax's wrappers and of environments that override `step` only the whole step can be called, reset and all
      (`whole_step`). Its observation is `info["final_observation"]`; the state where an episode ended is already that
      of the next one and must not be used. The whole step splits its key once more, so where the dynamics are random
      the numbers are others than gymnax's, of the same distribution.

    What a whole step hands over to the next episode is lost, since the stepper resets everything: the counts of a
    `LogWrapper`, the last action of a `StickyActionWrapper`, and DeepSea's `total_bad_episodes` and `denoised_return`, on
    which neither observations nor rewards depend.
    """

    env: Any = eqx.field(static=True)

    @property
    def whole_step(self) -> bool:
        """Whether the state where an episode ended can't be had."""
        from gymnax.environments.environment import Environment

        # Looked up without __getattr__ and on the instance too, where a function may have been put in the place of a method.
        return any(inspect.getattr_static(self.env, f, None) is not getattr(Environment, f) for f in ("step", "reset"))

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        if not self.whole_step:
            return _gymnax_transition(self.env, key, state, action, params)
        _, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        info = dict(info)
        if "final_observation" not in info:
            raise EnvError(
                f'{type(self.env).__name__}.step gives no info["final_observation"], the observation before the reset; put it '
                "there, or override step_env in place of step"
            )
        return info.pop("final_observation"), state, reward, terminated, truncated, info


# jit for the same reason and with the same arguments as gymnax's own step: in there a Python float among the parameters is
# a traced float32, out here it would be computed with in double precision, and the two would differ in the last bit.
@partial(jax.jit, static_argnames=("env",))
def _gymnax_transition(env: Any, key: Key[Array, ""], state: Any, action: Any, params: Any) -> Transition:
    params = env.default_params if params is None else params
    obs, state, reward, terminated, info = env.step_env(key, state, action, params)
    return obs, state, reward, terminated, env.is_truncated(state, params), info


def is_gymnax(env: Any) -> bool:
    """Whether `env` is an environment or a wrapper of gymnax. Doesn't import it: if it isn't imported, `env` is neither."""
    classes = (("gymnax.environments.environment", "Environment"), ("gymnax.wrappers.purerl", "GymnaxWrapper"))
    return any(isinstance(env, getattr(sys.modules[module], name)) for module, name in classes if module in sys.modules)


def without_reset(env: Any) -> Any:
    """`env`, in `Gymnax` where it is one of gymnax's."""
    return Gymnax(env) if is_gymnax(env) else env


def names() -> list[str]:
    return list(_gymnax().registered_envs)


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, Any]:
    gymnax = _gymnax()
    if env_id not in gymnax.registered_envs:
        raise unknown("gymnax", env_id, gymnax.registered_envs)
    try:
        env, env_params = gymnax.make(env_id, **env_kwargs)
    except (OSError, EOFError) as error:  # URLError is an OSError; a file cut short is either
        if env_id != "MNISTBandit-bsuite":
            raise
        from gymnax.utils.load_mnist import load_mnist

        folder = inspect.signature(load_mnist).parameters["directory"].default
        raise ConnectionError(
            f"{env_id} needs the MNIST images, and gymnax could not download or read them ({type(error).__name__}: {error}). "
            "Get train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            "t10k-labels-idx1-ubyte.gz from https://storage.googleapis.com/cvdf-datasets/mnist/ and put them into "
            f"{folder}, in place of what a broken download left there"
        ) from error
    return Gymnax(env), env_params


def _gymnax() -> Any:
    # Which files of gymnax import for their pictures; seaborn with pandas and SciPy, more than a second.
    with _when_used("seaborn"), _when_used("matplotlib.pyplot"):
        return importlib.import_module("gymnax")  # takes half a second


@contextlib.contextmanager
def _when_used(name: str) -> Iterator[None]:
    """What is imported in here and imports the module gets one that isn't loaded until something of it is used."""
    if name in sys.modules:
        yield
        return
    module: Any = types.ModuleType(name)
    module.__getattr__ = lambda attribute: getattr(importlib.import_module(name), attribute)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
