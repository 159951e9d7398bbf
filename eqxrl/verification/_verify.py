"""`verify`: the laws that any assembled on-policy algorithm is held to. What they judge is collected once, in few programs, from
a small copy of the algorithm: its own parts, few environments, short rollouts, short episodes."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eqxrl._structs import AdvantageMinibatch, TrainStepMetrics, TrajectoryCollectionState, TrajectoryWithLastObs
from eqxrl._typing import KeyLike, as_key, describe
from eqxrl.algorithms import PPO, AbstractOnPolicy, Parts, PPOState, preset
from eqxrl.envs import episode_limit
from eqxrl.nn import NormalizedActorCritic, RunningMoments, trainable
from eqxrl.verification import _laws as laws
from eqxrl.verification._copies import (
    NUM_ITERATIONS,
    alternatives,
    find,
    numbers,
    reduced,
    scale_schedules,
    statics,
    with_fields,
    with_part,
)
from eqxrl.verification._report import Law, NotApplicable, Report, judge
from eqxrl.verification._spies import Glass, KeyTeller, Recorder, is_recurrent, moments_of, replay, spy_on, through_glass


class Seen(eqx.Module):
    """One iteration, looked at from outside."""

    rollout: TrajectoryWithLastObs
    estimate: AdvantageMinibatch
    metrics: TrainStepMetrics
    log_prob: Array
    """Of the rollout's actions, by the policy that collected it; computed anew."""
    value: Array
    moments: Array
    """The statistics in the policy that collected."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A few iterations from the start."""

    states: list[PPOState]
    """One more than there are iterations."""
    seen: list[Seen]
    heard: list[list[dict[str, np.ndarray]]]
    """What the loss saw in each."""


