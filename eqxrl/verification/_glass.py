"""An environment in which everything that happens is known afterwards, so that a part's account of it can be compared."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from eqxrl._typing import Action, Observation, strong
from eqxrl.envs import AbstractWrapper
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import Box, Discrete, bounds, map_parts, parts, to_env_action
from eqxrl.verification._laws import quick_jit

NUM_FIRSTS = 64


class Glass(AbstractWrapper):
    """An environment that can be replayed from first observations and actions alone: chance in it hangs on these, not on the keys that
    it is given. Rewards are random, between -1 and 1 (NaN for an action outside the action space). Besides where they would,
    episodes end by terminating at a step in eight, by being cut off at a step in eight, and half of these are both. A box of
    actions is narrowed to nearly a point, so that actions must be clipped."""
    env: Any
    firsts: Any
    """First observations, no two of them alike, and their states: `[firsts ...]`"""
    num_firsts: int = eqx.field(static=True)

    def first(self, i: Int[Array, ""]) -> tuple[Any, Any]:
        """With the environment's state goes what chance hangs on: a number that is made of the first state and the actions since."""
        obs, state = jax.tree.map(lambda x: x[i], self.firsts)
        return obs, (state, jnp.asarray(i, jnp.uint32))

    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        return self.first(jax.random.randint(key, (), 0, self.num_firsts))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Any:
        low, high = limits(self.action_space(params))
        inside = jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(lambda x, a, b: jnp.all((x >= a) & (x <= b)), action, low, high))))
        # Of a box only which side counts: whoever replays it may compute the very number with another rounding.
        def telling(x: Any, a: Any, b: Any) -> Any:
            return jnp.ravel(x > (a + b) / 2 if jnp.issubdtype(x.dtype, jnp.floating) else x).astype(jnp.uint32)
        side = jnp.concatenate(jax.tree.leaves(jax.tree.map(telling, action, low, high)))
        chosen = jnp.sum(side * jnp.asarray(np.arange(1, 2 * side.size + 1, 2), jnp.uint32), dtype=jnp.uint32)
        unused = 0 * jax.random.bits(key, (), jnp.uint32)  # so that it shows where a key is used for something else, too
        own = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), state[1] + unused), chosen)
        step_key, reward_key, end_key, next_key = jax.random.split(own, 4)
        obs, env_state, _, terminated, truncated, info = self.env.step(step_key, state[0], action, params)
        end = jax.random.randint(end_key, (), 0, 16)
        reward = jnp.where(inside, jax.random.uniform(reward_key, (), jnp.float32, -1.0, 1.0), jnp.nan)
        state = env_state, jax.random.bits(next_key, (), jnp.uint32)
        return obs, state, reward, terminated | (end < 2), truncated | ((end > 0) & (end < 3)), info

    def action_space(self, params: Any = None) -> Any:
        return map_parts(narrowed, self.env.action_space(params))


def narrowed(space: Any) -> Any:
    """A box of one array as nearly a point; other spaces as they are."""
    if not isinstance(space, Box):
        return space
    low, high = (jnp.clip(x, -1e3, 1e3) for x in bounds(space))
    middle, width = (low + high) / 2, 1e-3 * (high - low)
    return Box(middle - width, middle + width, space.shape, space.dtype)


def limits(space: Any) -> tuple[Any, Any]:
    """The lowest and the highest action."""
    def of(part: Any) -> Any:
        return bounds(part) if isinstance(part, Box) else (0, part.n - 1 if isinstance(part, Discrete) else np.array(part.nvec) - 1)
    return tuple(jax.tree.map(lambda part: jnp.asarray(of(part)[i], part.dtype), parts(space)) for i in range(2))


def glass(env: Any, env_params: Any) -> Glass:
    """**Returns:** the environment in glass, with as many of its first states as differ in their observations."""
    reset = quick_jit(jax.vmap(lambda key: strong(env.reset(key, env_params))))
    obs, state = reset(jax.random.split(jax.random.key(3), NUM_FIRSTS))
    rows = different(obs)
    return Glass(env, jax.tree.map(lambda x: x[rows], (obs, state)), len(rows))


