import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np

from eqxrl._structs import EvalMetrics
from eqxrl._typing import describe
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.testing._probe import LIMIT, probe, probe_agent
from eqxrl.testing._transforms import transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, insist


def check_evaluator(evaluator: AbstractEvaluator) -> None:
    """Holds an evaluator to its contract, in an environment that pays 1 for each step: `EvalMetrics` of `[episodes]`; episodes end
    where the MDP does, or at the time limit, and nothing is counted afterwards; undiscounted returns; each key
    used once; pure, and the same under jit and vmap.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(evaluator).__name__, evaluator_laws(evaluator))


def evaluator_laws(evaluator: AbstractEvaluator) -> list[Law]:
    agent = probe_agent("discrete")
    keys = list(jax.random.split(jax.random.key(9), 2))
    longest = min(LIMIT, getattr(evaluator, "max_steps", None) or LIMIT)

    def play(agent: Any, key: Any, ends_at: int | None = None) -> Any:
        return evaluator(*probe("discrete", ends_at), agent, key)

    def shapes() -> str:
        metrics = eqx.filter_eval_shape(play, agent, keys[0])
        assert isinstance(metrics, EvalMetrics), f"it returned {describe(metrics)}; return EvalMetrics"
        shape = metrics.cumulative_reward.shape
        assert len(shape) == 1 and shape == metrics.episode_length.shape, (
            f"cumulative_reward is {describe(metrics.cumulative_reward)} and episode_length {describe(metrics.episode_length)}; both "
            "are [episodes]"
        )
        return f"[episodes={shape[0]}]"

    @functools.cache
    def played(ends_at: int | None) -> EvalMetrics:
        return jax.device_get(eqx.filter_jit(lambda a, k: play(a, k, ends_at))(agent, keys[0]))

    def whole_episodes() -> str:
        for ends_at in (3, LIMIT + 5):
            length, want = played(ends_at).episode_length, min(ends_at, longest)
            assert (length == want).all(), (
                f"episodes that {'terminate' if ends_at < LIMIT else 'are cut off'} after {want} steps have the length "
                f"{sorted(set(length.tolist()))}"
            )
        return f"lengths 3 and {longest}"

    def returns() -> str:
        for ends_at in (3, LIMIT + 5, None):
            metrics = played(ends_at)
            laws.close(
                metrics.cumulative_reward, metrics.episode_length.astype(np.float32), "where each step is paid 1, the return"
            )
        return "undiscounted, each step once"

    def keys_once() -> str:
        laws.keys_used_once(lambda key: eqx.filter(play(agent, key), eqx.is_array), keys[0])

        return "each key once"

    return [
        Law("EvalMetrics of [episodes]", shapes, "what is returned", gate=True),
        Law("whole episodes", whole_episodes, "terminated | truncated, and the loop's bounds: off by one?"),
        Law("returns", returns, "rewards after the end must not count, that of the last step must"),
        Law("keys used once", keys_once, "split the key before each use, and once for each episode"),
        *transforms(play, *((agent, key) for key in keys)),
    ]
