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
from jaxtyping import Array, Int, Key
from laws import LAWS

from eqxrl import A2C, DQN, GAE, PPO, LinearSchedule, MinibatchLearner, PPOLoss, RolloutCollector, Scalar, TrainStepMetrics, field
from eqxrl._structs import no_episodes
from eqxrl.algorithms import AbstractAlgorithm, AbstractHParams, MakeNetwork
from eqxrl.evaluators import EpisodeEvaluator
from eqxrl.nn import ActorCriticPolicy, GRUActorCritic, LRUActorCritic, observe
from eqxrl.testing._probe import probe
from eqxrl.verification import Check, Report, verify
from eqxrl.verification._advantages import AdvantageLaws
from eqxrl.verification._algorithms import AlgorithmLaws
from eqxrl.verification._behaviour import BehaviourLaws
from eqxrl.verification._collectors import CollectorLaws, EvaluatorLaws
from eqxrl.verification._laws import judged, law, laws_of
from eqxrl.verification._learners import LearnerLaws, LossLaws
from eqxrl.verification._nn import ActorCriticLaws, DistributionLaws
from eqxrl.verification._off_policy import BufferLaws, UpdateLaws


def create(kind="discrete", cls=PPO, hp=None, **parts):
    """Assembled without `create`, which refuses some of what is broken here."""
    env, params = probe(kind)
    network = {"q_network": MakeNetwork("q", dict(hidden_sizes=(8,)))} if cls is DQN else {"actor_critic": MakeNetwork("mlp", dict(hidden_sizes=(8,)))}
    return cls(env=env, env_params=params, hp=cls.HParams(**(hp or {})), parts=network | parts)


def try_law(algo, name):
    """A law of the whole algorithm, or `part: law`."""
    *part, name = name.split(": ")
    table = AlgorithmLaws(algo, jax.random.key(0))
    if part:
        table = next(laws for of, laws in table.parts() if [of] == part)
    (check,) = judged(table, lambda law: law == name)
    return check


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


class ForgetsState(PPO):
    """Each rollout starts anew."""

    def get_batch(self, ts, batch_idx):
        return ts, super().get_batch(ts, batch_idx)[1]


class NoDiscount(DQN):
    """Its targets are rewards, whatever `gamma` is."""

    def update(self, learner, batch, num_updates, key):
        end = jnp.ones_like(batch.terminated)
        return super().update(learner, dataclasses.replace(batch, terminated=end), num_updates, key)


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
class CountsTwice(PPO):
    def training_step(self, batch_idx, ts, batch):
        after, metrics = super().training_step(batch_idx, ts, batch)
        return dataclasses.replace(after, agent=observe(after.agent, batch.trajectories.obs)), metrics


class ClipsElements(PPO):
    @property
    def optimizer(self):
        return optax.chain(optax.clip(self.hp.max_grad_norm), optax.adam(self.hp.learning_rate))


class NeverClips(PPO):
    @property
    def optimizer(self):
        return optax.adam(self.hp.learning_rate)


class ClipsTooEarly(PPO):
    @property
    def optimizer(self):
        return optax.chain(optax.clip_by_global_norm(0.7 * self.hp.max_grad_norm), optax.adam(self.hp.learning_rate))


class TrainsOtherwise(PPO):
    def train(self, rng=None, train_state=None, skip_initial_evaluation=False):
        ts, metrics = super().train(rng, train_state, skip_initial_evaluation)
        return eqx.tree_at(lambda s: s.agent.critic[0].bias, ts, replace_fn=lambda x: x + 0.1), metrics


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


