"""Each check lets the package's own parts pass, and each of its laws finds the part that breaks it. Laws are tried one by one
on broken parts, so that only what a law needs is compiled."""

import broken_parts as broken
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import sampled

from eqxrl import GAE, EpisodeEvaluator, LinearSchedule, MinibatchLearner, PPOLoss, RolloutCollector, testing
from eqxrl.collectors import RewardScaling
from eqxrl.envs import ResetFromPool, ResetWhenDone
from eqxrl.nn import Categorical, DiagGaussian
from eqxrl.testing._advantages import advantage_laws
from eqxrl.testing._collectors import collector_laws, reset_laws
from eqxrl.testing._evaluators import evaluator_laws
from eqxrl.testing._learners import learner_laws
from eqxrl.testing._losses import loss_laws
from eqxrl.testing._nn import actor_critic_laws, distribution_laws
from eqxrl.testing._probe import normalized, probe, probe_agent
from eqxrl.verification._report import judge

GOOD = {
    "GAE": lambda: testing.check_advantage(GAE(gamma=0.9)),
    "PPOLoss": lambda: testing.check_loss(PPOLoss(clip_eps=LinearSchedule(0.2, 0.0, 10))),
    "MinibatchLearner": lambda: testing.check_learner(
        MinibatchLearner(PPOLoss(), optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)), num_epochs=2, num_minibatches=3)
    ),
    "RolloutCollector": lambda: testing.check_collector(
        RolloutCollector(4, 11, reward_scaling=RewardScaling()), *probe("box"), normalized(probe_agent("box"))
    ),
    "ResetWhenDone": lambda: testing.check_reset(ResetWhenDone()),
    "ResetFromPool": lambda: testing.check_reset(ResetFromPool(6)),
    "MLPActorCritic": lambda: testing.check_actor_critic(
        normalized(probe_agent("box")), jnp.ones(3), probe("box")[0].action_space(probe("box")[1])
    ),
    "Categorical": lambda: testing.check_distribution(Categorical(jnp.array([[0.5, -1.0, 0.3], [0.0, 0.0, 0.0]]))),
    "DiagGaussian": lambda: testing.check_distribution(DiagGaussian(jnp.zeros((2, 3)), jnp.full((2, 3), 0.4), (3,))),
    "EpisodeEvaluator": lambda: testing.check_evaluator(EpisodeEvaluator(num_episodes=5)),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_packages_own_parts_pass(name):
    GOOD[name]()


def collector(part):
    kind = "box" if part in (broken.COLLECTORS[name] for name in ON_BOX) else "discrete"
    return collector_laws(part, *probe(kind), normalized(probe_agent(kind)))


