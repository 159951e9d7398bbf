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
from eqxrl.verification._copies import moved
from eqxrl.verification._laws import AbstractLaws, NotApplicable, finite, law, quick_jit, same_arrays

NUM_SAMPLES, SIGMAS = 8192, 6.0  # which chance alone exceeds once in 5e8 numbers


class ActorCriticLaws(AbstractLaws):
    """Of an actor-critic, with one observation in the environment's units, and the environment's action space."""
    def __init__(self, agent: AbstractActorCritic, obs: Observation, action_space: Any):
        self.part, self.obs, self.action_space, self.call = agent, obs, action_space, self.act
        self.others = [moved(obs, 1.0, seed) for seed in range(4)]

    def act(self, agent: Any, obs: Any) -> Any:
        distribution, value, carry = agent(obs, agent.initial_carry())
        return distribution.log_prob(distribution.mode()), distribution.entropy(), distribution.mode(), value, carry

    def members(self) -> list[Any]:
        return [(self.part, obs) for obs in self.others[:2]]

    def outputs(self, agent: Any) -> Any:
        """Two numbers that everything in the policy has a part in: one of the actions, one of the values."""
        _, _, carry = agent(self.others[-1], agent.initial_carry())  # or what it remembers would be 0
        def one(obs: Any) -> Any:
            distribution, value, _ = agent(obs, carry)
            action = jax.lax.stop_gradient(distribution.sample(jax.random.key(6)))
            return jnp.stack([distribution.log_prob(action) + distribution.entropy(), value])
        return sum(map(one, self.others))

    @cached_property
    def gradients(self) -> list[Any]:
        """Of the outputs: where the policy stands, and away from there, since what is multiplied with 0 has no gradient; `[2 ...]`."""
        params, static = eqx.partition(self.part, trainable(self.part))
        gradient = quick_jit(jax.jacrev(lambda p: self.outputs(eqx.combine(p, static))))
        return [gradient(p) for p in (params, moved(params, 0.1))]

    @law("fits the spaces", "the sizes of the first and the last layers", gate=True)
    def fits(self) -> None:
        nn.check_actor_critic(self.part, self.obs, self.action_space)

    def finite(self) -> str:
        return finite(result=self.results, gradient=self.gradients)

    @law("every number is used", "layers that are made and never called, stop_gradient")
    def alive(self) -> str:
        gradients = [(jax.tree_util.keystr(path), np.asarray(g)) for path, g in jax.tree.leaves_with_path(self.gradients[1])]
        used = [(name, [np.any(x) for x in g]) for name, g in gradients if g.size]
        dead = [name for name, by in used if not any(by)]
        assert not dead, f"neither the action nor the value depends on {', '.join(dead)}"
        for i, output in enumerate(("actions", "values")):
            assert any(by[i] for _, by in used), f"{output} depend on nothing that can be learned"
        return f"{len(used)} arrays"


