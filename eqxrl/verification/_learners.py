from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import AdvantageMinibatch, TrajectoryWithLastObs
from eqxrl._typing import describe
from eqxrl.learners import AbstractLearner, DataParallelLearner, LearnerState, flatten
from eqxrl.learners._base import take
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractActorCritic, RunningMoments, evaluate, has_memory, trainable
from eqxrl.verification._copies import edit, find, modules, moved, with_fields
from eqxrl.verification._glass import delegated, different, nearest
from eqxrl.verification._laws import TOLERANCE, AbstractLaws, NotApplicable, close, finite, law, quick_jit, same, same_arrays


def estimated(rollout: TrajectoryWithLastObs, seed: int) -> AdvantageMinibatch:
    """The rollout with random advantages, no two of them alike, and targets as far from its values."""
    t = rollout.trajectories
    advantages = np.random.default_rng(seed).normal(size=t.value.shape).astype(t.value.dtype)
    targets = jnp.asarray(t.value + advantages)
    return AdvantageMinibatch(t, jnp.asarray(advantages), targets, rollout.initial_carry, last_value=t.value[-1])


def fails(call: Callable, *args: Any) -> bool:
    """Without computing anything."""
    try:
        eqx.filter_eval_shape(call, *args)
    except Exception:
        return True
    return False


class Forgetful(AbstractActorCritic):
    """A policy for which each step is an episode's first."""
    agent: AbstractActorCritic

    def __call__(self, obs: Any, carry: Any) -> Any:
        return *self.agent(obs, self.agent.initial_carry())[:2], ()

    def initial_carry(self) -> Any:
        return ()

    def __getattr__(self, name: str) -> Any:
        return delegated(self, "agent", name)


class Moved(AbstractActorCritic):
    """A policy of which the distribution and the value can be moved for each of some observations apart, so that the gradient by these
    moves tells what a loss makes of each sample."""
    agent: AbstractActorCritic
    obs: Any
    """Samples, no two of them alike, `[batch ...]`."""
    moves: Any
    """What is added to the numbers of the distribution, and to the value: `[batch ...]`."""

    def __call__(self, obs: Any, carry: Any) -> Any:
        distribution, value, carry = self.agent(obs, carry)
        i = nearest(obs, self.obs)
        add = lambda x, move: x + move[i] if eqx.is_inexact_array(x) else x  # noqa: E731
        distribution, value = jax.tree.map(add, (distribution, value), self.moves)
        return distribution, value, carry

    def initial_carry(self) -> Any:
        return self.agent.initial_carry()

    def __getattr__(self, name: str) -> Any:
        return delegated(self, "agent", name)


