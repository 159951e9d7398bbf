import abc
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, Key

from eqxrl._structs import EvalMetrics, TrainStepMetrics
from eqxrl._typing import Carry, KeyLike, Observation, Scalar, as_key, describe, validate
from eqxrl._xla import forget_programs_if_many
from eqxrl.algorithms._bitwise import all_outputs, traced_bounds
from eqxrl.algorithms._finite import warn_unless_finite
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._memory import check_train_fits
from eqxrl.algorithms._parts import Part, Reads, check_names, check_read, check_sizes, name_of, part, watched
from eqxrl.envs import as_environment, check_spaces, env_name, make
from eqxrl.evaluators import AbstractEvaluator, EpisodeEvaluator
from eqxrl.nn import AbstractPolicy, check_no_batch_renorm, has_memory
from eqxrl.spaces import as_space, to_env_action

TState = TypeVar("TState", bound=eqx.Module)
TBatch = TypeVar("TBatch", bound=eqx.Module)
TAlgorithm = TypeVar("TAlgorithm", bound="AbstractAlgorithm")

_EVALUATION = 0x6576616C  # "eval": what an evaluation's key is derived from the state's with


class AbstractAlgorithm(eqx.Module, Generic[TState, TBatch]):
    """An algorithm: what it is to act (`get_batch`), to learn from it (`training_step`), and which policy that makes (`policy`). Everything
    else (iterations, whole runs, evaluation, the trainer, checkpoints, the command, `verify`) is written once against these.

    A training state has `rng`, `num_iterations` and `num_updates` (gradient updates), and whatever else the algorithm needs.

    A new algorithm is a final class with its hyperparameters' class as `HParams` and its parts declared with `part`: see `A2C` for an
    on-policy one, `DQN` for an off-policy one.
    """

    env: Any
    env_params: Any
    hp: Any
    """Of the class `HParams`."""
    parts: dict[str, Any]
    """What was passed to `create`, by name."""

    HParams: ClassVar[Any] = AbstractHParams
    iteration_size: eqx.AbstractVar[int]
    """Env steps of one iteration, over all environments."""

    @abc.abstractmethod
    def init_train_state(self, rng: KeyLike) -> TState:
        """The state before training; `rng` is a key or a seed."""

    @abc.abstractmethod
    def get_batch(self, ts: TState, batch_idx: int | Int[Array, ""]) -> tuple[TState, TBatch]:
        """Acts in the environments."""

    @abc.abstractmethod
    def training_step(self, batch_idx: int | Int[Array, ""], ts: TState, batch: TBatch) -> tuple[TState, TrainStepMetrics]:
        """Learns from what `get_batch` has collected."""

    @abc.abstractmethod
    def policy(self, ts: TState) -> AbstractPolicy:
        """What acts: in evaluations, as the actor that is deployed, and in pictures."""

    # Everything below is final.

    @part(AbstractEvaluator)
    def evaluator(self):
        return EpisodeEvaluator(num_episodes=self.hp.num_seeds_per_eval)

    @classmethod
    def create(
        cls: type[TAlgorithm],
        env_id: str | None = None,
        env: Any = None,
        env_params: Any = None,
        hp: Any = None,
        env_kwargs: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> TAlgorithm:
        """**Arguments:**

        - `env_id`, `env_kwargs`: an environment's name for `eqxrl.make`, and options, if any; or
        - `env`, `env_params`: an environment (see `eqxrl.envs.Environment`), and its parameters if not its `default_params`.
        - `hp`: hyperparameters, of the class `HParams`; the defaults if none are given.
        - any of the class's parts, by name (`part_names()`): an instance, or a function of the hyperparameters. A network
          may be an instance, which every run then starts from, or what makes one, `(observation_space, action_space, *, key)`.

        **Raises:** `ValueError` or `TypeError`, before anything is compiled, where something doesn't fit: one iteration and one
        evaluation are traced. Also for a hyperparameter that was set and that no part reads.
        """
        if (env_id is None) == (env is None):
            raise ValueError(f"pass either env_id, as in {cls.__name__}.create('CartPole-v1'), or env, as in create(env=env)")
        check_names(cls, cls.part_names(), parts)
        if hp is not None and not isinstance(hp, cls.HParams):
            raise TypeError(f"hp must be {cls.HParams.__name__}, got {name_of(hp)}")
        if env_id is not None:
            env, default_params = make(env_id, **(env_kwargs or {}))
        elif env_kwargs:
            raise ValueError("env_kwargs are options with which env_id is made; env is an environment already")
        else:
            default_params = getattr(env, "default_params", None)
        env_params = default_params if env_params is None else env_params
        env = as_environment(env, env_params)
        check_spaces(env, env_params)
        given = {name: x for name, x in parts.items() if x is not None}
        algo = cls(env=env, env_params=env_params, hp=cls.HParams() if hp is None else hp, parts=given)  # pyright: ignore[reportCallIssue]
        check_sizes(algo)
        check_read(algo, *names_read(algo))
        return algo

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """The names of the parts that `create` takes."""
        found = {name: None for base in reversed(cls.__mro__) for name, x in vars(base).items() if isinstance(x, Part)}
        return tuple(found)

    def iteration(self, ts: TState, batch_idx: int | Int[Array, ""]) -> tuple[TState, TrainStepMetrics]:
        """Acts, then learns."""
        ts, batch = self.get_batch(ts, batch_idx)
        return self.training_step(batch_idx, ts, batch)

    def iterations(self, ts: TState, num_iterations: int | Int[Array, ""]) -> tuple[TState, TrainStepMetrics]:
        """Several iterations; the metrics' means are averaged over them, and their episodes summed."""
        arrays, static = eqx.partition(ts, eqx.is_array)
        _, metrics, _ = eqx.filter_eval_shape(iterated, self, ts, jnp.int32(0))

        # All metrics lie in one array: operations on numbers compile and run no faster than on arrays.
        none, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics))

        def add(i, carried):
            ts, metrics, _ = iterated(self, eqx.combine(carried[0], static), i)
            return eqx.filter(ts, eqx.is_array), add_exactly(carried[1], ravel_pytree(metrics)[0])

        arrays, (total, _) = jax.lax.fori_loop(*traced_bounds(num_iterations), add, (arrays, (none, none)))
        means = unravel(total / jnp.maximum(jnp.asarray(num_iterations, jnp.int32), 1)).means
        return eqx.combine(arrays, static), TrainStepMetrics(means=means, episodes=unravel(total).episodes)

    def train(
        self, rng: KeyLike | None = None, train_state: TState | None = None, skip_initial_evaluation: bool = False
    ) -> tuple[TState, EvalMetrics]:
        """Trains for `hp.total_timesteps`, in one compiled program; works under `jit` and `vmap`.

        **Arguments:**

        - `rng`: a key, or a seed, for the networks and the environments.
        - `train_state`: go on from this state, for `total_timesteps` more, instead of a new one; its own key counts, and `rng`
          isn't looked at.
        - `skip_initial_evaluation`: don't evaluate before the first iteration.

        **Returns:** the final state, and an evaluation about every `hp.eval_freq` env steps, `[evals episodes]`; the last one is of
        the final state. It runs the smallest number of whole iterations that reaches `total_timesteps`; `env_steps` of the
        final state tells how many steps that were.

        Warns where metrics or the final state aren't finite, and says since when; under `jit` and `vmap` it can't.

        **Raises:** `ValueError`, before anything compiles, where the training state can't fit into the free memory; under `jit` and `vmap`
        it can't.
        """
        if rng is None and train_state is None:
            raise ValueError("pass rng, to start anew, or train_state, to go on from it")
        key = None if rng is None or train_state is not None else as_key(rng)
        if not isinstance(key, Tracer):
            check_train_fits(self, train_state)
        ts, evaluations, metrics = _train(self, key, train_state, skip_initial_evaluation)
        warn_unless_finite(self, metrics, ts)
        return ts, evaluations

    def eval_callback(self, ts: TState, rng: KeyLike | None = None) -> EvalMetrics:
        """Evaluates the policy, `[episodes]`. Without `rng` a key derived from the state is used, another one at each
        iteration; the state itself never changes."""
        key = _evaluation_key(ts) if rng is None else as_key(rng)
        metrics = self.evaluator(self.env, self.env_params, self.policy(ts), key)
        return validate(self.evaluator, metrics, batch="", kind=EvalMetrics)

    @property
    def spaces(self) -> tuple[Any, Any]:
        """Of observations and of actions."""
        return as_space(self.env.observation_space(self.env_params)), as_space(self.env.action_space(self.env_params))

    def made(self, network: Any, key: Key[Array, ""]) -> Any:
        """The network that was passed as a part, or the one that the part makes for the algorithm's spaces."""
        made = network if isinstance(network, eqx.Module) else network(*self.spaces, key=key)
        check_no_batch_renorm(made, type(self).__name__)
        return made

    @property
    def chunks(self) -> np.ndarray:
        """How many iterations there are before each evaluation of a run."""
        num_iterations = math.ceil(self.hp.total_timesteps / self.iteration_size)
        each = min(max(1, round(self.hp.eval_freq / self.iteration_size)), num_iterations)
        full, rest = divmod(num_iterations, each)
        return np.array([each] * full + [rest] * (rest > 0), np.int32)

    def env_steps(self, ts: TState) -> int:
        """How many env steps, over all environments, the state has behind it; of one member, if it is a vmapped one."""
        return int(np.max(jax.device_get(ts.num_iterations))) * self.iteration_size  # pyright: ignore[reportAttributeAccessIssue]

    def env_steps_after(self, num_iterations: Int[Array, ""]) -> Scalar:
        """Env steps, over all environments, in so many iterations: what schedules of exploration go by. It may be traced."""
        return num_iterations.astype(jnp.float32) * self.iteration_size

    def make_actor(self, ts: TState, deterministic: bool = False) -> "Actor":
        """The trained policy as a function `act(obs, rng)` of one observation, in the environment's units, that returns an
        action fit for the environment; a pytree, so that jitted functions take it as an argument. Of a policy with a hidden state it is
        `act(obs, rng, carry)`, which returns the action and the next carry; an episode begins with `act.initial_carry()`.

        **Arguments:** `deterministic`: the action that the policy holds best, instead of drawing one.
        """
        return Actor(self.policy(ts), self.env, self.env_params, deterministic)

    def visualize(self, ts: TState, gif_path: str | Path, eval_rng: KeyLike | None = None) -> Path:
        """Writes a GIF (or an MP4, by the path's suffix) of one episode, which ends where the episode ends; the policy takes the actions
        that it holds best."""
        from eqxrl.viz import render_episode

        key = _evaluation_key(ts) if eval_rng is None else as_key(eval_rng)
        return render_episode(self.env, self.env_params, self.make_actor(ts, deterministic=True), gif_path, key)

    def __repr__(self) -> str:
        parts = "".join(f", {name}={describe(x) if eqx.is_array(x) else name_of(x)}" for name, x in self.parts.items())
        return f"{type(self).__name__}(env={env_name(self.env)}, hp={self.hp!r}{parts})"


