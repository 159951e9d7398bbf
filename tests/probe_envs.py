"""Environments that take seconds to learn and whose solution is known, each of which asks one thing of an algorithm. All of
them are one class with other numbers in it, so that they can be stacked and learned by one vmapped program.

After the probe environments of rejax and of Andy Jones, https://andyljones.com/posts/rl-debugging.html.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from eqxrl.spaces import Box, Discrete

STATES, ACTIONS, OBS = 3, 2, 2


class Limit(eqx.Module):
    """Parameters of an environment: the time limit."""

    max_steps_in_episode: Int[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, jnp.int32))


class State(eqx.Module):
    state: Int[Array, ""]
    time: Int[Array, ""]


class Tabular(eqx.Module):
    """A Markov decision process as tables over state and action."""

    next_state: Int[Array, "states actions"]
    reward: Float[Array, "states actions"]
    ends: Bool[Array, "states actions"]
    observation: Float[Array, "states obs"]
    starts: Int[Array, ""]
    """An episode opens in one of the first so many states, each equally likely."""

    def reset(self, key, params):
        state = jax.random.randint(key, (), 0, self.starts, jnp.int32)
        return self.observation[state], State(state, jnp.zeros((), jnp.int32))

    def step(self, key, state, action, params):
        at = state.state, action
        state = State(self.next_state[at], state.time + 1)
        truncated = state.time >= params.max_steps_in_episode
        return self.observation[state.state], state, self.reward[at], self.ends[at], truncated, {}

    def observation_space(self, params):
        return Box(-2.0, 2.0, (OBS,))

    def action_space(self, params):
        return Discrete(ACTIONS)


def tabular(next_state, reward, ends, observation, starts=1):
    """A row for each state; a number in place of a row stands for all actions."""

    def rows(table, dtype, width):
        padded = [[row] * width if jnp.ndim(row) == 0 else row for row in table] + [[0] * width] * (STATES - len(table))
        return jnp.array(padded, dtype)

    return Tabular(
        next_state=rows(next_state, jnp.int32, ACTIONS),
        reward=rows(reward, jnp.float32, ACTIONS),
        ends=rows(ends, bool, ACTIONS),
        observation=rows(observation, jnp.float32, OBS),
        starts=jnp.int32(starts),
    )


ONE, TWO = [[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]

VALUE = tabular([0], [1], [1], ONE)
"""One step of reward 1: the value is 1."""

DISCOUNT = tabular([1, 1], [0, 1], [0, 1], TWO)
"""Two steps, the second with reward 1: the values are gamma and 1."""

OBSERVATION = tabular([0, 0], [1, -1], [1, 1], TWO, starts=2)
"""One step, of reward 1 or -1 as the observation tells: so are the values."""

ACTION = tabular([0], [[0, 1]], [1], ONE)
"""One step, with reward 1 for the second action."""

POLICY = tabular([0, 0], [[1, 0], [0, 1]], [1, 1], TWO, starts=2)
"""One step, with reward 1 for the action that the observation tells."""

PATIENCE = tabular([[0, 1], 1], [[0.5, 0], 1], [[1, 0], 1], TWO)
"""0.5 at once, or 1 a step later: the better choice depends on gamma."""

ENDLESS = tabular([0], [1], [0], ONE)
"""Reward 1 for ever: with a time limit that is bootstrapped the value is 1 / (1 - gamma)."""

CHAIN = tabular([1, 2, [2, 2]], [1, [2, 3], [5, 7]], [0, 0, [0, 1]], [[1, 0], [0, 1], [1, 1]], starts=2)
"""Two or three steps to the last state, where the second action terminates. With a time limit of 3 it is terminated,
truncated or both there."""


class Target(eqx.Module):
    """One step of a continuous action, with reward -(action - target)^2, where the target is the observation."""

    def reset(self, key, params):
        target = jax.random.uniform(key, (1,), jnp.float32, -0.5, 0.5)
        return target, target

    def step(self, key, state, action, params):
        reward = -jnp.sum((action - state) ** 2)
        return state, state, reward, jnp.array(True), jnp.array(False), {}

    def observation_space(self, params):
        return Box(-0.5, 0.5, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))