class LossLaws(AbstractLaws):
    """Of a loss, with a policy and two rollouts that it collected; whatever the policy remembers, it is the loss that is judged."""
    def __init__(self, loss: AbstractLoss, agent: AbstractActorCritic, rollouts: list[TrajectoryWithLastObs]):
        if has_memory(agent):
            agent, rollouts = Forgetful(agent), [with_fields(rollout, initial_carry=()) for rollout in rollouts]
        self.part, self.collector = loss, agent
        self.call = lambda agent, minibatch: loss.at_step(jnp.zeros((), jnp.int32))(agent, minibatch)
        whole = [estimated(rollout, seed) for seed, rollout in enumerate(rollouts)]
        self.minibatches, self.takes_samples = list(map(flatten, whole)), True
        if fails(self.call, agent, self.minibatches[0]) and not fails(self.call, agent, whole[0]):
            self.minibatches, self.takes_samples = whole, False
        params, static = eqx.partition(agent, trainable(agent))
        self.agent = eqx.combine(moved(params, 0.05), static)  # so that the ratio isn't 1

    def members(self) -> list[Any]:
        return [(self.agent, minibatch) for minibatch in self.minibatches]

    @cached_property
    def samples(self) -> Any:
        """What the loss makes of some samples, in four batches: with advantages `a` or none, at ratios `r` or 1. Values have moved by
        `moves` since they were collected, and are `errors` off their targets. Of each: the loss, its metrics, and its gradients by
        every sample's distribution (`grad`), log-prob (`pull`), entropy (`spread`) and value (`lift`)."""
        if not self.takes_samples:
            raise NotApplicable("it takes whole sequences [steps envs], and estimates their advantages itself")
        t, rng, eps = self.minibatches[0].trajectories, np.random.default_rng(7), self.number("clip_eps", 0.2)
        t = with_fields(t, obs=moved(t.obs, 0.01))
        rows = different(t.obs)[:24]
        if (n := len(rows) // 2 * 2) < 4:
            raise NotApplicable("there are fewer than four different observations")
        t, i, steps = jax.tree.map(lambda x: x[rows[:n]], t), np.arange(n), eps * np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
        sign = np.where(i % 2, 1.0, -1.0)
        a = sign * rng.uniform(0.5, 1.5, n)
        a, r, moves = (a - a.mean()) / a.std(), np.clip(1 + steps, 0.1, None)[i // 2 % 6], steps[(i // 4 + 2) % 6]
        errors = sign[rng.permutation(n)] * rng.uniform(0.5, 2.0, n) * max(1.0, 5 * eps)
        loss = edit(self.part, lambda f, x: jnp.float32(0.1) if f.name == "ent_coef" else x)  # also where the bonus is turned off
        dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y, tuple(range(1, x.ndim))), a, b)))  # noqa: E731
        along = lambda a, b: dot(a, b) / jnp.maximum(dot(b, b), 1e-12)  # noqa: E731
        @quick_jit
        def program(agent: Any, t: Any, a: Any, r: Any, moves: Any, errors: Any) -> Any:
            own, value = jax.vmap(lambda obs: agent(obs, agent.initial_carry())[:2])(t.obs)
            noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), own)
            there = jax.vmap(lambda obs: Moved(agent, t.obs, (noise, value))(obs, agent.initial_carry())[0])(t.obs)
            action = there.sample(jax.random.key(0))
            log_prob, by_log_prob = there.log_prob(action), eqx.filter_grad(lambda d: jnp.sum(d.log_prob(action)))(there)
            by_entropy = eqx.filter_grad(lambda d: jnp.sum(d.entropy()))(there)
            def batch(a: Any, r: Any) -> Any:
                new = with_fields(t, action=action, log_prob=log_prob - jnp.log(r), value=value - moves)
                minibatch = AdvantageMinibatch(trajectories=new, advantages=a, targets=value - errors)
                objective = lambda moves: loss.at_step(jnp.int32(0))(Moved(agent, t.obs, moves), minibatch)  # noqa: E731
                (result, metrics), (grad, lift) = jax.value_and_grad(objective, has_aux=True)((noise, jnp.zeros_like(value)))
                by = dict(pull=along(grad, by_log_prob), spread=along(grad, by_entropy))
                return dict(loss=result, metrics=metrics, grad=grad, lift=lift, **by)
            return [batch(x, y) for y in (r, jnp.ones_like(r)) for x in (a, jnp.zeros_like(a))]
        batches = program(self.collector, t, *(jnp.asarray(x, jnp.float32) for x in (a, r, moves, errors)))
        batches = jax.tree.map(lambda x: np.asarray(x, np.float64), batches)
        assert np.isfinite(batches[3]["pull"]).all(), "where advantages are alike, the gradient isn't finite: add 1e-8 to their deviation"
        named = dict(zip(("at", "without", "at_one", "neither"), batches))
        return SimpleNamespace(**named, a=a, r=r, moves=moves, errors=errors, eps=eps)

    def number(self, name: str, default: Any = None) -> Any:
        """A coefficient of the loss, or of one inside it; the default where it is left out."""
        found = (getattr(x, name, None) for x in modules(self.part.at_step(jnp.int32(0))))
        return next((float(x) for x in found if x is not None), default)

    @law("shapes", "what is returned: a scalar, and a dict of scalars", gate=True)
    def shapes(self) -> None:
        result = eqx.filter_eval_shape(self.call, *self.given[0])
        fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        assert fits, f"it returned {describe(result)}; return (scalar, dict of metrics)"
        for name, x in {"what is to be minimised": result[0], **result[1]}.items():
            assert x.shape == () and jnp.issubdtype(x.dtype, jnp.floating), f"{name} is {describe(x)}; return a float scalar"

    @law("finite gradients", "divisions, square roots and logarithms of 0, also behind a `where`; stop_gradient")
    def gradients(self) -> str:
        gradient = quick_jit(eqx.filter_grad(lambda agent, minibatch: self.call(agent, minibatch)[0]))(*self.given[0])
        assert any(np.any(g) for g in jax.tree.leaves(gradient)), "the gradient is 0 everywhere: nothing can be learned"
        return finite(gradient=gradient)

    @law("a mean over samples", "jnp.sum for jnp.mean, or neighbours in the batch that are taken together")
    def mean(self) -> None:
        (agent, minibatch), (loss, metrics) = self.given[0], self.results[0]
        order = np.random.default_rng(0).permutation(minibatch.advantages.shape[-1])
        close(self.compiled(agent, take(minibatch, order))[0], loss, "with the samples in another order, the loss")
        twice = take(minibatch, np.concatenate([order, order]))
        close(self.compiled(agent, twice), (loss, metrics), "with every sample twice, (loss, metrics)")

    @law("better actions become likelier", "the sign of the policy's loss; [batch 1] beside [batch]; stop_gradient")
    def direction(self) -> str:
        """At ratio 1: the more so, the higher a sample's own advantage."""
        seen = self.samples
        if not any(np.any(x) for x in jax.tree.leaves(seen.at_one["grad"])):
            raise NotApplicable("it doesn't move the policy")
        up = seen.neither["pull"] - seen.at_one["pull"]
        told = float(np.corrcoef(up, seen.a)[0, 1]) if np.ptp(up) > 0 else 0.0
        assert told > 0.5, f"how much likelier a step makes an action should go with its own advantage; the correlation is {told:.2f}"
        return f"correlation {told:.2f}"

    @law("the surrogate is clipped", "the minimum of the two; the ratio's sign; which of the two is clipped, and around 1")
    def surrogate(self) -> str:
        """Of a loss with `clip_eps`: value and gradient against Schulman et al. 2017, eq. 7, in float64, but for a factor; metrics at 1."""
        if self.number("clip_eps") is None:
            raise NotApplicable("it has no clip_eps")
        seen, a, r, eps, n = self.samples, self.samples.a, self.samples.r, self.samples.eps, len(self.samples.a)
        dual = self.number("dual_clip", np.inf)
        goes_on = np.where(a > 0, r < 1 + eps, (r > 1 - eps) & (r < dual))
        got, want = n * (seen.at["pull"] - seen.without["pull"]), np.where(goes_on, -r * a, 0.0)
        factor = float(np.sum(got * want) / np.sum(want**2))
        assert factor > 0, "actions of positive advantage become less likely within the clip range"
        wrong = np.abs(got / factor - want) > 0.02
        for i in np.flatnonzero(wrong):
            where = f"at the ratio {r[i]:.2f} with the advantage {a[i]:.2f} and clip_eps {eps:.2g}"
            raise AssertionError(f"{where} the gradient is {got[i] / factor:.3g}, not {want[i]:.3g}; {wrong.mean():.0%} differ")
        off = {name: x for name, x in seen.at_one["metrics"].items() if name in ("approx_kl", "clip_fraction")}
        close(off, dict.fromkeys(off, 0.0), "at ratio 1, by new log_prob - minibatch.trajectories.log_prob, the metrics", 1e-3)
        objective = np.minimum(r * a, np.clip(r, 1 - eps, 1 + eps) * a)
        value = -np.mean(np.where(a < 0, np.maximum(objective, np.minimum(dual, 1e9) * a), objective))
        close((seen.at["loss"] - seen.without["loss"]) / factor, value, "the surrogate", 1e-3)
        return f"{n} samples, {(~goes_on).sum()} of them clipped, factor {factor:.3g}"

    @law("values go to their own targets", "value - targets, of the same shape; max in value clipping; stop_gradient")
    def values(self) -> str:
        """Also beyond a clip range where they went astray. Of a loss with `clip_value`, the gradient in float64, but for a factor."""
        errors, moves, eps = self.samples.errors, self.samples.moves, self.samples.eps
        lift, clips = self.samples.at["lift"] * len(errors), self.number("clip_value")
        if not np.any(lift):
            claims = self.number("vf_coef") is not None or "value_loss" in self.results[0][1]
            assert not claims, "no value has a gradient, though there is a value loss"
            raise NotApplicable("it doesn't depend on the value")
        nearer = moves * errors < 0  # it has moved towards its target since it was collected: clipping may stop it
        wrong = np.where(nearer, lift * errors < 0, lift * errors <= 0)
        for i in np.flatnonzero(wrong):
            where = f"{errors[i]:+.2f} off its target, moved by {moves[i]:+.2f} since it was collected"
            raise AssertionError(f"a value {where}, has the gradient {lift[i]:.3g}; {wrong.mean():.0%} of the signs are wrong")
        if clips is None:
            return f"{len(lift)} samples"
        eps = self.number("clip_value_eps", eps)
        clipped = errors - moves + np.clip(moves, -eps, eps)  # with all targets at 0
        beyond = bool(clips) & (np.abs(moves) > eps) & (clipped**2 > errors**2)
        want = np.where(beyond, 0.0, errors)
        factor = np.sum(lift * want) / np.sum(want**2)
        close(lift / factor, want, "but for a factor, the value's gradient", 1e-3)
        return f"{len(lift)} samples, {beyond.sum()} of them clipped, factor {factor:.3g}"

    @law("entropy grows", "the sign of the bonus: - ent_coef * entropy; the distribution's own entropy, not -log_prob of the samples")
    def entropy(self) -> str:
        """Without advantages and at ratio 1: what is left pulls towards more entropy, if it does anything."""
        batch, claims = self.samples.neither, self.number("ent_coef") is not None
        spread = batch["spread"] * len(batch["spread"])
        if not any(np.any(np.abs(x) > 1e-7) for x in jax.tree.leaves(batch["grad"])):
            assert not claims, "ent_coef makes no difference"
            raise NotApplicable("it has no entropy bonus")
        bonus = claims or np.ptp(spread) < 0.1 * np.abs(spread.mean())  # else it is something of another kind
        assert spread.mean() < 0 or not bonus, "a step along the gradient lowers the entropy"
        if claims:
            close(spread / spread.mean(), np.ones(len(spread)), "but for a factor, the gradient by each sample's entropy", 1e-2)
        return f"{-spread.mean():.3g} of its gradient"

    @law("at_step", "return self, or a copy with numbers in the place of schedules")
    def schedule(self) -> None:
        first, later = (self.part.at_step(jnp.asarray(n, jnp.int32)) for n in (0, 5))
        assert isinstance(later, AbstractLoss), f"at_step returned {describe(later)}; return an AbstractLoss"
        same_arrays(eqx.filter(first, eqx.is_array), eqx.filter(later, eqx.is_array), "the loss at steps 0 and 5")


