"""Observations of several parts, a joint action, and a mask: a courier chooses a door and how hard to push it, and only the part
`action_mask` of what it sees tells which doors are locked. What the mask forbids is never tried, and observations may be normalised.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams, spaces

DOORS = 6


class State(eqx.Module):
    open: jax.Array
    weight: jax.Array
    time: jax.Array


class Doors(eqx.Module):
    """One door in six is open; pushing it as hard as it is heavy pays 1, a locked one costs 5."""

    max_steps = 10

    def _see(self, key, time):
        door_key, weight_key = jax.random.split(key)
        state = State(jax.random.randint(door_key, (), 0, DOORS), jax.random.uniform(weight_key, (), minval=-1.0), time)
        mask = {"door": jnp.arange(DOORS) == state.open}
        return {"weight": 100 * state.weight[None], "action_mask": mask}, state

    def reset(self, key, params):
        return self._see(key, jnp.int32(0))

    def step(self, key, state, action, params):
        pays = 1 - jnp.abs(action["push"][0] - state.weight)
        reward = jnp.where(action["door"] == state.open, pays, -5.0)
        obs, after = self._see(key, state.time + 1)
        return obs, after, reward, jnp.array(False), after.time >= self.max_steps, {}

    def observation_space(self, params):
        mask = spaces.Dict({"door": spaces.Box(0, 1, (DOORS,), bool)})
        return spaces.Dict({"weight": spaces.Box(-100.0, 100.0, (1,)), "action_mask": mask})

    def action_space(self, params):
        return spaces.Dict({"door": spaces.Discrete(DOORS), "push": spaces.Box(-1.0, 1.0, (1,))})


def main(total_timesteps: int = 60_000) -> float:
    hp = PPOHParams(
        num_envs=16, num_steps=32, num_minibatches=4, learning_rate=1e-3, ent_coef=0.0, normalize_observations=True,
        total_timesteps=total_timesteps, eval_freq=total_timesteps // 4,
    )
    _, metrics = PPO.create(env=Doors(), hp=hp).train(0)
    print("mean return of each evaluation, at most 10:", metrics.cumulative_reward.mean(-1).round(2))
    return float(metrics.cumulative_reward[-1].mean())


if __name__ == "__main__":
    main()
