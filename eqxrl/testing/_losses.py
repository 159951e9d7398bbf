import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import AdvantageMinibatch, LossMetrics
from eqxrl._typing import describe
from eqxrl.learners._base import flatten
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, trainable
from eqxrl.testing._probe import normalized, probe_agent, probe_estimate
from eqxrl.testing._transforms import transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, NotApplicable, insist


def check_loss(loss: AbstractLoss) -> None:
    """Holds a loss to its contract, with a policy for discrete actions and one for a box: a scalar and `LossMetrics`; finite, with
    finite gradients, not all 0; a mean over samples, whatever their order; better actions become likelier; no divergence
    from the policy that collected while it is that policy; the same kind of loss at every step of a schedule; pure, and
    the same under jit and vmap.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    for kind in ("discrete", "box"):
        insist(f"{type(loss).__name__}, {kind} actions,", loss_laws(loss, kind))


def loss_laws(loss: AbstractLoss, kind: str) -> list[Law]:
    collector = normalized(probe_agent(kind))
    agent = _moved(collector)
    minibatches = [flatten(probe_estimate(collector, 6, 4, seed)) for seed in range(2)]
    minibatch = minibatches[0]

    def value(agent: AbstractActorCritic, minibatch: AdvantageMinibatch):
        return loss.at_step(jnp.zeros((), jnp.int32))(agent, minibatch)

    @functools.cache
    def jitted():
        return eqx.filter_jit(value)

    @functools.cache
    def gradient():
        params, static = eqx.partition(agent, trainable(agent))
        return eqx.filter_jit(jax.grad(lambda p, m: value(eqx.combine(p, static), m)[0]))(params, minibatch)

    def shapes() -> str:
        result = eqx.filter_eval_shape(value, agent, minibatch)
        assert isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], LossMetrics), (
            f"it returned {describe(result)}; return (scalar, LossMetrics)"
        )
        assert result[0].shape == () and jnp.issubdtype(result[0].dtype, jnp.floating), (
            f"what is to be minimised is {describe(result[0])}; return a float scalar"
        )
        return "a scalar and LossMetrics"

    def finite() -> str:
        seen = laws.finite(loss=jitted()(agent, minibatch), gradient=gradient())
        assert any(np.any(g) for g in jax.tree.leaves(gradient())), "the gradient is 0 everywhere: nothing can be learned"
        return seen

    def mean() -> str:
        order = np.random.default_rng(0).permutation(minibatch.advantages.size)
        loss_, metrics = jitted()(agent, minibatch)
        shuffled = jitted()(agent, jax.tree.map(lambda x: x[order], minibatch))[0]
        laws.close(shuffled, loss_, "with the samples in another order, the loss")
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), minibatch)
        laws.close(jitted()(agent, twice), (loss_, metrics), "with every sample twice, (loss, metrics)")
        return f"{order.size} samples, and twice as many"

    def direction() -> str:
        step = jax.tree.map(lambda g: -g, gradient())

        def log_prob(agent):
            t = minibatch.trajectories
            return jax.vmap(lambda obs: agent(obs, agent.initial_carry())[0])(t.obs).log_prob(t.action)

        params, static = eqx.partition(agent, trainable(agent))
        _, moves = jax.jvp(lambda p: log_prob(eqx.combine(p, static)), (params,), (step,))
        if not np.any(moves):
            raise NotApplicable("it doesn't move the policy")
        advantages = minibatch.advantages - minibatch.advantages.mean()
        gain = float(jnp.sum(advantages * moves))
        assert gain > 0, "a step along the gradient makes actions of positive advantage less likely, and others likelier"
        return f"{gain:.2g}"

    def no_divergence() -> str:
        _, metrics = jitted()(collector, minibatch)
        laws.close((metrics.approx_kl, metrics.clip_fraction), (0.0, 0.0), "at ratio 1, (approx_kl, clip_fraction)")
        return "approx_kl and clip_fraction 0"

    def schedule() -> str:
        steps = [loss.at_step(jnp.asarray(n, jnp.int32)) for n in (0, 5)]
        for at in steps:
            assert isinstance(at, AbstractLoss), f"at_step returned {describe(at)}; return an AbstractLoss"
        first, later = (eqx.filter(at, eqx.is_array) for at in steps)
        laws.same_arrays(first, later, "the loss at steps 0 and 5")
        return "the same kind at every step"

    return [
        Law("a scalar and LossMetrics", shapes, "what is returned", gate=True),
        Law("finite, and so is its gradient", finite, "divisions, square roots and logarithms of 0, also behind a `where`"),
        Law("a mean over samples", mean, "jnp.sum for jnp.mean, or neighbours in the batch that are taken together"),
        Law("better actions become likelier", direction, "the sign of the policy's loss; min and max"),
        Law("no divergence at ratio 1", no_divergence, "log ratio = new log_prob - minibatch.trajectories.log_prob"),
        Law("at_step", schedule, "return self, or a copy with numbers in the place of schedules"),
        *transforms(value, *((agent, m) for m in minibatches)),
    ]


def _moved(agent: AbstractActorCritic) -> AbstractActorCritic:
    """The policy after a few updates: a ratio that isn't 1."""
    params, static = eqx.partition(agent, trainable(agent))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)]
    return eqx.combine(treedef.unflatten(moved), static)
