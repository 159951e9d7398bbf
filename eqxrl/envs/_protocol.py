"""What the package asks of an environment, and the base of wrappers around one."""

import abc
import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key

Transition = tuple[Any, Any, Any, Any, Any, Any]
"""obs, state, reward, terminated, truncated, info"""


class EnvError(ValueError):
    """An environment that doesn't keep to the contract of `Environment`."""


@runtime_checkable
class Environment(Protocol):
    """One environment, written for one instance: the package vmaps it. Nothing need be inherited; an `eqx.Module` with these
    four methods is an environment, and its arrays are leaves, which `vmap` can sweep. A whole one:

    ```python
    class State(eqx.Module):
        x: Float[Array, ""]
        time: Int[Array, ""]

    class Walk(eqx.Module):
        '''Reach 1 or -1 within 50 steps.'''

        max_steps = 50

        def reset(self, key, params):
            state = State(jax.random.uniform(key, (), minval=-0.5, maxval=0.5), jnp.array(0))
            return state.x[None], state

        def step(self, key, state, action, params):
            state = State(state.x + 0.1 * (action - 1), state.time + 1)
            terminated = jnp.abs(state.x) >= 1
            return state.x[None], state, -0.1, terminated, state.time >= self.max_steps, {}

        def observation_space(self, params):
            return eqxrl.spaces.Box(-1.1, 1.1, (1,))

        def action_space(self, params):
            return eqxrl.spaces.Discrete(3)
    ```

    - All randomness comes from `key`, all that changes is in `state`, and both methods can be traced.
    - `step` **never resets**: `obs` and `state` are what the action led to, also where the episode ended. A stepper
      (`ResetWhenDone`) resets afterwards.
    - Observations and states are pytrees of arrays, which keep their structure, shapes and dtypes. `reward` is a scalar, in
      any unit; `terminated` and `truncated` are boolean scalars, and both may be true; `info` is a dict of arrays.
    - `terminated`: the task ended, nothing comes after. `truncated`: the episode was cut off (a time limit); what would have
      come is estimated with the value of `obs`.
    - `params` is any pytree, the same for all instances; its `max_steps_in_episode`, where it has one, is a time limit.

    Optional attributes:

    - `name: str`, by default the class's;
    - `max_steps: int | None`, a time limit that `step` keeps to by reporting `truncated`; or a function of the parameters that gives it;
    - `default_params`, what is passed as `params` by default, else `None` is;
    - `reset_pool: int | None`: a reset is dear, so while an algorithm collects let episodes open from so many first states that are kept
      (`ResetFromPool`); 0 or `None` for resets of their own, which evaluations have always;
    - `cheap_reset: bool`: a reset costs no more than a step, so compute it at every step rather than in a branch of the program;
    - `reset_where(key, needed, state, params, info)`: `reset`, but that it may return anything where `needed` is false, for an environment
      that pays for each reset of a batch, or that goes on from `state`, in which the episode before ended by a step with this `info`; a
      wrapper doesn't need it;
    - `with_resets() -> Environment`: the same one for a stepper that resets whatever ended, whose `step` prepares for `reset_where` by
      what it says in `info["next"]`;
    - `picture(state, params) -> uint8 [height width 3]`, what a GIF shows of a concrete state. Small ones are scaled up;
    - `not_restored: str`, said when a run is resumed: what a checkpoint lacks, since it isn't in the arrays of the state.

    `eqxrl.check_env(env)` finds out whether an environment keeps to all of this.
    """

    def reset(self, key: Key[Array, ""], params: Any) -> tuple[Any, Any]:
        """**Returns:** `(obs, state)`, the beginning of an episode."""
        ...

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any) -> Transition:
        """**Returns:** `(obs, state, reward, terminated, truncated, info)`, what the action led to."""
        ...

    def observation_space(self, params: Any) -> Any:
        """A space of `eqxrl.spaces`, gymnax or gymnasium."""

    def action_space(self, params: Any) -> Any:
        """A space of `eqxrl.spaces`, gymnax or gymnasium."""


class AbstractWrapper(eqx.Module):
    """An environment around another one, `env`, to which every attribute that it has not itself is delegated.

    A pytree: the arrays of an inner environment that is an `eqx.Module` stay leaves. Two wrappers are equal, and hash
    alike, when they wrap the same object with the same settings, so that wrapping anew doesn't compile anew.
    """

    env: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def reset(self, key: Key[Array, ""], params: Any = None) -> tuple[Any, Any]:
        """As in `Environment`."""

    @abc.abstractmethod
    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Transition:
        """As in `Environment`."""

    def observation_space(self, params: Any = None) -> Any:
        return self.env.observation_space(params)

    def action_space(self, params: Any = None) -> Any:
        return self.env.action_space(params)

    def __hash__(self) -> int:
        """Of all but its arrays, which can't be hashed."""
        return hash((type(self), *(x for x in jax.tree.leaves(self) if not eqx.is_array(x))))

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for dunders, and for `env` before it is set: delegating these would recurse for ever.
        if name == "env" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.env, name)


def env_name(env: Any) -> str:
    """What an environment is called: its `name`, else the class of the innermost environment. Never raises."""
    try:
        name = env.name
    except Exception:
        name = None
    return name if isinstance(name, str) and name else type(list(layers(env))[-1]).__name__


def layers(env: Any) -> Iterator[Any]:
    """`env`, and what it wraps, and so on."""
    yield env
    while isinstance(env, AbstractWrapper):
        env = env.env
        yield env


def innermost_state(state: Any) -> Any:
    """That of the innermost environment: wrappers, ours and gymnax's, keep what they wrap in a field `env_state`, or add nothing to it."""
    while hasattr(state, "env_state"):
        state = state.env_state
    return state


def class_name(env: Any) -> str:
    """The class that errors name: the user's, and not that of a wrapper of this package or of gymnax around it."""
    while type(env).__module__.startswith(("eqxrl.", "gymnax.wrappers.")):
        inner = env.env if isinstance(env, AbstractWrapper) else getattr(env, "_env", None)
        if inner is None:
            break
        env = inner
    return type(env).__name__


def episode_limit(env_params: Any, env: Any = None) -> Any:
    """The most steps that an episode takes: the least of `env_params.max_steps_in_episode`, rounded up to a whole number (it
    may be a float), and the `max_steps` of `env` and of what it wraps, called with `env_params` where it is a function. `None`
    where there is none or it is infinite. A traced value, such as a limit that `vmap` sweeps, comes back traced.

    **Raises:** `ValueError` for a limit that is an array of several numbers.
    """
    limits, traced = [], []
    for owner, attribute in ((env_params, "max_steps_in_episode"), *((layer, "max_steps") for layer in layers(env))):
        limit: Any = getattr(owner, attribute, None)
        limit = limit(env_params) if callable(limit) else limit
        if isinstance(limit, Tracer):
            traced.append(limit)
        elif limit is not None and np.size(limit) != 1:
            raise ValueError(
                f"{attribute} is an array of shape {list(np.shape(limit))}, so there is no one limit; "
                "vmap over the environment or its parameters, so that each member sees its own"
            )
        elif limit is not None and np.isfinite(limit):
            limits.append(math.ceil(np.asarray(limit).item()))
    least = min(limits, default=None)
    for limit in traced:
        least = limit if least is None else jnp.minimum(limit, least)
    return least
