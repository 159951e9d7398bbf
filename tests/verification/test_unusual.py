"""Parts that are unusual and right: no law may be broken by them, unless they say in `deviates` that they break it on purpose."""

import dataclasses
from collections.abc import Callable

import broken_parts as broken
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from broken_parts import after, of_rollout, of_transitions
from helpers import sampled
from laws import LAWS, judged_by

from eqxrl import DQN, GAE, SAC, TD3, EpisodeEvaluator, MinibatchLearner, PPOLoss, RolloutCollector, TransitionCollector, UniformBuffer
from eqxrl._typing import Scalar, field
from eqxrl.advantages import next_values
from eqxrl.algorithms import MakeNetwork, MakePart
from eqxrl.collectors import RewardScaling
from eqxrl.envs import ResetFromPool, ResetWhenDone
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.learners import Periodic, flatten, gradient_update, init_learner_state
from eqxrl.losses import AbstractLoss, ActorCriticLoss, Mean, TruncatedQuantiles
from eqxrl.nn import AbstractActorCritic, AbstractDistribution, Categorical, DiagGaussian, evaluate
from eqxrl.verification._laws import laws_of

# Collectors: what they make of rewards, and how environments are reset.


def shaped(t, *_):
    """By a potential: the distance from the origin."""
    potential = jnp.sum(jnp.abs(t.obs), axis=-1)
    following = jnp.where(t.done, 0.0, jnp.concatenate([potential[1:], potential[-1:]]))
    return t.reward + 0.3 * (0.99 * following - potential)


COLLECTORS = {
    "rewards clipped": of_rollout(reward=lambda t, *_: jnp.clip(t.reward, -0.5, 0.5)),
    "rewards clipped to [0, 1]": of_rollout(reward=lambda t, *_: jnp.clip(t.reward, 0, 1)),
    "rewards scaled": of_rollout(reward=lambda t, *_: 0.1 * t.reward),
    "rewards less a price of each step": of_rollout(reward=lambda t, *_: t.reward - 0.05),
    "signs of rewards": of_rollout(reward=lambda t, *_: jnp.sign(t.reward)),
    "logarithms of rewards": of_rollout(reward=lambda t, *_: jnp.sign(t.reward) * jnp.log1p(jnp.abs(t.reward))),
    "rewards shaped by a potential": of_rollout(reward=shaped),
    "rewards scaled by running statistics": RolloutCollector(4, 11, reward_scaling=RewardScaling()),
    "resets from a pool": RolloutCollector(4, 11, stepper=ResetFromPool(8)),
    "one environment": RolloutCollector(1, 40),
    "one step": RolloutCollector(6, 1),
}
TRANSITIONS = {
    "signs of rewards, stored": of_transitions(reward=lambda t, state: jnp.sign(t.reward)),
    "resets from a pool, stored": TransitionCollector(4, 11, ResetFromPool(8)),
}

# Advantages


def monte_carlo(rollout, last_value):
    """Returns to the end of the episode; bootstrapped where it was cut off, by the limit or by the end of the rollout."""
    return GAE(gamma=0.9, gae_lambda=1.0)(rollout, last_value)


def plain_returns(rollout, last_value):
    t = rollout.trajectories
    return broken.recursion(t.reward - 0.0 * t.value, jnp.where(t.done, 0.0, 0.9), jnp.zeros_like(t.value))


def n_step(rollout, last_value, n=3):
    t = rollout.trajectories
    follows = next_values(t, last_value)
    targets = t.reward + 0.9 * follows
    for _ in range(n - 1):
        later = jnp.concatenate([targets[1:], last_value[None]])
        targets = t.reward + 0.9 * jnp.where(t.done, follows, later)
    return targets - t.value, targets


class Returns(broken.AbstractAdvantage):
    deviates = {"a cut-off is bootstrapped": "every episode is played to its end, so none is cut off"}

    def __call__(self, rollout, last_value):
        return plain_returns(rollout, last_value)


class Standardised(broken.AbstractAdvantage):
    deviates = dict.fromkeys(("environments apart", "cut at episode ends"), "advantages are standardised over the whole rollout")

    def __call__(self, rollout, last_value):
        advantages, targets = GAE()(rollout, last_value)
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8), targets


class AcrossLives(broken.AbstractAdvantage):
    deviates = {"cut at episode ends": "lets credit flow across lives"}

    def __call__(self, rollout, last_value):
        return broken.gae(cut=lambda t: t.done & False)(rollout, last_value)


