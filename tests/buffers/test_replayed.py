"""What follows a row, and transitions over several steps, against loops over plain lists."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import Transition
from eqxrl.buffers import Drawn, UniformBuffer, replayed, sequences

ENVS, STEPS, CAPACITY, GAMMA = 3, 5, 42, 0.9


@pytest.fixture(scope="module", params=[2, 9], ids=["not yet full", "round the ring"])
def history(request):
    """A buffer after some rollouts of three environments, and all of their steps, oldest first."""
    rng, buffer = np.random.default_rng(0), UniformBuffer(CAPACITY, 4)
    flag, number = jnp.zeros((), bool), jnp.zeros(())
    state = buffer.init(Transition(number, jnp.zeros((), jnp.int32), number, number, flag, flag))
    steps, add = [], eqx.filter_jit(buffer.add)
    for i in range(request.param):
        obs = 1 + 1000 * np.arange(ENVS) + (i * STEPS + np.arange(STEPS))[:, None]
        ends = rng.random((2, STEPS, ENVS)) < 0.15
        t = Transition(
            obs=jnp.asarray(obs, jnp.float32),
            action=jnp.zeros((STEPS, ENVS), jnp.int32),
            reward=jnp.asarray(rng.normal(size=(STEPS, ENVS)), jnp.float32),
            next_obs=jnp.asarray(obs + 0.5, jnp.float32),
            terminated=jnp.asarray(ends[0]),
            truncated=jnp.asarray(ends[1]),
        )
        state = add(state, t)
        steps += [jax.tree.map(lambda x, s=s: np.asarray(x)[s], t) for s in range(STEPS)]
    return state, steps


def everything(state):
    index = jnp.arange(int(state.size), dtype=jnp.int32)
    rows = jax.tree.map(lambda x: x[index], state.rows)
    return Drawn(rows=rows, index=index, weight=jnp.linspace(0.5, 1, len(index)))


def place(obs):
    """Which step of which environment it is."""
    return int(obs - 1) % 1000, int(obs) // 1000


@pytest.mark.parametrize("length", [1, 3, 7])
def test_what_follows_are_the_next_steps_of_the_same_environment(history, length):
    state, steps = history
    drawn = everything(state)
    rows, there = sequences(state, drawn.index, length)
    assert rows.obs.shape == there.shape == (len(drawn.index), length)
    for first, obs, ok in zip(np.asarray(drawn.rows.obs), np.asarray(rows.obs), np.asarray(there)):
        step, _ = place(first)
        np.testing.assert_array_equal(ok, step + np.arange(length) < len(steps))
        np.testing.assert_array_equal(obs[ok], (first + np.arange(length))[ok])


@pytest.mark.parametrize("n_step", [1, 2, 3, 10])
def test_transitions_over_several_steps(history, n_step):
    state, steps = history
    drawn = everything(state)
    found = jax.device_get(replayed(state, drawn, jnp.float32(GAMMA), n_step))
    ended = set()
    for i, first in enumerate(np.asarray(drawn.rows.obs)):
        step, env = place(first)
        reward, taken = 0.0, 0
        while True:
            t = steps[step + taken]
            reward += GAMMA**taken * t.reward[env]
            taken += 1
            if t.terminated[env] or t.truncated[env] or taken == n_step or step + taken == len(steps):
                break
        np.testing.assert_allclose(found.reward[i], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.discount[i], GAMMA**taken, rtol=1e-6)
        assert found.obs[i] == first and found.next_obs[i] == t.next_obs[env]
        assert found.terminated[i] == t.terminated[env] and found.truncated[i] == t.truncated[env]
        ended.add((bool(t.terminated[env]), bool(t.truncated[env]), taken))
    np.testing.assert_array_equal(found.weight, drawn.weight)
    assert n_step == 1 or len(ended) > 3  # there was something to be told apart
