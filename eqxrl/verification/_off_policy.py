from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from eqxrl._structs import Replayed
from eqxrl._typing import describe
from eqxrl.algorithms import AbstractOffPolicy
from eqxrl.buffers import AbstractBuffer, Drawn
from eqxrl.losses import quantile_huber
from eqxrl.nn import NoisyLinear
from eqxrl.verification._actor_critic import AbstractUpdateLaws, direction, flat
from eqxrl.verification._copies import moved, with_fields
from eqxrl.verification._laws import AbstractLaws, NotApplicable, close, law, quick_jit, same, same_arrays
from eqxrl.verification._learners import opt_state_goes_on


class BufferLaws(AbstractLaws):
    """Of a replay buffer, with an example of the rows that it is to keep (or its shapes)."""
    def __init__(self, buffer: AbstractBuffer, example: PyTree):
        self.part, self.call = buffer, self.add_and_sample
        self.example = {"row": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)}
        self.example["number"] = jax.ShapeDtypeStruct((), jnp.int32)

    def add(self, state: Any, start: Any) -> Any:
        """Adds rows `[steps envs ...]`, each filled with its number, in the order of time; the first one is `start`."""
        number = start + jnp.arange(6).reshape(2, 3)
        fill = lambda x: jnp.broadcast_to(number.reshape(2, 3, *[1] * len(x.shape)), (2, 3, *x.shape)).astype(x.dtype)  # noqa: E731
        return self.part.add(state, jax.tree.map(fill, self.example))

    def add_and_sample(self, state: Any, start: Any, key: Any) -> Any:
        state = self.add(state, start)
        return state, self.part.sample(state, key)

    def rows(self, state: Any, key: Any) -> Any:
        return self.part.sample(state, key).rows

    def members(self) -> list[Any]:
        keys = jax.random.split(jax.random.key(11), 2)
        return [(self.part.init(self.example), jnp.int32(i), key) for i, key in enumerate(keys)]

    @cached_property
    def filled(self) -> dict[int, tuple[int, Any]]:
        """After so many rows, fewer and more than its capacity: its size, and rows that were drawn, `[draws batch ...]`."""
        add, draw = quick_jit(self.add), quick_jit(jax.vmap(self.rows, in_axes=(None, 0)))
        state, seen, total, size = self.given[0][0], {}, 0, 0
        while total < 1000 and total <= 2 * size:  # until all of it was written twice
            state = add(state, jnp.int32(total + 1))
            total, size = total + 6, int(state.size)
            if not seen or (len(seen) == 1 and size < total) or total > 2 * size:
                seen[total] = size, jax.device_get(draw(state, jax.random.split(jax.random.key(12), 400)))
        return seen

    @law("shapes", "what add and sample return", gate=True)
    def shapes(self) -> str:
        after, drawn = jax.eval_shape(self.call, *self.given[0])
        assert isinstance(drawn, Drawn), f"sample returned {describe(drawn)}; return Drawn(rows, index, weight)"
        batch = drawn.rows
        same_arrays(self.given[0][0], after, "its state")
        sizes = {x.shape[:1] for x in jax.tree.leaves(drawn)}
        assert len(sizes) == 1, f"sample returned {describe(drawn)}; return [batch ...]"
        same_arrays(self.example, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch), "a sampled row")
        return "[batch={}]".format(*sizes.pop())

    @law("whole rows", "one index for all arrays of a row")
    def whole_rows(self) -> None:
        for _, drawn in self.filled.values():
            for x in jax.tree.leaves(drawn["row"]):
                number = drawn["number"].reshape(*x.shape[:2], *[1] * (x.ndim - 2)).astype(x.dtype)
                assert (x == number).all(), "what comes out isn't what went in, or a row is put together from several"

    @law("the newest rows", "where rows are written, and the bound up to which is drawn: never what wasn't filled")
    def newest(self) -> None:
        for total, (size, drawn) in self.filled.items():
            oldest = drawn["number"].min()
            assert oldest > total - size, f"of {total} rows the newest {size} are kept, but row {oldest} was drawn"

    @law("uniform", "the bounds of the random index, and whether the key is used")
    def uniform(self) -> None:
        for total, (size, drawn) in self.filled.items():
            counts = np.bincount(drawn["number"].ravel() - (total - size) - 1, minlength=size)
            excess = (np.sum((counts - counts.mean()) ** 2) / counts.mean() - (size - 1)) / np.sqrt(2 * max(size - 1, 1))
            assert excess < 8, f"the {size} rows aren't drawn equally often: {counts.min()} to {counts.max()} times"


