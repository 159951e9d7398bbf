"""Laws of updates with target networks, of which all that is drawn at random is fixed: so the update is known beforehand."""

import copy
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqxrl._structs import Replayed
from eqxrl.learners import Periodic, Polyak
from eqxrl.losses import AbstractReduction, values_taken
from eqxrl.nn import AbstractDistribution, Categorical, Ensemble, trainable
from eqxrl.verification._copies import moved, with_fields
from eqxrl.verification._glass import delegated
from eqxrl.verification._laws import AbstractLaws, NotApplicable, law, quick_jit, same

RATE, EXACT, DISCOUNT = 1e-4, 0.02, 0.5


class Certain(AbstractDistribution):
    """Another distribution, of which every sample is the mode."""

    inner: AbstractDistribution

    def sample(self, key: Any) -> Any:
        return self.inner.mode()

    def log_prob(self, action: Any) -> Any:
        return self.inner.log_prob(action)

    def entropy(self) -> Any:
        return self.inner.entropy()

    def mode(self) -> Any:
        return self.inner.mode()


class CertainActor(eqx.Module):
    """An actor whose distributions are `Certain`; over a list of actions they stay, since an update may take expectations over it."""

    actor: Any

    def __call__(self, obs: Any) -> Any:
        d = self.actor(obs)
        return Certain(d) if isinstance(d, AbstractDistribution) and not isinstance(d, Categorical) else d

    def __getattr__(self, name: str) -> Any:
        return delegated(self, "actor", name)


def with_optimizer(algo: Any, optimizer: Any) -> tuple[Any, Any]:
    """The algorithm with that optimiser, and a new learner of it."""
    algo = with_fields(algo, parts=algo.parts | dict(optimizer=optimizer))
    return algo, quick_jit(lambda algo, key: algo.init_learner(key))(algo, jax.random.key(21))


def nearby(network: Any, seed: int) -> Any:
    """With other numbers of the same size, where they are trained."""
    numbers, rest = eqx.partition(network, trainable(network))
    rng = np.random.default_rng(seed)
    return eqx.combine(jax.tree.map(lambda x: x + jnp.asarray(0.5 * np.std(x) * rng.normal(size=x.shape), x.dtype), numbers), rest)