BROKEN = {
    "axes swapped": (
        lambda: create(advantage=broken.ADVANTAGES["axes swapped"]), "shapes at each seam", "expected"
    ),
    "as many steps as environments": (
        lambda: create(hp=dict(num_envs=8, num_steps=8), advantage=broken.after(square_only)), "shapes at each seam", "in a copy with small sizes"
    ),
    "weakly typed": (lambda: create(collector=broken.COLLECTORS["weakly typed"], learner=broken.Idle()), "shapes at each seam", "weak float32"),
    "NaN": (lambda: create(collector=broken.COLLECTORS["NaN"], learner=broken.Idle()), "no NaN", "aren't finite"),
    "clipped action": (
        lambda: create("box", collector=broken.COLLECTORS["stores clipped actions"], learner=broken.Idle()),
        "collector: log-probs and values are the policy's", "the stored action's log_prob",
    ),
    "value of the next step": (
        lambda: create(collector=broken.COLLECTORS["value of the next step"], learner=broken.Idle()), "collector: log-probs and values are the policy's", "the stored observation's value"
    ),
    "interleaves time": (
        lambda: create(collector=broken.COLLECTORS["interleaves time"], learner=broken.Idle()), "collector: steps follow one another", "another observation"
    ),
    "clipped consistently": (
        lambda: create("box", collector=broken.COLLECTORS["stores clipped actions consistently"], learner=broken.Idle()),
        "collector: actions are stored unclipped", "stored clipped",
    ),
    "no final value": (
        lambda: create(collector=broken.COLLECTORS["no final value"], learner=broken.Idle()), "collector: final values where cut off", "was expected"
    ),
    "starts over": (lambda: create(collector=broken.COLLECTORS["starts over"], learner=broken.Idle()), "collector: rollouts go on", "aren't the state's"),
    "miscounts lengths": (lambda: create(collector=broken.COLLECTORS["miscounts lengths"], learner=broken.Idle()), "collector: episodes are counted", "length"),
    "not what it claims": (
        lambda: create(advantage=broken.ADVANTAGES["not what it claims"]), "advantage: GAE", "was expected"
    ),
    "leaks": (
        lambda: create(advantage=broken.ADVANTAGES["leaks over truncation"]), "advantage: cut at episode ends", "truncated"
    ),
    "done one step late": (
        lambda: create(advantage=broken.ADVANTAGES["done one step late"]), "advantage: cut at episode ends", "what comes after"
    ),
    "no bootstrap": (
        lambda: create(advantage=broken.ADVANTAGES["no bootstrap"]), "advantage: a cut-off is bootstrapped", "makes no difference"
    ),
    "mixes environments": (
        lambda: create(advantage=broken.ADVANTAGES["mixes environments"]), "advantage: environments apart", "other environments"
    ),
    "drops a sample": (
        lambda: create(learner=broken.LEARNERS["drops a sample"]), "learner: each sample once per epoch", "left out"
    ),
    "shuffles apart": (
        lambda: create(learner=broken.LEARNERS["shuffles advantages apart"]), "learner: samples whole", "another sample's"
    ),
    "one permutation": (
        lambda: create(learner=broken.LEARNERS["one permutation"]), "learner: epochs in different orders", "in 2 different orders only"
    ),
    "learner's key stays": (lambda: create(cls=LearnerKeyStays, learner=LOOP), "keys are used once", "used twice"),
    "learner's key stays, hidden": (lambda: create(cls=ClonesLearnerKey, learner=LOOP), "keys are used once", "the same in two iterations"),
    "key twice": (lambda: create(learner=broken.LEARNERS["uses a key twice"]), "keys are used once", "_uses_key_twice"),
    "trains statistics": (
        lambda: create(hp=NORMALIZED, learner=broken.LEARNERS["trains statistics"]),
        "learner: learned", "observation statistics",
    ),
    "dead leaf": (lambda: create(learner=dead_clip()), "no dead hyperparameter", "effect: parts.learner.loss.clip_eps"),
    "dead hyperparameters": (lambda: create(cls=Forgets), "no dead hyperparameter", "effect: hp.gae_lambda, hp.num_epochs"),
    "Python float": (lambda: create(advantage=PythonFloat(0.9)), "one compile", "parts.advantage.gamma is a Python number"),
    "counts in Python": (lambda: create(cls=CountsInPython, learner=broken.Idle()), "one compile", "was traced 2 times"),
    "counts no iterations": (lambda: create(cls=ForgetsState, learner=broken.Idle()), "shapes at each seam", "num_iterations goes [0, 0"),
    "clips elements": (lambda: create(cls=ClipsElements), "gradients are clipped by their global norm", "by itself"),
    "never clips": (lambda: create(cls=NeverClips), "gradients are clipped by their global norm", "isn't clipped"),
    "clips too early": (lambda: create(cls=ClipsTooEarly), "gradients are clipped by their global norm", "below the norm"),
    "counts twice": (lambda: create(cls=CountsTwice, hp=NORMALIZED, learner=GRADIENT), "statistics counted once", "(mean, variance"),
    "one key for evaluations": (lambda: create(cls=OneEvaluationKey, learner=broken.Idle()), "evaluation changes nothing", "1 different keys"),
    "deaf evaluation": (lambda: create(cls=DeafEvaluation, learner=broken.Idle()), "evaluation changes nothing", "ignores the rng"),
    "learns from evaluation": (lambda: create(cls=LearnsFromEvaluation, learner=broken.Idle()), "evaluation changes nothing", "goes on otherwise"),
    "spends the state's key": (lambda: create(cls=SpendsStateKey, learner=broken.Idle()), "evaluation changes nothing", "the state's rng is another"),
    "trains otherwise": (lambda: create(cls=TrainsOtherwise), "train = iterations", "the policy after train"),
    "dead discount": (lambda: create(cls=NoDiscount), "no dead hyperparameter", "effect: hp.gamma"),
    "next_obs after the reset": (
        lambda: create(cls=DQN, collector=broken.TRANSITIONS["next_obs after the reset"]), "collector: next_obs is what the step led to", "where an episode ended"
    ),
    "rows mixed": (lambda: create(cls=DQN, buffer=broken.BUFFERS["rows mixed"]), "buffer: whole rows", "put together from several"),
    "counts after the end": (
        lambda: create(cls=DQN, evaluator=broken.EVALUATORS["counts after the end"]), "evaluator: episodes as played", "that the policy plays"
    ),
    "the sign": (
        lambda: create(learner=broken.Learner(learner=MinibatchLearner(broken.LOSSES["the sign"], optax.adam(1e-2), 2, 3))),
        "loss: better actions become likelier", "correlation is -",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(BROKEN))
def test_a_broken_algorithm_is_found_out(name):
    make, law, says = BROKEN[name]
    check = try_law(make(), law)
    assert check.status == "failed", check.detail
    assert says in check.detail


def test_every_law_is_tried():
    assert set(laws_of(AlgorithmLaws(create(), jax.random.key(0)))) == {law for _, law, _ in BROKEN.values() if ": " not in law}


@pytest.fixture(scope="module")
def good():
    hp = dict(normalize_observations=True, normalize_rewards=True, learning_rate=LinearSchedule(1e-3, 0.0, 100))
    return verify(create("box", hp=hp | dict(clip_eps=optax.linear_schedule(0.2, 0.1, 100))), quiet=True)


def test_ppo_holds(good, capsys):
    assert good.ok, str(good)
    assert [check.name for check in good.checks if check.status != "held"] == ["collector: next_obs is what the step led to"], str(good)
    assert "hp" not in capsys.readouterr().out
    names = {check.name: check.detail for check in good.checks}
    assert names["no dead hyperparameter"] == "21 have an effect"
    assert names["shapes at each seam"] == "7 metrics, evaluations [episodes=5], 18 updates"


ON_POLICY = dict(collector=CollectorLaws, advantage=AdvantageLaws, learner=LearnerLaws, loss=LossLaws, evaluator=EvaluatorLaws)
ON_POLICY |= {"actor-critic": ActorCriticLaws, "distribution": DistributionLaws}
OFF_POLICY = dict(collector=CollectorLaws, buffer=BufferLaws, update=UpdateLaws, behaviour=BehaviourLaws, evaluator=EvaluatorLaws)


@pytest.mark.parametrize("cls, parts", [(DQN, OFF_POLICY), pytest.param(A2C, ON_POLICY, marks=pytest.mark.slow)])
def test_the_others_hold(cls, parts):
    report = verify(create(cls=cls), quiet=True)
    assert report.ok, str(report)
    the_kits = {(part, law) for part, table in parts.items() for law in laws_of(object.__new__(table))}
    tried = {tuple(check.name.split(": ", 1)) for check in report.checks if ": " in check.name}
    assert tried == {(part, law) for part, law in the_kits if law != "jit = no jit"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LRUActorCritic, GRUActorCritic])
