import functools

import equinox as eqx
import jax.numpy as jnp

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl._typing import validate
from eqxrl.advantages import AbstractAdvantage
from eqxrl.algorithms._on_policy import Estimate
from eqxrl.testing._probe import probe_agent, probe_rollout
from eqxrl.testing._transforms import gradient_is_finite, transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, insist


def check_advantage(advantage: AbstractAdvantage, *, rollout: TrajectoryWithLastObs | None = None) -> None:
    """Holds an advantage estimator to its contract: shapes; cut where episodes end, bootstrapped where they were cut off,
    nothing after a termination; environments apart; finite gradients; pure, and the same under jit and vmap; if it has
    `gamma` and `gae_lambda`, equal to the double sum that defines GAE.

    **Arguments:** `rollout`: one that it can work on, if it needs more than the usual; rewards, values and ends are
    replaced by random ones.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(advantage).__name__, advantage_laws(advantage, rollout))


def advantage_laws(advantage: AbstractAdvantage, rollout: TrajectoryWithLastObs | None = None) -> list[Law]:
    rollout = probe_rollout(probe_agent("discrete"), 9, 4) if rollout is None else rollout

    def shapes() -> str:
        given, last_value = laws.scrambled(rollout, 0)
        steps, envs = given.trajectories.reward.shape
        estimate = Estimate.of(advantage, advantage(given, last_value))
        validate(advantage, estimate, batch="steps envs", steps=steps, envs=envs)
        laws.finite(advantages=estimate.advantages, targets=estimate.targets)
        return f"[steps={steps} envs={envs}]"

    @functools.cache
    def estimate():
        return eqx.filter_jit(lambda rollout, last_value: advantage(rollout, last_value))

    def gradient() -> str:
        given, last_value = laws.scrambled(rollout, 0)

        def total(of):
            advantage, given = of
            advantages, targets = advantage(given, last_value)
            return jnp.sum(advantages**2 + targets**2)

        return gradient_is_finite(total, (advantage, given), "(estimator, rollout)")

    members = [laws.scrambled(rollout, seed) for seed in range(2)]
    return [
        Law("advantages and targets, [steps envs]", shapes, "what is returned", gate=True),
        Law(
            "GAE",
            lambda: laws.generalised_advantages(advantage, estimate(), rollout),
            "the recursion: discounts, and which value follows a step",
        ),
        Law(
            "cut at episode ends",
            lambda: laws.ends_are_cut(estimate(), rollout),
            "cut at `done` of the same step, whether it terminated or was truncated",
        ),
        Law(
            "a cut-off is bootstrapped",
            lambda: laws.cut_off_is_bootstrapped(advantage, estimate(), rollout),
            "advantages.next_values takes final_value where truncated",
        ),
        Law(
            "environments apart",
            lambda: laws.environments_apart(estimate(), rollout),
            "reduce over steps (axis 0), never over environments; the loss standardises",
        ),
        Law("finite gradients", gradient, "divisions, square roots and logarithms of 0, also behind a `where`"),
        *transforms(lambda *args: advantage(*args), *members),
    ]