ADVANTAGES = {
    "Monte Carlo": broken.Advantage(monte_carlo),
    "n steps": broken.Advantage(n_step),
    "one step": after(lambda a, g, r: (r.trajectories.reward + 0.9 * next_values(r.trajectories, jnp.zeros(4)) - r.trajectories.value, g)),
    "rewards alone": Returns(),
    "standardised": Standardised(),
    "across lives": AcrossLives(),
}

# Losses


class Other(AbstractLoss):
    """`terms(distribution, value, minibatch) -> loss`"""

    terms: Callable = eqx.field(static=True)

    def __call__(self, agent, minibatch):
        return self.terms(*evaluate(agent, minibatch), minibatch), {}

    def at_step(self, num_updates):
        return self


def log_ratio(d, m):
    return d.log_prob(m.trajectories.action) - m.trajectories.log_prob


def unclipped(d, value, m):
    return -jnp.mean(jnp.exp(log_ratio(d, m)) * m.advantages)


def with_penalty(d, value, m):
    r = log_ratio(d, m)
    return unclipped(d, value, m) + 0.5 * jnp.mean(jnp.exp(r) - 1 - r) + 0.5 * jnp.mean((value - m.targets) ** 2)


def with_huber(d, value, m):
    return unclipped(d, value, m) + jnp.mean(optax.losses.huber_loss(value, m.targets)) - 0.01 * jnp.mean(d.entropy())


def weighted(d, value, m):
    """Advantage-weighted regression, Peng et al. 2019."""
    weights = jax.lax.stop_gradient(jnp.minimum(jnp.exp(m.advantages), 20.0))
    return -jnp.mean(weights * d.log_prob(m.trajectories.action)) + jnp.mean(jnp.abs(value - m.targets))


class TwiceClipped(AbstractLoss):
    """Ye et al. 2020: below, too, where the advantage is negative."""

    clip_eps: Scalar = field(default=0.2)

    def __call__(self, agent, minibatch):
        d, value = evaluate(agent, minibatch)
        r, a = jnp.exp(log_ratio(d, minibatch)), minibatch.advantages
        gain = jnp.minimum(r * a, jnp.clip(r, 1 - self.clip_eps, 1 + self.clip_eps) * a)
        gain = jnp.where(a < 0, jnp.maximum(gain, 3 * a), gain)
        return -jnp.mean(gain) + jnp.mean((value - minibatch.targets) ** 2), {}

    def at_step(self, num_updates):
        return self


class KLPenalty(AbstractLoss):
    inner: PPOLoss = PPOLoss(clip_value=False)

    def __call__(self, agent, minibatch):
        loss, metrics = self.inner(agent, minibatch)
        return loss + 0.2 * metrics["approx_kl"], metrics

    def at_step(self, num_updates):
        return KLPenalty(self.inner.at_step(num_updates))


class SmallWeights(AbstractLoss):
    """It knows what its policy is made of."""

    def __call__(self, agent, minibatch):
        loss, metrics = PPOLoss()(agent, minibatch)
        inner = getattr(agent, "actor_critic", agent)
        return loss + 1e-3 * jnp.sum(inner.critic[0].weight ** 2), metrics

    def at_step(self, num_updates):
        return self


LOSSES = {
    "without an entropy bonus": PPOLoss(ent_coef=0.0),
    "a wide clip range": PPOLoss(clip_eps=0.5),
    "a narrow clip range": PPOLoss(clip_eps=0.05, clip_value=False),
    "a schedule": PPOLoss(clip_eps=optax.linear_schedule(0.3, 0.1, 10)),
    "policy gradient": Other(lambda d, value, m: -jnp.mean(d.log_prob(m.trajectories.action) * m.advantages)),
    "no standardising, no clipping": Other(unclipped),
    "a KL penalty": Other(with_penalty),
    "a KL penalty beside clipping": KLPenalty(),
    "a Huber loss for values": Other(with_huber),
    "advantage-weighted regression": Other(weighted),
    "clipped twice": TwiceClipped(),
    "A2C with a large bonus": ActorCriticLoss(ent_coef=1.0),
    "reads agent.critic": SmallWeights(),
}

# Learners


def minibatches(optimizer, epochs=2, count=3, loss=None, **options):
    return MinibatchLearner(PPOLoss() if loss is None else loss, optimizer, epochs, count, **options)


