"""Each check lets the package's own parts pass, and each of its laws finds the part that breaks it. Laws are tried one by one
on broken parts, so that only what a law needs is compiled."""

import broken_parts as broken
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import sampled
from laws import LAWS, judged_by

from eqxrl import (
    GAE,
    EpisodeEvaluator,
    LinearSchedule,
    MinibatchLearner,
    PPOLoss,
    PrioritizedBuffer,
    RolloutCollector,
    TransitionCollector,
    UniformBuffer,
    testing,
)
from eqxrl.collectors import RewardScaling
from eqxrl.envs import NeverReset, ResetFromPool, ResetWhenDone
from eqxrl.losses import ActorCriticLoss
from eqxrl.nn import Categorical, DiagGaussian
from eqxrl.testing._probe import probe, probe_agent

GOOD = {
    "GAE": lambda: testing.check_advantage(GAE(gamma=0.9)),
    "PPOLoss": lambda: testing.check_loss(PPOLoss(clip_eps=LinearSchedule(0.2, 0.0, 10))),
    "ActorCriticLoss": lambda: testing.check_loss(ActorCriticLoss()),
    "MinibatchLearner": lambda: testing.check_learner(
        MinibatchLearner(PPOLoss(), optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)), num_epochs=2, num_minibatches=3)
    ),
    "RolloutCollector": lambda: testing.check_collector(
        RolloutCollector(4, 11, reward_scaling=RewardScaling()), *probe("box"), probe_agent("box")
    ),
    "TransitionCollector": lambda: testing.check_collector(TransitionCollector(4, 11)),
    "UniformBuffer": lambda: testing.check_buffer(UniformBuffer(50, 16)),
    "PrioritizedBuffer": lambda: testing.check_buffer(PrioritizedBuffer(50, 16)),
    "ResetWhenDone": lambda: testing.check_stepper(ResetWhenDone()),
    "ResetFromPool": lambda: testing.check_stepper(ResetFromPool(6)),
    "MLPActorCritic": lambda: testing.check_actor_critic(probe_agent("box"), jnp.ones(2), probe("box")[0].action_space(None)),
    "Categorical": lambda: testing.check_distribution(Categorical(jnp.array([[0.5, -1.0, 0.3], [0.0, 0.0, 0.0]]))),
    "DiagGaussian": lambda: testing.check_distribution(DiagGaussian(jnp.zeros((2, 3)), jnp.full((2, 3), 0.4), (3,))),
    "EpisodeEvaluator": lambda: testing.check_evaluator(EpisodeEvaluator(num_episodes=5)),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_packages_own_parts_pass(name):
    GOOD[name]()


def test_a_collector_may_clip_rewards_to_their_sign():
    """Wherever it stands in the rollout, a reward is then still its own step's."""
    testing.check_collector(broken.of_rollout(reward=lambda t, *_: jnp.sign(t.reward)))
    testing.check_collector(broken.of_transitions(reward=lambda t, state: jnp.sign(t.reward)))


