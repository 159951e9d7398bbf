"""PPO's hyperparameters that are off by default: they reach the parts, and a run with them is kept and gone on with."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_jit, same, tiny

from eqxrl import PPO, MinibatchLearner, PPOHParams, PPOLoss
from eqxrl.learners import AdaptiveKL
from eqxrl.training import Run, Trainer


def iterate(algo):
    return quick_jit(lambda a: a.iterations(a.init_train_state(0), 2))(algo)


def test_by_default_they_are_off():
    ppo = tiny()
    assert ppo.hp.normalize_advantages and ppo.hp.target_kl is None and ppo.hp.kl_coef is None
    assert ppo.loss.normalize_advantages and ppo.loss.kl_coef is None and ppo.loss.dual_clip is None and ppo.learner.target_kl is None


def test_they_reach_the_parts():
    ppo = tiny(normalize_advantages=False, target_kl=0.02, kl_coef=lambda n: 0.5 / (n + 1))
    assert not ppo.loss.normalize_advantages and ppo.learner.target_kl == np.float32(0.02)
    assert ppo.loss.at_step(jnp.int32(1)).kl_coef == 0.25
    assert 0 < iterate(tiny(target_kl=1e-6, learning_rate=1e-2))[1].means["updates_made"] < 1
    assert "target_kl=0.02" in repr(ppo.hp)


@pytest.mark.parametrize("wrong", [dict(target_kl=0.0), dict(target_kl=-1.0), dict(kl_coef=-0.1), dict(kl_coef=float("nan"))])
def test_numbers_out_of_range(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"PPOHParams.{name} must be in"):
        PPOHParams(**wrong)


@pytest.mark.slow
def test_they_can_be_swept():
    base = tiny(kl_coef=1.0, target_kl=0.01)

    def run(kl_coef, target_kl):
        algo = eqx.tree_at(lambda a: (a.hp.kl_coef, a.hp.target_kl), base, (kl_coef, target_kl))
        ts, metrics = algo.iterations(algo.init_train_state(0), 2)
        return eqx.filter(ts.agent, eqx.is_array), metrics

    values = jnp.array([0.0, 10.0]), jnp.array([1e-6, 1e6])
    swept = quick_jit(eqx.filter_vmap(run))(*values)
    for i in range(2):
        same(jax.tree.map(lambda x: x[i], swept), quick_jit(run)(*(x[i] for x in values)), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_them_is_kept(tmp_path):
    """Also None, in the folder of a run of the command."""
    sizes = dict(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=2, total_timesteps=64, eval_freq=32, num_seeds_per_eval=2)
    ppo = PPO.create("CartPole-v1", hp=PPOHParams(**sizes, target_kl=0.02, normalize_advantages=False))
    ts, _ = Run.new(ppo, tmp_path, "mine", env_id="CartPole-v1").fit()
    algo, loaded = Run(tmp_path / "mine").load()
    assert algo.hp.target_kl == np.float32(0.02) and algo.hp.kl_coef is None and not algo.hp.normalize_advantages
    same(loaded, jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, ts))


@pytest.mark.slow
def test_the_coefficient_of_the_penalty_is_kept_in_checkpoints(tmp_path):
    """A run that was ended and gone on with is the undisturbed one, bit for bit."""
    learner = AdaptiveKL(MinibatchLearner(PPOLoss(), optax.adam(1e-3), num_epochs=2, num_minibatches=4), target_kl=1e-3)
    half, whole = (tiny(learner=learner, total_timesteps=n, eval_freq=48) for n in (48, 96))
    expected, _ = Trainer().fit(whole, jax.random.key(0))
    ended, _ = Trainer(folder=tmp_path / "checkpoints").fit(half, jax.random.key(0))
    resumed, _ = Trainer(folder=tmp_path / "checkpoints").fit(whole, jax.random.key(0), resume=True)
    same(resumed, expected)
    coefs = [float(ts.learner_state.opt_state[1]) for ts in (ended, resumed)]
    assert len({1.0, *coefs}) == 3  # it has moved in both halves
