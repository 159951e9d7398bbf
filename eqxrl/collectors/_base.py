import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from eqxrl._structs import AbstractSteps, EpisodeStats, TrajectoryCollectionState
from eqxrl._threefry import computed_once, split, unrolled
from eqxrl._typing import Action, Carry, Observation, one_more, strong
from eqxrl.envs import AbstractStepper, VecStep
from eqxrl.envs._stepper import select
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import to_env_action

TPolicy = TypeVar("TPolicy", bound=eqx.Module)
TBatch = TypeVar("TBatch", bound=eqx.Module)


class AbstractCollector(eqx.Module, Generic[TPolicy, TBatch]):
    """Collects `num_steps` steps in each of `num_envs` environments. It owns the environments' side of the training state
    (`TrajectoryCollectionState`) and knows nothing of losses. One that halves the rewards of another one, in full:

        class HalfReward(AbstractCollector):
            inner: AbstractCollector
            num_envs: int = eqx.field(static=True)
            num_steps: int = eqx.field(static=True)

            def init(self, env, env_params, policy, key):
                return self.inner.init(env, env_params, policy, key)

            def __call__(self, env, env_params, policy, state):
                state, rollout = self.inner(env, env_params, policy, state)
                return state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, replace_fn=lambda r: r / 2)

    On-policy algorithms give it an `AbstractActorCritic` and want a `TrajectoryWithLastObs`; off-policy ones give it an
    `AbstractPolicy` and want `Transitions`.
    """

    num_envs: eqx.AbstractVar[int]
    num_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, env: Any, env_params: Any, policy: TPolicy, key: Key[Array, ""]) -> TrajectoryCollectionState:
        """Freshly reset environments. Of the policy only the shape of its hidden state is needed."""

    @abc.abstractmethod
    def __call__(
        self, env: Any, env_params: Any, policy: TPolicy, state: TrajectoryCollectionState
    ) -> tuple[TrajectoryCollectionState, TBatch]:
        """What was collected, `[steps envs]`, from where `state` stands, and where it stands then."""


def init_collection(
    env: Any, env_params: Any, stepper: AbstractStepper, num_envs: int, initial_carry: Carry, rms_state: Any, key: Key[Array, ""]
) -> TrajectoryCollectionState:
    """The state of freshly reset environments."""
    keys = jax.random.split(key, num_envs + 1)
    obs, env_state, reset_state = stepper.init(env, env_params, keys[1:])
    return TrajectoryCollectionState(
        # jnp.copy: the state may hold the very buffer of the observation, and a buffer can be donated only once
        last_obs=jax.tree.map(jnp.copy, strong(obs)), env_state=strong(env_state), rms_state=rms_state,
        last_done=jnp.zeros((num_envs,), bool), global_step=jnp.zeros((), jnp.int32), rng=keys[0], reset_state=strong(reset_state),
        carry=strong(jax.tree.map(lambda x: jnp.repeat(x[None], num_envs, axis=0), initial_carry)),
        episode_return=jnp.zeros((num_envs,), jnp.float32), episode_length=jnp.zeros((num_envs,), jnp.int32),
    )


class Acted(AbstractSteps):
    """What a loop of steps keeps of each, `[steps envs]`."""

    obs: Observation
    """Before the step."""
    action: Action
    """As the policy gave it."""
    remembered: PyTree
    """By the policy, of how it chose."""
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    final_obs: Observation
    """What the step led to, before any reset."""
    noted: PyTree
    """What the collector noted."""