class UnknownUpdateLaws:
    """Of an `update` that isn't given single transitions."""
    def __init__(self, algo: AbstractOffPolicy):
        self.part = algo

    @law("the update", "")
    def unjudged(self) -> None:
        raise NotApplicable("`replay` is overridden, and the laws of updates are of single transitions: none of them is judged")


class UpdateLaws(AbstractUpdateLaws):
    """Of an algorithm's `update`, with its learner's state before and after some training, and two batches, whose ends are replaced."""
    def __init__(self, algo: AbstractOffPolicy, start: Any, trained: Any, batches: list[Replayed]):
        self.part, self.agent, self.start, self.trained = algo, trained, start, trained  # what its networks deviate in counts as well
        self.call = lambda learner, batch, num_updates, key: algo.update(learner, batch, num_updates, key)
        kind = np.arange(len(batches[0].reward)) % 4  # going on, terminated, cut off, both
        self.ends = dict(terminated=jnp.asarray(kind % 2 == 1), truncated=jnp.asarray(kind >= 2))
        self.batches = [with_fields(batch, **self.ends) for batch in batches]

    def members(self) -> list[Any]:
        return [(self.trained, batch, jnp.int32(1), jax.random.key(i)) for i, batch in enumerate(self.batches)]

    def updated(self, batch: Any = None, learner: Any = None, seed: int = 0) -> Any:
        given = self.trained if learner is None else learner, self.batches[0] if batch is None else batch
        return eqx.filter(self.compiled(*given, jnp.int32(1), jax.random.key(seed)), eqx.is_array)

    def led_elsewhere(self, where: Any) -> Any:
        """What becomes of the first batch with other observations after these steps."""
        def other(x: Any) -> Any:
            x, rows = np.asarray(x), (-1, *[1] * (x.ndim - 1))
            shifted = np.roll(x, 1, axis=0) + (np.arange(len(x)).reshape(rows) % 5 if x.dtype.kind == "f" else 0)
            return jnp.asarray(np.where(np.reshape(where, rows), shifted, x), x.dtype)
        return self.updated(with_fields(self.batches[0], next_obs=jax.tree.map(other, self.batches[0].next_obs)))

    @law("nothing follows a termination", "(1 - terminated) * the next value")
    def terminations(self) -> None:
        close(self.led_elsewhere(self.ends["terminated"]), self.updated(), "with another next_obs where the MDP ended, the update", 1e-5)

    @law("a cut-off is bootstrapped", "terminated, and not done, in the place where the next value is left out")
    def cut_offs(self) -> None:
        if not np.any(self.batches[0].discount):
            raise NotApplicable("gamma is 0, so that nothing is bootstrapped")
        for name, where in (("goes on", True), ("was cut off", self.ends["truncated"])):
            where = where & ~self.ends["terminated"]
            assert not same(self.led_elsewhere(where), self.updated()), f"next_obs makes no difference where an episode {name}"

    @law("a mean over transitions", "jnp.sum for jnp.mean; [batch 1] beside [batch]; neighbours in the batch that are taken together")
    def mean(self) -> None:
        updated: Any = self.updated
        if not same(self.updated(seed=7), self.updated()):
            try:
                known = self.known
            except NotApplicable as reason:
                raise NotApplicable(f"the update depends on its key; {reason}") from reason
            updated = lambda batch=self.batches[0]: eqx.filter(known.updated(batch), eqx.is_array)  # noqa: E731
        twice = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), self.batches[0])
        learner, errors, metrics = updated(twice)
        got = learner, errors[: len(errors) // 2], metrics  # the batch once more comes in the other order
        close(got, updated(), "with every transition twice, (what is learned, errors, metrics)", 1e-3)

    @law("targets", "reward + discount * (1 - terminated) * the target's value; which network chooses the next action; stop_gradient")
    def targets(self) -> str:
        """Of `q(obs) -> [act]` with a copy `target`: where the reward makes a transition's value just right, nothing is learned. Of
        quantiles `[act quantiles]`: where it makes their mean right, they move as the quantile Huber loss says."""
        learner, hp = without_noise(self.trained), self.part.hp
        batch = with_fields(self.batches[0], discount=jnp.full(self.batches[0].reward.shape, 0.5, jnp.float32))
        if not (hasattr(learner, "q") and hasattr(learner, "target") and "optimizer" in self.part.part_names()):
            raise NotApplicable("its learner has no `q` and `target`, or it has no optimizer")
        # A target network that can be told from the network, which at the start is its copy; and an optimiser that hides nothing.
        (arrays, static), sgd = eqx.partition(learner.target, eqx.is_inexact_array), optax.sgd(1.0)
        opt_state = sgd.init(eqx.filter(learner.q, eqx.is_inexact_array))
        learner = with_fields(learner, target=without_noise(eqx.combine(moved(arrays, 1.0), static)), opt_state=opt_state)
        algo = with_fields(self.part, parts=self.part.parts | dict(optimizer=sgd))
        values = lambda net, obs: np.asarray(jax.vmap(net)(obs), np.float64)  # noqa: E731
        own, next_own, next_old = values(learner.q, batch.obs), values(learner.q, batch.next_obs), values(learner.target, batch.next_obs)
        rows, mean = np.arange(len(own)), lambda x, axis: x.reshape(*x.shape[:axis], -1).mean(-1)
        choices = {True: mean(next_own, 2).argmax(1), False: mean(next_old, 2).argmax(1)}  # double Q-learning, or not
        step = quick_jit(lambda reward, key: without_noise(algo.update(learner, with_fields(batch, reward=reward), jnp.int32(1), key)[0].q))
        moves = lambda reward, i=0: flat(step(jnp.asarray(reward, jnp.float32), jax.random.key(i))) - flat(learner.q)  # noqa: E731
        if not same(moves(batch.reward), moves(batch.reward, 7)):
            raise NotApplicable("the update depends on its key")
        params, rest = eqx.partition(learner.q, eqx.is_inexact_array)

        def loss(params: Any, targets: Any) -> Any:
            taken = jax.vmap(eqx.combine(params, rest))(batch.obs)[rows, batch.action]
            return jnp.mean(jax.vmap(quantile_huber)(taken, targets))

        def off(double: bool) -> float:
            following = next_old[rows, choices[double]]
            ends = np.reshape(batch.terminated, (-1, *[1] * (following.ndim - 1)))
            following = 0.5 * np.where(ends, 0.0, following)
            right = mean(own[rows, np.asarray(batch.action)] - following, 1)
            if following.ndim == 1:
                return float(np.linalg.norm(moves(right)) / np.linalg.norm(moves(right + 1.0)))
            wanted = -flat(quick_jit(jax.grad(loss))(params, jnp.asarray(right[:, None] + following, jnp.float32)))
            return float(np.sqrt(max(1 - direction(moves(right), wanted) ** 2, 0.0)))

        double = min([bool(hp.double)] if hasattr(hp, "double") else [True, False], key=off)
        target, far = "target(argmax q)" if double else "max target", off(double)
        wanted = f"reward + discount * (1 - terminated) * {target}"
        if own.ndim == 2:
            says = f"where values are {wanted} already, an update moves the network still, by {far:.0%} of one where they are off by 1"
        else:
            says = f"an update's step is {far:.0%} off the one that takes the action's quantiles to {wanted}"
        assert far < 0.02, says
        return "double Q-learning" if double else "the maximum over the target network"

    @law("every network moves", "what is returned; target networks are copied or averaged; the loss of each critic")
    def moves(self) -> str:
        old, new = (jax.tree.leaves_with_path(eqx.filter(x, eqx.is_inexact_array)) for x in (self.start, self.trained))
        still = [jax.tree_util.keystr(path) for (path, a), (_, b) in zip(old, new) if np.size(a) > 1 and same(a, b)]
        assert not still, f"these stay as they were: {', '.join(still)}"
        return f"{len(old)} arrays"

    @law("the optimiser goes on", "the optimiser's new state must be returned, and init only be called before training")
    def goes_on(self) -> str:
        if not hasattr(self.trained, "opt_state"):
            raise NotApplicable("its learner has no `opt_state`")
        learn = lambda x: with_fields(self.updated(self.batches[1], with_fields(self.trained, opt_state=x))[0], opt_state=())  # noqa: E731
        return opt_state_goes_on(self.start.opt_state, self.trained.opt_state, learn)


def without_noise(net: Any) -> Any:
    """With layers that always draw their means."""
    is_noisy = lambda x: isinstance(x, NoisyLinear)  # noqa: E731
    quiet = lambda x: with_fields(x, deviation=jax.tree.map(jnp.zeros_like, x.deviation)) if is_noisy(x) else x  # noqa: E731
    return jax.tree.map(quiet, net, is_leaf=is_noisy)