class Evidence:
    """What the laws judge; each piece is collected when it is first asked for."""

    def __init__(self, algo: AbstractOnPolicy, key: Key[Array, ""]):
        self.algo = algo
        self.key = key
        self.small = scale_schedules(reduced(algo))
        self.recorder = Recorder()
        self.num_traces = 0

    # Programs

    @cached_property
    def start(self) -> Callable[[AbstractOnPolicy, Any], PPOState]:
        return eqx.filter_jit(lambda algo, key: algo.init_train_state(key))

    @cached_property
    def iterate(self) -> Callable[[AbstractOnPolicy, PPOState, Any], tuple[PPOState, Seen]]:
        def program(algo: AbstractOnPolicy, ts: PPOState, i: Any) -> tuple[PPOState, Seen]:
            self.num_traces += 1
            spied = spy_on(algo.learner, self.recorder)
            algo = algo if spied is None else with_part(algo, learner=spied)
            collected, rollout = algo.get_batch(ts, i)
            estimate = algo.estimate_advantages(collected, rollout)
            after, metrics = algo.training_step(i, collected, rollout)
            log_prob, value = replay(ts.agent, rollout)
            return after, Seen(rollout, estimate, metrics, log_prob, value, moments_of(ts.agent))

        return eqx.filter_jit(program)

    def run(self, algo: AbstractOnPolicy, key: Any, num_iterations: int = NUM_ITERATIONS) -> Run:
        self.recorder.collect()
        states, seen, heard = [self.start(algo, key)], [], []
        for i in range(num_iterations):
            ts, saw = self.iterate(algo, states[-1], jnp.int32(i))
            states.append(ts)
            seen.append(saw)
            heard.append(self.recorder.collect())
        return Run(states, seen, heard)

    @cached_property
    def first(self) -> Run:
        return self.run(self.small, self.key)

    @cached_property
    def heard(self) -> list[list[dict[str, np.ndarray]]]:
        if not any(self.first.heard):
            raise NotApplicable(f"{type(self.small.learner).__name__} has no AbstractLoss to look through")
        return self.first.heard

    @cached_property
    def initial(self) -> PPOState:
        return self.start(self.small, self.key)

    @cached_property
    def template(self) -> TrajectoryWithLastObs:
        """A rollout of zeros."""
        rollout = eqx.filter_eval_shape(lambda ts: self.small.get_batch(ts, 0)[1], self.initial)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rollout)

    @cached_property
    def glass(self) -> list[TrajectoryWithLastObs]:
        agent = self.initial.agent
        if is_recurrent(agent):
            raise NotApplicable("the policy has a hidden state")
        algo = self.small
        watch = eqx.filter_jit(partial(through_glass, algo.collector, algo.env, algo.env_params))
        return watch(agent, self.key)

    @cached_property
    def estimate(self) -> Callable[..., Any]:
        advantage = self.small.advantage
        return eqx.filter_jit(lambda rollout, last_value: advantage(rollout, last_value))

    # Laws

    def seams(self) -> str:
        """Traced with sizes no two of which are alike, so that none can stand for another."""
        try:
            return _trace_seams(self.small)
        except Exception as error:
            own = f"num_envs={self.algo.collector.num_envs}, num_steps={self.algo.collector.num_steps}"
            message = f"with num_envs={self.small.collector.num_envs}, num_steps={self.small.collector.num_steps}: {error}"
            self.small = scale_schedules(self.algo)
            try:
                _trace_seams(self.small)
            except Exception:
                raise AssertionError(message) from error
            raise AssertionError(f"{message} (but not with {own})") from error

    def no_nan(self) -> str:
        run = self.first
        named = {f"metrics of iteration {i}": seen.metrics for i, seen in enumerate(run.seen)}
        named |= {"the rollout": [seen.rollout for seen in run.seen], "the estimates": [seen.estimate for seen in run.seen]}
        return laws.finite(**named, **{"the state": run.states[-1]})

    def log_prob(self) -> str:
        return [laws.log_prob_reproducible(seen.rollout, seen.log_prob) for seen in self.first.seen][-1]

    def value(self) -> str:
        return [laws.value_reproducible(seen.rollout, seen.value) for seen in self.first.seen][-1]

    @property
    def collected(self) -> tuple[list[TrajectoryCollectionState], list[TrajectoryWithLastObs]]:
        return [ts.data_collection_state for ts in self.first.states], [seen.rollout for seen in self.first.seen]

    def ratio(self) -> str:
        if "new_log_prob" not in self.heard[0][0]:
            raise NotApplicable("the policy has a hidden state")
        return laws.ratio_is_one(self.heard)

    def actions(self) -> str:
        algo, agent = self.small, self.initial.agent
        return laws.actions_unclipped(self.glass, Glass(algo.env, agent).action_space(algo.env_params))

    def gae(self) -> str:
        return laws.generalised_advantages(self.small.advantage, self.estimate, self.template)

    def orders(self) -> list[np.ndarray]:
        return laws.each_sample_once(self.heard, self.small.iteration_size)

    def each_once(self) -> str:
        return f"{len(self.orders())} epochs of {self.small.iteration_size} samples"

    def keys(self) -> str:
        def program(key: Any) -> Any:
            ts = self.small.init_train_state(key)
            for i in range(2):
                ts, _ = self.small.iteration(ts, jnp.int32(i))
            return eqx.filter((ts, self.small.eval_callback(ts)), eqx.is_array)

        seen = laws.keys_used_once(program, self.key)
        for name in ("rng", "data_collection_state.rng"):
            keys = [_get(ts, name) for ts in self.first.states]
            assert len({jax.random.key_data(k).tobytes() for k in map(jax.device_get, keys)}) == len(keys), (
                f"the state's {name} is the same in two iterations: return the key that the next one is to use"
            )
        return seen

    def clipping(self) -> str:
        algo, hp = self.small, getattr(self.small, "hp", None)
        if hp is None or not hasattr(hp, "max_grad_norm") or not hasattr(algo.learner, "optimizer"):
            raise NotApplicable("there is no hp.max_grad_norm, or the learner has no `optimizer`")
        if getattr(getattr(algo, "parts", None), "learner", None) is not None:
            raise NotApplicable("the learner that was passed brings its own clipping")
        agent = self.initial.agent
        learner: Any = with_fields(algo, hp=with_fields(hp, max_grad_norm=jnp.float32(0.5))).learner
        return laws.global_norm_is_clipped(learner.optimizer, eqx.filter(agent, trainable(agent)), 0.5)

    def statistics(self) -> str:
        agent = self.first.states[-1].agent
        if not find(agent, RunningMoments):
            raise NotApplicable("the policy keeps no statistics")
        frozen = laws.statistics_frozen(self.heard, [np.asarray(seen.moments) for seen in self.first.seen])
        if not isinstance(agent, NormalizedActorCritic):
            return f"frozen over {frozen}"
        return f"frozen over {frozen}, then {laws.statistics_count_all(agent, [s.rollout for s in self.first.seen])} counted"

    def one_program(self) -> str:
        pythonic = [path for path, x, _ in numbers(self.algo) if not eqx.is_array(x)]
        assert not pythonic, (
            f"{', '.join(pythonic)} is a Python number among the leaves, so each of its values is compiled anew: make it an "
            "array, with eqxrl.field(default=...), or static"
        )
        self.run(self.small, jax.random.fold_in(self.key, 1), 2)
        changed = self.small
        for i in range(len(numbers(changed))):
            _, value, replace = numbers(changed)[i]
            changed = replace(next(alternatives(value)))
        self.run(changed, self.key, 2)
        assert self.num_traces == 1, (
            f"one iteration was traced {self.num_traces} times for {NUM_ITERATIONS} iterations, two seeds and other values of the "
            "float hyperparameters: something in the state is weakly typed, or changes its dtype, shape or structure, or is a "
            "fresh function each time"
        )
        return "seeds, iterations and values share one"

    @cached_property
    def dead(self) -> list[str]:
        """What makes no difference: numbers to the policy after two iterations from the start, settings to the program."""

        def result(algo: AbstractOnPolicy) -> Any:
            return eqx.filter(self.run(algo, self.key, 2).states[-1].agent, eqx.is_array)

        base = result(self.small)
        assert laws.same(base, result(self.small)), "the same seed gives another result the second time"
        program = _text(self.small, self.key)
        floats = [
            path
            for path, value, replace in numbers(self.small)
            if eqx.is_array(value) and all(laws.same(base, result(replace(other))) for other in alternatives(value))
        ]
        return floats + [path for path, others in statics(self.small) if _first_text(others, self.key) == program]

    def hyperparameters(self) -> str:
        dead, overridden = self.dead, []
        parts = getattr(self.small, "parts", None)
        if dead and isinstance(parts, Parts) and jax.tree.leaves(with_fields(parts, actor_critic=None)):
            # A part that was passed brings its own numbers; those in hp, which the default part would use, are without effect.
            default = Evidence(with_fields(self.small, parts=Parts(actor_critic=parts.actor_critic)), self.key)
            overridden = [path for path in dead if path.startswith("hp.") and path not in default.dead]
        dead = [path for path in dead if path not in overridden]
        assert not dead, f"without any effect: {', '.join(dead)}"
        count = len(numbers(self.small)) + len(statics(self.small)) - len(overridden)
        return f"{count} have an effect" + (f"; parts that were passed replace {', '.join(overridden)}" if overridden else "")

    def evaluation(self) -> str:
        algo = with_part(self.small, evaluator=KeyTeller(jnp.float32(0.0)))
        train = eqx.filter_jit(lambda algo, key: algo.train(key))
        ts, told = train(algo, self.key)
        ts, told = jax.device_get((eqx.filter(ts, eqx.is_array), told))
        other, _ = train(with_part(algo, evaluator=KeyTeller(jnp.float32(1.0))), self.key)
        assert laws.same(ts, eqx.filter(other, eqx.is_array)), "training goes on otherwise when the evaluation's result is another"
        run = self.first.states[-1]
        for name in ("rng", "data_collection_state.rng", "data_collection_state.global_step", "learner_state.num_updates"):
            assert laws.same(_get(ts, name), _get(run, name)), (
                f"after a run with evaluations the state's {name} is another than after the same iterations without any"
            )
        keys = [tuple(bits) for bits in told.episode_length]
        assert len(set(keys)) == len(keys), f"{len(keys)} evaluations of one run used {len(set(keys))} different keys"
        first, second = (algo.eval_callback(run, jax.random.key(seed)).episode_length for seed in range(2))
        assert not np.array_equal(first, second), "eval_callback ignores the rng that it is given"

        real = eqx.filter_jit(lambda algo, ts, key: algo.eval_callback(ts, key))
        metrics = jax.device_get(real(self.small, run, self.key))
        assert laws.same(metrics, real(self.small, run, self.key)), "the same key gives another evaluation the second time"
        limit = episode_limit(self.small.env_params, self.small.env)
        length = metrics.episode_length
        assert (length >= 1).all() and (limit is None or (length <= limit).all()), (
            f"episodes of an evaluation last {length.min()} to {length.max()} steps, where the limit is {limit}"
        )
        laws.finite(**{"the evaluation": metrics})
        return f"{len(keys)} evaluations, as many keys"

    def laws(self) -> list[Law]:
        """All of them, in an order in which the first that fails tells most."""
        return [
            Law("shapes at each seam", self.seams, "the part that the message names", gate=True),
            Law("no NaN", self.no_nan, "the first of these quantities: divisions, logarithms, square roots of 0", gate=True),
            Law(
                "the stored action has the stored log-prob",
                self.log_prob,
                "the collector: store the action as drawn, with its own log-prob, and the observation that it was drawn for",
            ),
            Law("the stored value is the critic's", self.value, "the collector: value and obs must be of the same step"),
            Law(
                "ratio 1 before the first update",
                self.ratio,
                "what changes the policy between collecting and learning: statistics updated too early, dropout",
            ),
            Law(
                "steps follow one another",
                lambda: laws.steps_follow(self.glass),
                "the collector: [steps envs] and not [envs steps], and obs before the step, reward after it",
            ),
            Law("actions are stored unclipped", self.actions, "the collector: clip on the way to the environment only"),
            Law(
                "final values where cut off",
                lambda: laws.final_values(self.glass),
                "the collector: value info['final_observation'], not the observation after the reset",
            ),
            Law(
                "rollouts go on",
                lambda: laws.rollouts_go_on(*self.collected),
                "the collector's state: what of it is returned",
            ),
            Law(
                "episodes are counted",
                lambda: laws.episodes_are_counted(*self.collected),
                "the collector: EpisodeStats, and the state's episode_length",
            ),
            Law("advantages are GAE's", self.gae, "the estimator's recursion: discounts, and which value follows a step"),
            Law(
                "advantages stop at episode ends",
                lambda: laws.ends_are_cut(self.estimate, self.template),
                "the estimator: cut at `done` of the same step, whether it terminated or was truncated",
            ),
            Law(
                "a cut-off is bootstrapped",
                lambda: laws.cut_off_is_bootstrapped(self.small.advantage, self.estimate, self.template),
                "the estimator: advantages.next_values",
            ),
            Law(
                "environments don't mix",
                lambda: laws.environments_apart(self.estimate, self.template),
                "the estimator: reduce over steps (axis 0), never over environments; standardise in the loss",
            ),
            Law("each sample once per epoch", self.each_once, "the learner: how it draws indices and cuts them into minibatches"),
            Law(
                "samples stay whole",
                lambda: laws.samples_whole(self.heard, [seen.estimate for seen in self.first.seen]),
                "the learner: flatten and shuffle all of a rollout in one way",
            ),
            Law(
                "epochs in different orders",
                lambda: laws.orders_differ(self.orders(), self.heard[0][0]["sample"].size),
                "the learner's key: split it for every epoch; the algorithm: another one for every iteration",
            ),
            Law("keys are used once", self.keys, "where the key goes; split it first"),
            Law("gradients are clipped by their global norm", self.clipping, "optax.clip_by_global_norm, before the optimiser"),
            Law(
                "statistics frozen, then counted once",
                self.statistics,
                "nn.trainable for the optimiser, nn.observe after learning",
            ),
            Law("no dead hyperparameter", self.hyperparameters, "the part that should have used it"),
            Law("one compile", self.one_program, "initial states (give dtypes), Python floats, lambdas made anew"),
            Law("evaluation changes nothing", self.evaluation, "derive the evaluation's key with fold_in, and keep the state"),
        ]


