import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from eqxrl._typing import Carry, Observation, Scalar
from eqxrl.nn._actor_critic import AbstractActorCritic
from eqxrl.nn._bounded import Beta, SquashedGaussian
from eqxrl.nn._distributions import AbstractDistribution, Categorical, DiagGaussian
from eqxrl.nn._joint import MultiCategorical
from eqxrl.nn._masked import ACTION_MASK
from eqxrl.nn._network import MLPActorCritic
from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete, check_action_space, known_bounds, map_parts, parts


class SharedAgents(AbstractActorCritic):
    """A team whose agents all act by the same policy, each by its own row of the observation, and independently of each other: its
    distribution is that of all their actions together. The value of an observation is the mean of what the agents hold it worth, or, with
    `central`, that of a critic which sees all rows. In its hidden state each agent remembers for itself.

    Observations are Boxes `[agents ...]`, or a Dict of such, of which a part `action_mask` isn't looked at; actions are a MultiDiscrete
    with a choice for each agent, where those with fewer options than others never take the rest, or a Box `[agents ...]`.

    **Raises:** `TypeError` for other spaces; `ValueError` where there are not as many rows as agents.
    """

    actor_critic: AbstractActorCritic
    """One agent's, whose observation is a dict of `own`, its row, and of `agent`, its number, or `team`, all rows, where it sees them."""
    ids: bool = eqx.field(static=True)
    central: bool = eqx.field(static=True)
    space: MultiDiscrete | Box = eqx.field(static=True)
    """Of the team's actions."""

    def __init__(
        self, observation_space: Any, action_space: Any, *, make: Callable[..., AbstractActorCritic] = MLPActorCritic, ids: bool = False,
        central: bool = False, key: Key[Array, ""], **options: Any,
    ):
        """**Arguments:**

        - the environment's spaces;
        - `make(observation_space, action_space, actor_sees=, critic_sees=, key=, **options)`, one agent's, as `nn.ActorCritic` and its
          makers;
        - `ids`: agents are told which one they are, so that they can do different things though they see the same;
        - `central`: the critic sees the whole team. Lowe et al. 2017, https://arxiv.org/abs/1706.02275
        """
        space = check_action_space(action_space)
        if not isinstance(space, MultiDiscrete) and not (isinstance(space, Box) and space.shape):
            raise TypeError(f"SharedAgents acts in a MultiDiscrete, or a Box with a row for each agent, but the action space is {space}")
        self.space, self.ids, self.central, size = space, ids, central, space.shape[0]
        seen = parts(observation_space)
        rows = Dict(_without_mask(seen)) if isinstance(seen, dict) else seen
        for part in jax.tree.leaves(parts(rows)):
            if not isinstance(part, Box) or part.shape[:1] != (size,):
                error = ValueError if isinstance(part, Box) else TypeError
                raise error(f"SharedAgents acts for {size} agents, so it needs observations that are Boxes [{size} ...], but got {part}")
        sees = ("own", "agent") if ids else ("own",)
        own = Dict({"own": map_parts(_row, rows)} | ({"agent": Discrete(size)} if ids else {}) | ({"team": rows} if central else {}))
        act = _row(space) if isinstance(space, Box) else Discrete(max(space.nvec))
        self.actor_critic = make(own, act, actor_sees=sees, critic_sees=("team",) if central else sees, key=key, **options)

    def __call__(self, obs: Observation, carry: Carry) -> tuple[AbstractDistribution, Scalar, Carry]:
        seen, axes = self._seen(obs, jnp.arange(self.space.shape[0]), 0)
        distribution, value, carry = jax.vmap(self.actor_critic, in_axes=(axes, 0))(seen, carry)
        return self._team(distribution), jnp.mean(value), carry

    def sequence(
        self, obs: Observation, starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[AbstractDistribution, Float[Array, " steps"], Carry]:
        agents = jnp.broadcast_to(jnp.arange(self.space.shape[0]), (*starts.shape, self.space.shape[0]))
        seen, axes = self._seen(obs, agents, 1)
        distribution, value, carry = jax.vmap(self.actor_critic.sequence, in_axes=(axes, None, 0), out_axes=(1, 1, 0))(seen, starts, carry)
        return self._team(distribution), jnp.mean(value, axis=1), carry

    def initial_carry(self) -> Carry:
        return jax.tree.map(lambda x: jnp.repeat(x[None], self.space.shape[0], axis=0), self.actor_critic.initial_carry())

    def _seen(self, obs: Observation, agents: Array, axis: int) -> tuple[dict[str, Any], dict[str, int | None]]:
        """What `actor_critic` is shown, and where its axes of agents are."""
        rows = _without_mask(obs) if isinstance(obs, dict) else obs
        seen = {"own": (rows, axis)} | ({"agent": (agents, axis)} if self.ids else {}) | ({"team": (rows, None)} if self.central else {})
        return {name: x for name, (x, _) in seen.items()}, {name: at for name, (_, at) in seen.items()}

    def _team(self, each: AbstractDistribution) -> AbstractDistribution:
        """Of the distributions `[... agents]` of the agents' actions the one of all of them."""
        space, name = self.space, type(each).__name__
        if not isinstance(each, Categorical if isinstance(space, MultiDiscrete) else DiagGaussian | SquashedGaussian | Beta):
            raise TypeError(f"SharedAgents can't join agents that act by a {name} to a team that acts in {space}")
        flat: Any = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), each)
        if isinstance(space, MultiDiscrete):
            there = np.flatnonzero(np.arange(max(space.nvec)) < np.array(space.nvec)[:, None])
            return MultiCategorical(flat.logits if there.size == flat.logits.shape[-1] else flat.logits[..., there], space.nvec)
        bounds = {} if isinstance(each, DiagGaussian) else dict(low=space.shape[0] * flat.low, high=space.shape[0] * flat.high)
        return dataclasses.replace(flat, shape=space.shape, **bounds)


def _without_mask(x: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in x.items() if name != ACTION_MASK}


def _row(space: Any) -> Box:
    """What one agent sees or does, within the bounds of all of them."""
    low, high = known_bounds(space, "SharedAgents")
    return Box(low.min(0), high.max(0), space.shape[1:], space.dtype)
