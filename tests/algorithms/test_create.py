"""`create`: parts as instances or functions of the hyperparameters, and what it refuses before anything is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import quick_jit, same, small, tiny

from eqxrl import (
    A2C,
    DQN,
    GAE,
    PPO,
    AbstractAdvantage,
    AbstractEvaluator,
    AbstractLoss,
    DQNHParams,
    MinibatchLearner,
    PPOHParams,
    PPOLoss,
    RolloutCollector,
    ShapeError,
    UniformBuffer,
)

HP = PPOHParams(num_envs=3, num_steps=8, num_epochs=2, num_minibatches=4, num_seeds_per_eval=2)


def create(**arguments):
    return PPO.create("CartPole-v1", **{"hp": HP, "actor_critic": small, **arguments})


def step(ppo):
    return quick_jit(lambda p, key: p.iteration(p.init_train_state(key), 0)[0])(ppo, jax.random.key(0))


def test_a_part_may_be_a_function_of_the_hyperparameters():
    """It follows them when they are changed; an instance doesn't."""
    by_function, by_instance = create(advantage=lambda hp: GAE(gamma=hp.gamma, gae_lambda=0.5)), create(advantage=GAE(0.99, 0.5))
    same(step(by_function), step(by_instance), rtol=1e-5, atol=1e-6)
    changed = [eqx.tree_at(lambda p: p.hp.gamma, p, jnp.float32(0.5)) for p in (by_function, by_instance)]
    assert [float(p.advantage.gamma) for p in changed] == [0.5, jnp.float32(0.99)]
    assert PPO.part_names() == ("evaluator", "actor_critic", "collector", "advantage", "loss", "optimizer", "learner")
    assert DQN.part_names() == ("evaluator", "collector", "buffer", "q_network", "optimizer", "target_update")
    assert set(A2C.part_names()) == set(PPO.part_names())


def test_loss_and_optimizer_alone():
    ppo = create(loss=lambda hp: PPOLoss(clip_eps=0.05, vf_coef=hp.vf_coef), optimizer=optax.sgd(0.1))
    assert isinstance(ppo.learner, MinibatchLearner) and float(ppo.learner.loss.clip_eps) == jnp.float32(0.05)
    default = step(create())
    assert not eqx.tree_equal(step(ppo).agent, default.agent)
    assert jax.tree.leaves(step(ppo).learner_state.opt_state) == []  # sgd keeps nothing


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(advantge=GAE()), TypeError, "unknown argument 'advantge'; did you mean advantage?"),
        (dict(buffer=UniformBuffer(4, 2)), TypeError, "unknown argument 'buffer'; its parts are evaluator, actor_critic"),
        (dict(advantage=lambda hp: 3), TypeError, "advantage was passed as a function, which returned int; it must return an"),
        (dict(learner=lambda hp: GAE()), TypeError, "learner was passed as a function, which returned GAE"),
        (dict(collector=RolloutCollector(4, 8)), ValueError, "collector has num_envs=4, but hp has num_envs=3.*lambda hp: Roll"),
        (dict(loss=PPOLoss(), learner=MinibatchLearner(PPOLoss(), optax.sgd(0.1), 2, 4)), ValueError, "loss was passed, but isn't used"),
        (dict(hp=DQNHParams()), TypeError, "hp must be PPOHParams, got DQNHParams"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_what_does_not_fit_is_refused(arguments, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        create(**arguments)


@pytest.mark.parametrize(
    "hp, part",
    [
        (dict(gae_lambda=0.5), dict(advantage=GAE())),
        (dict(gamma=0.9), dict(advantage=GAE())),
        (dict(learning_rate=1e-2), dict(optimizer=optax.sgd(0.1))),
        (dict(learning_rate=optax.constant_schedule(0.1)), dict(optimizer=optax.sgd(0.1))),
        (dict(clip_value=False), dict(loss=PPOLoss())),
        (dict(max_grad_norm=0.5), dict(learner=MinibatchLearner(PPOLoss(), optax.sgd(0.1), 2, 4))),
    ],
    ids=lambda x: next(iter(x)),
)
def test_a_hyperparameter_that_was_set_and_that_no_part_reads(hp, part):
    """It would silently change nothing."""
    sizes = dict(num_envs=3, num_steps=8, num_epochs=2, num_minibatches=4, num_seeds_per_eval=2)
    name, passed = next(iter(hp)), next(iter(part))
    with pytest.raises(ValueError, match=rf"hp.{name} was set, but no part reads it.*passed: actor_critic, {passed}|passed: .*{passed}"):
        create(hp=PPOHParams(**sizes, **hp), **part)
    create(hp=PPOHParams(**sizes, **hp))
    create(hp=PPOHParams(**sizes), **part)


class Odd(AbstractAdvantage):
    def __call__(self, rollout, last_value):
        return rollout.trajectories.reward[0], rollout.trajectories.reward


class OddLoss(AbstractLoss):
    returned: object = eqx.field(static=True)

    def __call__(self, agent, minibatch):
        return self.returned(minibatch.advantages)

    def at_step(self, num_updates):
        return self


class OddEvaluator(AbstractEvaluator):
    def __call__(self, env, env_params, policy, key):
        return 1.0


@pytest.mark.parametrize(
    "part, error, words",
    [
        (dict(advantage=Odd()), ShapeError, "Odd returned Estimate.advantages = float32.3., but float.steps=8 envs=3. was expected"),
        (dict(loss=OddLoss(lambda a: a.mean())), TypeError, "OddLoss returned .*return .loss, metrics."),
        (dict(loss=OddLoss(lambda a: (a, {}))), TypeError, "OddLoss returned float32.6. for the loss; return a float scalar"),
        (dict(loss=OddLoss(lambda a: (a.mean(), {"x": a}))), TypeError, "OddLoss returned float32.6. for x"),
        (dict(evaluator=OddEvaluator()), ShapeError, "OddEvaluator returned float, but must return EvalMetrics"),
    ],
    ids=["advantage", "no metrics", "no scalar", "no scalar metric", "evaluator"],
)
def test_every_wrong_part_is_named_by_create(part, error, words):
    with pytest.raises(error, match=words):
        create(**part)


TRACES = []


class Counting(AbstractAdvantage):
    def __call__(self, rollout, last_value):
        TRACES.append(1)
        return GAE()(rollout, last_value)


def test_equal_algorithms_are_traced_once():
    create(advantage=Counting())
    once = len(TRACES)
    for learning_rate in (1e-3, 1e-2):
        create(hp=eqx.tree_at(lambda hp: hp.learning_rate, HP, jnp.float32(learning_rate)), advantage=Counting())
    assert len(TRACES) == once > 0


def test_seeds_and_keys_and_both_arguments():
    ppo = tiny(total_timesteps=24, eval_freq=24)
    same(ppo.init_train_state(3), ppo.init_train_state(jax.random.key(3)))
    state, _ = ppo.train(3)
    same(ppo.train(jax.random.key(9), train_state=state)[0], ppo.train(train_state=state)[0])  # the state's own key counts


def test_an_environment_given_as_make_returns_it():
    import eqxrl

    with pytest.raises(TypeError, match="env=env, env_params="):
        PPO.create(env=eqxrl.make("CartPole-v1"))
