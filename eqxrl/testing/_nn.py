import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl import nn
from eqxrl._typing import Observation, describe
from eqxrl.nn import AbstractActorCritic, AbstractDistribution, trainable
from eqxrl.testing._transforms import gradient_is_finite, transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, NotApplicable, insist

NUM_SAMPLES = 8192
SIGMAS = 6.0  # what chance alone exceeds once in 5e8 numbers


def check_actor_critic(agent: AbstractActorCritic, obs: Observation, action_space: Any) -> None:
    """Holds a policy to its contract: it takes the observation and its outputs fit the action space; finite, with finite gradients
    that reach every number it could learn; its distribution as in `check_distribution`; pure, and the same under jit and
    vmap.

    **Arguments:** `obs`: one observation, in the environment's units; `action_space`: the environment's.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(agent).__name__, actor_critic_laws(agent, obs, action_space))
    distribution, _, _ = agent(obs, agent.initial_carry())
    check_distribution(distribution)


def actor_critic_laws(agent: AbstractActorCritic, obs: Observation, action_space: Any) -> list[Law]:
    keys = list(jax.random.split(jax.random.key(6), 4))
    others = [jax.tree.map(lambda x: _near(x, key), obs) for key in keys]

    def act(agent: AbstractActorCritic, obs: Observation) -> Any:
        distribution, value, carry = agent(obs, agent.initial_carry())
        action = distribution.mode()
        return distribution.log_prob(action), distribution.entropy(), action, value, carry

    def fits() -> str:
        nn.check_actor_critic(agent, obs, action_space)
        return f"observation {describe(obs)}, {action_space}"

    def objective(agent: AbstractActorCritic) -> Any:
        """Something that every number in it has a part in."""

        def one(obs: Observation) -> Any:
            distribution, value, _ = agent(obs, agent.initial_carry())
            action = jax.lax.stop_gradient(distribution.sample(keys[0]))
            return distribution.log_prob(action) + distribution.entropy() + value

        return sum(one(other) for other in others)

    def finite() -> str:
        laws.finite(outputs=[act(agent, other) for other in others])
        return gradient_is_finite(objective, agent, "the policy")

    def alive() -> str:
        params, static = eqx.partition(agent, trainable(agent))
        leaves, treedef = jax.tree.flatten(params)
        # Away from where it starts: what is multiplied with weights of 0 has no gradient there.
        moved = [x + 0.1 * jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(leaves)]
        gradient = jax.grad(lambda p: objective(eqx.combine(p, static)))(treedef.unflatten(moved))
        dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if not np.any(g)]
        assert not dead, f"neither the action nor the value depends on {', '.join(dead)}"
        return f"{len(leaves)} arrays"

    return [
        Law("fits the spaces", fits, "the sizes of the first and the last layers", gate=True),
        Law("finite, and so is its gradient", finite, "divisions, square roots and logarithms of 0, also behind a `where`"),
        Law("every number is used", alive, "layers that are made and never called, stop_gradient"),
        *transforms(act, *((agent, other) for other in others[:2])),
    ]


def check_distribution(distribution: AbstractDistribution) -> None:
    """Holds an action distribution to its contract, by samples: `log_prob` is that of what `sample` draws; `entropy` is its negative
    mean; nothing is likelier than `mode`; integers have probabilities that sum to 1; each key is used once, and another
    key draws something else; finite gradients; pure, and the same under jit and vmap.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(distribution).__name__, distribution_laws(distribution))