class Spy(AbstractLoss):
    """A loss that tells of each minibatch which samples are in it, and how likely the policy holds their actions."""
    loss: AbstractLoss
    tell: Callable = eqx.field(static=True)

    def __call__(self, agent: AbstractActorCritic, minibatch: AdvantageMinibatch) -> Any:
        t = minibatch.trajectories
        told = dict(sample=t.reward, advantages=minibatch.advantages, targets=minibatch.targets, value=t.value, log_prob=t.log_prob)
        told |= dict(new_log_prob=evaluate(agent, minibatch)[0].log_prob(t.action))
        jax.debug.callback(self.tell, jax.lax.stop_gradient(told), ordered=True)
        return self.loss(agent, minibatch)

    def at_step(self, num_updates: Any) -> "Spy":
        return Spy(self.loss.at_step(num_updates), self.tell)


class LearnerLaws(AbstractLaws):
    """Of a learner, with a policy and two rollouts of it; where several devices share an agent, of what each of them does."""
    def __init__(self, learner: AbstractLearner, agent: Any, rollouts: list[TrajectoryWithLastObs]):
        learner = learner.inner if isinstance(learner, DataParallelLearner) else learner
        self.part, self.agent, self.call = learner, agent, lambda *args: learner(*args)
        self.rollouts = [estimated(rollout, seed) for seed, rollout in enumerate(rollouts[:2])]

    def members(self) -> list[Any]:
        state, keys = self.part.init(self.agent), jax.random.split(jax.random.key(5), 2)
        return [(self.agent, state, rollout, key) for rollout, key in zip(self.rollouts, keys)]

    @cached_property
    def heard(self) -> list[Any]:
        """What the spy in its loss told of each minibatch, and the rollout, of two calls with the same policy, the second from the first
        one's state."""
        told, heard, state, losses = [], [], self.given[0][1], find(self.part, AbstractLoss)
        spied = edit(self.part, lambda f, x: Spy(x, told.append) if any(x is loss for loss in losses) else x)
        call = quick_jit(lambda *args: spied(*args))
        for agent, _, rollout, key in self.given:
            reward = rollout.trajectories.reward  # of no use to a learner: in its place the sample's number
            numbers = jnp.arange(reward.size, dtype=reward.dtype).reshape(reward.shape)
            _, state, _ = call(agent, state, eqx.tree_at(lambda r: r.trajectories.reward, rollout, numbers), key)
            jax.effects_barrier()
            heard.append((jax.tree.map(np.asarray, told), rollout))
            told.clear()
        if not heard[0][0]:
            raise NotApplicable(f"{type(self.part).__name__} has no AbstractLoss to look through")
        return heard

    def orders(self) -> list[np.ndarray]:
        orders = []
        for call, rollout in self.heard:
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
        for call, rollout in self.heard:
            fields = vars(rollout.trajectories) | vars(rollout)
            for told in call:
                of = lambda name: np.asarray(fields[name]).reshape(-1)[told["sample"].astype(int)]  # noqa: E731
                for name in ("log_prob", "value"):
                    close(told[name], of(name), f"{name} of the samples in a minibatch")
                for name in ("advantages", "targets"):
                    steps = np.diff(told[name].reshape(-1)[np.argsort(of(name), kind="stable", axis=None)])
                    assert (steps >= -1e-5 * np.ptp(told[name])).all(), f"a sample's {name} in a minibatch are another sample's"
        return f"{sum(len(call) for call, _ in self.heard)} minibatches"

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
        old, new = (np.concatenate([call[0][name].ravel() for call, _ in self.heard]) for name in ("log_prob", "new_log_prob"))
        worst, kl = np.max(np.abs(new - old)), np.mean(np.expm1(new - old) - (new - old))
        off = f"before the first update the ratio is already off 1 by up to {np.expm1(worst):.2g} (approx_kl {kl:.2g})"
        assert worst <= TOLERANCE * (1 + np.max(np.abs(old))), f"{off}: the policy that learns isn't the one that collected"
        return f"|log ratio| up to {worst:.1g}, approx_kl {kl:.1g}"

    @law("learned", "which updated policy and state are returned; what the loss's gradient reaches; a forgotten value loss")
    def learned(self) -> str:
        """Every layer moves, and observation statistics stay: the algorithm counts observations, after learning."""
        after, state, metrics = self.results[0]
        old, new = (eqx.filter(agent, trainable(agent)) for agent in (self.agent, after))
        still: dict[str, bool] = {}
        for (path, a), b in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new)):
            layer = jax.tree_util.keystr(path[:-1] or path)
            still[layer] = still.get(layer, True) and np.array_equal(a, b)
        assert not all(still.values()), "the policy is the same after learning"
        got, want = (find(agent, RunningMoments) for agent in (after, self.agent))
        close(got, want, "the policy's observation statistics, which aren't trained (nn.trainable) nor counted here,", tolerance=0.0)
        assert int(state.num_updates) > 0, "num_updates is still 0, and schedules with it"
        assert not metrics.get("grad_norm", 0) < 0, "grad_norm is negative"
        assert not any(still.values()), f"these stay as they were, whatever is learned: {', '.join(x for x in still if still[x])}"
        return f"{int(state.num_updates)} updates, {len(still)} layers"

    @law("the optimiser goes on", "init of the optimiser belongs into the learner's init; its new state must be returned")
    def goes_on(self) -> str:
        (_, start, _, _), (_, _, *more), (agent, state, _) = *self.given, self.results[0]
        learn = lambda x: self.compiled(agent, with_fields(state, opt_state=x), *more)[0]  # noqa: E731
        return opt_state_goes_on(start.opt_state, state.opt_state, learn)


def opt_state_goes_on(start: Any, then: Any, learn: Callable[[Any], Any]) -> str:
    """Checks an optimiser's state before and after an update, and that `learn(state)`, the next one's result, depends on it."""
    numbers = [(a, b) for a, b in zip(*map(jax.tree.leaves, (start, then))) if eqx.is_inexact_array(a)]
    if not any(np.size(a) > 1 for a, _ in numbers):
        raise NotApplicable("the optimiser keeps nothing but counters")
    assert not same(*zip(*numbers)), "the optimiser's state is the same after an update: the new one isn't returned"
    assert not same(learn(then), learn(start)), "the optimiser's state makes no difference to the next update: it starts anew each time"
    return f"{len(numbers)} arrays"
