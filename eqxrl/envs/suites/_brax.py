"""brax: its environments know of no time limit, and its own wrapper resets to the same first state each time, so it isn't used."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs._wrappers import TimeLimit
from eqxrl.envs.suites import _bodies
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box

PACKAGE = "brax"


class AbstractBrax(eqx.Module):
    """An environment of brax's interface, without a time limit. `info` has its metrics, such as the parts of the reward."""

    env: eqx.AbstractVar[Any]

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        state = self.env.reset(jax.random.key_data(key))  # Playground draws from a typed key again that it keeps, as none may be
        return state.obs, state

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        state = self.env.step(jax.tree.map(lambda x: x, state), action)  # it writes into the dicts of the state that it is given
        return state.obs, state, state.reward, state.done > 0, jnp.zeros((), bool), state.metrics

    def action_space(self, params: Any = None) -> Box:
        return Box(-1.0, 1.0, (self.env.action_size,))


class Brax(AbstractBrax):
    """An environment of brax."""

    env: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    reset_pool: int | None = eqx.field(static=True, default=None)

    def observation_space(self, params: Any = None) -> Box:
        return Box(-jnp.inf, jnp.inf, (self.env.observation_size,))

    def picture(self, state: Any, params: Any = None) -> UInt8[np.ndarray, "height width 3"]:
        if not hasattr(self.env, "sys"):
            raise ValueError(f"no picture of {self.name} can be drawn: it has no bodies")
        return _bodies.draw(self.env.sys.mj_model, state.pipeline_state.q)


def names() -> list[str]:
    return list(extra("brax.envs", "brax", "the suite brax")._envs)


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[TimeLimit, None]:
    """With `episode_length` steps, by default 1,000, as in brax's own training, and `reset_pool` first states for training, by default 256,
    since a reset may cost as much as a step; the other arguments are the environment's, such as `backend`."""
    envs: Any = extra("brax.envs", "brax", env_id)
    name = env_id.partition("/")[2]
    if name not in envs._envs:
        raise unknown("brax", env_id, envs._envs)
    episode_length, reset_pool = env_kwargs.pop("episode_length", 1000), env_kwargs.pop("reset_pool", 256)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # that its makers recommend another suite
        env = envs.get_environment(name, **env_kwargs)
    return TimeLimit(Brax(env, env_id, reset_pool), episode_length), None
