import math
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl import nn
from eqxrl._typing import Observation, describe
from eqxrl.nn import AbstractActorCritic, AbstractDistribution, trainable
from eqxrl.verification._report import NotApplicable, law
from eqxrl.verification._tools import AbstractLaws, finite, moved, quick_jit, same_arrays

NUM_SAMPLES, SIGMAS = 8192, 6.0  # which chance alone exceeds once in 5e8 numbers


class ActorCriticLaws(AbstractLaws):
    """Of an actor-critic, with one observation in the environment's units, and the environment's action space."""

    def __init__(self, agent: AbstractActorCritic, obs: Observation, action_space: Any):
        self.agent, self.obs, self.action_space, self.call = agent, obs, action_space, self.act
        rng = np.random.default_rng(0)
        near = lambda x: x + rng.normal(size=x.shape) if np.issubdtype(x.dtype, np.floating) else x  # noqa: E731
        self.others = [jax.tree.map(lambda x: jnp.asarray(near(np.asarray(x)), x.dtype), obs) for _ in range(4)]

    def act(self, agent: Any, obs: Any) -> Any:
        distribution, value, carry = agent(obs, agent.initial_carry())
        action = distribution.mode()
        return distribution.log_prob(action), distribution.entropy(), action, value, carry

    def members(self) -> list[Any]:
        return [(self.agent, obs) for obs in self.others[:2]]

    def objective(self, agent: Any) -> Any:
        """Something that every number in the policy has a part in."""
        total = jnp.zeros(())
        for obs in self.others:
            distribution, value, _ = agent(obs, agent.initial_carry())
            action = jax.lax.stop_gradient(distribution.sample(jax.random.key(6)))
            total = total + distribution.log_prob(action) + distribution.entropy() + value
        return total

    @law("fits the spaces", "the sizes of the first and the last layers", gate=True)
    def fits(self) -> None:
        nn.check_actor_critic(self.agent, self.obs, self.action_space)

    @law("finite gradients", "divisions, square roots and logarithms of 0, also behind a `where`")
    def gradient(self) -> str:
        return finite(gradient=quick_jit(eqx.filter_grad(self.objective))(self.agent))

    @law("every number is used", "layers that are made and never called, stop_gradient")
    def alive(self) -> str:
        params, static = eqx.partition(self.agent, trainable(self.agent))
        # Away from where it starts: what is multiplied with weights of 0 has no gradient there.
        gradient = quick_jit(jax.grad(lambda p: self.objective(eqx.combine(p, static))))(moved(params, 0.1))
        dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if not np.any(np.asarray(g))]
        assert not dead, f"neither the action nor the value depends on {', '.join(dead)}"
        return f"{len(jax.tree.leaves(gradient))} arrays"


class DistributionLaws(AbstractLaws):
    """Of an action distribution, or a batch of them; by samples."""

    def __init__(self, distribution: AbstractDistribution):
        self.distribution, self.call = distribution, self.all_methods

    def all_methods(self, distribution: Any, key: Any) -> Any:
        action = distribution.sample(key)
        return action, distribution.log_prob(action), distribution.entropy(), distribution.mode()

    def members(self) -> list[Any]:
        return [(self.distribution, key) for key in jax.random.split(jax.random.key(8), 2)]

    @cached_property
    def drawn(self) -> Any:
        """Samples, their log-probs, and the gradients of these by every number in the distribution."""
        def one(distribution: AbstractDistribution, key: Any) -> Any:
            action = distribution.sample(key)
            score = eqx.filter_grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)
            return action, distribution.log_prob(action), eqx.filter(score, eqx.is_array)
        keys = jax.random.split(jax.random.key(8), NUM_SAMPLES)
        return jax.device_get(quick_jit(eqx.filter_vmap(one, in_axes=(None, 0)))(self.distribution, keys))

    @law("shapes", "what the methods return: one log_prob and one entropy for each distribution", gate=True)
    def shapes(self) -> None:
        action, log_prob, entropy, mode = eqx.filter_eval_shape(self.call, *self.given[0])
        assert log_prob.shape == entropy.shape, f"log_prob is {describe(log_prob)}, entropy {describe(entropy)}"
        same_arrays(action, mode, "from sample to mode, an action")

    @law("finite gradients", "standard deviations of 0, and logarithms")
    def gradient(self) -> str:
        return finite(log_prob=self.drawn[1], **{"the gradient of log_prob": self.drawn[2]})

    @law("samples are as likely as log_prob says", "the units (deviation, variance, its logarithm) in each method; the key")
    def score(self) -> str:
        """The mean gradient of the log-prob of what it draws is 0, unless another distribution is drawn from, or normalised wrongly."""
        worst = 0.0
        for path, g in jax.tree.leaves_with_path(self.drawn[2]):
            mean, error = np.abs(g.mean(0, np.float64)), g.std(0, np.float64) / math.sqrt(NUM_SAMPLES)
            z = np.where(error > 0, mean / np.where(error > 0, error, 1.0), np.where(mean > 1e-4, np.inf, 0.0))
            worst = max(worst, float(z.max(initial=0.0)))
            by = f"by {jax.tree_util.keystr(path)}, the mean gradient of the samples' log_prob is {worst:.0f} standard errors from 0"
            assert worst < SIGMAS, f"samples and log_prob don't belong together: {by}"
        return f"{NUM_SAMPLES} samples, up to {worst:.1f} standard errors"

    @law("entropy = -mean log_prob", "constants such as log(2 pi e)")
    def entropy(self) -> str:
        log_prob, got = (np.asarray(x, np.float64) for x in (self.drawn[1], self.results[0][2]))
        want, error = -log_prob.mean(0), log_prob.std(0) / math.sqrt(NUM_SAMPLES)
        both = f"the entropy is {got.ravel()[0]:.4g}, but the samples' mean -log_prob {want.ravel()[0]:.4g} ± {error.max():.1g}"
        assert (np.abs(got - want) <= SIGMAS * error + 1e-4).all(), both
        return f"{got.mean():.4g} nats"

    @law("the mode is likeliest", "argmax of the right array")
    def mode(self) -> None:
        highest = np.asarray(self.distribution.log_prob(self.distribution.mode()))
        assert np.all(self.drawn[1] <= highest + 1e-4), "some samples are likelier than the mode"

    @law("probabilities sum to 1", "normalise logits before use")
    def sums_to_one(self) -> str:
        actions, log_prob, _ = self.drawn
        leaves = jax.tree.leaves(actions)
        if log_prob.ndim > 1 or not all(np.issubdtype(x.dtype, np.integer) for x in leaves):
            raise NotApplicable("not one distribution of integers")
        _, first = np.unique(np.concatenate([x.reshape(NUM_SAMPLES, -1) for x in leaves], axis=1), axis=0, return_index=True)
        total = float(np.exp(log_prob[first]).sum())
        assert total <= 1 + 1e-4 and total > 0.9, f"the probabilities of all actions that were drawn sum to {total:.4g}"
        return f"{len(first)} actions, {total:.4g}"
