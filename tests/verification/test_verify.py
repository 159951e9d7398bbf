"""`verify` lets the package's own algorithm pass, and each of its laws finds the algorithm that breaks it. Laws are tried one by
one on broken algorithms, so that only what a law needs is compiled."""

import dataclasses

import broken_parts as broken
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import sampled

from eqxrl import GAE, PPO, LinearSchedule, MinibatchLearner, PPOHParams, PPOLoss, RolloutCollector
from eqxrl.algorithms import MakeMLP
from eqxrl.nn import observe
from eqxrl.testing._probe import probe
from eqxrl.verification import Check, Report, verify, verify_env
from eqxrl.verification import _verify as module
from eqxrl.verification._report import judge


def create(kind="discrete", cls=PPO, hp=None, **parts):
    env, params = probe(kind)
    hp = PPOHParams(**(hp or {}))
    return cls.create(env=env, env_params=params, hp=hp, actor_critic=MakeMLP((8,)), **parts)


def try_law(algo, name):
    laws = module.Evidence(algo, jax.random.key(0)).laws()
    (law,) = [law for law in laws if law.name == name]
    return judge("", [law]).checks[0]


# Algorithms that are broken in what isn't a part.


class LearnerKeyStays(PPO):
    def training_step(self, batch_idx, ts, batch):
        after, metrics = super().training_step(batch_idx, ts, batch)
        return dataclasses.replace(after, rng=ts.rng), metrics


class ClonesLearnerKey(PPO):
    """The same, hidden from JAX's own check."""

    def training_step(self, batch_idx, ts, batch):
        kept = jax.random.clone(ts.rng)
        after, metrics = super().training_step(batch_idx, ts, batch)
        return dataclasses.replace(after, rng=kept), metrics


class CountsBeforeLearning(PPO):
    def get_batch(self, ts, batch_idx):
        ts, batch = super().get_batch(ts, batch_idx)
        return dataclasses.replace(ts, agent=observe(ts.agent, batch.trajectories.obs)), batch


class CountsTwice(PPO):
    def training_step(self, batch_idx, ts, batch):
        after, metrics = super().training_step(batch_idx, ts, batch)
        return dataclasses.replace(after, agent=observe(after.agent, batch.trajectories.obs)), metrics


class ClipsElements(PPO):
    @property
    def learner(self):
        optimizer = optax.chain(optax.clip(self.hp.max_grad_norm), optax.adam(self.hp.learning_rate))
        return MinibatchLearner(PPOLoss(), optimizer, self.hp.num_epochs, self.hp.num_minibatches)


class NeverClips(PPO):
    @property
    def learner(self):
        return MinibatchLearner(PPOLoss(), optax.adam(self.hp.learning_rate), self.hp.num_epochs, self.hp.num_minibatches)


class ClipsTooEarly(PPO):
    @property
    def learner(self):
        optimizer = optax.chain(optax.clip_by_global_norm(0.7 * self.hp.max_grad_norm), optax.adam(self.hp.learning_rate))
        return MinibatchLearner(PPOLoss(), optimizer, self.hp.num_epochs, self.hp.num_minibatches)


class Forgets(PPO):
    """A number and a setting that it has no use for."""

    @property
    def advantage(self):
        return GAE(gamma=self.hp.gamma)

    @property
    def learner(self):
        hp = self.hp
        optimizer = optax.chain(optax.clip_by_global_norm(hp.max_grad_norm), optax.adam(hp.learning_rate))
        loss = PPOLoss(hp.clip_eps, hp.vf_coef, hp.ent_coef, hp.clip_value)
        return MinibatchLearner(loss, optimizer, 2, hp.num_minibatches)


class OneEvaluationKey(PPO):
    def eval_callback(self, ts, rng=None):
        return super().eval_callback(ts, jax.random.key(0) if rng is None else rng)


class DeafEvaluation(PPO):
    def eval_callback(self, ts, rng=None):
        return super().eval_callback(ts)