BROKEN = [
    ("ADVANTAGES", "axes swapped", "shapes", "Advantage returned Estimate.advantages"),
    ("ADVANTAGES", "one environment's", "shapes", "Advantage returned Estimate.advantages"),
    ("ADVANTAGES", "no tuple", "shapes", "must return"),
    ("ADVANTAGES", "NaN", "finite", "aren't finite"),
    ("ADVANTAGES", "not what it claims", "GAE", "was expected"),
    ("ADVANTAGES", "leaks over truncation", "cut at episode ends", "truncated at step"),
    ("ADVANTAGES", "done one step late", "cut at episode ends", "what comes after"),
    ("ADVANTAGES", "bootstraps where it terminated", "cut at episode ends", "where the MDP ended"),
    ("ADVANTAGES", "no bootstrap", "a cut-off is bootstrapped", "final_value makes no difference"),
    ("ADVANTAGES", "mixes environments", "environments apart", "other environments"),
    ("ADVANTAGES", "root of 0", "finite", "aren't finite"),
    ("ADVANTAGES", "Python's state", "pure", "the second time"),
    ("ADVANTAGES", "mixes a batch", "vmap[i] = alone", "under vmap, member 0 of 2"),
    ("ADVANTAGES", "only compiled", "jit = no jit", "under jit"),
    ("LOSSES", "no metrics", "shapes", "return (scalar, dict of metrics)"),
    ("LOSSES", "not a scalar", "shapes", "return a float scalar"),
    ("LOSSES", "metric of each sample", "shapes", "entropy is float32[2]"),
    ("LOSSES", "NaN", "finite", "aren't finite"),
    ("LOSSES", "gradient stopped", "finite gradients", "0 everywhere"),
    ("LOSSES", "a sum", "a mean over samples", "every sample twice"),
    ("LOSSES", "looks at neighbours", "a mean over samples", "in another order"),
    ("LOSSES", "the sign", "better actions become likelier", "correlation is -1.00"),
    ("LOSSES", "KL's sign", "the surrogate is clipped", "at ratio 1"),
    ("LOSSES", "Python's state", "pure", "the second time"),
    ("LOSSES", "at_step", "at_step", "steps 0 and 5"),
    ("LEARNERS", "weakly typed", "shapes", "weak float32"),
    ("LEARNERS", "NaN", "finite", "aren't finite"),
    ("LEARNERS", "negative norm", "learned", "negative"),
    ("LEARNERS", "drops a sample", "each sample once per epoch", "1 of 72 samples were left out"),
    ("LEARNERS", "half of the samples", "each sample once per epoch", "left out"),
    ("LEARNERS", "shuffles advantages apart", "samples whole", "another sample's"),
    ("LEARNERS", "one permutation", "epochs in different orders", "in 2 different orders only"),
    ("LEARNERS", "no permutation", "epochs in different orders", "in 1 different orders only"),
    ("LEARNERS", "statistics updated first", "ratio 1 before the first update", "already off 1"),
    ("LEARNERS", "statistics updated first", "learned", "observation statistics"),
    ("LEARNERS", "trains statistics", "learned", "observation statistics"),
    ("LEARNERS", "learns nothing", "learned", "the same after learning"),
    ("LEARNERS", "counts nothing", "learned", "num_updates"),
    ("LEARNERS", "uses a key twice", "keys used once", "used twice"),
    ("LEARNERS", "Python's state", "pure", "the second time"),
    ("COLLECTORS", "[envs steps]", "shapes", "Trajectory.obs"),
    ("COLLECTORS", "weakly typed", "shapes", "weak float32"),
    ("COLLECTORS", "NaN", "finite", "aren't finite"),
    ("COLLECTORS", "stores clipped actions", "log-probs and values are the policy's", "the stored action's log_prob"),
    ("COLLECTORS", "log-prob of the step before", "log-probs and values are the policy's", "the stored action's log_prob"),
    ("COLLECTORS", "value of the next step", "log-probs and values are the policy's", "the stored observation's value"),
    ("COLLECTORS", "interleaves time", "steps follow one another", "another observation"),
    ("COLLECTORS", "reward of the step before", "rewards are their step's", "of the step before by 0.9"),
    ("COLLECTORS", "done one step late", "flags", "steps that terminated are stored as"),
    ("COLLECTORS", "gives actions unclipped", "steps follow one another", "outside its action space"),
    ("COLLECTORS", "stores clipped actions consistently", "actions are stored unclipped", "stored clipped"),
    ("COLLECTORS", "final values everywhere", "final values where cut off", "weren't cut off"),
    ("COLLECTORS", "final value after the reset", "final values where cut off", "was expected"),
    ("COLLECTORS", "no final value", "final values where cut off", "was expected"),
    ("COLLECTORS", "counts no rollouts", "rollouts go on", "global_step"),
    ("COLLECTORS", "starts over", "rollouts go on", "aren't the state's"),
    ("COLLECTORS", "miscounts lengths", "episodes are counted", "episodes (count, length)"),
    ("COLLECTORS", "collects the same again", "rollouts go on", "the state's rng is the same"),
    ("COLLECTORS", "environments alike", "environments start differently", "start alike"),
    ("TRANSITIONS", "[envs steps]", "shapes", "Transition.obs"),
    ("TRANSITIONS", "NaN", "finite", "aren't finite"),
    ("TRANSITIONS", "next_obs after the reset", "next_obs is what the step led to", "where an episode ended"),
    ("TRANSITIONS", "next_obs is obs", "next_obs is what the step led to", "isn't what the step led to"),
    ("TRANSITIONS", "truncation as termination", "flags", "were cut off are stored as steps that terminated"),
    ("TRANSITIONS", "termination as truncation", "flags", "terminated are stored as steps that were cut off"),
    ("TRANSITIONS", "reward of the step before", "rewards are their step's", "of the step before by 0.9"),
    ("TRANSITIONS", "interleaves time", "steps follow one another", "another observation"),
    ("BUFFERS", "a batch of steps", "shapes", "a sampled row"),
    ("BUFFERS", "rows mixed", "whole rows", "put together from several"),
    ("BUFFERS", "rows mixed when added", "whole rows", "put together from several"),
    ("BUFFERS", "samples what isn't filled", "the newest rows", "was drawn"),
    ("BUFFERS", "keeps the oldest", "the newest rows", "was drawn"),
    ("BUFFERS", "prefers the first", "uniform", "equally often"),
    ("BUFFERS", "one key", "uniform", "equally often"),
    ("BUFFERS", "key twice", "keys used once", "used twice"),
    ("BUFFERS", "Python's state", "pure", "the second time"),
    ("STEPPERS", "reward as an integer", "shapes", "reward: Float"),
    ("STEPPERS", "final_obs after the reset", "next_obs is what the step led to", "where an episode ended"),
    ("STEPPERS", "truncation dropped", "flags", "were cut off are stored as steps that went on"),
    ("STEPPERS", "obs before the reset", "steps follow one another", "doesn't open an episode"),
    ("STEPPERS", "one first state", "environments start differently", "start alike"),
    ("STEPPERS", "key twice", "keys used once", "used twice"),
    ("POLICIES", "too few actions", "fits the spaces", "2 actions"),
    ("POLICIES", "value not a scalar", "fits the spaces", "scalar"),
    ("POLICIES", "NaN", "finite", "aren't finite"),
    ("POLICIES", "root of 0", "finite", "aren't finite"),
    ("POLICIES", "idle layer", "every number is used", "idle"),
    ("POLICIES", "Python's state", "pure", "the second time"),
    ("DISTRIBUTIONS", "a log-prob for each number", "shapes", "log_prob is float32[2]"),
    ("DISTRIBUTIONS", "NaN", "finite", "aren't finite"),
    ("DISTRIBUTIONS", "variance for deviation", "samples are as frequent as log_prob says", "samples"),
    ("DISTRIBUTIONS", "no change of scale", "samples are as frequent as log_prob says", "samples"),
    ("DISTRIBUTIONS", "entropy without e", "entropy = -mean log_prob", "the entropy is"),
    ("DISTRIBUTIONS", "mode", "the mode is likeliest", "likelier"),
    ("DISTRIBUTIONS", "not normalised", "samples are as frequent as log_prob says", "sum to"),
    ("DISTRIBUTIONS", "one key", "samples are as frequent as log_prob says", "sum to"),
    ("DISTRIBUTIONS", "key twice", "keys used once", "used twice"),
    ("DISTRIBUTIONS", "Python's state", "pure", "the second time"),
    ("EVALUATORS", "only a sum", "shapes", "return EvalMetrics"),
    ("EVALUATORS", "stops a step early", "episodes as played", "in 6 steps"),
    ("EVALUATORS", "counts after the end", "episodes as played", "that the policy plays"),
    ("EVALUATORS", "counts half", "episodes as played", "100% of the reported"),
    ("EVALUATORS", "key twice", "keys used once", "used twice"),
    ("EVALUATORS", "Python's state", "pure", "the second time"),
]


