from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from eqxrl._structs import AdvantageMinibatch, TrajectoryWithLastObs
from eqxrl._typing import Scalar, describe
from eqxrl.learners import AbstractLearner, LearnerState, flatten
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, RunningMoments, evaluate, trainable
from eqxrl.verification._copies import edit, find
from eqxrl.verification._report import NotApplicable, law
from eqxrl.verification._tools import TOLERANCE, AbstractLaws, close, finite, moved, quick_jit, same_arrays


def estimated(rollout: TrajectoryWithLastObs, seed: int) -> AdvantageMinibatch:
    """The rollout with random advantages, no two of them alike, and targets as far from its values."""
    t = rollout.trajectories
    advantages = np.random.default_rng(seed).normal(size=t.value.shape).astype(t.value.dtype)
    return AdvantageMinibatch(trajectories=t, advantages=jnp.asarray(advantages), targets=jnp.asarray(t.value + advantages))


class LossLaws(AbstractLaws):
    """Of a loss, with a policy and two rollouts that it collected."""

    def __init__(self, loss: AbstractLoss, agent: AbstractActorCritic, rollouts: list[TrajectoryWithLastObs]):
        self.loss, self.collector = loss, agent
        self.call = lambda agent, minibatch: loss.at_step(jnp.zeros((), jnp.int32))(agent, minibatch)
        self.minibatches = [flatten(estimated(rollout, seed)) for seed, rollout in enumerate(rollouts)]
        self.params, self.static = eqx.partition(agent, trainable(agent))
        self.params = moved(self.params, 0.05)  # so that the ratio isn't 1

    def members(self) -> list[Any]:
        return [(eqx.combine(self.params, self.static), minibatch) for minibatch in self.minibatches]

    @cached_property
    def gradient(self) -> Any:
        return quick_jit(jax.grad(lambda p, m: self.call(eqx.combine(p, self.static), m)[0]))(self.params, self.minibatches[0])

    @law("shapes", "what is returned: a scalar, and a dict of scalars", gate=True)
    def shapes(self) -> None:
        result = eqx.filter_eval_shape(self.call, *self.given[0])
        fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        assert fits, f"it returned {describe(result)}; return (scalar, dict of metrics)"
        for name, x in {"what is to be minimised": result[0], **result[1]}.items():
            assert x.shape == () and jnp.issubdtype(x.dtype, jnp.floating), f"{name} is {describe(x)}; return a float scalar"

    @law("finite gradients", "divisions, square roots and logarithms of 0, also behind a `where`; stop_gradient")
    def gradients(self) -> str:
        assert any(np.any(g) for g in jax.tree.leaves(self.gradient)), "the gradient is 0 everywhere: nothing can be learned"
        return finite(gradient=self.gradient)

    @law("a mean over samples", "jnp.sum for jnp.mean, or neighbours in the batch that are taken together")
    def mean(self) -> None:
        (agent, minibatch), (loss, metrics) = self.given[0], self.results[0]
        order = np.random.default_rng(0).permutation(minibatch.advantages.size)
        shuffled = self.compiled(agent, jax.tree.map(lambda x: np.asarray(x)[order], minibatch))[0]
        close(shuffled, loss, "with the samples in another order, the loss")
        twice = jax.tree.map(lambda x: np.concatenate([x, x]), minibatch)
        close(self.compiled(agent, twice), (loss, metrics), "with every sample twice, (loss, metrics)")

    @law("better actions become likelier", "the sign of the policy's loss; min and max")
    def direction(self) -> str:
        minibatch = self.minibatches[0]
        @quick_jit
        def gains(gradient: Any) -> Any:
            """How the actions' log-probs change with a step along the gradient."""
            log_prob = lambda p: evaluate(eqx.combine(p, self.static), minibatch)[0].log_prob(minibatch.trajectories.action)  # noqa: E731
            return jax.jvp(log_prob, (self.params,), (jax.tree.map(jnp.negative, gradient),))[1]
        moves, advantages = np.asarray(gains(self.gradient)), np.asarray(minibatch.advantages)
        if not np.any(moves):
            raise NotApplicable("it doesn't move the policy")
        gain = np.sum((advantages - advantages.mean()) * moves)
        assert gain > 0, "a step along the gradient makes actions of positive advantage less likely, and others likelier"
        return f"{gain:.2g}"

    @law("no divergence at ratio 1", "log ratio = new log_prob - minibatch.trajectories.log_prob")
    def no_divergence(self) -> str:
        _, metrics = self.compiled(self.collector, self.minibatches[0])
        found = {name: x for name, x in metrics.items() if name in ("approx_kl", "clip_fraction")}
        close(found, {name: 0.0 for name in found}, "at ratio 1, the metrics")
        return ", ".join(found) or "neither approx_kl nor clip_fraction is reported"

    @law("at_step", "return self, or a copy with numbers in the place of schedules")
    def schedule(self) -> None:
        first, later = (self.loss.at_step(jnp.asarray(n, jnp.int32)) for n in (0, 5))
        assert isinstance(later, AbstractLoss), f"at_step returned {describe(later)}; return an AbstractLoss"
        same_arrays(eqx.filter(first, eqx.is_array), eqx.filter(later, eqx.is_array), "the loss at steps 0 and 5")


