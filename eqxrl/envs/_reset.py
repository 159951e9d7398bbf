"""When and how environments are reset: a part that can be replaced.

Each strategy steps `[envs]` environments at once, and returns where each goes on (after a reset, where its episode ended)
together with the observation that its action led to. Three of them:

- `ResetEveryStep` calls `env.step`, which computes a reset at every step and keeps it where the episode ended. The
  reference; it works with any environment.
- `ResetWhenDone` computes the resets only on steps where an episode ended, in any environment. The same numbers, bit
  for bit, since it derives its keys as `env.step` does.
- `ResetFromPool` draws from first states that were made beforehand, for resets that are dear. Other numbers, the same
  distribution, up to repetitions within a rollout.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key, PyTree

from eqxrl._typing import Action, Observation, check_leading, field, leading, strong, typed
from eqxrl.envs._cond import cond_any
from eqxrl.envs._protocol import EnvError, advance, as_flag, as_reward, final_observation, select, separable


@typed
class VecStep(eqx.Module):
    """One step of `[envs]` environments; `[steps envs]` of them after a scan."""

    obs: Observation = field(metadata=leading("*batch"))
    """Where each goes on: a first observation where the episode ended."""
    env_state: PyTree = field(metadata=leading("*batch"))
    reset_state: PyTree
    """What the strategy keeps."""
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    final_obs: Observation = field(metadata=leading("*batch"))
    """What each action led to; `obs` where the episode goes on."""

    @property
    def done(self) -> Bool[Array, "*batch"]:
        return self.terminated | self.truncated

    def __check_init__(self):
        check_leading(self, batch=self.reward.shape)


class AbstractReset(eqx.Module):
    """What `init` and `step` return has strong dtypes, so that it can be carried through a scan."""

    @abc.abstractmethod
    def init(self, env: Any, env_params: Any, keys: Key[Array, " envs"]) -> tuple[Observation, PyTree, PyTree]:
        """First observations and states, `[envs ...]`, and what the strategy keeps."""

    @abc.abstractmethod
    def step(
        self,
        env: Any,
        env_params: Any,
        keys: Key[Array, " envs"],
        env_state: PyTree,
        reset_state: PyTree,
        action: Action,
    ) -> VecStep:
        """One step of each environment; `action` (`[envs ...]`) lies in the action space."""

    @abc.abstractmethod
    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        """What the strategy keeps, for the next rollout. Called once before each."""


class ResetEveryStep(AbstractReset):
    """The environment's own `step`, resets and all."""

    def init(self, env: Any, env_params: Any, keys: Key[Array, " envs"]) -> tuple[Observation, PyTree, PyTree]:
        return *_reset_all(env, env_params, keys), ()

    def step(
        self,
        env: Any,
        env_params: Any,
        keys: Key[Array, " envs"],
        env_state: PyTree,
        reset_state: PyTree,
        action: Action,
    ) -> VecStep:
        def one(key: Any, state: Any, action: Any) -> Any:
            obs, state, reward, terminated, truncated, info = env.step(key, state, action, env_params)
            return (obs, state), as_reward(reward), as_flag(terminated), as_flag(truncated), final_observation(env, info)

        (obs, state), reward, terminated, truncated, final_obs = strong(jax.vmap(one)(keys, env_state, action))
        return VecStep(
            obs=obs,
            env_state=state,
            reset_state=reset_state,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
        )

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        return reset_state


class ResetWhenDone(AbstractReset):
    """Resets computed only on steps where an episode ended, of all environments then. Bit for bit `ResetEveryStep`.

    **Raises:** `EnvError` for an environment that isn't `separable`.
    """

    def init(self, env: Any, env_params: Any, keys: Key[Array, " envs"]) -> tuple[Observation, PyTree, PyTree]:
        return *_reset_all(env, env_params, keys), ()

    def step(
        self,
        env: Any,
        env_params: Any,
        keys: Key[Array, " envs"],
        env_state: PyTree,
        reset_state: PyTree,
        action: Action,
    ) -> VecStep:
        def first(keys: Any) -> Any:
            return _reset_all(env, env_params, keys)

        return _step_then(self, env, env_params, keys, env_state, reset_state, action, first, ())

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        return reset_state


class ResetFromPool(AbstractReset):
    """Where an episode ended the next one opens at one of `num_states` first states, drawn at random with replacement. The
    whole pool is renewed before each rollout, at the cost of `num_states` resets, so first states repeat within a rollout
    but not between rollouts. Pays where a reset is dear (a generated level, a settled physics state) and episodes end
    more often in a rollout than `num_states` times.

    **Raises:** `EnvError` for an environment that isn't `separable`, `ValueError` for an empty pool.
    """

    num_states: int = eqx.field(static=True)

    def __check_init__(self):
        if self.num_states < 1:
            raise ValueError(f"ResetFromPool got num_states={self.num_states}; a pool needs at least 1 state")

    def init(self, env: Any, env_params: Any, keys: Key[Array, " envs"]) -> tuple[Observation, PyTree, PyTree]:
        keys = jax.vmap(jr.split)(keys)
        return *_reset_all(env, env_params, keys[:, 0]), self.refresh(env, env_params, keys[0, 1], ())

    def step(
        self,
        env: Any,
        env_params: Any,
        keys: Key[Array, " envs"],
        env_state: PyTree,
        reset_state: PyTree,
        action: Action,
    ) -> VecStep:
        def draw(keys: Any, pool: Any) -> Any:
            index = jax.vmap(lambda key: jr.randint(key, (), 0, self.num_states))(keys)
            return jax.tree.map(lambda x: x[index], pool)

        return _step_then(self, env, env_params, keys, env_state, reset_state, action, draw, (reset_state,))

    def refresh(self, env: Any, env_params: Any, key: Key[Array, ""], reset_state: PyTree) -> PyTree:
        return _reset_all(env, env_params, jr.split(key, self.num_states))


def default_reset(env: Any) -> AbstractReset:
    """`ResetWhenDone` if `env` is separable, else `ResetEveryStep`. The choice changes the speed only, never a number. With so
    many environments that an episode ends at nearly every step the two cost the same."""
    return ResetWhenDone() if separable(env) else ResetEveryStep()


def _reset_all(env: Any, env_params: Any, keys: Key[Array, "..."]) -> tuple[Any, Any]:
    return strong(jax.vmap(lambda key: env.reset(key, env_params))(keys))


def _step_then(
    strategy: AbstractReset,
    env: Any,
    env_params: Any,
    keys: Key[Array, " envs"],
    env_state: PyTree,
    reset_state: PyTree,
    action: Action,
    first: Any,
    operands: tuple[Any, ...],
) -> VecStep:
    """One step of each environment without a reset, then `first(reset_keys, *operands)` where an episode ended."""
    if not separable(env):
        raise EnvError(
            f"{type(strategy).__name__} needs an environment whose step comes apart from its reset, but "
            f"{type(env).__name__} has only the whole step; use ResetEveryStep()"
        )

    def one(key: Any, state: Any, action: Any) -> Any:
        key_step, key_reset = jr.split(key)  # as gymnax's own step does
        obs, state, reward, terminated, truncated, _ = advance(env, key_step, state, action, env_params)
        return (obs, state), as_reward(reward), as_flag(terminated), as_flag(truncated), key_reset

    stepped, reward, terminated, truncated, reset_keys = strong(jax.vmap(one)(keys, env_state, action))
    done = terminated | truncated
    obs, state = select(done, cond_any(done, first, (reset_keys, *operands), stepped), stepped)
    return VecStep(
        obs=obs,
        env_state=state,
        reset_state=reset_state,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        final_obs=stepped[0],
    )