def verify(algo: AbstractOnPolicy, *, key: KeyLike | None = None, quiet: bool = False) -> Report:
    """Does an algorithm, assembled of any parts, do what it should? Holds a small copy of it to the laws that apply (`seen` in
    the table says what was found), in under a minute on two CPU cores, and prints what held, what didn't, and what to look at.

    The copy has few environments, short rollouts and short episodes, but the algorithm's own parts, networks and
    hyperparameters; a size is made small wherever it is a field called as in `PPOHParams`.

    **Arguments:** `key` seeds the copy's networks and environments; `quiet`: print nothing.

    **Returns:** a `Report`, whose `ok` says whether nothing failed.
    """
    evidence = Evidence(algo, jax.random.key(0) if key is None else as_key(key))
    subject = f"{type(algo).__name__} on {getattr(algo.env, 'name', type(algo.env).__name__)}"
    if quiet:
        return judge(subject, evidence.laws())
    from rich.console import Console

    with Console().status(f"verifying {subject}") as status:

        def announced() -> Iterator[Law]:
            for law in evidence.laws():
                status.update(f"verifying {subject}: {law.name}")
                yield law

        report = judge(subject, announced())
    report.print()
    return report


def verify_env(env_id: str, preset_name: str | None = None, *, seed: int = 0, quiet: bool = False) -> int:
    """`verify` for the command line: a PPO on an environment of gymnax, with default hyperparameters or a preset's.

    **Returns:** the exit code, 0 if nothing failed and 1 otherwise.
    """
    algo = PPO.create(env_id) if preset_name is None else preset(env_id, preset_name).create()
    return 0 if verify(algo, key=jax.random.key(seed), quiet=quiet).ok else 1