def different(obs: Any) -> np.ndarray:
    flat = [np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(obs)]
    return np.sort(np.unique(np.concatenate(flat, axis=1), axis=0, return_index=True)[1])


def apart(a: Any, b: Any) -> Array:
    """How far two observations are from each other, by the number that differs most."""
    pairs = [(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)) for x, y in zip(*map(jax.tree.leaves, (a, b)))]
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y) / (1 + jnp.abs(y)), initial=0.0) for x, y in pairs]))


def nearest(obs: Any, among: Any) -> Array:
    return jnp.argmin(jax.vmap(apart, in_axes=(None, 0))(obs, among)).astype(jnp.int32)


def replay(env: Glass, env_params: Any, obs: Observation, action: Action) -> dict[str, Any]:
    """What really happened, where an account of it says that `obs` was seen and `action` taken, `[steps envs ...]`, from a first
    observation on. Observations are believed only where an episode opens: there `opens` is which first one it was, elsewhere -1."""
    space = env.action_space(env_params)
    def step(carry: Any, account: Any) -> Any:
        (saw, state, opening), (obs, action) = carry, account
        i = nearest(obs, env.firsts[0])
        saw, state = jax.tree.map(lambda a, b: jnp.where(opening, a, b), strong(env.first(i)), (saw, state))
        stepped = env.step(jax.random.key(0), state, to_env_action(space, action), env_params)
        led_to, state, reward, terminated, truncated, _ = strong(stepped)
        told = dict(terminated=terminated, truncated=truncated, done=terminated | truncated, reward=reward, next_obs=led_to)
        return (led_to, state, told["done"]), told | dict(off=apart(obs, saw), opens=jnp.where(opening, i, -1))
    def alone(obs: Any, action: Any) -> Any:
        return jax.lax.scan(step, (*strong(env.first(jnp.int32(0))), jnp.asarray(True)), (obs, action))[1]
    return jax.vmap(alone, in_axes=1, out_axes=1)(obs, action)


class Marked(AbstractPolicy):
    """The policy, with another action than it holds best where it is given a key: one can tell how it was asked."""
    policy: AbstractPolicy
    env: Glass
    env_params: Any

    def __call__(self, obs: Observation, carry: Any, key: Any) -> tuple[Action, Any, Any]:
        action, carry, remembered = self.policy(obs, carry, None)
        if key is not None:
            low, high = limits(self.env.action_space(self.env_params))
            def other(x: Any, a: Any, b: Any) -> Any:
                return a + b - x if jnp.issubdtype(x.dtype, jnp.floating) else (x + 1) % (b + 1)
            action = jax.vmap(lambda x: jax.tree.map(other, x, low, high))(action)
        return action, carry, remembered

    def initial_carry(self) -> Any:
        return self.policy.initial_carry()

    def __getattr__(self, name: str) -> Any:
        return delegated(self, "policy", name)

    def episodes(self, key: Any, limit: int) -> tuple[Array, Array]:
        """Length and return of the episode from each first state, asked with such a key, of `limit` steps at most; `[firsts]`."""
        env, n, space = self.env, self.env.num_firsts, self.env.action_space(self.env_params)
        def step(carry: Any, _: Any) -> Any:
            obs, state, memory, going = carry
            action, memory, _ = self(obs, memory, key)
            step = jax.vmap(env.step, in_axes=(None, 0, 0, None))
            obs, state, reward, *ends, _ = strong(step(jax.random.key(0), state, to_env_action(space, action), self.env_params))
            return (obs, state, memory, going & ~(ends[0] | ends[1])), (going, jnp.where(going, reward, 0.0))
        memory = jax.tree.map(lambda x: jnp.repeat(x[None], n, axis=0), self.initial_carry())
        start = (*strong(jax.vmap(env.first)(jnp.arange(n))), memory, jnp.ones(n, bool))
        going, paid = jax.lax.scan(step, start, length=limit)[1]
        return jnp.sum(going, axis=0), jnp.sum(paid, axis=0)


def delegated(outer: Any, inner: str, name: str) -> Any:
    """For `__getattr__`: copying asks for names before there is an inner one."""
    if name == inner or name.startswith("__"):
        raise AttributeError(name)
    return getattr(getattr(outer, inner), name)
