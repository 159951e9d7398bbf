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
from eqxrl.verification._actor_critic import AbstractUpdateLaws
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
        """Of `q(obs) -> [act]` with a copy `target`: where the reward makes a transition's value just right, nothing is learned."""
        learner, hp = self.trained, self.part.hp
        batch = with_fields(self.batches[0], discount=jnp.full(self.batches[0].reward.shape, 0.5, jnp.float32))
        if not (hasattr(learner, "q") and hasattr(learner, "target") and "optimizer" in self.part.part_names()):
            raise NotApplicable("its learner has no `q` and `target`, or it has no optimizer")
        if not same(self.updated(seed=7), self.updated()):
            raise NotApplicable("the update depends on its key")
        if jax.eval_shape(jax.vmap(learner.q), batch.obs).ndim > 2:
            raise NotApplicable("its network gives more than a value for each action")
        # A target network that can be told from the network, which at the start is its copy; and an optimiser that hides nothing.
        (arrays, static), sgd = eqx.partition(learner.target, eqx.is_inexact_array), optax.sgd(1.0)
        opt_state = sgd.init(eqx.filter(learner.q, eqx.is_inexact_array))
        learner = with_fields(learner, target=eqx.combine(moved(arrays, 1.0), static), opt_state=opt_state)
        algo = with_fields(self.part, parts=self.part.parts | dict(optimizer=sgd))
        values = lambda net, obs: np.asarray(jax.vmap(net)(obs), np.float64)  # noqa: E731
        own, next_own, next_old = values(learner.q, batch.obs), values(learner.q, batch.next_obs), values(learner.target, batch.next_obs)
        rows = np.arange(len(own))
        following = {True: next_old[rows, next_own.argmax(1)], False: next_old.max(1)}  # double Q-learning, or not
        @quick_jit
        def step(reward: Any) -> Any:
            after, *_ = algo.update(learner, with_fields(batch, reward=reward), jnp.int32(1), jax.random.key(0))
            return optax.tree.norm(jax.tree.map(lambda a, b: a - b, *(eqx.filter(x.q, eqx.is_inexact_array) for x in (after, learner))))
        def share(double: bool) -> float:
            right = own[rows, np.asarray(batch.action)] - 0.5 * np.where(batch.terminated, 0.0, following[double])
            there, off = (float(step(jnp.asarray(right + x, jnp.float32))) for x in (0.0, 1.0))
            return there / off
        double = min([bool(hp.double)] if hasattr(hp, "double") else [True, False], key=share)
        already = f"where values are reward + discount * (1 - terminated) * {'target(argmax q)' if double else 'max target'} already"
        assert share(double) < 0.02, f"{already}, an update moves the network still, by {share(double):.0%} of one where they are off by 1"
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
