"""Structs refuse what doesn't fit when they are made, and again when they are copied with a change."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import (
    AdvantageMinibatch,
    EpisodeStats,
    EvalMetrics,
    ShapeError,
    TrainStepMetrics,
    Trajectory,
    TrajectoryCollectionState,
    TrajectoryWithLastObs,
    Transition,
    Transitions,
)

STEPS, ENVS = 5, 3


def trajectory(*batch, **changes):
    zeros = jnp.zeros(batch)
    fields = dict(
        obs={"a": jnp.zeros((*batch, 4)), "b": jnp.zeros(batch, jnp.int32)},
        action=jnp.zeros((*batch, 2)),
        log_prob=zeros,
        reward=zeros,
        value=zeros,
        terminated=zeros > 0,
        truncated=zeros > 0,
        final_value=zeros,
    )
    return Trajectory(**{**fields, **changes})


def transition(*batch, **changes):
    t = trajectory(*batch)
    fields = {name: getattr(t, name) for name in ("obs", "action", "reward", "terminated", "truncated")}
    return Transition(**{**fields, "next_obs": t.obs, **changes})


def rollout(**changes):
    fields = dict(
        trajectories=trajectory(STEPS, ENVS),
        last_done=jnp.zeros(ENVS, bool),
        last_obs={"a": jnp.zeros((ENVS, 4)), "b": jnp.zeros(ENVS, jnp.int32)},
    )
    return TrajectoryWithLastObs(**{**fields, **changes})


def state(**changes):
    fields = dict(
        last_obs=jnp.zeros((ENVS, 4)),
        env_state=(jnp.zeros(ENVS), jnp.zeros((ENVS, 2))),
        rms_state=(),
        last_done=jnp.zeros(ENVS, bool),
        global_step=jnp.int32(0),
        rng=jax.random.key(0),
        episode_return=jnp.zeros(ENVS),
        episode_length=jnp.zeros(ENVS, jnp.int32),
    )
    return TrajectoryCollectionState(**{**fields, **changes})


@pytest.mark.parametrize("batch", [(), (ENVS,), (STEPS, ENVS), (7, STEPS, ENVS)])
def test_one_struct_for_steps_rollouts_and_minibatches(batch):
    assert trajectory(*batch).done.shape == transition(*batch).done.shape == batch
    AdvantageMinibatch(trajectories=trajectory(*batch), advantages=jnp.zeros(batch), targets=jnp.zeros(batch))


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
def test_done_is_either(terminated, truncated):
    for make in (trajectory, transition):
        assert make(terminated=jnp.array(terminated), truncated=jnp.array(truncated)).done == (terminated or truncated)


@pytest.mark.parametrize("name", ["log_prob", "reward", "value", "terminated", "truncated", "final_value"])
def test_a_trajectorys_arrays_have_one_shape(name):
    good = getattr(trajectory(STEPS, ENVS), name)
    for bad in (good[0], good.T, good[..., None], good[:, :1], np.asarray(good), 0.0, None, good.astype(jnp.int32)):
        with pytest.raises(TypeError, match=name):
            trajectory(STEPS, ENVS, **{name: bad})


@pytest.mark.parametrize("name", ["reward", "terminated", "truncated"])
def test_a_transitions_arrays_have_one_shape(name):
    good = getattr(transition(STEPS, ENVS), name)
    for bad in (good[0], good.T, good[..., None], good[:, :1], np.asarray(good), 0.0, None, good.astype(jnp.int32)):
        with pytest.raises(TypeError, match=name):
            transition(STEPS, ENVS, **{name: bad})


@pytest.mark.parametrize("name", ["obs", "action", "next_obs"])
def test_every_leaf_of_a_transition_starts_with_the_same_axes(name):
    for bad in (jnp.zeros((ENVS, 4)), {"a": jnp.zeros((STEPS, ENVS, 2)), "b": jnp.zeros((ENVS, STEPS))}, jnp.zeros(STEPS)):
        with pytest.raises(ShapeError, match=rf"Transition\.{name} = .*but every leaf must start with \[batch\] = \[5, 3\]"):
            transition(STEPS, ENVS, **{name: bad})


@pytest.mark.parametrize("name", ["obs", "action"])
def test_every_leaf_of_an_observation_or_action_starts_with_the_same_axes(name):
    for bad in (jnp.zeros((ENVS, 4)), {"a": jnp.zeros((STEPS, ENVS, 2)), "b": jnp.zeros((ENVS, STEPS))}, jnp.zeros(STEPS)):
        with pytest.raises(ShapeError, match=rf"Trajectory\.{name} = .*but every leaf must start with \[batch\] = \[5, 3\]"):
            trajectory(STEPS, ENVS, **{name: bad})


@pytest.mark.parametrize(
    "make, name",
    [(rollout, "last_obs"), (rollout, "initial_carry"), (state, "last_obs"), (state, "env_state"), (state, "carry")],
)
def test_every_leaf_beside_a_rollout_starts_with_the_environments(make, name):
    make(**{name: {"h": jnp.zeros((ENVS, 8)), "n": (jnp.zeros(ENVS, jnp.int32),)}})
    for bad in (jnp.zeros((STEPS, 4)), {"h": jnp.zeros((ENVS, 8)), "n": jnp.zeros(())}, jnp.zeros((1, ENVS))):
        with pytest.raises(ShapeError, match=rf"{name} = .*but every leaf must start with \[envs\] = \[3\]"):
            make(**{name: bad})


def test_a_rollout_is_steps_by_envs():
    for batch in ((ENVS, STEPS), (STEPS,), (ENVS,), (2, STEPS, ENVS)):
        with pytest.raises(TypeError, match=r"\[steps envs\]"):
            rollout(trajectories=trajectory(*batch))
    assert rollout().initial_carry == () and rollout().episodes.count == 0


def test_advantages_belong_to_their_trajectories():
    t = trajectory(STEPS, ENVS)
    good, bad = jnp.zeros((STEPS, ENVS)), jnp.zeros((ENVS, STEPS))
    for advantages, targets in ((bad, bad), (good, bad), (good[0], good)):
        with pytest.raises(TypeError):
            AdvantageMinibatch(trajectories=t, advantages=advantages, targets=targets)


def test_a_collectors_state():
    state()
    state(rng=jax.random.key(0, impl="rbg"), rms_state={"any": "thing"}, reset_state=jnp.zeros(7))
    for changes in (
        dict(rng=jax.random.PRNGKey(0)),
        dict(rng=jax.random.split(jax.random.key(0))),
        dict(global_step=0),
        dict(global_step=jnp.zeros(ENVS, jnp.int32)),
        dict(global_step=jnp.float32(0)),
        dict(last_done=jnp.zeros((ENVS, 1), bool)),
        dict(episode_return=jnp.zeros(STEPS)),
        dict(episode_length=jnp.zeros(ENVS)),
    ):
        with pytest.raises(TypeError, match=next(iter(changes))):
            state(**changes)


def test_evaluations_of_any_number():
    for batch in ((4,), (2, 4), (3, 2, 4)):
        EvalMetrics(episode_length=jnp.zeros(batch, jnp.int32), cumulative_reward=jnp.zeros(batch))
    whole = jnp.zeros(4, jnp.int32)
    for length, reward in ((whole, jnp.zeros(3)), (jnp.zeros(4), jnp.zeros(4)), (jnp.int32(0), jnp.zeros(()))):
        with pytest.raises(TypeError):
            EvalMetrics(episode_length=length, cumulative_reward=reward)


def episodes(*seeds, **changes):
    return EpisodeStats(**{**dict.fromkeys(("count", "total_return", "total_length"), jnp.zeros(seeds)), **changes})


def test_metrics():
    """Of one run, or of several."""
    for seeds in ((), (4,), (2, 4)):
        metrics = TrainStepMetrics(means={"loss": jnp.zeros(seeds), "mine": jnp.zeros(seeds)}, episodes=episodes(*seeds))
        assert set(metrics.means) == {"loss", "mine"}
    TrainStepMetrics(means={}, episodes=episodes())
    for means in ({"loss": 0.0}, {"loss": jnp.int32(0)}, {1: jnp.zeros(())}, [jnp.zeros(())], {"loss": np.zeros(())}, None):
        with pytest.raises(TypeError, match="means"):
            TrainStepMetrics(means=means, episodes=episodes())
    for name in ("count", "total_return", "total_length"):
        for bad in (jnp.zeros(3), jnp.zeros(4, jnp.int32), 0.0):
            with pytest.raises(TypeError, match=name):
                episodes(4, **{name: bad})
    with pytest.raises(TypeError, match="episodes"):
        TrainStepMetrics(means={}, episodes=jnp.zeros(3))
    with pytest.raises(TypeError, match="transitions"):
        Transitions(transitions=trajectory(STEPS, ENVS), episodes=episodes())
    Transitions(transitions=transition(STEPS, ENVS), episodes=episodes())


def test_a_copy_is_checked_again():
    """Unlike what vmap, scan and `tree_at` make, which is what seams are for."""
    good = trajectory(STEPS, ENVS)
    for changes in (dict(reward=jnp.zeros((ENVS, STEPS))), dict(obs=jnp.zeros(STEPS))):
        with pytest.raises(TypeError):
            dataclasses.replace(good, **changes)
    with pytest.raises(TypeError, match=r"\[steps envs\]"):
        dataclasses.replace(rollout(), trajectories=trajectory(STEPS))
    unchecked = eqx.tree_at(lambda t: t.reward, good, jnp.zeros((ENVS, STEPS)))
    with pytest.raises(TypeError):
        dataclasses.replace(unchecked)


def test_transformations_leave_structs_structs():
    @jax.jit
    @jax.vmap
    def double(t):
        return dataclasses.replace(t, reward=2 * t.reward)

    t = double(trajectory(STEPS, ENVS, reward=jnp.ones((STEPS, ENVS))))
    assert isinstance(t, Trajectory) and t.reward.sum() == 2 * STEPS * ENVS
    last, rows = jax.lax.scan(lambda carry, t: (carry + t.reward, t), jnp.zeros(ENVS), t)
    assert last.tolist() == [2.0 * STEPS] * ENVS and eqx.tree_equal(rows, t)