def test_a_memory_holds(kind):
    """It is judged by what it remembered; that it is trained as it acted is the ratio 1."""
    report = verify(create(actor_critic=kind, hp=NORMALIZED), quiet=True)
    assert report.ok, str(report)
    held = {check.name for check in report.checks if check.status == "held"}
    assert {"learner: ratio 1 before the first update", "collector: log-probs and values are the policy's"} <= held
    assert "collector: final values where cut off" in held


class ClimbHParams(AbstractHParams):
    total_timesteps: int = field(default=10_000)
    eval_freq: int = field(default=1000)
    num_seeds_per_eval: int = field(default=8)
    debug: bool = field(default=False)
    step_size: Scalar = field(default=0.1)
    num_updates = 0


class ClimbState(eqx.Module):
    agent: eqx.Module
    best: Array
    rng: Key[Array, ""]
    num_iterations: Int[Array, ""]

    @property
    def num_updates(self):
        return self.num_iterations


class Climb(AbstractAlgorithm):
    """Hill climbing: tries a random step in the policy's parameters, and keeps it if episodes aren't shorter."""

    HParams = ClimbHParams
    iteration_size: int = eqx.field(static=True, default=8 * 7)

    def init_train_state(self, rng):
        key, rng = jax.random.split(jax.random.key(rng) if isinstance(rng, int) else rng)
        agent = MakeNetwork("mlp", dict(hidden_sizes=(8,)))(self.env.observation_space(None), self.env.action_space(None), key=key)
        return ClimbState(agent, jnp.zeros(()), rng, jnp.zeros((), jnp.int32))

    def get_batch(self, ts, batch_idx):
        step_key, play_key, rng = jax.random.split(ts.rng, 3)
        leaves, treedef = jax.tree.flatten(eqx.filter(ts.agent, eqx.is_array))
        keys = jax.random.split(step_key, len(leaves))
        moved = [x + self.hp.step_size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
        agent = eqx.combine(treedef.unflatten(moved), ts.agent)
        played = EpisodeEvaluator(8)(self.env, self.env_params, ActorCriticPolicy(agent), play_key)
        return dataclasses.replace(ts, rng=rng), (agent, jnp.mean(played.cumulative_reward))

    def training_step(self, batch_idx, ts, batch):
        agent, score = batch
        if self.hp.debug:
            score = eqx.error_if(score, ~jnp.isfinite(score), "no score")
        better = score >= ts.best
        arrays = [eqx.filter(x, eqx.is_array) for x in (agent, ts.agent)]
        kept = eqx.combine(jax.tree.map(lambda a, b: jnp.where(better, a, b), *arrays), ts.agent)
        ts = ClimbState(kept, jnp.maximum(score, ts.best), ts.rng, ts.num_iterations + 1)
        return ts, TrainStepMetrics({"score": score}, no_episodes())

    def policy(self, ts):
        return ActorCriticPolicy(ts.agent)


def test_an_algorithm_of_ones_own_holds():
    env, _ = probe("discrete")
    report = verify(Climb.create(env=env), quiet=True)
    assert report.ok, str(report)
    assert {check.name.split(": ")[0] for check in report.checks if ": " in check.name} == {"evaluator"}
    stuck = eqx.tree_at(lambda algo: algo.hp.step_size, Climb.create(env=env), jnp.float32(jnp.nan))
    assert [check.name for check in verify(stuck, quiet=True).failed] == ["no NaN"]


@pytest.mark.slow
def test_a_part_that_is_passed_replaces_hyperparameters():
    check = try_law(create(learner=MinibatchLearner(PPOLoss(), optax.adam(1e-3), 2, 3)), "no dead hyperparameter")
    assert check.status == "held", check.detail
    assert "replace hp.learning_rate, hp.max_grad_norm, hp.clip_eps" in check.detail
    made = create(learner=lambda hp: MinibatchLearner(PPOLoss(), optax.adam(hp.learning_rate), hp.num_epochs, hp.num_minibatches))
    check = try_law(made, "no dead hyperparameter")
    assert check.status == "held", check.detail
    assert "replace hp.max_grad_norm, hp.clip_eps" in check.detail


class ReadsCritic(broken.AbstractLoss):
    """As it should be, but it knows what its policy is made of."""

    def __call__(self, agent, minibatch):
        loss, metrics = PPOLoss()(agent, minibatch)
        return loss + 1e-3 * jnp.sum(agent.critic[0].weight ** 2), metrics

    def at_step(self, num_updates):
        return self


def test_a_loss_may_read_the_policys_own_fields():
    """The flag `normalize_observations`, which is changed to see whether it matters, wraps the policy."""
    check = try_law(create(learner=broken.OneStep(ReadsCritic())), "no dead hyperparameter")
    assert check.status == "held", check.detail


def test_what_can_not_be_judged_is_skipped():
    class NoLoss(broken.AbstractLearner):
        def init(self, agent):
            return dead_clip().init(agent)

        def __call__(self, agent, state, rollout, key):
            return dead_clip()(agent, state, rollout, key)

    assert try_law(create(learner=NoLoss()), "learner: each sample once per epoch").detail == "NoLoss has no AbstractLoss to look through"
    assert try_law(create(learner=broken.Idle()), "collector: actions are stored unclipped").status == "skipped"
    shut = verify(create(advantage=broken.ADVANTAGES["axes swapped"], learner=broken.Idle()), quiet=True)
    assert [check.status for check in shut.checks] == ["failed"] + ["skipped"] * (len(shut.checks) - 1)


def test_the_algorithm_itself_is_left_alone():
    algo = create(collector=RolloutCollector(num_envs=4, num_steps=10), hp=dict(num_minibatches=4))
    before = jax.tree.leaves(algo)
    small = AlgorithmLaws(algo, jax.random.key(0)).small
    assert (small.collector.num_envs, small.collector.num_steps, small.hp.num_envs) == (6, 32, 6)
    assert (algo.collector.num_envs, algo.hp.num_envs, algo.hp.num_minibatches) == (4, 64, 4)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(algo)))


