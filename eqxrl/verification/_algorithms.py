import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import KeyLike, Scalar, as_key, describe
from eqxrl.algorithms import AbstractAlgorithm, AbstractOffPolicy, AbstractOnPolicy
from eqxrl.algorithms._base import names_read
from eqxrl.buffers import Drawn, replayed
from eqxrl.envs import env_name
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.losses import AbstractLoss
from eqxrl.nn import AbstractPolicy, NormalizedActorCritic
from eqxrl.verification import _advantages, _behaviour, _collectors, _copies, _learners, _nn, _off_policy
from eqxrl.verification._copies import find, with_fields
from eqxrl.verification._laws import Check, NotApplicable, Report, close, finite, judged, keys_used_once, law, quick_jit, same, same_arrays


class KeyTeller(AbstractEvaluator):
    """Plays nothing: its lengths are the bits of the key that it was given, its returns are `number`."""

    number: Scalar

    def __call__(self, env: Any, env_params: Any, policy: AbstractPolicy, key: Key[Array, ""]) -> EvalMetrics:
        bits = jax.lax.bitcast_convert_type(jax.random.key_data(key).ravel(), jnp.int32)
        return EvalMetrics(episode_length=bits, cumulative_reward=jnp.broadcast_to(self.number, bits.shape))


class AlgorithmLaws:
    """Of any algorithm, judged by a small copy of it. What several laws look at is computed when the first one asks for it."""
    def __init__(self, algo: AbstractAlgorithm, key: Key[Array, ""]):
        self.algo, self.key = algo, key
        self.part = [algo, *(getattr(algo, name) for name in algo.part_names())]
        self.small: Any = _copies.reduced(algo)
        self.num_traces = 0
        self.start = quick_jit(lambda algo, key: algo.init_train_state(key))
        self.iterate = quick_jit(self.iteration)

    def iteration(self, algo: Any, ts: Any, i: Any) -> Any:
        self.num_traces += 1
        collected, batch = algo.get_batch(ts, i)
        after, metrics = algo.training_step(i, collected, batch)
        return after, batch, metrics

    def run(self, algo: Any, key: Any, num_iterations: int = _copies.NUM_ITERATIONS) -> tuple[list[Any], list[Any]]:
        """States, one more than there are iterations, and what was collected and reported in each of these."""
        states, seen = [self.start(algo, key)], []
        for i in range(num_iterations):
            ts, *saw = self.iterate(algo, states[-1], jnp.int32(i))
            states, seen = [*states, ts], [*seen, saw]
        return states, seen

    @cached_property
    def first(self) -> tuple[list[Any], list[Any]]:
        return self.run(self.small, self.key)

    def parts(self) -> Iterator[tuple[str, Any]]:
        algo, (states, seen) = self.small, self.first
        world, policy = (algo.env, algo.env_params), algo.policy(states[-1])
        if isinstance(algo, AbstractOnPolicy):
            agent: Any = policy.agent
            yield "collector", (collector := _collectors.CollectorLaws(algo.collector, *world, agent))
            rollouts = collector.run[1]
            yield "advantage", _advantages.AdvantageLaws(algo.advantage, rollouts[0])
            yield "learner", _learners.LearnerLaws(algo.learner, agent, rollouts)
            for loss in find(algo.learner, AbstractLoss):
                yield "loss", _learners.LossLaws(loss, agent, rollouts[:2])
            obs = jax.tree.map(lambda x: x[0, 0], rollouts[0].trajectories.obs)
            yield "actor-critic", _nn.ActorCriticLaws(agent, obs, algo.env.action_space(algo.env_params))
            yield "distribution", _nn.DistributionLaws(agent(obs, agent.initial_carry())[0])
        if isinstance(algo, AbstractOffPolicy):
            yield "collector", _collectors.CollectorLaws(algo.collector, *world, policy)
            rows = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:16], batch.transitions) for batch, _ in seen[:2]]
            yield "buffer", _off_policy.BufferLaws(algo.buffer, jax.tree.map(lambda x: x[0], rows[0]))
            if type(algo).replay is not AbstractOffPolicy.replay:
                yield "update", _off_policy.UnknownUpdateLaws(algo)
            else:
                drawn = [Drawn(x, jnp.arange(len(x.reward)), jnp.ones_like(x.reward)) for x in rows]
                batches = [replayed(states[-1].buffer_state, x, algo.hp.gamma) for x in drawn]
                yield "update", _off_policy.UpdateLaws(algo, states[0].learner, states[-1].learner, batches)
            yield "behaviour", _behaviour.BehaviourLaws(algo, states[-1].learner, rows[0].obs)
        yield "evaluator", _collectors.EvaluatorLaws(algo.evaluator, *world, policy)

    @law("shapes at each seam", "the part that the message names", gate=True)
    def seams(self) -> str:
        """With sizes no two of which are alike, so that none can stand for another."""
        try:
            (ts, after, *_), ((_, metrics), *_) = self.first
            evaluation = eqx.filter_eval_shape(self.small.eval_callback, after)
        except Exception as error:
            raise AssertionError(f"in a copy with small sizes, {_copies.SIZES}: {error}") from error
        same_arrays(ts, after, "the training state")
        assert isinstance(metrics, TrainStepMetrics), f"training_step returned {describe(metrics)}; return TrainStepMetrics"
        same_arrays({name: jnp.zeros((), jnp.float32) for name in metrics.means}, metrics.means, "means")
        assert evaluation.cumulative_reward.ndim == 1, f"an evaluation is {describe(evaluation.cumulative_reward)}, not [episodes]"
        counted = [int(ts.num_iterations) for ts in self.first[0]]
        assert counted == list(range(len(counted))), f"the state's num_iterations goes {counted}"
        updates = int(self.first[0][-1].num_updates)
        assert updates > 0, "num_updates is still 0; a warm-up is cut short if it is called `learning_starts`"
        return f"{len(metrics.means)} metrics, evaluations [episodes={evaluation.cumulative_reward.size}], {updates} updates"

    @law("no NaN", "the first of these quantities: divisions, logarithms, square roots of 0", gate=True)
    def no_nan(self) -> str:
        states, seen = self.first
        return finite(**{f"iteration {i}: ": x for i, x in enumerate(seen)}, **{"the state": states[-1]})

    @law("keys are used once", "where the key goes; split it first")
    def keys(self) -> None:
        def program(key: Any) -> Any:
            ts = self.small.init_train_state(key)
            for i in range(2):
                ts, _ = self.small.iteration(ts, jnp.int32(i))
            return ts, self.small.eval_callback(ts)
        keys_used_once(program, self.key)
        rngs = {jax.random.key_data(ts.rng).tobytes() for ts in self.first[0]}
        assert len(rngs) == len(self.first[0]), "the state's rng is the same in two iterations: return the key for the next one"

    @law("no dead hyperparameter", "the part that should have used it")
    def hyperparameters(self) -> str:
        """Numbers have an effect on the policy after two iterations from the start, settings are read."""
        small, settings = self.small, [f.name for f in dataclasses.fields(self.small.hp) if f.type in (int, bool)]
        result = lambda algo: eqx.filter(algo.policy(self.run(algo, self.key, 2)[0][-1]), eqx.is_array)  # noqa: E731
        base, read = result(small), names_read(small)[0]
        assert same(base, result(small)), "the same seed gives another result the second time"
        floats = [it for it in _copies.numbers(small) if eqx.is_array(it[1])]
        dead = [name for name, x, new in floats if all(same(base, result(new(other))) for other in _copies.alternatives(x))]
        dead += [f"hp.{name}" for name in settings if name not in read]
        # A part that was passed brings its own numbers; those that only the default part reads are without effect.
        by_default = names_read(with_fields(small, parts={}))[0] if dead and small.parts else set()
        replaced = [name for name in dead if name.removeprefix("hp.") in by_default - read]
        dead = [name for name in dead if name not in replaced]
        assert not dead, f"without any effect: {', '.join(dead)}"
        also = f"; parts that were passed replace {', '.join(replaced)}" if replaced else ""
        return f"{len(floats) + len(settings) - len(replaced)} have an effect{also}"

    @law("one compile", "initial states (give dtypes), Python floats, lambdas made anew")
    def one_program(self) -> None:
        pythonic = [name for name, x, _ in _copies.numbers(self.algo) if not eqx.is_array(x)]
        mend = "so each of its values is compiled anew: make it an array, with eqxrl.field(default=...), or static"
        assert not pythonic, f"{', '.join(pythonic)} is a Python number among the leaves, {mend}"
        self.run(self.small, jax.random.fold_in(self.key, 1), 2)
        why = "something in the state is weakly typed, or changes its dtype, shape or structure, or is a fresh function each time"
        assert self.num_traces == 1, f"for several seeds and iterations an iteration was traced {self.num_traces} times: {why}"


    @cached_property
    def trained(self) -> list[Any]:
        """Of two whole runs whose evaluations have other results: the state, and what was evaluated."""
        train = quick_jit(lambda algo, key: algo.train(key))
        return [train(self.telling(x), self.key) for x in (0.0, 1.0)]

    def telling(self, number: float) -> Any:
        return with_fields(self.small, parts=self.small.parts | dict(evaluator=KeyTeller(jnp.float32(number))))

    @law("evaluation changes nothing", "derive the evaluation's key with fold_in, and keep the state")
    def evaluation(self) -> str:
        ((ts, told), (other, _)), last = self.trained, self.first[0][-1]
        unmoved = same(eqx.filter(ts, eqx.is_array), eqx.filter(other, eqx.is_array))
        assert unmoved, "training goes on otherwise when an evaluation's result is another"
        changed = [name for name in ("rng", "num_iterations", "num_updates") if not same(getattr(ts, name), getattr(last, name))]
        assert not changed, f"the state's {', '.join(changed)} is another after a run with evaluations than after the same iterations"
        keys = [tuple(bits) for bits in np.asarray(told.episode_length)]
        assert len(set(keys)) == len(keys), f"{len(keys)} evaluations of one run used {len(set(keys))} different keys"
        first, second = (self.telling(0.0).eval_callback(last, jax.random.key(seed)).episode_length for seed in range(2))
        assert not np.array_equal(first, second), "eval_callback ignores the rng that it is given"
        return f"{len(keys)} evaluations, as many keys"

    @law("train = iterations", "what train does besides iterations and evaluations")
    def train(self) -> str:
        ts, iterations = self.first[0][0], quick_jit(lambda algo, ts, n: algo.iterations(ts, n)[0])
        for n in self.small.chunks:
            ts = iterations(self.small, ts, jnp.int32(n))
        got, want = (eqx.filter(self.small.policy(x), eqx.is_array) for x in (self.trained[0][0], ts))
        return "bit for bit" if same(got, want) else close(got, want, "the policy after train", tolerance=1e-3)

    @law("gradients are clipped by their global norm", "optax.clip_by_global_norm, before the optimiser")
    def clipping(self) -> None:
        """Two updates, with a gradient of any norm and then a small one. However the optimiser scales: from `max_grad_norm` on the
        first one's norm makes no difference any more, below it does."""
        algo = with_fields(self.small, hp=with_fields(self.small.hp, max_grad_norm=jnp.float32(1)))
        optimizer: Any = getattr(getattr(algo, "learner", algo), "optimizer", None)
        passed = {"learner", "optimizer"} & set(algo.parts)
        if optimizer is None or passed or not hasattr(self.small.hp, "max_grad_norm"):
            raise NotApplicable("there is no hp.max_grad_norm, or no `optimizer`, or the part that was passed brings its own clipping")
        params, draws = jnp.zeros(30), np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
        first, second = (jnp.asarray(x / np.linalg.norm(x)) for x in draws)
        @quick_jit
        def updates(norm: Any) -> Any:
            one, state = optimizer.update(first * norm, optimizer.init(params), params)
            return jnp.concatenate([one, optimizer.update(second * 0.1, state, params)[0]])
        def apart(a: float, b: float) -> float:
            x, y = (np.asarray(updates(jnp.float32(norm)), np.float64) for norm in (a, b))
            return float(np.linalg.norm(x - y) / np.linalg.norm(x))
        if apart(0.5, 0.9) < 1e-3:
            raise NotApplicable("the updates don't depend on the gradient's norm at all")
        differ = f"gradients of one direction and of norm 1.01 and 1000 lead to updates that differ by {apart(1.01, 1e3):.0%}"
        assert apart(1.01, 1e3) < 1e-3, f"with max_grad_norm 1, {differ}: the global norm isn't clipped, or each number by itself is"
        assert apart(0.9, 1.1) > 1e-4, "gradients are clipped below the norm of max_grad_norm already"

    @law("statistics counted once", "nn.observe, after learning")
    def statistics(self) -> str:
        """They are those of every observation of all rollouts, each counted once."""
        states, seen = self.first
        fresh, agents = (find(self.small.policy(ts), NormalizedActorCritic) for ts in (states[0], states[-1]))
        if not agents:
            raise NotApplicable("the policy keeps no statistics")
        obs = jax.tree.map(lambda *xs: jnp.concatenate(xs), *(batch.trajectories.obs for batch, _ in seen))
        got, want = [x.statistics for x in agents], [x.observe(obs).statistics for x in fresh]
        return close(got, want, "(mean, variance, count) of the observations", 1e-3)