def acting(
    env: Any, env_params: Any, policy: AbstractPolicy, stepper: AbstractStepper, num_steps: int, state: TrajectoryCollectionState,
    note: Callable[[VecStep, Carry], Any] = lambda after, carry: (),
) -> tuple[TrajectoryCollectionState, tuple[Callable, Any, Any]]:
    """The loop of every collector: `num_steps` steps of all environments as the policy acts. What isn't used of them costs nothing.

        state, loop = acting(env, env_params, policy, stepper, num_steps, state)
        end, acted = jax.lax.scan(*loop)
        state, episodes = acted_until(state, end, acted)

    **Arguments:** `note(what a step led to, the hidden state after it, before any reset)`: what is to be noted of it.
    """
    action_space = env.action_space(env_params)
    rng, refresh_key, action_keys, env_keys = draw_keys(state.rng, num_steps, state.last_done.size)
    arrays, static = eqx.partition(policy, eqx.is_array)
    # Weights `[out, in]` lie as `[in, out]` during the loop: XLA's CPU backend multiplies a few rows with them twice as fast.
    turned = jax.tree.map(_turned, arrays)

    def step(carried: Any, keys: Any) -> Any:
        obs, env_state, reset_state, carry = carried
        action, carry, remembered = eqx.combine(jax.tree.map(_turned, turned), static)(obs, carry, unrolled(keys[0]))
        # Of choices that is so anyway.
        action = jax.tree.map(lambda x: computed_once(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, action)
        after = stepper.step(env, env_params, keys[1], env_state, reset_state, to_env_action(action_space, action))
        noted = note(after, carry)
        acted = Acted(obs, action, remembered, after.reward, after.terminated, after.truncated, after.final_obs, noted)
        return (after.obs, after.env_state, after.reset_state, reset_carries(policy, carry, after.done)), acted

    reset_state = stepper.refresh(env, env_params, refresh_key, state.reset_state)
    start = state.last_obs, state.env_state, reset_state, state.carry
    return dataclasses.replace(state, rng=rng), (step, start, (action_keys, env_keys))


def _turned(x: Array) -> Array:
    return x.T if x.ndim == 2 else x


def acted_until(state: TrajectoryCollectionState, end: Any, acted: Acted) -> tuple[TrajectoryCollectionState, EpisodeStats]:
    """Where the collector stands after the loop, and the episodes that ended in it."""
    obs, env_state, reset_state, carry = end
    state = dataclasses.replace(
        state, last_obs=obs, env_state=env_state, reset_state=reset_state, carry=carry, last_done=acted.done[-1],
        global_step=one_more(state.global_step),
    )
    return _counted(state, acted)


def draw_keys(
    rng: Key[Array, ""], num_steps: int, num_envs: int
) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, " steps"], Key[Array, "steps 2 envs"]]:
    """The key that goes on; that of the stepper's `refresh`; those that actions are drawn with; those of the environments' steps and
    resets. All at once before the first step, since a loop on a CPU pays for each operation."""
    keys = split(rng, 2 + num_steps * (1 + 2 * num_envs))
    action_keys, env_keys = keys[2 : 2 + num_steps], keys[2 + num_steps :]
    return keys[0], keys[1], action_keys, env_keys.reshape(num_steps, 2, num_envs)


def _counted(state: TrajectoryCollectionState, acted: Acted) -> tuple[TrajectoryCollectionState, EpisodeStats]:
    """The state with the return and length of the episodes under way, and the sums over those that ended."""
    done, num_steps = acted.done, len(acted.done)
    steps = jnp.arange(num_steps, dtype=jnp.int32)[:, None]
    over = jnp.max(jnp.where(done, steps + 1, 0), axis=0)  # so many steps up to the last end
    ended, finished = over > 0, steps < over[None]
    # Few large sums instead of many small ones, each of which takes its time to compile.
    kept = [jnp.where(finished, acted.reward, 0.0), jnp.where(finished, 0.0, acted.reward), done.astype(jnp.float32)]
    of_ended, under_way, count = jnp.sum(jnp.stack(kept), axis=1)
    of_ended = of_ended + jnp.where(ended, state.episode_return, 0.0)
    lengths = (over + jnp.where(ended, state.episode_length, 0)).astype(jnp.float32)
    total_return, total_length, count = jnp.sum(jnp.stack([of_ended, lengths, count]), axis=1)
    episodes = EpisodeStats(count=count, total_return=total_return, total_length=total_length)
    episode_return = jnp.where(ended, 0.0, state.episode_return) + under_way
    episode_length = jnp.where(ended, 0, state.episode_length) + (num_steps - over)
    return dataclasses.replace(state, episode_return=episode_return, episode_length=episode_length), episodes


def reset_carries(policy: Any, carry: Carry, done: Bool[Array, " envs"]) -> Carry:
    """Hidden states `[envs ...]`, fresh where an episode ended."""
    return select(done, policy.initial_carry(), carry)