@pytest.mark.parametrize("family, part, law, says", sampled(BROKEN), ids=lambda x: x if isinstance(x, str) else "")
def test_a_broken_part_is_found_out(family, part, law, says):
    (check,) = judged_by(family, getattr(broken, family)[part], law)
    assert check.status == "failed", check.detail
    assert says in check.detail


def test_a_stepper_must_reset():
    with pytest.raises(AssertionError, match="it doesn't open an episode"):
        testing.check_stepper(NeverReset())


def test_every_broken_part_is_tried():
    tried = {(family, part) for family, part, *_ in BROKEN}
    assert tried == {(family, part) for family in LAWS if hasattr(broken, family) for part in getattr(broken, family)}


def test_all_that_is_wrong_is_in_one_error():
    with pytest.raises(AssertionError) as error:
        testing.check_advantage(broken.ADVANTAGES["leaks over truncation"])
    assert "Advantage breaks 1 of" in str(error.value)
    assert "look at: cut at `done` of the same step" in str(error.value)
    with pytest.raises(AssertionError, match="breaks 2 of"):
        testing.check_advantage(broken.ADVANTAGES["bootstraps where it terminated"].__class__(broken_twice))


def broken_twice(rollout, last_value):
    advantages, targets = broken.ADVANTAGES["leaks over truncation"](rollout, last_value)
    return advantages + broken.ADVANTAGES["no bootstrap"](rollout, last_value)[0], rollout.trajectories.value


def test_an_error_in_a_part_keeps_its_traceback():
    def raises(rollout, last_value):
        raise KeyError("mine")

    with pytest.raises(AssertionError, match="KeyError") as error:
        testing.check_advantage(broken.Advantage(raises))
    assert isinstance(error.value.__cause__, KeyError)


def test_bad_arguments(key):
    with pytest.raises(ValueError, match="or none of them"):
        testing.check_collector(RolloutCollector(4, 11), *probe("discrete"))
    assert jax.tree.leaves(probe_agent("discrete"))
