"""navix: its environments reset themselves in the step after an end; the step without that is used."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Discrete

PACKAGE = "navix"
BOUNDS: dict[str, Any] = {
    "symbolic": (0, [10, 5, 3]), "symbolic_first_person": (0, [10, 5, 3]), "categorical": (-1, 10), "categorical_first_person": (-1, 100),
    "rgb": (0, 255), "rgb_first_person": (0, 255),
}
"""Of navix's observations, by the name of their function. navix's own spaces leave out the player, the walls and what is out of sight."""


class Navix(eqx.Module):
    """An environment of navix. Its reward is 1 where the task is done and 0 elsewhere, so a return is 1 or 0, a success or none; only in
    the environments with balls a touch ends the episode with 0."""

    env: Callable[[], Any] = eqx.field(static=True)
    """Gives navix's environment, which has arrays in its spaces and can't be hashed itself."""
    name: str = eqx.field(static=True)
    sees_tiles: bool = eqx.field(static=True)
    """Whether observations are drawn with the pictures of the tiles that navix keeps in each state, 12 kB of a grid of 8 by 8. Otherwise
    they aren't kept."""
    cheap_reset = True

    @property
    def max_steps(self) -> int:
        return self.env().max_steps

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        # A typed key in the state would count as used in each branch of navix's choice among actions, when keys are checked.
        with jax.numpy_rank_promotion("allow"):  # which navix relies on
            timestep = self.env().reset(jax.random.key_data(key))
        if not self.sees_tiles:
            timestep = timestep.replace(state=timestep.state.replace(cache=None))
        return timestep.observation, timestep

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        with jax.numpy_rank_promotion("allow"):
            timestep = self.env()._step(state, action)
        terminated = timestep.step_type == 2  # which hides a time limit at the same step
        return timestep.observation, timestep, timestep.reward, terminated, timestep.t >= self.max_steps, {}

    def observation_space(self, params: Any = None) -> Box:
        env = self.env()
        obs, _ = jax.eval_shape(self.reset, jax.random.key(0))
        low, high = BOUNDS.get(env.observation_fn.__name__, (env.observation_space.minimum, env.observation_space.maximum))
        if np.ndim(high) and type(env).__name__ == "KeyCorridor":
            high = [10, 5, 255]  # where a door is, 1 - 2 of its state, in a byte
        return Box(low, high, obs.shape, obs.dtype)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(len(self.env().action_set))

    def picture(self, state: Any, params: Any = None) -> np.ndarray:
        state = jax.tree.map(jnp.asarray, state.state)
        if state.cache is None:
            state = state.replace(cache=extra("navix.rendering.cache", "navix", "a picture").RenderingCache.init(state.grid))
        return np.asarray(_draw(state))


@jax.jit
def _draw(state: Any) -> Array:
    with jax.numpy_rank_promotion("allow"):
        return extra("navix.observations", "navix", "a picture").rgb(state)


def names() -> list[str]:
    return list(extra("navix", "navix", "the suite navix").registry())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Navix, None]:
    """The arguments are those of navix's `make`: `max_steps` (100 by default), `observation_fn`, `reward_fn` and so on. With an
    `observation_fn` of your own, pass its `observation_space` too."""
    navix: Any = extra("navix", "navix", env_id)
    name = env_id.partition("/")[2]
    if name not in navix.registry():
        raise unknown("navix", env_id, navix.registry())
    env = navix.make(name, **env_kwargs)
    return Navix(lambda: env, env_id, _sees_tiles(env)), None


def _sees_tiles(env: Any) -> bool:
    with jax.numpy_rank_promotion("allow"):
        state = jax.eval_shape(env.reset, jax.eval_shape(jax.random.PRNGKey, 0)).state
        try:
            jax.eval_shape(env.observation_fn, state.replace(cache=None))
        except AttributeError:  # of None
            return True
    return False
