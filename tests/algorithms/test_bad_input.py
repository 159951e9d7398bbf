"""What doesn't fit is refused before anything compiles, and the message says what came, why it's wrong and what to pass."""

import dataclasses
import os
import re
import subprocess
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from gymnax.environments import spaces
from helpers import small, tiny, with_parts

from eqxrl import (
    GAE,
    PPO,
    AbstractAdvantage,
    AbstractLearner,
    EpisodeEvaluator,
    EvalMetrics,
    MinibatchLearner,
    PPOHParams,
    PPOLoss,
    RolloutCollector,
    ShapeError,
)
from eqxrl.collectors import RewardScaling
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.losses import ActorCriticLoss
from eqxrl.nn import AbstractActorCritic, Categorical


def raises(error, *parts):
    """The message holds all of these."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts))


# Hyperparameters


def test_minibatches_that_do_not_divide():
    with raises(ValueError, "num_envs * num_steps (512) must be divisible by num_minibatches (5); remainder 2"):
        PPOHParams(num_envs=8, num_steps=64, num_minibatches=5)


@pytest.mark.parametrize(
    "name",
    ["num_epochs", "num_envs", "num_steps", "num_minibatches", "num_seeds_per_eval", "eval_freq", "total_timesteps"],
)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_1(name, value):
    with raises(ValueError, f"PPOHParams.{name} must be at least 1, got {value}"):
        PPOHParams(**{name: value})
    with raises(ValueError, f"PPOHParams.{name} must be at least 1"):
        dataclasses.replace(PPOHParams(), **{name: value})


@pytest.mark.parametrize("name", ["num_envs", "total_timesteps"])
@pytest.mark.parametrize("value", [8.0, "8", None, True])
def test_sizes_that_are_no_integers(name, value):
    with raises(TypeError, name):
        PPOHParams(**{name: value})


@pytest.mark.parametrize(
    "name, value, interval",
    [
        ("gamma", 1.01, "[0.0, 1.0]"),
        ("gamma", -0.1, "[0.0, 1.0]"),
        ("gae_lambda", 1.5, "[0.0, 1.0]"),
        ("gae_lambda", -1.0, "[0.0, 1.0]"),
        ("learning_rate", -1e-3, "[0.0, inf]"),
        ("clip_eps", -0.2, "[0.0, inf]"),
        ("max_grad_norm", -0.5, "[0.0, inf]"),
        ("gamma", float("nan"), "[0.0, 1.0]"),
        ("learning_rate", float("nan"), "[0.0, inf]"),
        ("vf_coef", float("nan"), "[0.0, inf]"),
        ("vf_coef", -0.5, "[0.0, inf]"),
        ("ent_coef", -1.0, "[0.0, inf]"),
        ("ent_coef", float("nan"), "[0.0, inf]"),
    ],
)
def test_floats_out_of_range(name, value, interval):
    for given in (value, np.float32(value), jnp.array(value)):
        with raises(ValueError, f"PPOHParams.{name} must be in {interval}, got {value:g}"):
            PPOHParams(**{name: given})
        with raises(ValueError, f"PPOHParams.{name} must be in {interval}, got {value:g}"):
            dataclasses.replace(PPOHParams(), **{name: given})


@pytest.mark.parametrize("name", ["learning_rate", "gamma", "max_grad_norm", "gae_lambda", "clip_eps", "vf_coef", "ent_coef"])
def test_a_hyperparameter_is_one_number(name):
    """Several of them are swept with vmap; as one array they would be taken for one value for each environment."""
    for several in (jnp.array([0.5, 0.25]), np.array([0.5]), jnp.zeros((2, 3))):
        with raises(ShapeError, f"PPOHParams.{name} must be one number, got float", "vmap over them"):
            PPOHParams(**{name: several})
    swept = eqx.filter_vmap(lambda x: getattr(PPOHParams(**{name: x}), name))(jnp.array([0.5, 0.25]))
    np.testing.assert_array_equal(swept, [0.5, 0.25])


@pytest.mark.parametrize(
    "part, name",
    [
        (GAE, "gamma"),
        (GAE, "gae_lambda"),
        (RewardScaling, "gamma"),
        (RewardScaling, "clip"),
        (RewardScaling, "epsilon"),
        (PPOLoss, "clip_eps"),
        (PPOLoss, "vf_coef"),
        (PPOLoss, "ent_coef"),
        (ActorCriticLoss, "vf_coef"),
        (ActorCriticLoss, "ent_coef"),
    ],
)
def test_a_parts_number_is_one_number(part, name):
    """A number for each environment would broadcast over steps or samples, wherever the sizes happen to fit."""
    with raises(ShapeError, f"{part.__name__}.{name} must be one number, got float32[3]"):
        part(**{name: jnp.ones(3)})
    with raises(ValueError, f"{part.__name__}.{name} must be in", "got nan"):
        part(**{name: float("nan")})


def test_good_values_of_any_kind():
    for value in (1, 1.0, np.float64(1), np.array(1, np.float32), jnp.array(1.0), True):
        gamma = PPOHParams(gamma=value).gamma
        assert gamma.dtype == jnp.float32 and gamma.shape == () and not gamma.weak_type and gamma == 1


# What PPO.create is given


def test_create_needs_one_environment():
    for arguments in ({}, dict(env_id="CartPole-v1", env=probe_envs.VALUE)):
        with raises(ValueError, "pass either env_id"):
            PPO.create(**arguments)


def test_unknown_environment():
    with raises(ValueError, "CartPole-v7", "CartPole-v1"):
        PPO.create("CartPole-v7")


def test_a_part_in_the_wrong_place():
    """As a user is told, whose functions are not type-checked: here that check would come first."""
    made, makes = "or a function of the hyperparameters", "or what makes one: (observation_space, action_space, *, key)"
    cases = {
        "PPO.create(GAE())": "env_id must be the name of an environment, such as 'CartPole-v1', got GAE",
        "PPO.create('CartPole-v1', advantage=collector)": f"advantage must be an AbstractAdvantage, {made}; got RolloutCollector",
        "PPO.create('CartPole-v1', learner=GAE())": f"learner must be an AbstractLearner, {made}; got GAE",
        "PPO.create('CartPole-v1', loss=GAE())": f"loss must be an AbstractLoss, {made}; got GAE",
        "PPO.create('CartPole-v1', optimizer=GAE())": f"optimizer must be an GradientTransformation, {made}; got GAE",
        "PPO.create('CartPole-v1', collector=RolloutCollector)": f"collector must be an AbstractCollector, {made}; got RolloutCollector",
        "PPO.create('CartPole-v1', evaluator=3)": f"evaluator must be an AbstractEvaluator, {made}; got int",
        "PPO.create('CartPole-v1', evaluator=lambda hp: 3)": (
            "evaluator was passed as a function, which returned int; it must return an AbstractEvaluator"
        ),
        "PPO.create('CartPole-v1', actor_critic=3)": f"actor_critic must be an AbstractActorCritic, {makes}; got int",
        "PPO.create('CartPole-v1', actor_critic=GAE())": f"actor_critic must be an AbstractActorCritic, {makes}; got GAE",
        "PPO.create('CartPole-v1', actor_critic=lambda *_, key: {})": "actor_critic made a dict, not an AbstractActorCritic",
        "PPO.create('CartPole-v1', hp={})": "hp must be PPOHParams, got dict",
        "PPOHParams(learning_rate='0.1')": "a number is needed, got '0.1'",
        "PPOHParams(gamma='0.1')": "a number is needed, got '0.1'",
        "PPOHParams(num_envs=2.0)": "PPOHParams.num_envs must be an int, got 2.0",
        "PPOHParams(num_envs=True)": "PPOHParams.num_envs must be an int, got True",
        "PPOHParams(debug=1)": "PPOHParams.debug must be True or False, got 1",
    }
    script = f"""