ON_BOX = ("stores clipped actions", "stores clipped actions consistently", "gives actions unclipped")
LAWS = {
    "ADVANTAGES": advantage_laws,
    "LOSSES": lambda part: loss_laws(part, "discrete"),
    "LEARNERS": learner_laws,
    "COLLECTORS": collector,
    "RESETS": reset_laws,
    "POLICIES": lambda part: actor_critic_laws(part, jnp.ones(3), probe("discrete")[0].action_space(probe("discrete")[1])),
    "DISTRIBUTIONS": distribution_laws,
    "EVALUATORS": evaluator_laws,
}
BROKEN = [
    ("ADVANTAGES", "axes swapped", "advantages and targets, [steps envs]", "Advantage returned Estimate.advantages"),
    ("ADVANTAGES", "one environment's", "advantages and targets, [steps envs]", "Advantage returned Estimate.advantages"),
    ("ADVANTAGES", "no tuple", "advantages and targets, [steps envs]", "must return"),
    ("ADVANTAGES", "NaN", "advantages and targets, [steps envs]", "aren't finite"),
    ("ADVANTAGES", "not what it claims", "GAE", "was expected"),
    ("ADVANTAGES", "leaks over truncation", "cut at episode ends", "truncated at step"),
    ("ADVANTAGES", "done one step late", "cut at episode ends", "what comes after"),
    ("ADVANTAGES", "bootstraps where it terminated", "cut at episode ends", "where the MDP ended"),
    ("ADVANTAGES", "no bootstrap", "a cut-off is bootstrapped", "final_value makes no difference"),
    ("ADVANTAGES", "mixes environments", "environments apart", "other environments"),
    ("ADVANTAGES", "root of 0", "finite gradients", "aren't finite"),
    ("ADVANTAGES", "Python's state", "pure", "the second time"),
    ("ADVANTAGES", "only compiled", "jit = no jit", "under jit"),
    ("ADVANTAGES", "mixes a batch", "vmap[i] = alone", "under vmap, member 0 of 2"),
    ("LOSSES", "no metrics", "a scalar and LossMetrics", "return (scalar, LossMetrics)"),
    ("LOSSES", "not a scalar", "a scalar and LossMetrics", "return a float scalar"),
    ("LOSSES", "NaN", "finite, and so is its gradient", "aren't finite"),
    ("LOSSES", "gradient stopped", "finite, and so is its gradient", "0 everywhere"),
    ("LOSSES", "a sum", "a mean over samples", "every sample twice"),
    ("LOSSES", "looks at neighbours", "a mean over samples", "in another order"),
    ("LOSSES", "the sign", "better actions become likelier", "less likely"),
    ("LOSSES", "KL's sign", "no divergence at ratio 1", "at ratio 1"),
    ("LOSSES", "at_step", "at_step", "steps 0 and 5"),
    ("LOSSES", "Python's state", "pure", "the second time"),
    ("LEARNERS", "weakly typed", "policy, state and metrics", "weak float32"),
    ("LEARNERS", "NaN", "finite", "aren't finite"),
    ("LEARNERS", "negative norm", "finite", "negative"),
    ("LEARNERS", "drops a sample", "each sample once per epoch", "1 of 72 samples were left out"),
    ("LEARNERS", "half of the samples", "each sample once per epoch", "left out"),
    ("LEARNERS", "shuffles advantages apart", "samples whole", "another sample's"),
    ("LEARNERS", "one permutation", "epochs in different orders", "in 2 different orders only"),
    ("LEARNERS", "no permutation", "epochs in different orders", "in 1 different orders only"),
    ("LEARNERS", "statistics updated first", "ratio 1 before the first update", "already off 1"),
    ("LEARNERS", "statistics updated first", "statistics frozen", "updated before learning"),
    ("LEARNERS", "trains statistics", "statistics frozen", "being trained"),
    ("LEARNERS", "learns nothing", "learned", "the same after learning"),
    ("LEARNERS", "counts nothing", "learned", "num_updates"),
    ("LEARNERS", "uses a key twice", "keys used once", "used twice"),
    ("LEARNERS", "Python's state", "pure", "the second time"),
    ("COLLECTORS", "[envs steps]", "shapes", "Trajectory.obs"),
    ("COLLECTORS", "weakly typed", "shapes", "weak float32"),
    ("COLLECTORS", "NaN", "finite", "aren't finite"),
    ("COLLECTORS", "stores clipped actions", "the stored action has the stored log-prob", "log_prob of the stored action"),
    ("COLLECTORS", "log-prob of the step before", "the stored action has the stored log-prob", "log_prob of the stored action"),
    ("COLLECTORS", "value of the next step", "the stored value is the critic's", "value of the stored observation"),
    ("COLLECTORS", "interleaves time", "steps follow one another", "another observation than the last one led to"),
    ("COLLECTORS", "reward of the step before", "steps follow one another", "isn't that step's"),
    ("COLLECTORS", "done one step late", "steps follow one another", "another observation"),
    ("COLLECTORS", "gives actions unclipped", "steps follow one another", "outside its action space"),
    ("COLLECTORS", "stores clipped actions consistently", "actions are stored unclipped", "stored clipped"),
    ("COLLECTORS", "final values everywhere", "final values where cut off", "weren't cut off"),
    ("COLLECTORS", "final value after the reset", "final values where cut off", "was expected"),
    ("COLLECTORS", "no final value", "final values where cut off", "was expected"),
    ("COLLECTORS", "counts no rollouts", "rollouts go on", "global_step"),
    ("COLLECTORS", "starts over", "rollouts go on", "isn't the state's"),
    ("COLLECTORS", "miscounts lengths", "episodes are counted", "episodes (count, length)"),
    ("COLLECTORS", "collects the same again", "keys used once", "the state's rng is the same"),
    ("COLLECTORS", "environments alike", "keys used once", "start alike"),
    ("RESETS", "reward as an integer", "shapes", "VecStep.reward"),
    ("RESETS", "final_obs after the reset", "transitions", "final_obs"),
    ("RESETS", "truncation dropped", "transitions", "truncated"),
    ("RESETS", "obs before the reset", "first states where an episode ended", "its beginning"),
    ("RESETS", "one first state", "first states where an episode ended", "the same state"),
    ("RESETS", "key twice", "keys used once", "used twice"),
    ("POLICIES", "too few actions", "fits the spaces", "2 actions"),
    ("POLICIES", "value not a scalar", "fits the spaces", "scalar"),
    ("POLICIES", "NaN", "finite, and so is its gradient", "aren't finite"),
    ("POLICIES", "root of 0", "finite, and so is its gradient", "gradient by the policy"),
    ("POLICIES", "idle layer", "every number is used", "idle"),
    ("POLICIES", "Python's state", "pure", "the second time"),
    ("DISTRIBUTIONS", "a log-prob for each number", "shapes", "log_prob is float32[2]"),
    ("DISTRIBUTIONS", "NaN", "finite, and so is the gradient", "aren't finite"),
    ("DISTRIBUTIONS", "variance for deviation", "samples are as likely as log_prob says", "standard errors"),
    ("DISTRIBUTIONS", "no change of scale", "samples are as likely as log_prob says", "standard errors"),
    ("DISTRIBUTIONS", "entropy without e", "entropy = -mean log_prob", "the entropy is"),
    ("DISTRIBUTIONS", "mode", "the mode is likeliest", "likelier"),
    ("DISTRIBUTIONS", "not normalised", "probabilities sum to 1", "sum to"),
    ("DISTRIBUTIONS", "one key", "random", "same action"),
    ("DISTRIBUTIONS", "key twice", "keys used once", "used twice"),
    ("DISTRIBUTIONS", "Python's state", "pure", "the second time"),
    ("EVALUATORS", "only a sum", "EvalMetrics of [episodes]", "return EvalMetrics"),
    ("EVALUATORS", "stops a step early", "whole episodes", "cut off after 7 steps"),
    ("EVALUATORS", "counts after the end", "returns", "the return"),
    ("EVALUATORS", "counts half", "returns", "the return"),
    ("EVALUATORS", "key twice", "keys used once", "used twice"),
    ("EVALUATORS", "Python's state", "pure", "the second time"),
]


@pytest.mark.parametrize("family, part, law, says", sampled(BROKEN), ids=lambda x: x if isinstance(x, str) else "")
def test_a_broken_part_is_found_out(family, part, law, says):
    (one,) = [x for x in LAWS[family](getattr(broken, family)[part]) if x.name == law]
    (check,) = judge(part, [one]).checks
    assert check.status == "failed", check.detail
    assert says in check.detail


def test_every_broken_part_is_tried():
    tried = {(family, part) for family, part, *_ in BROKEN}
    assert tried == {(family, part) for family in LAWS for part in getattr(broken, family)}


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