class DistributionLaws(AbstractLaws):
    """Of an action distribution, or a batch of them; by samples."""
    def __init__(self, distribution: AbstractDistribution):
        self.part, self.call = distribution, self.all_methods

    def all_methods(self, distribution: Any, key: Any) -> Any:
        action = distribution.sample(key)
        return action, distribution.log_prob(action), distribution.entropy(), distribution.mode()

    def members(self) -> list[Any]:
        return [(self.part, key) for key in jax.random.split(jax.random.key(8), 2)]

    @cached_property
    def drawn(self) -> tuple[Any, np.ndarray]:
        draw = quick_jit(jax.vmap(lambda key: self.all_methods(self.part, key)[:2]))
        return jax.device_get(draw(jax.random.split(jax.random.key(8), NUM_SAMPLES)))

    @law("shapes", "what the methods return: one log_prob and one entropy for each distribution", gate=True)
    def shapes(self) -> None:
        action, log_prob, entropy, mode = eqx.filter_eval_shape(self.call, *self.given[0])
        assert log_prob.shape == entropy.shape, f"log_prob is {describe(log_prob)}, entropy {describe(entropy)}"
        same_arrays(action, mode, "from sample to mode, an action")

    def finite(self) -> str:
        score = quick_jit(eqx.filter_grad(lambda d, action: jnp.sum(d.log_prob(action))))
        return finite(result=self.results, log_prob=self.drawn[1], **{"the gradient of log_prob": score(self.part, self.results[0][0])})

    @law("entropy = -mean log_prob", "constants such as log(2 pi e)")
    def entropy(self) -> str:
        log_prob, got = (np.asarray(x, np.float64) for x in (self.drawn[1], self.results[0][2]))
        want, error = -log_prob.mean(0), log_prob.std(0) / math.sqrt(NUM_SAMPLES)
        both = f"the entropy is {got.ravel()[0]:.4g}, but the samples' mean -log_prob {want.ravel()[0]:.4g} ± {error.max():.1g}"
        assert (np.abs(got - want) <= SIGMAS * error + 1e-4).all(), both
        return f"{got.mean():.4g} nats"

    @law("the mode is likeliest", "argmax of the right array")
    def mode(self) -> None:
        highest = np.asarray(self.part.log_prob(self.part.mode()))
        assert np.all(self.drawn[1] <= highest + 1e-4), "some samples are likelier than the mode"

    @law("samples are as frequent as log_prob says", "units (deviation, its logarithm); normalise; the Jacobian of squashing; the key")
    def frequencies(self) -> str:
        """Of integers, each one's share, and the sum of all; of floats, the share of some boxes, against the density's integral there."""
        actions, log_prob = self.drawn
        leaves = [x.reshape(NUM_SAMPLES, math.prod(log_prob.shape[1:]), -1) for x in jax.tree.leaves(actions)]
        integers = {np.issubdtype(x.dtype, np.integer) for x in leaves}
        if len(integers) > 1:
            raise NotApplicable("some parts of an action are integers and some are floats")
        samples = np.moveaxis(np.concatenate(leaves, axis=2), 1, 0)  # [distributions samples numbers]
        judge = of_integers if integers.pop() else of_floats
        densities = np.exp(log_prob.reshape(NUM_SAMPLES, -1).T.astype(np.float64))
        return ", ".join([judge(x, p) for x, p in zip(samples, densities)][:4])


def of_integers(samples: np.ndarray, p: np.ndarray) -> str:
    actions, first, counts = np.unique(samples, axis=0, return_index=True, return_counts=True)
    p, shares, total = p[first], counts / NUM_SAMPLES, p[first].sum()
    assert 0.9 < total <= 1 + 1e-4, f"the probabilities of all actions that were drawn sum to {total:.4g}"
    far = np.abs(p - shares) > SIGMAS * np.sqrt(p * (1 - p).clip(0) / NUM_SAMPLES) + 10 / NUM_SAMPLES
    said = [f"the action {a} has the probability {x:.3g}, but is {y:.3g} of the samples" for a, x, y in zip(actions, p, shares)]
    assert not far.any(), said[np.argmax(far)]
    return f"{len(actions)} actions, {total:.4g}"


def of_floats(samples: np.ndarray, p: np.ndarray) -> str:
    """The mean of 1 / (volume * density) over the samples in a box is 1."""
    ratios = []
    for quantiles in ((0.05, 0.95), (0.02, 0.6), (0.4, 0.98)):
        low, high = np.quantile(samples, quantiles, axis=0)
        volume, inside = np.prod((high - low).astype(np.float64)), np.all((samples >= low) & (samples <= high), axis=1)
        assert volume > 0, "most samples are the same"
        ratio = np.where(inside, 1 / (volume * p), 0.0)
        error = SIGMAS * ratio.std() / math.sqrt(NUM_SAMPLES) + 0.01
        said = f"in a box from quantile {quantiles[0]:.2g} to {quantiles[1]:.2g} there are {ratio.mean():.3g} ± {error:.1g} times as many"
        assert abs(ratio.mean() - 1) <= error, f"{said} samples as log_prob says"
        ratios.append(f"{ratio.mean():.3g}")
    return " ".join(ratios)