from eqxrl import GAE, PPO, PPOHParams, RolloutCollector
collector = RolloutCollector(num_envs=2, num_steps=3)
for expression in {list(cases)}:
    try:
        eval(expression)
    except TypeError as error:
        print(str(error).replace(chr(10), " "))
    else:
        print("nothing")
"""
    environment = {name: x for name, x in os.environ.items() if name not in ("EQXRL_TYPECHECK", "JAXTYPING_DISABLE")}
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True).stdout
    for (expression, expected), line in zip(cases.items(), output.splitlines(), strict=True):
        assert expected in line, expression


def learner(num_epochs=8, num_minibatches=16, learning_rate=1e-3):
    return MinibatchLearner(PPOLoss(), optax.adam(learning_rate), num_epochs=num_epochs, num_minibatches=num_minibatches)


def test_a_hyperparameter_that_a_function_does_not_read():
    hp = PPOHParams(learning_rate=0.25, clip_eps=0.1)
    with raises(ValueError, "hp.clip_eps was set, but no part reads it", "passed: actor_critic, learner"):
        create(hp=hp, learner=lambda hp: MinibatchLearner(PPOLoss(), optax.sgd(hp.learning_rate), 8, 16))
    create(hp=hp, learner=lambda hp: MinibatchLearner(PPOLoss(clip_eps=hp.clip_eps), optax.sgd(hp.learning_rate), 8, 16))
    create(hp=PPOHParams(learning_rate=3e-4, clip_eps=0.2), learner=learner())  # set to what they are anyway
    with raises(ValueError, "hp.num_seeds_per_eval was set, but no part reads it"):
        create(hp=PPOHParams(num_seeds_per_eval=3), evaluator=EpisodeEvaluator(num_episodes=3))


def test_a_size_that_hp_and_a_part_disagree_about():
    collector = RolloutCollector(num_envs=6, num_steps=8)
    for hp, name, wrong in [
        (PPOHParams(), "num_envs", 64),
        (PPOHParams(num_envs=6), "num_steps", 64),
        (PPOHParams(num_envs=6, num_steps=16), "num_steps", 16),
    ]:
        got = getattr(collector, name)
        with raises(ValueError, f"collector has {name}={got}, but hp has {name}={wrong}; pass hp=PPOHParams({name}={got})"):
            create(hp=hp, collector=collector)
    with raises(ValueError, "learner has num_epochs=3, but hp has num_epochs=8"):
        create(learner=learner(num_epochs=3))
    with raises(ValueError, "learner has num_epochs=3, but hp has num_epochs=8"):
        create(learner=lambda hp: learner(num_epochs=3))
    sizes = PPOHParams(num_envs=6, num_steps=8, num_epochs=3, num_minibatches=4)  # the same in both, so not unread
    assert create(hp=sizes, collector=collector, learner=learner(3, 4)).iteration_size == 48


class WithSpaces(eqx.Module):
    """An environment whose declared spaces are given, and whose actions do nothing."""

    spaces: tuple = eqx.field(static=True)

    def reset(self, key, params):
        return probe_envs.VALUE.reset(key, params)

    def step(self, key, state, action, params):
        return probe_envs.VALUE.step(key, state, 0, params)

    def observation_space(self, params):
        return self.spaces[0]

    def action_space(self, params):
        return self.spaces[1]

    @property
    def name(self):
        return "WithSpaces"


def create(observation_space=spaces.Box(-2.0, 2.0, (2,)), action_space=spaces.Discrete(2), **kwargs):  # noqa: B008
    env = WithSpaces((observation_space, action_space))
    return PPO.create(env=env, env_params=probe_envs.Limit(4), **{"actor_critic": small, **kwargs})


def test_spaces_that_fit():
    create()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 3, (2,), jnp.int32),
        spaces.Dict({"a": spaces.Discrete(2), "b": types.SimpleNamespace(low=0, high=3, shape=(2,), dtype=jnp.int32)}),
    ],
    ids=["integers", "within a dict"],
)
def test_unsupported_action_space(space):
    with raises(TypeError, "the action space is", "policies act in Discrete and MultiDiscrete spaces and in a Box of floats"):
        create(action_space=space)


def test_observations_that_do_not_fit_their_space():
    with raises(ValueError, "WithSpaces", "float32[2]", "observation_space has shape [3]"):
        create(spaces.Box(-1.0, 1.0, (3,)))
    with raises(ValueError, "WithSpaces", "observation of reset", "the parts", "['a']"):
        create(spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,))}))


def network(observation_space=None, action_space=None):
    """One for other spaces than it will be given."""
    own = observation_space, action_space
    return lambda *given, key: small(*(a or b for a, b in zip(own, given, strict=True)), key=key)


def test_a_network_that_does_not_fit_the_action_space():
    box = spaces.Box(-1.0, 1.0, (3,))
    with raises(ValueError, "ActorCritic chooses among 5 actions, but the space is Discrete(n=2"):
        create(actor_critic=network(action_space=spaces.Discrete(5)))
    with raises(ValueError, "ActorCritic", "chooses among 5 actions", "Box("):
        create(action_space=box, actor_critic=network(action_space=spaces.Discrete(5)))
    with raises(ValueError, "ActorCritic returned actions float32[3]", "Discrete(n=2"):
        create(actor_critic=network(action_space=box))
    with raises(ValueError, "ActorCritic returned actions float32[2]", "Box(-1.0, 1.0, (3,), float32)"):
        create(action_space=box, actor_critic=network(action_space=spaces.Box(-1.0, 1.0, (2,))))


def test_a_network_that_does_not_fit_the_observations():
    with raises(TypeError, "ActorCritic does not take the environment's observation, float32[2]", "(7,)"):
        create(actor_critic=network(spaces.Box(-1.0, 1.0, (7,))))


class Odd(AbstractActorCritic):
    """A network whose outputs are given."""

    distribution: object = eqx.field(default_factory=lambda: Categorical(jnp.zeros(2)))
    value: object = eqx.field(default_factory=lambda: jnp.zeros(()))
    carry: object = ()

    def __call__(self, obs, carry):
        return self.distribution, self.value, self.carry

    def initial_carry(self):
        return ()


@pytest.mark.parametrize(
    "network, parts",
    [
        (Odd(distribution=jnp.zeros(2)), ["Odd returned float32[2] as its distribution", "AbstractDistribution"]),
        (Odd(value=jnp.zeros(1)), ["Odd returned the value float32[1]", "float scalar"]),
        (Odd(value=jnp.zeros((), jnp.int32)), ["Odd returned the value int32[]", "float scalar"]),
        (Odd(carry=jnp.zeros(4)), ["Odd returned the carry float32[4]", "initial_carry()"]),
        (Odd(distribution=Categorical(jnp.zeros((3, 2)))), ["Categorical.log_prob is float32[3]", "scalar"]),
    ],
    ids=["distribution", "value", "integer value", "carry", "batch"],
)
def test_a_network_with_odd_outputs(network, parts):
    with raises((TypeError, ValueError), *parts):
        create(actor_critic=network)


class Numbered(eqx.Module):
    """One whose observations are numbers of states."""

    def reset(self, key, params):
        return jnp.zeros((), jnp.int32), jnp.zeros(())

    def step(self, key, state, action, params):
        obs, state = self.reset(key, params)
        return obs, state, jnp.zeros(()), jnp.array(True), jnp.array(False), {}

    def observation_space(self, params):
        return spaces.Discrete(3)

    def action_space(self, params):
        return spaces.Discrete(2)


def test_normalising_a_discrete_observation():
    arguments = dict(env=Numbered(), env_params=probe_envs.Limit(4))
    PPO.create(**arguments)
    with raises(ValueError, "normalize_observations needs observations with floats in them, not Discrete(3"):
        PPO.create(**arguments, hp=PPOHParams(normalize_observations=True))


# What parts return: each of them is named, with the field, what was expected and what came


class OddAdvantage(AbstractAdvantage):
    change: object = eqx.field(static=True)

    def __call__(self, rollout, last_value):
        return self.change(*GAE()(rollout, last_value))


@pytest.mark.parametrize(
    "change, error, parts",
    [
        (lambda a, t: (a[0], t), ShapeError, ["OddAdvantage returned", "advantages = float32[3]", "float[steps=8 envs=3]"]),
        (lambda a, t: (a, t[0]), ShapeError, ["OddAdvantage returned", "targets = float32[3]", "float[steps=8 envs=3]"]),
        (lambda a, t: (a.T, t.T), ShapeError, ["OddAdvantage returned", "advantages = float32[3 8]"]),
        (lambda a, t: (a > 0, t), ShapeError, ["OddAdvantage returned", "advantages = bool[8 3]", "float[steps=8 envs=3]"]),
        (lambda a, t: a, TypeError, ["OddAdvantage must return (advantages, targets), got"]),
        (lambda a, t: (a, t, t), TypeError, ["OddAdvantage must return (advantages, targets), got"]),
    ],
    ids=["no steps", "no steps in targets", "transposed", "dtype", "alone", "three"],
)
def test_an_odd_advantage(change, error, parts):
    with raises(error, *parts):
        tiny(advantage=OddAdvantage(change))
    ppo = with_parts(tiny(), advantage=OddAdvantage(change))
    with raises(error, *parts):
        eqx.filter_eval_shape(lambda key: ppo.iteration(ppo.init_train_state(key), 0), jax.random.key(0))
    with raises(error, *parts):
        ppo.train(jax.random.key(0))


class OddCollector(RolloutCollector):
    change: object = eqx.field(static=True, default=None)

    def __call__(self, env, env_params, agent, state):
        return self.change(*super().__call__(env, env_params, agent, state))


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            lambda s, r: (s, eqx.tree_at(lambda r: r.trajectories.reward, r, r.trajectories.reward[0])),
            ["OddCollector returned Trajectory.reward = float32[3]", "float[steps=8 envs=3]"],
        ),
        (
            lambda s, r: (s, eqx.tree_at(lambda r: r.trajectories.truncated, r, r.trajectories.reward)),
            ["OddCollector returned Trajectory.truncated = float32[8 3]", "bool[steps=8 envs=3]"],
        ),
        (
            lambda s, r: (s, eqx.tree_at(lambda r: r.trajectories.obs, r, r.trajectories.obs[:, 0])),
            ["OddCollector returned Trajectory.obs = float32[8 4]", "[steps=8 envs=3]"],
        ),
        (
            lambda s, r: (s, eqx.tree_at(lambda r: r.last_obs, r, r.last_obs[0])),
            ["OddCollector returned TrajectoryWithLastObs.last_obs = float32[4]", "[envs=3]"],
        ),
        (
            lambda s, r: (eqx.tree_at(lambda s: s.last_done, s, s.last_done[:2]), r),
            ["OddCollector returned TrajectoryCollectionState.last_done = bool[2]", "bool[envs=3]"],
        ),
        (
            lambda s, r: (s, jax.tree.map(lambda x: x[:4] if x.ndim > 1 and x.shape[0] == 8 else x, r)),
            ["OddCollector returned Trajectory.", "[4 3", "[steps=8 envs=3]"],
        ),
    ],
    ids=["reward", "flag", "observation", "last observation", "state", "fewer steps"],
)
def test_an_odd_collector(change, parts):
    collector = OddCollector(num_envs=3, num_steps=8, change=change)
    with raises(ShapeError, *parts):
        tiny(collector=collector)
    ppo = with_parts(tiny(), collector=collector)
    with raises(ShapeError, *parts):
        eqx.filter_eval_shape(lambda key: ppo.iteration(ppo.init_train_state(key), 0), jax.random.key(0))


class OddEvaluator(AbstractEvaluator):
    length: jax.Array

    def __call__(self, env, env_params, policy, key):
        good = EvalMetrics(episode_length=jnp.ones(4, jnp.int32), cumulative_reward=jnp.ones(4))
        return eqx.tree_at(lambda m: m.episode_length, good, self.length)


@pytest.mark.parametrize("length", [jnp.ones(3, jnp.int32), jnp.ones(4), jnp.int32(1)], ids=["number", "dtype", "scalar"])
def test_an_odd_evaluator(length):
    with raises(ShapeError, "OddEvaluator returned EvalMetrics."):
        tiny(evaluator=OddEvaluator(length))
    ppo = with_parts(tiny(), evaluator=OddEvaluator(length))
    with raises(ShapeError, "OddEvaluator returned EvalMetrics."):
        eqx.filter_eval_shape(lambda key: ppo.eval_callback(ppo.init_train_state(key)), jax.random.key(0))


class Changing(AbstractLearner):
    """Its state or its policy isn't what it was."""

    inner: AbstractLearner
    change: object = eqx.field(static=True)

    def init(self, agent):
        return self.inner.init(agent)

    def __call__(self, agent, state, rollout, key):
        agent, state, metrics = self.inner(agent, state, rollout, key)
        return *self.change(agent, state), metrics


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            lambda a, s: (a, eqx.tree_at(lambda s: s.num_updates, s, jnp.zeros(2, jnp.int32))),
            ["one iteration of PPO turns the training state's .learner_state.num_updates from int32[] into int32[2]"],
        ),
        (
            lambda a, s: (eqx.tree_at(lambda a: a.critic[0].bias, a, replace_fn=lambda x: x.astype(jnp.bfloat16)), s),
            [".agent.critic[0].bias from float32[6] into bfloat16[6]", "must keep its shape and dtype"],
        ),
        (
            lambda a, s: (eqx.tree_at(lambda a: a.critic[0].bias, a, None), s),
            [".agent.critic[0].bias from float32[6] into nothing"],
        ),
    ],
    ids=["shape", "dtype", "missing"],
)
def test_a_training_state_that_changes(change, parts):
    with raises(TypeError, *parts):
        tiny(learner=lambda hp: Changing(learner(hp.num_epochs, hp.num_minibatches), change))


