import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import trim_mean

from eqxrl import DQN, LinearSchedule
from eqxrl.algorithms import ALGORITHMS, PRESETS, MakeNetwork, MakePart, preset
from eqxrl.envs import env_name, known_suites

ALL = [(env_id, algo, name) for env_id, algos in PRESETS.items() for algo, presets in algos.items() for name in presets]
BESIDE_GYMNASIUM = {"gymnasium/InvertedPendulum-v5": "mujoco", "gymnasium/LunarLander-v3": "Box2D"}


@pytest.mark.parametrize("env_id, algo, name", ALL)
def test_a_preset_makes_its_algorithm(env_id, algo, name):
    if missing := known_suites().get(env_id.partition("/")[0]):
        pytest.skip(f"needs {missing}")
    if module := BESIDE_GYMNASIUM.get(env_id):
        pytest.importorskip(module)
    chosen = preset(env_id, algo, name)
    ppo = chosen.create(num_seeds_per_eval=7)
    assert type(ppo) is ALGORITHMS[algo] and chosen.algorithm == algo
    assert env_name(ppo.env) == chosen.env_id == env_id
    assert ppo.hp.num_seeds_per_eval == 7
    assert ppo.chunks.sum() * ppo.iteration_size - ppo.hp.total_timesteps < ppo.iteration_size
    for field in chosen.anneal:
        schedule = getattr(ppo.hp, field)
        start = chosen.hp.get(field, getattr(ppo.HParams(), field))
        np.testing.assert_allclose(schedule(jnp.int32(0)), start, rtol=1e-6)
        np.testing.assert_allclose(schedule(jnp.int32(ppo.hp.num_updates // 2)), start / 2, rtol=1e-3)
        assert schedule(jnp.int32(ppo.hp.num_updates)) == 0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_the_zoos_value_loss_has_its_weight(env_id):
    """Half of the squared error, in `PPOLoss`, where Stable-Baselines3 has all of it with 0.5."""
    assert preset(env_id, "ppo", "zoo").hparams().vf_coef * 0.5 == 0.5


def test_an_override_is_annealed_and_the_horizon_follows_the_budget():
    hp = preset("CartPole-v1").hparams(learning_rate=0.01, total_timesteps=256 * 10)
    assert hp.clip_eps.transition_steps == hp.learning_rate.transition_steps == hp.num_updates == 10 * 20
    for updates, fraction in ((0, 1.0), (100, 0.5), (200, 0.0)):
        np.testing.assert_allclose(hp.learning_rate(jnp.int32(updates)), 0.01 * fraction, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(hp.clip_eps(jnp.int32(updates)), 0.2 * fraction, rtol=1e-5, atol=1e-8)


def test_a_schedule_that_overrides_is_followed():
    schedule = LinearSchedule(0.5, 0.25, 7)
    hp = preset("CartPole-v1").hparams(learning_rate=schedule)
    assert hp.learning_rate is schedule and callable(hp.clip_eps)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match=r"no preset for ppo on Nothing-v0; .*CartPole-v1 \(.*ppo"):
        preset("Nothing-v0")
    with pytest.raises(ValueError, match="no preset for td3 on CartPole-v1"):
        preset("CartPole-v1", "td3")
    with pytest.raises(ValueError, match="no preset 'zo' for ppo on CartPole-v1; there is zoo, cleanrl"):
        preset("CartPole-v1", name="zo")


def test_building_a_preset_again_compiles_nothing_again():
    traces = 0

    @eqx.filter_jit
    def init(ppo, key):
        nonlocal traces
        traces += 1
        return ppo.init_train_state(key)

    first = preset("CartPole-v1").create()
    init(first, jax.random.key(0))
    init(preset("CartPole-v1").create(), jax.random.key(1))
    assert traces == 1


def test_linear_schedule_is_linear_then_constant_and_can_be_swept():
    schedule = LinearSchedule(1.0, 0.5, 10)
    steps = jnp.array([0, 5, 10, 100])
    np.testing.assert_allclose(jax.vmap(schedule)(steps), [1.0, 0.75, 0.5, 0.5])
    many = eqx.filter_vmap(lambda start: LinearSchedule(start, 0.0, 10)(jnp.int32(5)))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many, [0.5, 1.0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cartpole_is_solved_by_every_seed():
    """The whole table: `python benchmarks/learning.py`."""
    ppo = preset("CartPole-v1", name="zoo").create(eval_freq=99_840)
    keys = jax.random.split(jax.random.key(0), 20)
    _, metrics = eqx.filter_vmap(lambda key: ppo.train(key, skip_initial_evaluation=True))(keys)
    returns = np.asarray(metrics.cumulative_reward[:, -1].mean(-1))
    assert trim_mean(returns, 0.25) >= 499.95
    assert np.sum(returns >= 475) >= 19


def test_options_as_json_has_them():
    read = json.loads(json.dumps(dict(hidden_sizes=(8, 8))))
    assert MakeNetwork("q", read) == MakeNetwork("q", dict(hidden_sizes=(8, 8)))
    assert hash(MakeNetwork("q", read)) == hash(MakeNetwork("q", dict(hidden_sizes=(8, 8))))
    assert hash(MakePart("histogram", dict(x=[1, [2]]))) == hash(MakePart("histogram", dict(x=(1, (2,)))))
    assert DQN.create("CartPole-v1", q_network=MakeNetwork("q", read)).init_train_state(0).learner.q is not None