def test_each_line_comes_as_soon_as_its_law_was_judged(monkeypatch, capsys):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(AlgorithmLaws, "no_nan", law("no NaN", "", gate=True)(stop))
    with pytest.raises(KeyboardInterrupt):
        verify(create(learner=GRADIENT))
    assert "held     shapes at each seam" in capsys.readouterr().out


class Declares(broken.AbstractAdvantage):
    deviates = {"GAE": "it is another one's", "no such law": "a slip of the pen"}

    def __call__(self, rollout, last_value):
        return broken.ADVANTAGES["leaks over truncation"](rollout, last_value)


def test_what_is_declared_is_neither_held_nor_failed():
    checks = {check.name: check for check in judged(LAWS["ADVANTAGES"](Declares()))}
    assert checks["cut at episode ends"].status == "failed" and checks["declared deviations"].status == "failed"
    assert "no law 'no such law'; there are: shapes, GAE" in checks["declared deviations"].detail
    checks = {check.name: check for check in judged(LAWS["ADVANTAGES"](Forgives()))}
    assert checks["cut at episode ends"].status == "declared" and "credit flows on (advantages up to" in str(checks["cut at episode ends"])
    assert checks["environments apart"].detail == "none (but here it holds)"
    assert not Report("mine", tuple(checks.values())).failed


