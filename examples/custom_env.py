"""An environment of your own: a gridworld with a time limit. `eqxrl train examples/custom_env.py:Grid` takes it, too."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from eqxrl import PPO, PPOHParams, check_env
from eqxrl.spaces import Box, Discrete

MOVES = jnp.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # up, down, left, right
GREY, BLUE, ORANGE = jnp.array([[230, 230, 230], [0, 114, 178], [213, 94, 0]], jnp.uint8)


class State(eqx.Module):
    cell: Int[Array, "2"]  # row, column
    time: Int[Array, ""]


class Grid(eqx.Module):
    """From a random cell to the goal in the lower right corner: the goal gives 1, any other step costs 0.02."""

    size: int = eqx.field(static=True, default=6)
    max_steps: int = eqx.field(static=True, default=30)

    def reset(self, key, params):
        state = State(cell=jax.random.randint(key, (2,), 0, self.size - 1), time=jnp.array(0))
        return self.observe(state), state

    def step(self, key, state, action, params):
        state = State(cell=jnp.clip(state.cell + MOVES[action], 0, self.size - 1), time=state.time + 1)
        reached = jnp.all(state.cell == self.size - 1)
        reward = jnp.where(reached, 1.0, -0.02)
        return self.observe(state), state, reward, reached, state.time >= self.max_steps, {}

    def observe(self, state):
        return 2 * state.cell / (self.size - 1) - 1

    def observation_space(self, params):
        return Box(-1, 1, (2,))

    def action_space(self, params):
        return Discrete(len(MOVES))

    def picture(self, state, params):
        board = jnp.tile(GREY, (self.size, self.size, 1)).at[-1, -1].set(BLUE)
        return board.at[tuple(state.cell)].set(ORANGE)


def main(total_timesteps: int = 50_000, gif_path: str = "grid.gif") -> float:
    check_env(Grid())
    ppo = PPO.create(env=Grid(), hp=PPOHParams(num_envs=16, num_steps=32, num_minibatches=4, total_timesteps=total_timesteps))
    ts, metrics = ppo.train(0)
    ppo.visualize(ts, gif_path)
    return float(metrics.cumulative_reward[-1].mean())


if __name__ == "__main__":
    print("return:", main(), "- see grid.gif")
