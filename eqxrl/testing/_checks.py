from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from eqxrl import advantages, buffers, collectors, envs, evaluators, learners, losses, nn
from eqxrl._structs import TrajectoryWithLastObs, Transition
from eqxrl._typing import Observation
from eqxrl.testing._probe import ACTIONS, probe, probe_agent, probe_rollouts
from eqxrl.verification import _advantages, _collectors, _learners, _nn, _off_policy
from eqxrl.verification._laws import insist


def check_advantage(advantage: advantages.AbstractAdvantage, *, rollout: TrajectoryWithLastObs | None = None) -> None:
    """Holds an advantage estimator to its contract: `[steps envs]`; cut where episodes end, bootstrapped where they were cut off, nothing
    after a termination; environments apart; finite gradients; with `gamma` and `gae_lambda`, the recursion that defines GAE. Like
    every part it must be pure, use each key once, and give the same under vmap.

    `rollout`: one that it can work on, if it needs more than the usual; rewards, values and ends are replaced.

    **Raises:** `AssertionError` for all that is wrong, with what to look at. So do the other checks.
    """
    insist(advantage, _advantages.AdvantageLaws(advantage, rollout or probe_rollouts("discrete", 9, 4)[0]))


def check_collector(collector: collectors.AbstractCollector, env: Any = None, env_params: Any = None, policy: Any = None) -> None:
    """Holds a collector to its contract, against a replay of the environment: what is stored of each step, both kinds of ends, and what
    episodes returned; actions stored as chosen and given clipped; environments that start differently. Of rollouts: the policy's
    own log-probs and values, also of last observations where episodes were cut off. Of transitions: a true `next_obs`.

    `policy`: an `AbstractPolicy` if it collects `Transitions`. By default there are discrete actions, and a box of them.
    """
    if (env is None) != (policy is None):
        raise ValueError("pass env, env_params and policy, or none of them")
    if env is not None:
        return insist(collector, _collectors.CollectorLaws(collector, env, env_params, policy))
    for kind in ACTIONS:
        agent = probe_agent(kind)
        laws = _collectors.CollectorLaws(collector, *probe(kind), nn.ActorCriticPolicy(agent))
        try:
            laws.shapes()
        except Exception:  # it can't act with such a policy, or collects rollouts
            laws = _collectors.CollectorLaws(collector, *probe(kind), agent)
        insist(collector, laws, f", {kind} actions,")


def check_stepper(stepper: envs.AbstractStepper) -> None:
    """Holds a stepper that resets to its contract, by what is collected with it, against a replay of the environment: the same
    transitions; where an episode ended a first observation and a first state, drawn anew, and `final_obs` from before."""
    collector = collectors.TransitionCollector(5, 30, stepper)
    insist(stepper, _collectors.CollectorLaws(collector, *probe("discrete"), nn.ActorCriticPolicy(probe_agent("discrete"))))


def check_evaluator(evaluator: evaluators.AbstractEvaluator) -> None:
    """Holds an evaluator to its contract: whole episodes that the policy really plays, undiscounted returns, none picked or repeated."""
    insist(evaluator, _collectors.EvaluatorLaws(evaluator, *probe("discrete"), nn.ActorCriticPolicy(probe_agent("discrete"))))


def check_learner(learner: learners.AbstractLearner) -> None:
    """Holds a learner to its contract: every sample exactly once per epoch and in another order each time, with its advantage and target;
    ratio 1 before the first update; every layer learned, observation statistics untouched; the optimiser's state passed on."""
    rollouts = probe_rollouts("discrete", 4 * (getattr(learner, "num_minibatches", None) or 2), 6)
    insist(learner, _learners.LearnerLaws(learner, probe_agent("discrete"), rollouts))


def check_loss(loss: losses.AbstractLoss) -> None:
    """Holds a loss to its contract, for discrete actions and a box: finite gradients; a mean over samples; actions become likelier by their
    advantages, values go to their targets, entropy grows; with a `clip_eps`, PPO's surrogate."""
    for kind in ACTIONS:
        insist(loss, _learners.LossLaws(loss, probe_agent(kind), probe_rollouts(kind, 6, 4)), f", {kind} actions,")


def check_actor_critic(agent: nn.AbstractActorCritic, obs: Observation, action_space: Any) -> None:
    """Holds an actor-critic to its contract: it takes `obs` and fits the action space; finite gradients, which reach every number that it
    could learn; its distribution as in `check_distribution`."""
    insist(agent, _nn.ActorCriticLaws(agent, obs, action_space))
    check_distribution(agent(obs, agent.initial_carry())[0])


def check_distribution(distribution: nn.AbstractDistribution) -> None:
    """Holds a distribution to its contract: samples as frequent as `log_prob` says, `entropy` its negative mean, the likeliest `mode`."""
    insist(distribution, _nn.DistributionLaws(distribution))


def check_buffer(buffer: buffers.AbstractBuffer, example: PyTree = None) -> None:
    """Holds a replay buffer to its contract: whole rows come out that went in, only the newest and none that wasn't filled, all of them
    equally often. `example`: a row; by default, a transition."""
    obs, flag = jnp.zeros(3), jnp.zeros((), bool)
    transition = Transition(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), obs, flag, flag)
    insist(buffer, _off_policy.BufferLaws(buffer, transition if example is None else example))