class LearnsFromEvaluation(PPO):
    def train(self, rng=None, train_state=None, skip_initial_evaluation=False):
        ts, metrics = super().train(rng, train_state, skip_initial_evaluation)
        more = jnp.mean(metrics.cumulative_reward)
        return eqx.tree_at(lambda s: s.agent.critic[0].bias, ts, replace_fn=lambda x: x + more), metrics


class SpendsStateKey(PPO):
    def train(self, rng=None, train_state=None, skip_initial_evaluation=False):
        ts, metrics = super().train(rng, train_state, skip_initial_evaluation)
        return dataclasses.replace(ts, rng=jax.random.split(ts.rng)[0]), metrics


class CountsInPython(PPO):
    """A number of the state that is no array: each of its values is another program."""

    def training_step(self, batch_idx, ts, batch):
        count = getattr(ts.learner_state.opt_state, "count", 0)
        inner = getattr(ts.learner_state.opt_state, "inner", ts.learner_state.opt_state)
        ts = eqx.tree_at(lambda s: s.learner_state.opt_state, ts, inner)
        after, metrics = super().training_step(batch_idx, ts, batch)
        state = Counted(after.learner_state.opt_state, count + 1)
        return eqx.tree_at(lambda s: s.learner_state.opt_state, after, state), metrics

    def init_train_state(self, rng):
        return eqx.tree_at(lambda s: s.learner_state.opt_state, super().init_train_state(rng), replace_fn=lambda x: Counted(x, 0))


class Counted(eqx.Module):
    inner: object
    count: int = eqx.field(static=True)


class PythonFloat(broken.AbstractAdvantage):
    gamma: float

    def __call__(self, rollout, last_value):
        return GAE(gamma=self.gamma)(rollout, last_value)


def square_only(advantages, targets, rollout):
    return jnp.broadcast_to(advantages[:, :1].T, advantages.shape), targets


def dead_clip():
    loss = broken.DeadClip(jnp.float32(0.2), jnp.float32(0.5))
    return MinibatchLearner(loss, optax.adam(1e-3), num_epochs=2, num_minibatches=3)


