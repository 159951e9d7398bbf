"""What tests in several rooms share."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import PPO, AbstractActorCritic, MLPActorCritic, PPOHParams, Trajectory, TrajectoryWithLastObs
from eqxrl.learners import swap_or_not
from eqxrl.nn import Categorical


@functools.cache
def quick_options():
    """Compile options with which a program is compiled in a third of the time; those that this jaxlib knows."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name, value):
    try:
        jax.jit(lambda: jax.numpy.zeros(()), compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return False
    return True


def quick_jit(function):
    """`eqx.filter_jit` for a small test's program, which takes long to compile and a millisecond to run. Not for a test that
    compares bit for bit with what `train` compiles."""
    return eqx.filter_jit(function, compiler_options=quick_options())


def small(*spaces, key):
    """A small network; made by a function of its own, so that the default one's size isn't what's tested."""
    return MLPActorCritic(*spaces, hidden_sizes=(6, 5), key=key)


def tiny(env_id="CartPole-v1", max_steps=7, **hparams_and_parts):
    """A PPO that is quickly compiled, with episodes that end within a rollout; and `[steps envs]` not square."""
    parts = {name: x for name, x in hparams_and_parts.items() if name in PPO.part_names()}
    hparams = {name: x for name, x in hparams_and_parts.items() if name not in parts}
    defaults = dict(num_envs=3, num_steps=8, num_epochs=2, num_minibatches=4, num_seeds_per_eval=2)
    ppo = PPO.create(env_id, hp=PPOHParams(**{**defaults, **hparams}), **{"actor_critic": small, **parts})
    return with_limit(ppo, max_steps)


def with_parts(algo, **parts):
    """The algorithm with other parts in place of those that it has; what `create` checks isn't checked again."""
    return dataclasses.replace(algo, parts={**algo.parts, **parts})


def with_limit(ppo, max_steps):
    return eqx.tree_at(lambda p: p.env_params, ppo, ppo.env_params.replace(max_steps_in_episode=max_steps))


class Recorder(list):
    """`swap_or_not`, which keeps what it returned. A list that may be static in a compiled function."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(self, key, n):
        order = swap_or_not(key, n)
        jax.debug.callback(lambda order: self.append(np.asarray(order)), order, ordered=True)
        return order


class Table(AbstractActorCritic):
    """One distribution and one value for each observation, a number: gradients by the table are gradients by the outputs."""

    logits: jax.Array
    values: jax.Array

    def __call__(self, obs, carry):
        return Categorical(self.logits[obs]), self.values[obs], carry

    def initial_carry(self):
        return ()


def rollout_with_every_end(steps, envs, more=0):
    """One with every kind of end, and none in the first four environments; its last values; and `more` random arrays `[steps envs]`."""
    rng = np.random.default_rng(0)
    shape = (steps, envs)
    terminated, truncated = (rng.random(shape) < 0.15) & (np.arange(envs) >= 4), (rng.random(shape) < 0.15) & (np.arange(envs) >= 4)
    reward, value, final_value, *others = map(jnp.asarray, rng.normal(size=(3 + more, *shape)).astype(np.float32))
    final_value = jnp.where(truncated & ~terminated, final_value, 1e9)  # elsewhere it isn't to be looked at
    zeros = jnp.zeros(shape)
    t = Trajectory(zeros, zeros, zeros, reward, value, jnp.asarray(terminated), jnp.asarray(truncated), final_value)
    last_value = jnp.asarray(rng.normal(size=envs), jnp.float32)
    return TrajectoryWithLastObs(trajectories=t, last_done=t.done[-1], last_obs=zeros[0]), last_value, *others


def arrays(tree):
    """Its arrays, in NumPy, keys as numbers."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    keys = [jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    return [np.asarray(jax.random.key_data(x) if is_key else x) for x, is_key in zip(leaves, keys, strict=True)]


def same(a, b, **tolerance):
    """Bit for bit, or within `rtol` and `atol`, which integers aren't given."""
    for x, y in zip(arrays(a), arrays(b), strict=True):
        if tolerance and x.dtype.kind == "f":
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


def sampled(cases, every=8):
    """For `parametrize`, where each case compiles programs of its own: one in so many runs by default, the others are slow."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*v, marks=[] if i % every == 0 else pytest.mark.slow) for i, v in enumerate(values)]