def verify(algo: AbstractAlgorithm, *, key: KeyLike | None = None, quiet: bool = False) -> Report:
    """Does an algorithm, assembled of any parts, do what it should? Holds a small copy of it to the laws of any algorithm, and each of its
    parts to those of its kind (all but "jit = no jit": here all is compiled). Prints each law when it was judged, what was seen, and
    where to look if it is broken. A minute at most.

    The copy has few environments, short rollouts, short episodes and one device, but the algorithm's own parts, networks and
    hyperparameters; a size is made small wherever it is a field that is called as in `PPOHParams` or `DQNHParams`. A law that a part
    breaks on purpose is declared in its class, with the reason: `deviates = {"cut at episode ends": "lets credit flow across lives"}`.

    **Arguments:** `key` (or a seed) for the copy's networks and environments; `quiet`: print nothing.
    """
    subject, checks = f"{type(algo).__name__} on {env_name(algo.env)}", []
    say = (lambda line: None) if quiet else lambda line: print(line, flush=True)
    say(subject)
    for check in _checks(AlgorithmLaws(algo, as_key(0 if key is None else key))):
        checks.append(check)
        say(check)
    return Report(subject, tuple(checks))


def _checks(table: AlgorithmLaws) -> Iterator[Check]:
    runs = True
    for check in judged(table):
        runs &= not (check.gate and check.status == "failed")
        yield check
    try:
        for name, part in table.parts() if runs else ():
            for check in judged(part, lambda law: law != "jit = no jit"):
                yield dataclasses.replace(check, name=f"{name}: {check.name}")
    except Exception as error:  # a part may break in any way
        yield Check("parts", "failed", f"{type(error).__name__}: {error}", "the part that failed above", error)