def flat(tree: Any) -> np.ndarray:
    """All floats in one array."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return np.concatenate([np.zeros(0), *(np.asarray(x, np.float64).ravel() for x in leaves)])


def arrays_like(a: Any, b: Any) -> bool:
    """Whether two networks are alike but for their numbers."""
    a, b = (eqx.filter(x, eqx.is_inexact_array) for x in (a, b))
    return jax.tree.structure(a) == jax.tree.structure(b) and [*map(jnp.shape, jax.tree.leaves(a))] == [*map(jnp.shape, jax.tree.leaves(b))]


def direction(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between them."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


class Known:
    """An update of an actor and an `Ensemble` of critics, of which everything is known: it is plain gradient descent, the actor draws its
    mode, no noise is added, and networks and target networks are different ones. Of the critics all members are alike.

    **Raises:** `NotApplicable` for another kind of update, and for one that draws something else.
    """

    def __init__(self, algo: Any, learner: Any, batch: Replayed):
        names = [x for x in ("actor", "critics", "target") if not hasattr(learner, x)]
        names += [x for x in ("optimizer", "reduction") if x not in algo.part_names()]
        if names or not isinstance(learner.critics, Ensemble) or not isinstance(algo.reduction, AbstractReduction):
            reason = f"it has no {', '.join(names)}" if names else "its critics aren't an `Ensemble`"
            raise NotApplicable(f"it is no update of actor and critics as SAC's and TD3's are: {reason}")
        algo, fresh = with_optimizer(algo, optax.sgd(RATE))
        next_obs = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch.next_obs)  # nothing like obs
        self.batch = with_fields(batch, next_obs=next_obs, discount=jnp.full(batch.reward.shape, DISCOUNT, jnp.float32))
        self.space, self.reduction = algo.spaces[1], algo.reduction
        alike = jax.tree.map(lambda x: jnp.repeat(x[:1], len(x), axis=0) if eqx.is_array(x) else x, fresh.critics)
        new = quick_jit(lambda algo, key: algo.init_learner(key))(algo, jax.random.key(22))
        others: list[Any] = [nearby(x, seed) for seed, x in enumerate((learner.actor, new.actor))]
        self.draws = isinstance(eqx.filter_eval_shape(jax.vmap(others[0]), batch.next_obs), AbstractDistribution)
        if self.draws:
            others = [CertainActor(x) for x in others]
        old = new.critics
        if arrays_like(learner.target, learner.critics):
            target, self.next_actor = old, others[0]
        elif arrays_like(learner.target, (learner.actor, learner.critics)):
            target, self.next_actor = (others[1], old), others[1]
        else:
            raise NotApplicable("`target` is neither like `critics` nor like `(actor, critics)`")
        self.old, self.learner = old, with_fields(learner, actor=others[0], critics=alike, target=target, opt_state=fresh.opt_state)
        hp = algo.hp
        self.algo = with_fields(algo, hp=with_fields(hp, target_noise=jnp.float32(0)) if hasattr(hp, "target_noise") else hp)
        self.reduction.check(eqx.filter_eval_shape(values_taken, alike, self.space, batch.obs, batch.action))
        self.temperature, (self.value, self.log_prob) = 0.0, self.following(old, self.next_actor)
        if not np.isfinite(self.value).all() or not np.isfinite(self.log_prob).all():
            raise NotApplicable("with networks a little apart, what follows isn't finite")
        if self.draws:  # so that entropy counts for about as much as values do
            self.set_temperature(np.clip(np.mean(np.abs(self.value)) / max(np.mean(np.abs(self.log_prob)), 1e-3), 0.02, 0.5))
        if not same(*(eqx.filter(self.updated(seed=seed), eqx.is_array) for seed in (0, 7))):
            raise NotApplicable("the update draws more than actions from its actor")

    def with_rate(self, rate: float) -> "Known":
        """With a larger step, or one that is small enough for a network's step not to matter to another's."""
        one = copy.copy(self)
        one.algo = with_fields(self.algo, parts=self.algo.parts | dict(optimizer=optax.sgd(rate)))
        return one

    def set_temperature(self, temperature: Any) -> None:
        self.temperature = float(temperature)
        learned, said = hasattr(self.learner, "log_temperature"), hasattr(self.algo.hp, "temperature")
        if learned:
            log = jnp.full_like(self.learner.log_temperature, np.log(self.temperature))
            self.learner = with_fields(self.learner, log_temperature=log)
        if said:
            self.algo = with_fields(self.algo, hp=with_fields(self.algo.hp, temperature=jnp.float32(self.temperature)))
        if not learned and not said:
            raise NotApplicable("its actor draws, but it has neither `log_temperature` nor hp.temperature")

    @cached_property
    def _update(self) -> Any:
        return quick_jit(lambda algo, learner, batch, key: algo.update(learner, batch, jnp.int32(0), key))

    def updated(self, batch: Any = None, seed: int = 0, algo: Any = None) -> Any:
        """The first update of all."""
        args = self.algo if algo is None else algo, self.learner, self.batch if batch is None else batch
        return self._update(*args, jax.random.key(seed))

    def following(self, critics: Any, actor: Any) -> tuple[np.ndarray, np.ndarray]:
        """The reduced values `[batch targets]` of the actor's actions at `next_obs`, or their expectations, and the log-probs."""
        obs, reduce = self.batch.next_obs, self.reduction.following
        chosen: Any = jax.vmap(actor)(obs)
        if not isinstance(chosen, Categorical):
            action = chosen.mode() if self.draws else chosen
            log_prob = chosen.log_prob(action) if self.draws else jnp.zeros(len(self.batch.reward))
            return np.asarray(reduce(values_taken(critics, self.space, obs, action)), np.float64), np.asarray(log_prob, np.float64)
        logits = np.asarray(chosen.logits, np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        values = jax.vmap(critics, out_axes=1)(obs)
        each = np.stack([np.asarray(reduce(values[..., i, None]), np.float64) for i in range(p.shape[-1])], axis=1)
        return (p[..., None] * each).sum(1), (p * np.log(np.maximum(p, 1e-300))).sum(-1)

    def targets(self, following: np.ndarray, ends: Any) -> np.ndarray:
        """Without the reward, `[batch targets]`."""
        return DISCOUNT * np.where(np.asarray(ends)[:, None], 0, following)

    def reward(self, targets: np.ndarray, more: Any = 0.0) -> Any:
        """With which the critics' values of what was done are right on average, but for `more`."""
        values = np.asarray(values_taken(self.learner.critics, self.space, self.batch.obs, self.batch.action), np.float64)
        return jnp.asarray(values.mean((0, 2)) + more - targets.mean(1), jnp.float32)

    def moves(self, name: str, reward: Any, algo: Any = None) -> np.ndarray:
        """How far such rewards move that field of the learner."""
        after, *_ = self.updated(with_fields(self.batch, reward=reward), algo=algo)
        return flat(getattr(after, name)) - flat(getattr(self.learner, name))

    def off(self, targets: np.ndarray, reward: Any, scale: float) -> float:
        """How far the critics' step is off the one towards these targets, as a part of it. Critics with one output don't move at all where
        they are right."""
        if self.reduction.outputs == 1:
            there, away = (np.linalg.norm(self.moves("critics", self.reward(targets, more))) for more in (0.0, scale))
            return float(there / max(away, 1e-30))
        wanted = jnp.asarray(np.asarray(reward)[:, None] + targets, jnp.float32)
        params, static = eqx.partition(self.learner.critics, eqx.is_inexact_array)
        def loss(params: Any) -> Any:
            values = values_taken(eqx.combine(params, static), self.space, self.batch.obs, self.batch.action)
            return jnp.mean(self.reduction.loss(values, wanted))
        cosine = direction(self.moves("critics", reward), -flat(quick_jit(jax.grad(loss))(params)))
        return float(np.sqrt(max(1 - cosine**2, 0.0))) if cosine > 0 else 1.0


class AbstractUpdateLaws(AbstractLaws):
    """Of an update with target networks, with a learner after some training and batches with every kind of end."""
    trained: Any
    batches: list[Any]

    @cached_property
    def known(self) -> Known:
        try:
            return Known(self.part, self.trained, self.batches[0])
        except NotApplicable:
            raise
        except Exception as error:  # its networks may be anything
            raise NotApplicable(f"its networks aren't called as SAC's and TD3's are: {type(error).__name__}: {error}") from error

    @law("critics' targets", "which networks value whose action at next_obs; the reduction; the temperature's sign; terminated")
    def critic_targets(self) -> str:
        """reward + discount * (1 - terminated) * (the target critics' reduced value of the next action - temperature * its log-prob), in
        float64; and what a wrong one is, if it is a usual one."""
        known = self.known.with_rate(1e-2)
        value, log_prob, t, ends = known.value, known.log_prob, known.temperature, known.batch.terminated
        right = value - t * log_prob[:, None]
        scale = float(np.std(right) + 1e-3 * np.abs(right).mean())
        noise = scale * np.random.default_rng(3).normal(size=len(value))
        reward = known.reward(known.targets(right, ends), noise)
        found = known.off(known.targets(right, ends), reward, scale)
        what = "reward + discount * (1 - terminated) * " + ("(value - temperature * log_prob)" if known.draws else "value")
        if found < EXACT:
            return f"{what}, up to {found:.1g} of a step"
        online = known.following(known.learner.critics, known.next_actor)[0] - t * log_prob[:, None]
        usual = {"the networks themselves, not their copies, value the next action": (online, ends)}
        usual |= {"they end where an episode is cut off": (right, ends | known.batch.truncated), "they end nowhere": (right, ends & False)}
        if known.draws:
            usual |= {"the temperature's term has the wrong sign": (value + t * log_prob[:, None], ends)}
            usual |= {"the temperature's term is left out": (value, ends)}
        if known.reduction.outputs == 1:
            every = [known.following(only(known.old, i), known.next_actor)[0] for i in range(known.old.size)]
            usual |= {"the critics are averaged": (np.mean(every, axis=0) - t * log_prob[:, None], ends)}
            usual |= {"the highest critic counts": (np.max(every, axis=0) - t * log_prob[:, None], ends)}
        if known.next_actor is not known.learner.actor:
            usual |= {"the actor itself, not its copy, acts": (known.following(known.old, known.learner.actor)[0], ends)}
        like = [name for name, it in usual.items() if known.off(known.targets(*it), reward, scale) < EXACT]
        raise AssertionError(f"the critics' step is {found:.0%} off the one towards {what}{''.join(f'; {x}' for x in like[:1])}")

    @law("the actor's direction", "the sign of the actor's loss and of the temperature's term in it; stop_gradient on everything else")
    def actor_direction(self) -> str:
        """Up the reduced value of its actions, and, where it draws them, down their log-prob times the temperature."""
        known = self.known.with_rate(RATE)
        (params, static), obs = eqx.partition(known.learner.actor, eqx.is_inexact_array), known.batch.obs
        def gain(params: Any, of_value: Any) -> Any:
            chosen: Any = jax.vmap(eqx.combine(params, static))(obs)
            value = lambda action: known.reduction.value(values_taken(known.learner.critics, known.space, obs, action))  # noqa: E731
            if not known.draws:
                return jnp.mean(value(chosen))
            if not isinstance(chosen, Categorical):
                return jnp.mean(jnp.where(of_value, value(chosen.mode()), -chosen.log_prob(chosen.mode())))
            values = jax.vmap(known.learner.critics, out_axes=1)(obs)
            each = jnp.stack([known.reduction.value(values[..., i, None]) for i in range(values.shape[-1])], axis=-1)
            return jnp.mean(jnp.where(of_value, jnp.sum(jax.nn.softmax(chosen.logits) * each, axis=-1), chosen.entropy()))
        by_value, by_entropy = (flat(quick_jit(jax.grad(gain))(params, jnp.asarray(x))) for x in (True, False))
        if known.draws:  # so that both count alike
            known.set_temperature(np.clip(np.linalg.norm(by_value) / max(np.linalg.norm(by_entropy), 1e-30), 1e-3, 1e3))
        up, cosines = by_value + known.temperature * by_entropy, []
        targets = known.targets(known.value - known.temperature * known.log_prob[:, None], known.batch.terminated)
        for off in (2.0, -2.0):  # a gradient that comes of the critics' loss shows in one of them
            step = known.moves("actor", known.reward(targets, off))
            if not step.any():
                raise NotApplicable("the first update doesn't move the actor")
            cosines.append(direction(step, up))
        term = " - temperature * log_prob" if known.draws else ""
        says = f"the actor should go up value{term}, but the cosine of its step and that direction is {min(cosines):.2f}"
        assert min(cosines) > 0.9, says
        return f"cosine {min(cosines):.3f}"

    @law("the temperature's direction", "the sign of its loss: temperature * (entropy - target_entropy), by the temperature")
    def temperature_direction(self) -> str:
        """It rises where the entropy is below `target_entropy`, and falls where it is above."""
        hp = self.part.hp
        if not (hasattr(self.trained, "log_temperature") and hasattr(hp, "target_entropy") and getattr(hp, "learn_temperature", True)):
            raise NotApplicable("its learner has no `log_temperature`, or it isn't learned, or there is no hp.target_entropy")
        known, steps = self.known, {}
        for far in (1e3, -1e3):
            algo = with_fields(known.algo, hp=with_fields(known.algo.hp, target_entropy=jnp.float32(far)))
            steps[far] = float(known.moves("log_temperature", known.batch.reward, algo)[0])
        says = f"with a target_entropy of 1000 and of -1000 nats, log_temperature goes by {steps[1e3]:.2g} and by {steps[-1e3]:.2g}"
        assert steps[1e3] > 0 > steps[-1e3], f"{says}: it should rise, and fall"
        return says

    @law("target networks follow", "the arguments of `target_update`: (copies, networks, number of updates); what of it is returned")
    def targets_follow(self) -> str:
        """Polyak(tau): (1 - tau) * copy + tau * network. Periodic(n): the network at multiples of n, else the copy. All of this at each
        update, or, where an integer hyperparameter delays it, at each one in so many; networks themselves don't move meanwhile."""
        if not {"target_update", "optimizer"} <= {*self.part.part_names()} or not hasattr(self.trained, "target"):
            raise NotApplicable("it has no part `target_update`, or no `optimizer`, or its learner has no `target`")
        algo, fresh = with_optimizer(self.part, optax.set_to_zero())
        rule, hp, names = algo.target_update, algo.hp, [k for k in vars(self.trained) if k not in ("target", "opt_state")]
        learner = with_fields(self.trained, target=moved(self.trained.target, 0.1, 4), opt_state=fresh.opt_state)
        alone = [getattr(learner, k) for k in names]
        like = [x for x in alone + [(x, y) for x in alone for y in alone] if arrays_like(x, learner.target)]
        if not like:
            raise NotApplicable("no networks of its learner are like `target`")
        follow = quick_jit(lambda algo, n: algo.update(learner, self.batches[0], n, jax.random.key(0))[0])
        period = rule.period if isinstance(rule, Periodic) else 1
        at = sorted({*range(8), *(max(k * period + i, 0) for k in (1, 2) for i in (-1, 0, 1))})
        got = {n: follow(algo, jnp.int32(n)) for n in at}
        if any(not same(flat(getattr(x, k)), flat(getattr(learner, k))) for x in got.values() for k in names):
            raise NotApplicable("its networks move although its optimiser doesn't")
        old, got = flat(learner.target), {n: flat(x.target) for n, x in got.items()}
        def step(network: Any, n: int) -> np.ndarray:
            if isinstance(rule, Polyak):
                return (1 - float(rule.tau)) * old + float(rule.tau) * flat(network)
            if isinstance(rule, Periodic):
                return flat(network) if n % rule.period == 0 else old
            return flat(rule(learner.target, network, jnp.int32(n)))
        near = lambda a, b: bool(np.all(np.abs(a - b) <= 1e-5 * (1 + np.abs(b))))  # noqa: E731
        delays = {1, *(x for x in vars(hp).values() if type(x) is int and 1 < x < 8)}
        for network in like:
            for k in sorted(delays):
                for count in (lambda n, k=k: n // k, lambda n: n):
                    if all(near(got[n], step(network, count(n)) if n % k == 0 else old) for n in at):
                        return f"{describe_rule(rule)}{f', at one update in {k}' if k > 1 else ''}"
        hard = any(all(near(got[n], flat(x)) for n in at) for x in like)
        own = with_fields(hp, **{k: x for k, x in dict(tau=jnp.float32(0.37), target_update_freq=3).items() if hasattr(hp, k)})
        other = follow(with_fields(algo, hp=own, parts=algo.parts | dict(target_update=Polyak(0.37))), jnp.int32(0))
        if near(flat(other.target), got[0]) and not hard:
            raise NotApplicable("its target networks don't depend on `target_update`")
        wrong = [n for n in at if not any(near(got[n], step(x, n)) for x in like)]
        how = f"after {wrong[:5]} updates they aren't what it makes of them"
        how = "they are the networks themselves after each update" if hard else how
        raise AssertionError(f"target networks don't follow as {describe_rule(rule)} says: {how}")


def describe_rule(rule: Any) -> str:
    number = f"{float(rule.tau):.3g}" if isinstance(rule, Polyak) else rule.period if isinstance(rule, Periodic) else ""
    return f"{type(rule).__name__}({number})"


def only(ensemble: Any, i: int) -> Any:
    """An ensemble of one of the members."""
    return with_fields(ensemble, members=jax.tree.map(lambda x: x[i : i + 1] if eqx.is_array(x) else x, ensemble.members), size=1)
