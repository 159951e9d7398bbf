"""How a part of each kind is judged in these tests: in the kit's own little world."""

import broken_parts as broken
import jax
import jax.numpy as jnp

from eqxrl import TransitionCollector
from eqxrl.algorithms import DQN, TD3, MakeNetwork
from eqxrl.nn import ActorCriticPolicy
from eqxrl.spaces import Discrete
from eqxrl.testing._probe import probe, probe_agent, probe_rollouts
from eqxrl.verification._advantages import AdvantageLaws
from eqxrl.verification._algorithms import AlgorithmLaws
from eqxrl.verification._collectors import CollectorLaws, EvaluatorLaws
from eqxrl.verification._laws import judged, laws_of
from eqxrl.verification._learners import LearnerLaws, LossLaws
from eqxrl.verification._nn import ActorCriticLaws, DistributionLaws
from eqxrl.verification._off_policy import BufferLaws

ON_BOX = [broken.COLLECTORS[x] for x in ("stores clipped actions", "stores clipped actions consistently", "gives actions unclipped")]


def rollouts(steps, envs):
    return probe_agent("discrete"), probe_rollouts("discrete", steps, envs)


def collector(part):
    kind = "box" if any(part is x for x in ON_BOX) else "discrete"
    return CollectorLaws(part, *probe(kind), probe_agent(kind))


def acting():
    return *probe("discrete"), ActorCriticPolicy(probe_agent("discrete"))


def off_policy(cls, kind="discrete", hp=None, parts=None, **fields):
    """An algorithm with small networks, of actions of that kind, with other parts and fields."""
    env, params = probe(kind)
    size = dict(hidden_sizes=(8,))
    outputs = parts["reduction"].outputs if parts and "reduction" in parts else 1
    critic = MakeNetwork("q", size) if kind == "discrete" else MakeNetwork("action_value", size | dict(out_size=outputs))
    actor = MakeNetwork("deterministic" if issubclass(cls, TD3) else "actor", size)
    nets = {"q_network": MakeNetwork("q", size)} if issubclass(cls, DQN) else {"actor": actor, "critic": critic}
    return cls(env=env, env_params=params, hp=cls.HParams(**(hp or {})), parts=nets | (parts or {}), **fields)


def laws_of_part(algo, part):
    return next(table for name, table in AlgorithmLaws(algo, jax.random.key(0)).parts() if name == part)


def update(part):
    """Of an algorithm, and what its fields are to be."""
    return laws_of_part(off_policy(part[0], **part[1]), "update")


LAWS = {
    "ADVANTAGES": lambda part: AdvantageLaws(part, rollouts(9, 4)[1][0]),
    "LOSSES": lambda part: LossLaws(part, *rollouts(6, 4)),
    "LEARNERS": lambda part: LearnerLaws(part, *rollouts(4 * getattr(part, "num_minibatches", 2), 6)),
    "COLLECTORS": collector,
    "TRANSITIONS": lambda part: CollectorLaws(part, *acting()),
    "BUFFERS": lambda part: BufferLaws(part, {"obs": jnp.zeros(3), "reward": jnp.zeros(())}),
    "STEPPERS": lambda part: CollectorLaws(TransitionCollector(5, 30, part), *acting()),
    "POLICIES": lambda part: ActorCriticLaws(part, jnp.ones(3), Discrete(3)),
    "DISTRIBUTIONS": DistributionLaws,
    "EVALUATORS": lambda part: EvaluatorLaws(part, *acting()),
    "UPDATES": update,
    "CRITICS": update,
    "BEHAVIOURS": lambda part: laws_of_part(off_policy(part[0], **part[1]), "behaviour"),
}


def judged_by(family, part, law=None):
    """What becomes of that law, or of all of them."""
    table = LAWS[family](part)
    assert law is None or law in laws_of(table), f"{law} isn't one of {list(laws_of(table))}"
    return list(judged(table, lambda name: law in (None, name)))