class Forgives(broken.AbstractAdvantage):
    deviates = {"cut at episode ends": "credit flows on", "environments apart": "none"}

    def __call__(self, rollout, last_value):
        return broken.ADVANTAGES["leaks over truncation"](rollout, last_value)


def test_table(capsys):
    held = Check("one", "held", "seen [4]", "here")
    print(Report("PPO on Nowhere", (held,)))
    out = capsys.readouterr().out
    assert "PPO on Nowhere" in out and "held" in out and "seen [4]" in out and "look at" not in out
    report = Report("PPO on Nowhere", (held, Check("two", "failed", "broken", "there"), Check("three", "skipped", "no", "")))
    print(report)
    out = capsys.readouterr().out
    assert "there" in out and "broken" in out and "skipped" in out
    assert not report.ok and [check.name for check in report.failed] == ["two"]
    assert str(report).splitlines()[2] == "  failed   two: broken"


@pytest.mark.slow
@pytest.mark.parametrize("cls, env_id", [(PPO, "CartPole-v1"), (PPO, "Pendulum-v1"), (A2C, "CartPole-v1"), (DQN, "CartPole-v1")])
def test_gymnax_environments(cls, env_id, capsys):
    report = verify(cls.create(env_id))
    assert report.ok, str(report)
    assert "evaluations [episodes=5]" in capsys.readouterr().out