def add_exactly(total_and_lost: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """Adds to a running sum and to what rounding has taken from it so far: ten million terms in float32 lose nothing that shows. Kahan
    1965, https://doi.org/10.1145/363707.363723."""
    total, lost = total_and_lost
    x = x - lost
    return (after := total + x), (after - total) - x


def _evaluation_key(ts: Any) -> Key[Array, ""]:
    return jax.random.fold_in(ts.rng, _EVALUATION)


class Actor(eqx.Module):
    """What `make_actor` returns."""

    policy: AbstractPolicy
    env: Any
    env_params: Any
    deterministic: bool = eqx.field(static=True)

    def __call__(self, obs: Observation, rng: KeyLike, carry: Carry = None) -> Any:
        if carry is None and has_memory(self.policy):
            raise TypeError("this policy has a hidden state: call act(obs, rng, carry), which returns the next carry too")
        one, memory = jax.tree.map(lambda x: jnp.asarray(x)[None], (obs, () if carry is None else carry))
        action, after, _ = self.policy(one, memory, None if self.deterministic else as_key(rng))
        action, after = jax.tree.map(lambda x: x[0], (action, after))
        action = to_env_action(self.env.action_space(self.env_params), action)
        return action if carry is None else (action, after)

    def initial_carry(self) -> Carry:
        """Of an episode; `()` for a policy without a hidden state."""
        return self.policy.initial_carry()


@eqx.filter_jit
def _train(
    algo: AbstractAlgorithm, rng: Key[Array, ""] | None, ts: Any, skip_initial_evaluation: bool
) -> tuple[Any, EvalMetrics, TrainStepMetrics]:
    ts = started(algo, rng)[0] if ts is None else ts
    arrays, static = eqx.partition(ts, eqx.is_array)

    def chunk(arrays, num_iterations):
        ts, metrics = algo.iterations(eqx.combine(arrays, static), num_iterations)
        return eqx.filter(ts, eqx.is_array), (evaluated(algo, ts)[0], metrics)

    # The first evaluation is one after no iterations, so that there is one program for all of them.
    chunks = algo.chunks if skip_initial_evaluation else np.concatenate([np.zeros(1, np.int32), algo.chunks])
    arrays, (evaluations, metrics) = jax.lax.scan(chunk, arrays, jnp.asarray(chunks))
    metrics = jax.tree.map(lambda x: x[len(chunks) - len(algo.chunks) :], metrics)
    return all_outputs(eqx.combine(arrays, static), evaluations, metrics)


def _traced_once(f: Callable) -> Any:
    """Whatever programs it is part of, `f` is traced once for algorithms that are equal but for the values of their arrays."""
    return eqx.filter_jit(f, inline=True)  # pyright: ignore[reportCallIssue]


# Each of these also returns which hyperparameters and parts it reads.


@_traced_once
def started(algo: AbstractAlgorithm, rng: Any) -> tuple[Any, Reads]:
    algo, reads = watched(algo)
    return algo.init_train_state(rng), reads()


@_traced_once
def iterated(algo: AbstractAlgorithm, ts: Any, i: Int[Array, ""]) -> tuple[Any, TrainStepMetrics, Reads]:
    algo, reads = watched(algo)
    ts, batch = algo.get_batch(ts, i)
    ts, metrics = algo.training_step(i, ts, batch)
    return ts, metrics, reads()


@_traced_once
def evaluated(algo: AbstractAlgorithm, ts: Any) -> tuple[EvalMetrics, Reads]:
    algo, reads = watched(algo)
    return algo.eval_callback(ts), reads()


def names_read(algo: AbstractAlgorithm) -> Reads:
    """Traces the start, one iteration and one evaluation, without running anything."""
    arrays, static = eqx.partition(algo, eqx.is_array)
    read: list[Reads] = []
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(arrays)):  # else this is within a program
        forget_programs_if_many()

    def program(arrays: Any, rng: Key[Array, ""]) -> None:
        algo = eqx.combine(arrays, static)
        ts, at_start = started(algo, rng)
        after, _, in_iteration = iterated(algo, ts, jnp.int32(0))
        _check_state(algo, ts, after)
        watching, reads = watched(algo)
        _ = watching.chunks.size  # read on the host
        read.extend((at_start, in_iteration, evaluated(algo, after)[1], reads()))

    eqx.filter_eval_shape(program, arrays, jax.random.key(0))
    return frozenset().union(*(hp for hp, _ in read)), frozenset().union(*(parts for _, parts in read))


def _check_state(algo: AbstractAlgorithm, before: Any, after: Any) -> None:
    """A state that changes its structure, a shape or a dtype can't be carried through a loop."""
    old, new = (
        {jax.tree_util.keystr(path): describe(x) for path, x in jax.tree.leaves_with_path(eqx.filter(ts, eqx.is_array))}
        for ts in (before, after)
    )
    for path in old | new:
        if old.get(path) != new.get(path):
            raise TypeError(
                f"one iteration of {type(algo).__name__} turns the training state's {path} from {old.get(path, 'nothing')} into "
                f"{new.get(path, 'nothing')}; the part that made it must keep its shape and dtype"
            )