def distribution_laws(distribution: AbstractDistribution) -> list[Law]:
    keys = jax.random.split(jax.random.key(8), NUM_SAMPLES)

    def shapes() -> str:
        action = eqx.filter_eval_shape(lambda d: d.sample(keys[0]), distribution)
        log_prob = eqx.filter_eval_shape(lambda d: d.log_prob(d.sample(keys[0])), distribution)
        entropy = eqx.filter_eval_shape(lambda d: d.entropy(), distribution)
        assert log_prob.shape == entropy.shape, f"log_prob is {describe(log_prob)}, entropy {describe(entropy)}"
        laws.same_arrays(action, eqx.filter_eval_shape(lambda d: d.mode(), distribution), "from sample to mode, an action")
        return f"actions {describe(action)}, log_prob {describe(log_prob)}"

    @functools.cache
    def drawn() -> Any:
        """Samples, their log-probs, and the gradients of these by every number in the distribution."""

        def one(distribution: AbstractDistribution, key: Any) -> Any:
            action = distribution.sample(key)
            score = eqx.filter_grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)
            return action, distribution.log_prob(action), eqx.filter(score, eqx.is_array)

        return jax.device_get(eqx.filter_jit(eqx.filter_vmap(one, in_axes=(None, 0)))(distribution, keys))

    def finite() -> str:
        _, log_prob, scores = drawn()
        return laws.finite(log_prob=log_prob, **{"the gradient of log_prob": scores, "the entropy": distribution.entropy()})

    def score() -> str:
        """Of what is drawn from it, the mean gradient of the log-prob is 0; it isn't where `sample` draws from another
        distribution, nor where `log_prob` is normalised wrongly."""
        worst = 0.0
        for path, g in jax.tree.leaves_with_path(drawn()[2]):
            g = np.asarray(g, np.float64)
            error = g.std(0) / math.sqrt(NUM_SAMPLES)
            z = np.abs(g.mean(0)) / np.where(error > 0, error, np.inf)
            z = np.where((error == 0) & (np.abs(g.mean(0)) > 1e-4), np.inf, z)
            worst = max(worst, float(z.max(initial=0.0)))
            assert worst < SIGMAS, (
                f"samples and log_prob don't belong together: by {jax.tree_util.keystr(path)}, the mean gradient of the samples' "
                f"log_prob is {g.mean(0).ravel()[np.argmax(z)]:.2g}, {worst:.0f} standard errors from 0"
            )
        return f"{NUM_SAMPLES} samples, up to {worst:.1f} standard errors"

    def entropy() -> str:
        log_prob = np.asarray(drawn()[1], np.float64)
        want, error = -log_prob.mean(0), log_prob.std(0) / math.sqrt(NUM_SAMPLES)
        got = np.asarray(distribution.entropy(), np.float64)
        assert (np.abs(got - want) <= SIGMAS * error + 1e-4).all(), (
            f"the entropy is {got.ravel()[0]:.4g}, but the samples' mean -log_prob {want.ravel()[0]:.4g} ± {error.max():.1g}"
        )
        return f"{got.mean():.4g} nats"

    def mode() -> str:
        highest = np.asarray(distribution.log_prob(distribution.mode()))
        assert (drawn()[1] <= highest + 1e-4).all(), "some samples are likelier than the mode"
        return "nothing drawn is likelier"

    def sums_to_one() -> str:
        actions, log_prob, _ = drawn()
        leaves = jax.tree.leaves(actions)
        if log_prob.ndim > 1 or not all(np.issubdtype(x.dtype, np.integer) for x in leaves):
            raise NotApplicable("not one distribution of integers")
        rows = np.concatenate([x.reshape(NUM_SAMPLES, -1) for x in leaves], axis=1)
        _, first = np.unique(rows, axis=0, return_index=True)
        total = float(np.exp(log_prob[first]).sum())
        assert total <= 1 + 1e-4 and total > 0.9, f"the probabilities of all actions that were drawn sum to {total:.4g}"
        return f"{len(first)} actions, {total:.4g}"

    def keys_once() -> str:
        return laws.keys_used_once(lambda key: distribution.sample(key), keys[0])

    def random() -> str:
        leaves = jax.tree.leaves(drawn()[0])
        assert any(len(np.unique(x.reshape(NUM_SAMPLES, -1), axis=0)) > 1 for x in leaves) or np.allclose(drawn()[1], 0), (
            "every key draws the same action"
        )
        return "another key, another action"

    def call(distribution: AbstractDistribution, key: Any) -> Any:
        action = distribution.sample(key)
        return action, distribution.log_prob(action), distribution.entropy(), distribution.mode()

    return [
        Law("shapes", shapes, "what the methods return: one log_prob and one entropy for each distribution", gate=True),
        Law("finite, and so is the gradient", finite, "logarithms of 0, and standard deviations of 0"),
        Law("samples are as likely as log_prob says", score, "the units (deviation, variance, its logarithm) in each method"),
        Law("entropy = -mean log_prob", entropy, "constants such as log(2 pi e)"),
        Law("the mode is likeliest", mode, "argmax of the right array"),
        Law("probabilities sum to 1", sums_to_one, "normalise logits before use"),
        Law("random", random, "whether sample uses the key"),
        Law("keys used once", keys_once, "split the key for each draw"),
        *transforms(call, *((distribution, key) for key in keys[:2])),
    ]


def _near(x: Any, key: Any) -> Any:
    """Another observation of the same kind."""
    x = jnp.asarray(x)
    return x + jax.random.normal(key, x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
