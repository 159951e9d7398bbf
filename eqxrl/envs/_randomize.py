from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from eqxrl._typing import as_scalar, describe, strong, typed
from eqxrl.envs._protocol import AbstractWrapper, Transition
from eqxrl.envs.suites._gymnax import without_reset
from eqxrl.spaces import Space, as_space

NUM_DRAWS = 4


@typed
class RandomizedState(eqx.Module):
    env_state: PyTree
    params: PyTree
    """Of this episode."""


class RandomizeParams(AbstractWrapper):
    """Domain randomisation: each episode, of each environment, has parameters of its own, `sample(key, params)`, where `params` are those
    that the environment is given; they hold until the episode ends. With a length that is drawn anew:

        def sample(key, params):
            return params.replace(length=jax.random.uniform(key, minval=0.25, maxval=1.0))

        ppo = PPO.create(env=RandomizeParams(make("CartPole-v1")[0], sample))

    Evaluations are on such episodes as well; for those of one task, pass an evaluator of your own. An evaluation lasts as long
    as `params` say, so a time limit may be drawn that is shorter than theirs, but none that is longer.

    - `sample`: a function, or an `eqx.Module`, whose arrays are leaves. It returns parameters of the structure of `params`.
      Numbers in them become arrays, so what decides about shapes or branches must be a static field.

    The spaces must not depend on what is drawn, since policies are made for one: both are asked for with `params` and with 4 draws, and
    compared, wherever all of these are concrete numbers (`create` does so).

    Tobin et al. 2017, https://arxiv.org/abs/1703.06907; Peng et al. 2018, https://arxiv.org/abs/1710.06537

    **Raises:** `TypeError` where `sample` returns another structure, shape or dtype, `ValueError` where a space depends on what is drawn.
    """

    env: Any = eqx.field(converter=without_reset)
    sample: Callable[[Any, Any], Any]

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, RandomizedState]:
        reset_key, sample_key = jr.split(key)
        drawn = self._draw(sample_key, params)
        obs, state = self.env.reset(reset_key, drawn)
        return obs, RandomizedState(env_state=state, params=drawn)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        obs, env_state, *rest = self.env.step(key, state.env_state, action, state.params)
        return obs, RandomizedState(env_state=env_state, params=state.params), *rest

    def observation_space(self, params: Any = None) -> Space:
        return self._the_one("observation_space", params)

    def action_space(self, params: Any = None) -> Space:
        return self._the_one("action_space", params)

    @property
    def picture(self) -> Callable[[RandomizedState, Any], Any]:
        """That of the environment inside, if it has one, with the episode's own parameters."""
        draw = self.env.picture
        return lambda state, params: draw(state.env_state, state.params)

    def _draw(self, key: Key[Array, ""], params: Any) -> Any:
        drawn = self.sample(key, params)
        check_params("RandomizeParams's sample", params, drawn)
        # What a state holds is arrays. A float becomes a float32 also where JAX has wider ones.
        return strong(jax.tree.map(lambda x: as_scalar(x) if isinstance(x, float) else jnp.asarray(x), drawn))

    def _the_one(self, which: str, params: Any) -> Space:
        space_of = getattr(self.env, which)
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((self, params))):
            return as_space(space_of(params))
        with jax.ensure_compile_time_eval():  # else, while a program is traced, every bound would be an unknown number
            space = as_space(space_of(params))
            for key in jr.split(jr.key(0), NUM_DRAWS):
                other = as_space(space_of(self._draw(key, params)))
                if other != space:
                    raise ValueError(
                        f"RandomizeParams: {which} depends on what sample draws: it is {space} with the environment's parameters, and "
                        f"{other} with some that were drawn. Policies are made for one space; leave those parameters as they are"
                    )
        return space


def check_params(producer: str, params: Any, made: Any) -> None:
    """Checks that parameters that were made of `params` have their structure, shapes and dtypes; a Python number has no width.

    **Raises:** `TypeError`, which names the producer and the first parameter that has changed.
    """
    if jax.tree.structure(made) != jax.tree.structure(params):
        raise TypeError(
            f"{producer} must return parameters of the structure of those that it is given, {jax.tree.structure(params)}, but returned "
            f"{jax.tree.structure(made)}; change values only, as in params.replace(length=...)"
        )
    for (path, old), new in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(made)):
        if not _fits(old, new):
            raise TypeError(
                f"{producer} turned params{jax.tree_util.keystr(path)} from {describe(old)} into {describe(new)}; it may change values, "
                "but no shapes or dtypes: cast what it returns, or give the environment such a parameter to begin with"
            )


def _fits(old: Any, new: Any) -> bool:
    if hasattr(old, "dtype") and hasattr(new, "dtype"):
        return (old.shape, old.dtype) == (new.shape, new.dtype)
    try:
        types = [jnp.result_type(x) for x in (old, new)]
    except TypeError:  # no numbers
        return type(old) is type(new)
    return np.shape(old) == np.shape(new) and types[0].kind == types[1].kind