def test_an_environment_without_a_limit_needs_an_evaluator_with_one():
    hp = PPOHParams(num_envs=3, num_steps=8, num_minibatches=4)
    arguments = dict(env=probe_envs.Target(), hp=hp, actor_critic=small)
    with raises(ValueError, "Target has no episode limit", "EpisodeEvaluator(num_episodes=..., max_steps=...)"):
        PPO.create(**arguments)
    ppo = dataclasses.replace(PPO.create(**arguments, env_params=probe_envs.Limit(3)), env_params=None)
    with raises(ValueError, "Target has no episode limit", "EpisodeEvaluator(num_episodes=..., max_steps=...)"):
        ppo.train(jax.random.key(0))
    with_limit = EpisodeEvaluator(num_episodes=2, max_steps=4)
    PPO.create(**arguments, evaluator=with_limit)
    ppo = with_parts(ppo, evaluator=with_limit)
    shapes = eqx.filter_eval_shape(lambda key: ppo.eval_callback(ppo.init_train_state(key)), jax.random.key(0))
    assert shapes.episode_length.shape == (2,)


class Grows(AbstractActorCritic):
    """Whose hidden state changes its shape."""

    def __call__(self, obs, carry):
        return Categorical(jnp.zeros(2)), jnp.sum(carry), jnp.stack([carry, carry])

    def initial_carry(self):
        return jnp.zeros(())


def test_a_hidden_state_of_another_shape():
    with raises(TypeError, "Grows returned the carry float32[2], but initial_carry() is float32[]"):
        create(actor_critic=Grows())


# What is printed


def test_what_is_printed():
    ppo = tiny(learning_rate=optax.constant_schedule(0.1), gamma=0.9, normalize_rewards=True)
    text = repr(ppo.hp)
    assert text.startswith("PPOHParams(") and "num_epochs=2, num_envs=3, num_steps=8, num_minibatches=4," in text and text.endswith(")")
    for part in ("gamma=0.9,", "normalize_rewards=True,", "learning_rate=<function constant_schedule", "max_grad_norm=inf,"):
        assert part in text
    for f in dataclasses.fields(ppo.hp):
        assert f"{f.name}=" in text
    assert str(ppo) == repr(ppo) == f"PPO(env=CartPole-v1, hp={text}, actor_critic=function)"
    many = eqx.tree_at(lambda hp: hp.gamma, PPOHParams(), jnp.array([0.5, 0.25]))
    assert "gamma=[0.5, 0.25]" in repr(many)
    eqx.filter_eval_shape(lambda x: repr(PPOHParams(gamma=x)) and x, 0.5)  # a traced one has no value to show