class StopsAtKL(broken.AbstractLearner):
    """No further epoch once the policy has moved too far."""

    inner: MinibatchLearner = minibatches(optax.adam(1e-2), epochs=1)
    num_minibatches: int = eqx.field(static=True, default=3)
    max_kl: float = eqx.field(static=True, default=1e-3)

    def init(self, agent):
        return self.inner.init(agent)

    def __call__(self, agent, state, rollout, key):
        arrays, static = eqx.partition(agent, eqx.is_array)

        def epoch(carry):
            i, arrays, state, _ = carry
            new, state, metrics = self.inner(eqx.combine(arrays, static), state, rollout, jax.random.fold_in(key, i))
            return i + 1, eqx.filter(new, eqx.is_array), state, metrics

        first = epoch((jnp.int32(0), arrays, state, None))
        goes_on = lambda carry: (carry[0] < 4) & (carry[3]["approx_kl"] < self.max_kl)  # noqa: E731
        _, arrays, state, metrics = jax.lax.while_loop(goes_on, epoch, first)
        return eqx.combine(arrays, static), state, metrics


class FrozenCritic(broken.AbstractLearner):
    deviates = {"learned": "the critic is another run's, and stays"}
    loss: AbstractLoss = PPOLoss()
    num_minibatches: int = eqx.field(static=True, default=1)

    def init(self, agent):
        return init_learner_state(optax.adam(1e-2), agent)

    def __call__(self, agent, state, rollout, key):
        new, state, metrics = gradient_update(self.loss, optax.adam(1e-2), agent, state, flatten(rollout))
        return eqx.tree_at(lambda a: a.actor_critic.critic, new, agent.actor_critic.critic), state, metrics


class DecaysCritic(broken.AbstractLearner):
    """It reads the critic, and shrinks it by itself."""

    inner: MinibatchLearner = minibatches(optax.adam(1e-2))
    num_minibatches: int = eqx.field(static=True, default=3)

    def init(self, agent):
        return self.inner.init(agent)

    def __call__(self, agent, state, rollout, key):
        agent, state, metrics = self.inner(agent, state, rollout, key)
        where = lambda a: getattr(a, "actor_critic", a).critic[0].weight  # noqa: E731
        return eqx.tree_at(where, agent, replace_fn=lambda x: 0.999 * x), state, metrics


LEARNERS = {
    "stops at a KL": StopsAtKL(),
    "a frozen critic": FrozenCritic(),
    "reads agent.critic": DecaysCritic(),
    "minibatches of one sample": minibatches(optax.adam(1e-3), epochs=1, count=24),
    "tiny minibatches": minibatches(optax.adam(1e-3), epochs=1, count=12),
    "the whole rollout at once": minibatches(optax.adam(1e-3), epochs=3, count=1),
    "JAX's permutation": minibatches(optax.adam(1e-3), permutation=jax.random.permutation),
    "gradient descent": minibatches(optax.sgd(1e-2)),
    "momentum": minibatches(optax.sgd(1e-2, momentum=0.9)),
    "Lion": minibatches(optax.lion(1e-4)),
    "weight decay": minibatches(optax.adamw(1e-3)),
    "an update of two minibatches": minibatches(optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation()),
    "a schedule of the learning rate": minibatches(optax.adam(optax.linear_schedule(1e-3, 0.0, 100))),
    "clipped and scaled by a constant": minibatches(optax.chain(optax.clip(1.0), optax.scale(-1e-2))),
}

# Evaluators