NORMALIZED = dict(normalize_observations=True)
LOOP = broken.LoopLearner(lambda keys, epoch, n: jax.random.permutation(keys[epoch], n))
GRADIENT = broken.OneStep()
BROKEN = {
    "axes swapped": (
        lambda: create(advantage=broken.ADVANTAGES["axes swapped"]), "shapes at each seam", "expected"
    ),
    "as many steps as environments": (
        lambda: create(hp=dict(num_envs=8, num_steps=8), advantage=broken.after(square_only)), "shapes at each seam", "(but not with"
    ),
    "weakly typed": (lambda: create(collector=broken.COLLECTORS["weakly typed"], learner=broken.Idle()), "shapes at each seam", "weak float32"),
    "NaN": (lambda: create(collector=broken.COLLECTORS["NaN"], learner=broken.Idle()), "no NaN", "aren't finite"),
    "clipped action": (
        lambda: create("box", collector=broken.COLLECTORS["stores clipped actions"], learner=broken.Idle()),
        "the stored action has the stored log-prob", "log_prob of the stored action",
    ),
    "value of the next step": (
        lambda: create(collector=broken.COLLECTORS["value of the next step"], learner=broken.Idle()), "the stored value is the critic's", "value of the"
    ),
    "counts before learning": (
        lambda: create(cls=CountsBeforeLearning, hp=NORMALIZED, learner=GRADIENT), "ratio 1 before the first update", "already off 1"
    ),
    "counts before learning (statistics)": (
        lambda: create(cls=CountsBeforeLearning, hp=NORMALIZED, learner=GRADIENT), "statistics frozen, then counted once", "before learning"
    ),
    "interleaves time": (
        lambda: create(collector=broken.COLLECTORS["interleaves time"], learner=broken.Idle()), "steps follow one another", "another observation"
    ),
    "clipped consistently": (
        lambda: create("box", collector=broken.COLLECTORS["stores clipped actions consistently"], learner=broken.Idle()),
        "actions are stored unclipped", "stored clipped",
    ),
    "no final value": (
        lambda: create(collector=broken.COLLECTORS["no final value"], learner=broken.Idle()), "final values where cut off", "was expected"
    ),
    "starts over": (lambda: create(collector=broken.COLLECTORS["starts over"], learner=broken.Idle()), "rollouts go on", "isn't the state's"),
    "miscounts lengths": (lambda: create(collector=broken.COLLECTORS["miscounts lengths"], learner=broken.Idle()), "episodes are counted", "length"),
    "not what it claims": (
        lambda: create(advantage=broken.ADVANTAGES["not what it claims"]), "advantages are GAE's", "was expected"
    ),
    "leaks": (
        lambda: create(advantage=broken.ADVANTAGES["leaks over truncation"]), "advantages stop at episode ends", "truncated"
    ),
    "done one step late": (
        lambda: create(advantage=broken.ADVANTAGES["done one step late"]), "advantages stop at episode ends", "what comes after"
    ),
    "no bootstrap": (
        lambda: create(advantage=broken.ADVANTAGES["no bootstrap"]), "a cut-off is bootstrapped", "makes no difference"
    ),
    "mixes environments": (
        lambda: create(advantage=broken.ADVANTAGES["mixes environments"]), "environments don't mix", "other environments"
    ),
    "drops a sample": (
        lambda: create(learner=broken.LEARNERS["drops a sample"]), "each sample once per epoch", "left out"
    ),
    "shuffles apart": (
        lambda: create(learner=broken.LEARNERS["shuffles advantages apart"]), "samples stay whole", "another sample's"
    ),
    "one permutation": (
        lambda: create(learner=broken.LEARNERS["one permutation"]), "epochs in different orders", "in 3 different orders only"
    ),
    "one key for all iterations": (
        lambda: create(cls=ClonesLearnerKey, learner=LOOP), "epochs in different orders", "in 2 different orders only"
    ),
    "learner's key stays": (lambda: create(cls=LearnerKeyStays, learner=LOOP), "keys are used once", "used twice"),
    "learner's key stays, hidden": (lambda: create(cls=ClonesLearnerKey, learner=LOOP), "keys are used once", "the same in two iterations"),
    "key twice": (lambda: create(learner=broken.LEARNERS["uses a key twice"]), "keys are used once", "_uses_key_twice"),
    "clips elements": (lambda: create(cls=ClipsElements), "gradients are clipped by their global norm", "by itself"),
    "never clips": (lambda: create(cls=NeverClips), "gradients are clipped by their global norm", "isn't clipped"),
    "clips too early": (lambda: create(cls=ClipsTooEarly), "gradients are clipped by their global norm", "below the norm"),
    "trains statistics": (
        lambda: create(hp=NORMALIZED, learner=broken.LEARNERS["trains statistics"]),
        "statistics frozen, then counted once", "being trained",
    ),
    "counts twice": (lambda: create(cls=CountsTwice, hp=NORMALIZED, learner=GRADIENT), "statistics frozen, then counted once", "(mean, variance"),
    "dead leaf": (lambda: create(learner=dead_clip()), "no dead hyperparameter", "effect: parts.learner.loss.clip_eps"),
    "dead hyperparameters": (lambda: create(cls=Forgets), "no dead hyperparameter", "effect: hp.gae_lambda, hp.num_epochs"),
    "Python float": (lambda: create(advantage=PythonFloat(0.9)), "one compile", "parts.advantage.gamma is a Python number"),
    "counts in Python": (lambda: create(cls=CountsInPython, learner=broken.Idle()), "one compile", "was traced 2 times"),
    "one key for evaluations": (lambda: create(cls=OneEvaluationKey, learner=broken.Idle()), "evaluation changes nothing", "1 different keys"),
    "deaf evaluation": (lambda: create(cls=DeafEvaluation, learner=broken.Idle()), "evaluation changes nothing", "ignores the rng"),
    "learns from evaluation": (lambda: create(cls=LearnsFromEvaluation, learner=broken.Idle()), "evaluation changes nothing", "goes on otherwise"),
    "spends the state's key": (lambda: create(cls=SpendsStateKey, learner=broken.Idle()), "evaluation changes nothing", "the state's rng is another"),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(BROKEN))
def test_a_broken_algorithm_is_found_out(name):
    make, law, says = BROKEN[name]
    check = try_law(make(), law)
    assert check.status == "failed", check.detail
    assert says in check.detail