def _trace_seams(algo: AbstractOnPolicy) -> str:
    def program(key: Any) -> Any:
        ts = algo.init_train_state(key)
        collected, rollout = algo.get_batch(ts, 0)
        estimate = algo.estimate_advantages(collected, rollout)
        after, _ = algo.training_step(0, collected, rollout)
        return ts, rollout, estimate, after, algo.eval_callback(after)

    ts, rollout, estimate, after, evaluation = eqx.filter_eval_shape(program, jax.random.key(0))
    laws.same_arrays(ts, after, "the training state")
    steps, envs = rollout.trajectories.reward.shape
    assert (steps, envs) == (algo.collector.num_steps, algo.collector.num_envs), (
        f"the rollout is {describe(rollout.trajectories.reward)}, but the collector's num_steps is {algo.collector.num_steps} "
        f"and its num_envs {algo.collector.num_envs}"
    )
    one_step = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rollout.trajectories.obs)
    laws.same_arrays(one_step, rollout.last_obs, "one step's obs, against last_obs,")
    space = algo.env.action_space(algo.env_params)
    action = rollout.trajectories.action
    assert action.shape == (steps, envs, *getattr(space, "shape", ())), (
        f"actions are {describe(action)}, which isn't [steps={steps} envs={envs}] and the shape of {space}"
    )
    assert evaluation.cumulative_reward.ndim == 1, f"an evaluation is {describe(evaluation.cumulative_reward)}, not [episodes]"
    episodes = evaluation.cumulative_reward.shape[0]
    return f"rollouts [steps={steps} envs={envs}], evaluations [episodes={episodes}]"


def _text(algo: AbstractOnPolicy, key: Any) -> str:
    def program(algo: AbstractOnPolicy, key: Any) -> Any:
        ts, _ = algo.iteration(algo.init_train_state(key), 0)
        return ts, algo.eval_callback(ts)

    return laws.program_text(program, algo, key) + str(algo.chunks)


def _first_text(algos: list[AbstractOnPolicy], key: Any) -> str | None:
    """Of the first one that isn't refused; to be refused is an effect, too."""
    for algo in algos:
        try:
            return _text(algo, key)
        except (TypeError, ValueError):
            continue
    return None


def _get(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = getattr(tree, name)
    return tree