class WithoutTheWorst(AbstractEvaluator):
    inner: EpisodeEvaluator = EpisodeEvaluator(20)

    def __call__(self, env, env_params, policy, key):
        metrics = self.inner(env, env_params, policy, key)
        order = jnp.argsort(metrics.cumulative_reward)[metrics.cumulative_reward.size // 10 :]
        return jax.tree.map(lambda x: x[order], metrics)


class Best(AbstractEvaluator):
    deviates = {"neither picked nor repeated": "it reports the best of five on purpose"}
    inner: EpisodeEvaluator = EpisodeEvaluator(5)

    def __call__(self, env, env_params, policy, key):
        metrics = self.inner(env, env_params, policy, key)
        best = jnp.argmax(metrics.cumulative_reward)
        return jax.tree.map(lambda x: x[best][None], metrics)


EVALUATORS = {
    "another number of episodes": EpisodeEvaluator(13),
    "one episode": EpisodeEvaluator(1),
    "without the worst": WithoutTheWorst(),
    "the best, declared": Best(),
    "actions are drawn": EpisodeEvaluator(6, deterministic=False),
    "a shorter limit": EpisodeEvaluator(6, max_steps=4),
    "resets from a pool": EpisodeEvaluator(6, stepper=ResetFromPool(8)),
    "resets when done": EpisodeEvaluator(6, stepper=ResetWhenDone()),
}

# Networks, distributions


class Net(AbstractActorCritic):
    """Layers that serve policy and critic both, and a head for each."""

    torso: tuple
    policy: eqx.nn.Linear
    value: eqx.nn.Linear
    shape: tuple = eqx.field(static=True)

    def __call__(self, obs, carry):
        x = obs.reshape(self.shape)
        for layer in self.torso:
            x = layer(x)
        x = jax.nn.tanh(x.reshape(-1))
        return Categorical(self.policy(x)), self.value(x)[0], carry

    def initial_carry(self):
        return ()


def net(*torso, size, shape=(3,)):
    keys = jax.random.split(jax.random.key(1))
    return Net(torso, eqx.nn.Linear(size, 3, key=keys[0]), eqx.nn.Linear(size, 1, key=keys[1]), shape)


def layer(kind, *args, **options):
    return kind(*args, **options, key=jax.random.key(2))


class Squashed(AbstractDistribution):
    """A normal, squashed to ±1."""

    normal: DiagGaussian

    def sample(self, key):
        return jnp.tanh(self.normal.sample(key))

    def log_prob(self, action):
        action = jnp.clip(action, -1 + 1e-6, 1 - 1e-6)
        return self.normal.log_prob(jnp.arctanh(action)) - jnp.sum(jnp.log1p(-(action**2)), axis=-1)

    def entropy(self):
        """By quadrature over the normal."""
        z = jnp.linspace(-6.0, 6.0, 401)
        weights = jnp.exp(-0.5 * z**2) / jnp.sum(jnp.exp(-0.5 * z**2))
        at = jnp.tanh(self.normal.mean[0] + jnp.exp(self.normal.log_std)[0] * z)
        return self.normal.entropy() + jnp.sum(weights * jnp.log1p(-jnp.clip(at**2, 0, 1 - 1e-6)))

    def mode(self):
        """Narrow ones have it close to the mean's image."""
        grid = jnp.linspace(-0.999, 0.999, 2001)
        one = jax.vmap(lambda a: Squashed(self.normal).log_prob(a[None]))(grid)
        return grid[jnp.argmax(one)][None]


POLICIES = {
    "layer norm": net(layer(eqx.nn.Linear, 3, 8), eqx.nn.LayerNorm(8), size=8),
    "a shared torso": net(layer(eqx.nn.Linear, 3, 8), eqx.nn.Lambda(jax.nn.relu), layer(eqx.nn.Linear, 8, 6), size=6),
    "convolutions": net(layer(eqx.nn.Conv1d, 1, 4, 2), eqx.nn.Lambda(jax.nn.relu), size=8, shape=(1, 3)),
    "a GRU that sees one step": net(eqx.nn.Lambda(lambda x: x / (1 + jnp.abs(x))), size=3),
}
DISTRIBUTIONS = {
    "a squashed normal": Squashed(DiagGaussian(jnp.array([0.3]), jnp.array([-0.7]), (1,))),
    "an action that is masked": Categorical(jnp.array([0.5, -1e9, 0.3])),
    "a certain action": Categorical(jnp.array([50.0, 0.0])),
    "a narrow normal": DiagGaussian(jnp.array([3.0, -2.0]), jnp.array([-4.0, -5.0]), (2,)),
    "many dimensions": DiagGaussian(jnp.zeros(12), jnp.zeros(12), (12,)),
    "a batch": DiagGaussian(jnp.zeros((3, 2)), jnp.full((3, 2), 0.4), (2,)),
}

# Buffers


def no_repeats(buffer, state, key):
    """Each row at most once in a batch, as far as there are so many."""
    order = jnp.argsort(jnp.where(jnp.arange(20) < state.size, jax.random.uniform(key, (20,)), 2.0))
    return broken._draw(state, order[jnp.arange(16) % jnp.minimum(state.size, 16)])


BUFFERS = {
    "without replacement": broken.Buffer(change_sample=no_repeats),
    "a batch that is larger than the buffer": UniformBuffer(12, 40),
    "one row at a time": UniformBuffer(30, 1),
}


class SlowTarget(DQN):
    """A moving average in the place of copies."""

    def update(self, learner, batch, num_updates, key):
        new, errors, metrics = DQN.update(self, learner, batch, jnp.int32(1), key)
        slow = jax.tree.map(lambda t, q: t + 0.01 * (q - t) if eqx.is_inexact_array(q) else t, learner.target, new.q)
        return dataclasses.replace(new, target=slow), errors, metrics


class OneAfterTheOther(SAC):
    """The critics step first, then the actor by these, and the temperature last."""

    def update(self, learner, batch, num_updates, key):
        first, errors, metrics = SAC.update(self, learner, batch, num_updates, key)
        then, _, _ = SAC.update(self, dataclasses.replace(learner, critics=first.critics), batch, num_updates, jax.random.fold_in(key, 1))
        return dataclasses.replace(first, actor=then.actor), errors, metrics


class Dropped(SAC):
    """Targets are those of one critic, drawn anew each time."""

    def update(self, learner, batch, num_updates, key):
        i = jax.random.randint(jax.random.fold_in(key, 1), (), 0, self.hp.num_critics)
        target = jax.tree.map(lambda x: jnp.repeat(x[i][None], len(x), axis=0) if eqx.is_array(x) else x, learner.target)
        after, *more = SAC.update(self, dataclasses.replace(learner, target=target), batch, num_updates, key)
        target = self.target_update(learner.target, after.critics, num_updates)
        return dataclasses.replace(after, target=target), *more


class FirstCritic(TD3):
    """The actor aims for the first critic alone, as in the paper."""

    def update(self, learner, batch, num_updates, key):
        after, *more = TD3.update(self, learner, batch, num_updates, key)
        first = jax.tree.map(lambda x: jnp.repeat(x[:1], len(x), axis=0) if eqx.is_array(x) else x, after.critics)
        actor = TD3.update(self, dataclasses.replace(learner, critics=first), batch, num_updates, jax.random.fold_in(key, 1))[0].actor
        return dataclasses.replace(after, actor=actor), *more


BOX, TQC = dict(kind="box"), dict(kind="box", parts=dict(reduction=TruncatedQuantiles(7, 2)))
NETWORK = dict(hidden_sizes=(8,), quantiles=5)
NOISY = dict(q_network=MakeNetwork("q", NETWORK | dict(dueling=True, noisy=True)), buffer=MakePart("prioritized"))
RAINBOW = dict(hp=dict(n_step=3, epsilon_start=0.0, epsilon_end=0.0), parts=NOISY)
CRITICS = {
    "SAC": (SAC, BOX),
    "discrete SAC": (SAC, {}),
    "SAC, without learning the temperature": (SAC, BOX | dict(hp=dict(learn_temperature=False))),
    "SAC, copies at times": (SAC, BOX | dict(parts=dict(target_update=Periodic(3)))),
    "SAC, the mean of three critics": (SAC, BOX | dict(hp=dict(num_critics=3), parts=dict(reduction=Mean()))),
    "SAC, one after the other": (OneAfterTheOther, BOX),
    "SAC, a critic at random": (Dropped, BOX),
    "TQC": (SAC, TQC),
    "TD3": (TD3, BOX),
    "TD3, copies at times": (TD3, BOX | dict(parts=dict(target_update=Periodic(3)), hp=dict(policy_delay=3))),
    "TD3, the first critic": (FirstCritic, BOX),
    "QR-DQN": (DQN, dict(parts=dict(q_network=MakeNetwork("q", NETWORK)))),
    "rainbow": (DQN, RAINBOW),
}
BEHAVIOURS = {name: CRITICS[name] for name in ("SAC", "discrete SAC", "TQC", "TD3", "QR-DQN", "rainbow")} | {"DQN": (DQN, {})}
UPDATES = {"double": (DQN, {}), "an averaged target": (SlowTarget, {})}

FAMILIES = dict(
    COLLECTORS=COLLECTORS, TRANSITIONS=TRANSITIONS, ADVANTAGES=ADVANTAGES, LOSSES=LOSSES, LEARNERS=LEARNERS, EVALUATORS=EVALUATORS,
    POLICIES=POLICIES, DISTRIBUTIONS=DISTRIBUTIONS, BUFFERS=BUFFERS, UPDATES=UPDATES,
    CRITICS=CRITICS, BEHAVIOURS=BEHAVIOURS,
)  # fmt: skip
UNUSUAL = [(family, what) for family, parts in FAMILIES.items() for what in parts]


@pytest.mark.parametrize("family, what", sampled(UNUSUAL, every=8), ids=str)
def test_no_false_alarm(family, what):
    part = FAMILIES[family][what]
    checks = {check.name: check for check in judged_by(family, part)}
    assert [str(check) for check in checks.values() if check.status == "failed"] == []
    assert checks.keys() == laws_of(LAWS[family](part)).keys()
    assert sum(check.status == "held" for check in checks.values()) >= 5
    declared = {name for name, check in checks.items() if check.status == "declared"}
    assert declared == set(getattr(type(part), "deviates", {}))
