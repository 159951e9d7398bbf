from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl.algorithms import SAC, TD3, AbstractOffPolicy
from eqxrl.nn import AbstractDistribution, Sampling
from eqxrl.spaces import Box, Discrete, bounds, parts
from eqxrl.verification._copies import find, with_fields
from eqxrl.verification._laws import AbstractLaws, NotApplicable, close, law, same

NUM, LEARNING_STARTS = 4000, 5
SURELY = 2.6 * np.sqrt(2 / NUM)  # two samples of one distribution are so far apart in one of 300 000 cases (Kolmogorov, Smirnov)


def unlike(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference between the distribution functions of two samples of `NUM`."""
    at = np.sort(np.concatenate([a, b]))
    return float(np.max(np.abs(np.searchsorted(np.sort(a), at, "right") - np.searchsorted(np.sort(b), at, "right"))) / NUM)


def columns(actions: Any) -> list[np.ndarray]:
    """Each number of an action, over `NUM` of them."""
    return [x for leaf in jax.tree.leaves(actions) for x in np.asarray(leaf, np.float64).reshape(NUM, -1).T]


class BehaviourLaws(AbstractLaws):
    """Of an algorithm's `behaviour`, with a learner and observations `[batch ...]`. Its random actions end after `LEARNING_STARTS`
    iterations."""

    def __init__(self, algo: AbstractOffPolicy, learner: Any, obs: Any):
        size, self.learner = algo.iteration_size, learner
        hp = dict(learning_starts=LEARNING_STARTS * size, total_timesteps=1000 * size)
        self.part = with_fields(algo, hp=with_fields(algo.hp, **{k: x for k, x in hp.items() if hasattr(algo.hp, k)}))
        self.obs = jax.tree.map(lambda x: jnp.asarray(np.resize(x, (NUM, *x.shape[1:]))), obs)
        self.call = lambda n, obs, key: self.act(self.part, n, obs, key)

    def act(self, algo: Any, n: Any, obs: Any, key: Any) -> Any:
        """What is done after so many iterations, `[batch ...]`."""
        policy = algo.behaviour(self.learner, n)
        carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(jax.tree.leaves(obs)[0]), *jnp.shape(x))), policy.initial_carry())
        return policy(obs, carry, key)[0]

    def members(self) -> list[Any]:
        obs = jax.tree.map(lambda x: x[:9], self.obs)
        return [(jnp.int32(n), obs, jax.random.key(n)) for n in (0, LEARNING_STARTS)]

    def acts(self, n: int, key: Any = None, **hp: Any) -> list[np.ndarray]:
        algo = with_fields(self.part, hp=with_fields(self.part.hp, **hp))
        return columns(self._acts(algo, jnp.int32(n), self.obs, key))

    @cached_property
    def _acts(self) -> Any:
        return eqx.filter_jit(self.act)

    @law("random before learning_starts", "`random_at_first`; env steps are iterations times `iteration_size`; the whole action space")
    def random_at_first(self) -> str:
        """Up to the last iteration before it, every number of an action is uniform between its bounds."""
        if not hasattr(self.part.hp, "learning_starts"):
            raise NotApplicable("there is no hp.learning_starts")
        rng, shown = np.random.default_rng(5), 0
        spaces = jax.tree.leaves(parts(self.part.spaces[1]))
        for n in (0, LEARNING_STARTS - 1):
            got = self.acts(n, jax.random.key(n + 1))
            for space in spaces:
                numbers = [got.pop(0) for _ in range(int(np.prod(space.shape)))]
                if isinstance(space, Box):
                    limits = [np.ravel(np.asarray(x, np.float64)) for x in bounds(space)]
                    wholes = not jnp.issubdtype(space.dtype, jnp.floating)
                else:
                    high = np.ravel(space.n if isinstance(space, Discrete) else space.nvec)
                    limits, wholes = [np.zeros(len(high)), high - 1.0], True
                for x, low, high in zip(numbers, *limits, strict=True):
                    if np.isfinite(low) and np.isfinite(high):
                        u = low + (high - low + wholes) * rng.random(NUM)
                        apart, shown = unlike(x, np.floor(u) if wholes else u), shown + 1
                        when = f"after {n} iterations, of {LEARNING_STARTS} before learning_starts"
                        says = f"{when}, actions aren't uniform between {low:.3g} and {high:.3g}: mean {x.mean():.3g}"
                        assert apart < SURELY, f"{says}, deviation {x.std():.3g}, distribution functions {apart:.2f} apart"
        if not shown:
            raise NotApplicable("the action space has no bounds")
        return f"{NUM} actions, {shown // 2} numbers each"

    @law("doesn't explore without a key", "`key is None` in the policy: the best action, whatever the number of iterations")
    def best(self) -> str:
        """Also before `learning_starts`; and it is the network's, of the package's own algorithms."""
        first, later, latest = (self.acts(n) for n in (0, LEARNING_STARTS, 900))
        assert same(first, later) and same(later, latest), "without a key, actions depend on the number of iterations"
        learner, want = self.learner, None
        if hasattr(learner, "q"):
            values = jax.vmap(learner.q)(self.obs)
            want = jnp.argmax(values, axis=-1) if values.ndim == 2 else None
        elif isinstance(self.part, SAC | TD3):
            chosen: Any = jax.vmap(learner.actor)(self.obs)
            want = chosen.mode() if isinstance(chosen, AbstractDistribution) else chosen
        if want is None:
            return "the same at any time"
        close(first, columns(want), "without a key, the action", 1e-3)
        return "the network's best"

    @law("explores as said", "epsilon's schedule in env steps; the noise's deviation, as a part of the space; which network's samples")
    def explores(self) -> str:
        hp, first = self.part.hp, LEARNING_STARTS
        if all(hasattr(hp, x) for x in ("epsilon_start", "epsilon_end", "exploration_fraction")):
            return self._epsilon()
        if hasattr(hp, "exploration_noise"):
            return self._noise()
        if not (isinstance(self.part, SAC) or find(self.part.behaviour(self.learner, jnp.int32(first)), Sampling)):
            raise NotApplicable("how it is to explore isn't said: by hp.epsilon_start, hp.exploration_noise, nn.Sampling")
        if not hasattr(self.learner, "actor"):
            raise NotApplicable("its learner has no `actor`")
        if getattr(self.part, "action_noise", None) is not None:
            raise NotApplicable("`action_noise` is added to what its actor draws")
        distribution: Any = jax.vmap(self.learner.actor)(self.obs)
        if not isinstance(distribution, AbstractDistribution):
            raise NotApplicable("its actor gives no distribution")
        apart = 0.0
        for n in (first, 900):
            pairs = zip(self.acts(n, jax.random.key(n)), columns(distribution.sample(jax.random.key(6))), strict=True)
            for got, want in pairs:
                apart = max(apart, unlike(got, want))
                says = f"actions have the deviation {got.std():.3g}, samples of the actor's distribution {want.std():.3g}"
                assert apart < SURELY, f"after {n} iterations, {says}; distribution functions are {apart:.2f} apart"
        return f"like samples of the actor, up to {apart:.2f}"

    def _epsilon(self) -> str:
        """The share of actions that aren't the best ones, where epsilon falls from 0.8 to 0.2 in 500 iterations."""
        names = "epsilon_start", "epsilon_end", "exploration_fraction"
        said = lambda start, end: dict(zip(names, map(jnp.float32, (start, end, 0.5))))  # noqa: E731
        (best,), others = self.acts(900), []
        if (self.acts(900, jax.random.key(0), **said(0.0, 0.0))[0] != best).any():
            raise NotApplicable("it explores also where epsilon is 0")
        for n in (LEARNING_STARTS, 250, 500, 900):
            (got,) = self.acts(n, jax.random.key(n), **said(0.8, 0.2))
            epsilon = max(0.8 - 0.6 * n / 500, 0.2)
            want = epsilon * (1 - 1 / self.part.spaces[1].n)
            others.append(np.mean(got != best))
            near = 5 * np.sqrt(want * (1 - want) / NUM)
            says = f"with epsilon {epsilon:.2f}, {others[-1]:.1%} of the actions aren't the best ones, not {want:.1%}"
            assert abs(others[-1] - want) < near, says
        return f"{', '.join(f'{x:.0%}' for x in others)} other actions"

    def _noise(self) -> str:
        """Normal, where no action is near a bound; as a part of half of the distance between the bounds, or in the action's unit."""
        space, key, std = self.part.spaces[1], jax.random.key(8), 0.05
        if not isinstance(space, Box):
            raise NotApplicable("the action space isn't a Box")
        low, high = (np.ravel(np.asarray(x, np.float64)) for x in bounds(space))
        if not np.all(np.isfinite(high - low)):
            raise NotApplicable("the action space has no bounds")
        noisy, seen = self.acts(LEARNING_STARTS, key, exploration_noise=jnp.float32(std)), []
        for got, best, low, high in zip(noisy, self.acts(LEARNING_STARTS), low, high, strict=True):
            half = (high - low) / 2
            inside = np.abs(best - (low + high) / 2) < 0.7 * half
            if inside.sum() < 100:
                continue
            noise = (got - best)[inside]
            near, wanted = 5 / np.sqrt(2 * len(noise)), {std * half, std}
            seen.append(noise.std() / half)
            says = f"with exploration_noise {std}, actions deviate by {noise.std():.3g} from the best ones, {noise.mean():+.3g} on average"
            fits = any(abs(noise.std() / x - 1) < near for x in wanted) and abs(noise.mean()) < 5 * noise.std() / np.sqrt(len(noise))
            assert fits, f"{says}; half of the distance between the bounds is {half:.3g}"
        if not seen:
            raise NotApplicable("the best actions are all near the bounds")
        return f"deviations {', '.join(f'{x:.3f}' for x in seen[:3])} of half of the space, for {std}"