def moments_of(policy: Any) -> Float[Array, " numbers"]:
    """All the running statistics in a policy, in one row."""
    return jnp.concatenate([jnp.zeros((0,), jnp.float32), *(x.ravel() for x in jax.tree.leaves(find(policy, RunningMoments)))])


def heard_since(heard: list[Any]) -> list[dict[str, np.ndarray]]:
    """What a compiled program told since the last time, in order."""
    jax.effects_barrier()
    told = [jax.tree.map(np.asarray, x) for x in heard]
    heard.clear()
    return told


class Spy(AbstractLoss):
    """A loss that tells of each minibatch which samples are in it, and how likely the policy holds their actions."""

    loss: AbstractLoss
    tell: Callable = eqx.field(static=True)

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> tuple[Scalar, Any]:
        t = minibatch.trajectories
        told = dict(sample=t.reward, advantages=minibatch.advantages, targets=minibatch.targets, value=t.value, log_prob=t.log_prob)
        told |= dict(new_log_prob=evaluate(agent, minibatch)[0].log_prob(t.action), moments=moments_of(agent))
        jax.debug.callback(self.tell, jax.lax.stop_gradient(told), ordered=True)
        return self.loss(agent, minibatch)

    def at_step(self, num_updates: Int[Array, ""]) -> "Spy":
        return Spy(self.loss.at_step(num_updates), self.tell)


class Numbered(AbstractLearner):
    """A learner that is given its samples numbered from 0, in the place of their rewards, which a learner has no use for."""

    learner: AbstractLearner

    def init(self, agent: AbstractActorCritic) -> LearnerState:
        return self.learner.init(agent)

    def __call__(self, agent: AbstractActorCritic, state: LearnerState, rollout: AdvantageMinibatch, key: Key[Array, ""]) -> Any:
        reward = rollout.trajectories.reward
        number = jnp.arange(reward.size, dtype=reward.dtype).reshape(reward.shape)
        return self.learner(agent, state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, number), key)


def spy_on(learner: AbstractLearner, tell: Callable[[Any], Any]) -> AbstractLearner:
    """The learner with a spy in its loss, if it has one."""
    losses = find(learner, AbstractLoss)
    return Numbered(edit(learner, lambda module, f, x: Spy(x, tell) if any(x is loss for loss in losses) else x))


