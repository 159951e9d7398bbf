"""What environments on the host share, whichever suite they are of."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import PPO, PPOHParams, Trainer, make
from eqxrl.envs import AbstractWrapper, FrameStack, ResetWhenDone, ScaleReward, TimeLimit, known_suites
from eqxrl.envs._make import SUITES

THERE = [pytest.param(x, marks=pytest.mark.skipif(bool(known_suites()[x]), reason="isn't installed")) for x in ("envpool", "gymnasium")]
pytestmark = pytest.mark.parametrize("suite", THERE)


def ppo(env, params, total_timesteps):
    hp = PPOHParams(
        num_envs=2, num_steps=8, num_minibatches=1, num_epochs=1, total_timesteps=total_timesteps, eval_freq=16, num_seeds_per_eval=2
    )
    return PPO.create(env=env, env_params=params, hp=hp)


def test_two_seeds_train_and_one_is_drawn(suite, tmp_path):
    algo = ppo(*make(f"{suite}/CartPole-v1", max_episode_steps=20), 32)
    state, metrics = Trainer().fit(algo, jax.random.split(jax.random.key(0), 2))
    assert np.isfinite(metrics.cumulative_reward).all() and metrics.cumulative_reward.shape == (2, 3, 2)
    one = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, state)
    assert algo.visualize(one, tmp_path / "episode.gif", jax.random.key(0)).stat().st_size > 1000


def test_a_resumed_run_says_what_it_lost(suite, tmp_path):
    """The second time with a host that has played nothing yet, as in another process."""
    env, params = make(f"{suite}/CartPole-v1")
    Trainer(folder=tmp_path).fit(ppo(env, params, 16), jax.random.key(0))
    other = SUITES[suite].make(f"{suite}/CartPole-v1", {})[0]
    algo = dataclasses.replace(ppo(env, params, 32), env=other)
    with pytest.warns(UserWarning, match=f"goes on otherwise than if it hadn't been cut off: {suite}'s environments can't be saved"):
        state, _ = Trainer(folder=tmp_path).fit(algo, resume=True)
    assert int(algo.env_steps(state)) == 32


class KeepsItElsewhere(AbstractWrapper):
    env: object

    def reset(self, key, params=None):
        obs, state = self.env.reset(key, params)
        return obs, (state,)

    def step(self, key, state, action, params=None):
        obs, state, *rest = self.env.step(key, state[0], action, params)
        return obs, (state,), *rest


class KeptStatic(AbstractWrapper):
    env: object = eqx.field(static=True)

    def reset(self, key, params=None):
        return self.env.reset(key, params)

    def step(self, key, state, action, params=None):
        return self.env.step(key, state, action, params)


WRAPPERS = {
    "changes rewards": (lambda env: ScaleReward(env, 2.0), False),
    "states of their own": (lambda env: TimeLimit(FrameStack(TimeLimit(env, 400), 2), 500), False),
    "static": (KeptStatic, False),
    "its state elsewhere": (KeepsItElsewhere, True),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_in_wrappers_too_only_what_ended_is_reset(suite, wrapper):
    wrap, all_of_them = WRAPPERS[wrapper]
    host, resets = SUITES[suite].make(f"{suite}/CartPole-v1", {})[0], []
    inner_reset, host.host.reset = host.host.reset, lambda seed: resets.append(seed) or inner_reset(seed)
    env, stepper = wrap(host), ResetWhenDone()
    _, state, kept = stepper.init(env, None, jax.random.split(jax.random.key(0), 4))
    step = jax.jit(lambda keys, state: stepper.step(env, None, keys, state, kept, jnp.array([0, 1, 0, 1])))
    ends = 0
    for t in range(40):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        new, lasted = np.asarray(out.done), np.abs(np.asarray(out.obs)[..., -4:]) < 0.05
        assert lasted.all(axis=tuple(range(1, lasted.ndim)))[new].all()  # a first observation
        state, ends = out.env_state, ends + new.sum()
    assert ends > 4 and (len(resets) > 1) == all_of_them