def test_every_law_is_tried():
    laws = {law.name for law in module.Evidence(create(), jax.random.key(0)).laws()}
    assert laws == {law for _, law, _ in BROKEN.values()}


@pytest.fixture(scope="module")
def good():
    hp = dict(normalize_observations=True, normalize_rewards=True, learning_rate=LinearSchedule(1e-3, 0.0, 100))
    return verify(create("box", hp=hp | dict(clip_eps=optax.linear_schedule(0.2, 0.1, 100))), quiet=True)


def test_ppo_holds(good, capsys):
    assert good.ok, str(good)
    assert all(check.status == "held" for check in good.checks), str(good)
    assert "hp" not in capsys.readouterr().out
    names = {check.name: check.detail for check in good.checks}
    assert names["no dead hyperparameter"] == "19 have an effect"
    assert names["shapes at each seam"] == "rollouts [steps=32 envs=6], evaluations [episodes=5]"


@pytest.mark.slow
def test_a_part_that_is_passed_replaces_hyperparameters():
    check = try_law(create(learner=MinibatchLearner(PPOLoss(), optax.adam(1e-3), 2, 3)), "no dead hyperparameter")
    assert check.status == "held", check.detail
    assert "replace hp.learning_rate, hp.max_grad_norm, hp.clip_eps" in check.detail


def test_what_can_not_be_judged_is_skipped():
    class NoLoss(broken.AbstractLearner):
        def init(self, agent):
            return dead_clip().init(agent)

        def __call__(self, agent, state, rollout, key):
            return dead_clip()(agent, state, rollout, key)

    assert try_law(create(learner=NoLoss()), "each sample once per epoch").detail == "NoLoss has no AbstractLoss to look through"
    for law in ("actions are stored unclipped", "statistics frozen, then counted once"):
        assert try_law(create(learner=broken.Idle()), law).status == "skipped"
    shut = verify(create(advantage=broken.ADVANTAGES["axes swapped"], learner=broken.Idle()), quiet=True)
    assert [check.status for check in shut.checks] == ["failed"] + ["skipped"] * (len(shut.checks) - 1)


def test_the_algorithm_itself_is_left_alone():
    algo = create(collector=RolloutCollector(num_envs=4, num_steps=10), hp=dict(num_minibatches=4))
    before = jax.tree.leaves(algo)
    small = module.Evidence(algo, jax.random.key(0)).small
    assert (small.collector.num_envs, small.collector.num_steps, small.hp.num_envs) == (6, 32, 6)
    assert (algo.collector.num_envs, algo.hp.num_envs, algo.hp.num_minibatches) == (4, 64, 4)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(algo)))


def test_table(capsys):
    held = Check("one", "held", "seen [4]", "here")
    Report("PPO on Nowhere", (held,)).print()
    out = capsys.readouterr().out
    assert "PPO on Nowhere" in out and "held" in out and "seen [4]" in out and "look at" not in out
    report = Report("PPO on Nowhere", (held, Check("two", "failed", "broken", "there"), Check("three", "skipped", "no", "")))
    report.print()
    out = capsys.readouterr().out
    assert "there" in out and "broken" in out and "skipped" in out
    assert not report.ok and [check.name for check in report.failed] == ["two"]
    assert str(report).splitlines()[2] == "  failed   two: broken"


def test_exit_code(monkeypatch):
    asked = []

    def fake(algo, *, key, quiet):
        asked.append(algo)
        return Report("", (Check("", "held" if len(asked) == 1 else "failed", "", ""),))

    monkeypatch.setattr(module, "verify", fake)
    assert verify_env("CartPole-v1") == 0
    assert verify_env("CartPole-v1", "zoo", seed=1, quiet=True) == 1
    assert asked[0].hp.num_envs == 64 and asked[1].hp.num_envs == 8
    with pytest.raises(ValueError, match="no preset"):
        verify_env("CartPole-v1", "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_gymnax_environments(env_id, capsys):
    report = verify(PPO.create(env_id))
    assert report.ok, str(report)
    assert "evaluations, as many keys" in capsys.readouterr().out