class LearnerLaws(AbstractLaws):
    """Of a learner, with a policy and two rollouts of it. **Arguments:** `listen`: of several calls, what the spy in its loss told of
    each minibatch, the rollout, and the statistics of the policy that collected it; by default, of calls with these rollouts."""

    def __init__(self, learner: AbstractLearner, agent: Any, rollouts: list[TrajectoryWithLastObs], listen: Any = None):
        self.learner, self.agent, self.call = learner, agent, lambda *args: learner(*args)
        self.rollouts = [estimated(rollout, seed) for seed, rollout in enumerate(rollouts)]
        self.listen = listen or self.own_calls

    def members(self) -> list[Any]:
        state, keys = self.learner.init(self.agent), jax.random.split(jax.random.key(5), 2)
        return [(self.agent, state, rollout, key) for rollout, key in zip(self.rollouts, keys)]

    def own_calls(self) -> list[Any]:
        """Two of them with the same policy, the second from the first one's state."""
        told, heard, moments, state = [], [], np.asarray(moments_of(self.agent)), self.given[0][1]
        spied = quick_jit(lambda *args: spy_on(self.learner, told.append)(*args))
        for agent, _, rollout, key in self.given:
            _, state, _ = spied(agent, state, rollout, key)
            heard.append((heard_since(told), rollout, moments))
        return heard

    @cached_property
    def heard(self) -> list[Any]:
        heard = self.listen()
        if not any(call for call, *_ in heard):
            raise NotApplicable(f"{type(self.learner).__name__} has no AbstractLoss to look through")
        return heard

    def orders(self) -> list[np.ndarray]:
        """The samples of each epoch, in the order in which they were learned from."""
        orders = []
        for call, rollout, _ in self.heard:
            n, seen = rollout.advantages.size, np.concatenate([told["sample"].ravel().astype(int) for told in call])
            epochs = [seen[i : i + n] for i in range(0, max(seen.size, 1), n)]
            missed = max(n - len(np.unique(epoch)) for epoch in epochs)
            assert not missed, f"of {seen.size} samples in an iteration, in one epoch {missed} of {n} samples were left out"
            orders += epochs
        return orders

    @law("shapes", "what init and __call__ return; weak types come of Python numbers", gate=True)
    def shapes(self) -> str:
        _, state, rollout, _ = args = self.given[0]
        assert isinstance(state, LearnerState), f"init returned {describe(state)}; return a LearnerState"
        result = eqx.filter_eval_shape(self.call, *args)
        fits = isinstance(result, tuple) and len(result) == 3 and isinstance(result[2], dict)
        assert fits, f"it returned {describe(result)}; return (policy, LearnerState, dict of metrics)"
        same_arrays((self.agent, state), result[:2], "(policy, state)")
        same_arrays({name: jnp.zeros((), jnp.float32) for name in result[2]}, result[2], "metrics")
        return "rollouts [steps={} envs={}]".format(*rollout.advantages.shape)

    @law("each sample once per epoch", "how indices are drawn and cut into minibatches")
    def each_sample_once(self) -> str:
        return f"{len(self.orders())} epochs"

    @law("samples whole", "flatten and shuffle all of a rollout in one way")
    def samples_whole(self) -> str:
        """Advantages and targets may have been rescaled, but not reordered."""
        for call, rollout, _ in self.heard:
            fields = vars(rollout.trajectories) | vars(rollout)
            for told in call:
                of = lambda name: np.asarray(fields[name]).reshape(-1)[told["sample"].astype(int)]  # noqa: E731
                for name in ("log_prob", "value"):
                    close(told[name], of(name), f"{name} of the samples in a minibatch")
                for name in ("advantages", "targets"):
                    steps = np.diff(told[name].reshape(-1)[np.argsort(of(name), kind="stable", axis=None)])
                    assert (steps >= -1e-5 * np.ptp(told[name])).all(), f"a sample's {name} in a minibatch are another sample's"
        return f"{sum(len(call) for call, *_ in self.heard)} minibatches"

    @law("epochs in different orders", "split the key for every epoch; the algorithm takes another one for every iteration")
    def orders_differ(self) -> str:
        orders = self.orders()
        if self.heard[0][0][0]["sample"].size >= orders[0].size:
            raise NotApplicable("each minibatch is the whole rollout")
        distinct = len({order.tobytes() for order in orders})
        few = f"{len(orders)} epochs went through the samples in {distinct} different orders only"
        assert distinct == len(orders), f"{few}: the key of the permutation was used again, or not passed on"
        return f"{distinct} epochs, as many orders"

    @law("ratio 1 before the first update", "what changes the policy between collecting and learning: statistics, dropout")
    def ratio_is_one(self) -> str:
        old, new = (np.concatenate([call[0][name].ravel() for call, *_ in self.heard]) for name in ("log_prob", "new_log_prob"))
        worst, kl = np.max(np.abs(new - old)), np.mean(np.expm1(new - old) - (new - old))
        off = f"before the first update the ratio is already off 1 by up to {np.expm1(worst):.2g} (approx_kl {kl:.2g})"
        assert worst <= TOLERANCE * (1 + np.max(np.abs(old))), f"{off}: the policy that learns isn't the one that collected"
        return f"|log ratio| up to {worst:.1g}, approx_kl {kl:.1g}"

    @law("statistics frozen", "filter with nn.trainable; the algorithm counts observations, after learning")
    def statistics_frozen(self) -> None:
        for call, _, moments in self.heard:
            if not moments.size:
                raise NotApplicable("the policy keeps no statistics")
            for i, told in enumerate(call):
                how = "they are being trained" if i else "they were updated before learning"
                assert np.allclose(told["moments"], moments, 1e-6, 1e-6), f"the observations' statistics have changed at update {i}: {how}"

    @law("learned", "which updated policy and state are returned")
    def learned(self) -> str:
        after, state, metrics = self.results[0]
        old, new = (eqx.filter(agent, trainable(agent)) for agent in (self.agent, after))
        pairs = zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new))
        still = [jax.tree_util.keystr(path) for (path, a), b in pairs if np.array_equal(a, b)]
        assert len(still) < len(jax.tree.leaves(old)), "the policy is the same after learning"
        close(moments_of(after), moments_of(self.agent), "the policy's observation statistics", tolerance=0.0)
        assert int(state.num_updates) > 0, "num_updates is still 0, and schedules with it"
        assert not metrics.get("grad_norm", 0) < 0, "grad_norm is negative"
        return f"{int(state.num_updates)} updates" + (f"; {', '.join(still)} stayed as it was" if still else "")
