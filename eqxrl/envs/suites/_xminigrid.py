"""XLand-MiniGrid: steps of its environments, which don't reset, and say apart what ended an episode."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from eqxrl._extras import extra
from eqxrl.envs._protocol import Transition
from eqxrl.envs.suites._names import unknown
from eqxrl.spaces import Box, Discrete

PACKAGE = "xminigrid"


class XMiniGrid(eqx.Module):
    """An environment of XLand-MiniGrid. An observation is what the agent sees, `[height width 2]`: of each place the number of the tile and
    that of its colour. The reward is 1 - 0.9 steps / max_steps where the task is done and 0 elsewhere, so that a return above 0 is a
    success."""

    env: Any = eqx.field(static=True)
    env_params: Any
    """XLand-MiniGrid's: a `ruleset`'s arrays are leaves."""
    name: str = eqx.field(static=True)

    @property
    def max_steps(self) -> int:
        return self.env_params.max_steps

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        # A typed key in the state would count as used where a stepper chooses between states, when keys are checked.
        with jax.numpy_rank_promotion("allow"):  # which LockedRoom relies on
            timestep = self.env.reset(self.env_params, jax.random.key_data(key))
        return timestep.observation, timestep

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        with jax.numpy_rank_promotion("allow"):
            timestep = self.env.step(self.env_params, state, action)
        truncated = timestep.state.step_num >= self.max_steps  # also at a step that does the task, which the discount of 0 hides
        return timestep.observation, timestep, timestep.reward, timestep.discount == 0, truncated, {}

    def observation_space(self, params: Any = None) -> Box:
        numbers: Any = extra("xminigrid.core.constants", "xminigrid", self.name)
        high = [numbers.NUM_TILES - 1, numbers.NUM_COLORS - 1]
        return Box(0, high, self.env.observation_shape(self.env_params), np.uint8)

    def action_space(self, params: Any = None) -> Discrete:
        return Discrete(self.env.num_actions(self.env_params))

    def picture(self, state: Any, params: Any = None) -> np.ndarray:
        return self.env.render(self.env_params, jax.device_get(state))


def names() -> list[str]:
    return list(extra("xminigrid", "xminigrid", "the suite xminigrid").registered_environments())


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[XMiniGrid, None]:
    """The arguments are fields of XLand-MiniGrid's parameters, such as `max_steps`, `view_size`, or for XLand a `ruleset`, without which
    there is no task: `xminigrid.load_benchmark(...).get_ruleset(0)`."""
    xminigrid: Any = extra("xminigrid", "xminigrid", env_id)
    name = env_id.partition("/")[2]
    if name not in (known := xminigrid.registered_environments()):
        raise unknown("xminigrid", env_id, known)
    env, env_params = xminigrid.make(name, **env_kwargs)
    return XMiniGrid(env, env_params, env_id), None
