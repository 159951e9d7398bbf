from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from eqxrl import advantages, buffers, collectors, envs, evaluators, learners, losses, nn
from eqxrl._structs import TrajectoryWithLastObs, Transition, Transitions
from eqxrl._typing import Observation
from eqxrl.testing._probe import ACTIONS, probe, probe_agent, probe_rollouts
from eqxrl.verification import _advantages, _collectors, _evaluators, _learners, _nn
from eqxrl.verification._report import insist, laws_of


def check_advantage(advantage: advantages.AbstractAdvantage, *, rollout: TrajectoryWithLastObs | None = None) -> None:
    """Holds an advantage estimator to its contract: `[steps envs]`; cut where episodes end, bootstrapped where they were cut off,
    nothing after a termination; environments apart; finite gradients; if it has `gamma` and `gae_lambda`, equal to the double
    sum that defines GAE. Like every part, it must be pure, use each key once, and give the same under jit and vmap.

    **Arguments:** `rollout`: one that it can work on, if it needs more than the usual; rewards, values and ends are replaced.

    **Raises:** `AssertionError` for all that is wrong, with what to look at. So do the other checks.
    """
    insist(type(advantage).__name__, laws_of(_advantages.AdvantageLaws(advantage, rollout or probe_rollouts("discrete", 9, 4)[0])))


def check_collector(
    collector: collectors.AbstractCollector, env: Any = None, env_params: Any = None, policy: eqx.Module | None = None
) -> None:
    """Holds a collector to its contract: `[steps envs]`; actions are stored as chosen and given clipped to the action space; one step
    follows the other, also from one rollout to the next; flags and rewards are those of their step; episodes are counted;
    environments start differently. Of rollouts: the policy's own log-probs and values, and the values of last observations
    where episodes were cut off. Of transitions: a true `next_obs`.

    **Arguments:** what it is to collect with; an `AbstractPolicy` if it collects `Transitions`. By default it is given an
    environment with discrete actions and one with a box of them.
    """
    if (env is None) != (policy is None):
        raise ValueError("pass env, env_params and policy, or none of them")
    if env is not None:
        laws: Any = _collectors.CollectorLaws(collector, env, env_params, policy)  # pyright: ignore[reportArgumentType]
        return insist(type(collector).__name__, laws_of(laws))
    for kind in ACTIONS:
        world, agent = probe(kind), probe_agent(kind)
        acting = nn.ActorCriticPolicy(agent)
        laws = _collectors.CollectorLaws(collector, *world, acting if _collects_transitions(collector, *world, acting) else agent)
        insist(f"{type(collector).__name__}, {kind} actions,", laws_of(laws))


def _collects_transitions(collector: Any, env: Any, env_params: Any, policy: nn.AbstractPolicy) -> bool:
    run = lambda key: collector(env, env_params, policy, collector.init(env, env_params, policy, key))[1]  # noqa: E731
    try:
        return isinstance(eqx.filter_eval_shape(run, jax.random.key(0)), Transitions)
    except Exception:  # it can't act with such a policy
        return False


def check_stepper(stepper: envs.AbstractStepper) -> None:
    """Holds a stepper to its contract, against the environment itself: the same transitions; where an episode ended a first
    observation and a first state, drawn anew, and `final_obs` from before; elsewhere `final_obs` is `obs`."""
    insist(type(stepper).__name__, laws_of(_evaluators.StepperLaws(stepper, *probe("discrete"))))


def check_evaluator(evaluator: evaluators.AbstractEvaluator) -> None:
    """Holds an evaluator to its contract: `EvalMetrics` of `[episodes]`; episodes end where the MDP does, or at the time limit, and
    nothing is counted afterwards; undiscounted returns."""
    policy = nn.ActorCriticPolicy(probe_agent("discrete"))
    insist(type(evaluator).__name__, laws_of(_evaluators.EvaluatorLaws(evaluator, *probe("discrete"), policy)))


def check_learner(learner: learners.AbstractLearner) -> None:
    """Holds a learner to its contract: every sample exactly once per epoch and in another order each time, with its advantage and
    target; the ratio 1 before the first update; the policy learned and its observation statistics untouched; updates counted."""
    rollouts = probe_rollouts("discrete", 4 * getattr(learner, "num_minibatches", 2), 6)
    insist(type(learner).__name__, laws_of(_learners.LearnerLaws(learner, probe_agent("discrete"), rollouts)))


def check_loss(loss: losses.AbstractLoss) -> None:
    """Holds a loss to its contract, with discrete actions and with a box: a scalar and a dict of scalars; finite gradients, not all 0; a
    mean over samples, whatever their order; better actions become likelier; no divergence from the policy that collected."""
    for kind in ACTIONS:
        insist(f"{type(loss).__name__}, {kind} actions,", laws_of(_learners.LossLaws(loss, probe_agent(kind), probe_rollouts(kind, 6, 4))))


def check_actor_critic(agent: nn.AbstractActorCritic, obs: Observation, action_space: Any) -> None:
    """Holds an actor-critic to its contract: it takes the observation `obs` and its outputs fit the action space; finite gradients,
    which reach every number it could learn; its distribution as in `check_distribution`."""
    insist(type(agent).__name__, laws_of(_nn.ActorCriticLaws(agent, obs, action_space)))
    check_distribution(agent(obs, agent.initial_carry())[0])


def check_distribution(distribution: nn.AbstractDistribution) -> None:
    """Holds an action distribution to its contract, by samples: `log_prob` is that of what `sample` draws; `entropy` is its negative
    mean; nothing is likelier than `mode`; integers have probabilities that sum to 1; finite gradients."""
    insist(type(distribution).__name__, laws_of(_nn.DistributionLaws(distribution)))


def check_buffer(buffer: buffers.AbstractBuffer, example: PyTree = None) -> None:
    """Holds a replay buffer to its contract: what comes out went in, whole rows of it; only the newest rows, and none that wasn't
    filled; all of them equally often; the same arrays in its state. `example`: a row; by default, a transition."""
    obs, flag = jnp.zeros(3), jnp.zeros((), bool)
    transition = Transition(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), obs, flag, flag)
    insist(type(buffer).__name__, laws_of(_collectors.BufferLaws(buffer, transition if example is None else example)))
