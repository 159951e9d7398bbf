from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from eqxrl._structs import EvalMetrics
from eqxrl._typing import check_positive, strong, typed
from eqxrl.envs import AbstractStepper, NeverReset, env_name, episode_limit
from eqxrl.evaluators._base import AbstractEvaluator
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import to_env_action


@typed
class EpisodeEvaluator(AbstractEvaluator):
    """Plays `num_episodes` at once, each until it ends or has lasted `max_steps`, and stops when the last one has."""

    num_episodes: int = eqx.field(static=True)
    deterministic: bool = eqx.field(static=True, default=True)
    """Take the likeliest action instead of drawing one."""
    max_steps: int | None = eqx.field(static=True, default=None)
    """`None`: the environment's own episode limit."""
    stepper: AbstractStepper = NeverReset()

    def __check_init__(self):
        check_positive(self, "num_episodes", *(["max_steps"] if self.max_steps is not None else []))

    def __call__(self, env: Any, env_params: Any, policy: AbstractPolicy, key: Key[Array, ""]) -> EvalMetrics:
        limit = self.max_steps if self.max_steps is not None else episode_limit(env_params, env)
        if limit is None:
            how = "pass evaluator=EpisodeEvaluator(num_episodes=..., max_steps=...)"
            raise ValueError(f"{env_name(env)} has no episode limit, so an evaluation might never end; {how}")
        action_space = env.action_space(env_params)
        n = self.num_episodes
        key, reset_key = jax.random.split(key)
        obs, env_state, reset_state = self.stepper.init(env, env_params, jax.random.split(reset_key, n))
        carry = jax.tree.map(lambda x: jnp.repeat(x[None], n, axis=0), policy.initial_carry())

        def going(loop):
            t, *_, done, _, _ = loop
            return (t < limit) & ~jnp.all(done)

        def play(loop):
            t, key, obs, env_state, reset_state, carry, done, episode_return, length = loop
            key, action_key, step_key = jax.random.split(key, 3)
            action, carry, _ = policy(obs, carry, None if self.deterministic else action_key)
            step_keys = jax.random.split(step_key, (2, n))
            after = self.stepper.step(env, env_params, step_keys, env_state, reset_state, to_env_action(action_space, action))
            episode_return = episode_return + jnp.where(done, 0.0, after.reward)
            length = length + ~done
            done = done | after.done
            return t + 1, key, after.obs, after.env_state, after.reset_state, carry, done, episode_return, length

        per_episode = (jnp.zeros((n,), dtype) for dtype in (bool, jnp.float32, jnp.int32))
        start = (jnp.zeros((), jnp.int32), key, *strong((obs, env_state, reset_state)), carry, *per_episode)
        *_, episode_return, length = jax.lax.while_loop(going, play, start)
        return EvalMetrics(episode_length=length, cumulative_reward=episode_return)
