"""The algorithms of a sweep's points."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import tiny

from eqxrl import GAE, LinearSchedule
from eqxrl.sweeps._members import check_read, groups, stacked, varying, with_values
from eqxrl.sweeps._memory import bytes_of, chunk_size


@pytest.fixture(scope="module")
def algo():
    return tiny()


def test_a_hyperparameter_by_both_its_names(algo):
    for name in ("gamma", "hp.gamma"):
        made = with_values(algo, {name: 0.5})
        assert made.hp.gamma == 0.5 and made.hp.gamma.dtype == np.float32 and made.advantage.gamma == 0.5
    assert with_values(algo, {"num_envs": 6}).collector.num_envs == 6 and algo.hp.gamma == np.float32(0.99)


def test_a_part_is_made_of_the_points_values_and_then_changed(algo):
    made = with_values(algo, {"advantage.gae_lambda": 0.5, "gamma": 0.25})
    assert (made.advantage.gae_lambda, made.advantage.gamma, made.hp.gae_lambda) == (0.5, 0.25, np.float32(0.95))
    given = tiny(advantage=GAE(gamma=0.75, gae_lambda=0.1))
    assert with_values(given, {"advantage.gae_lambda": 0.5}).advantage.gamma == 0.75


def test_a_schedule_begins_there_and_spans_the_run(algo):
    hp = dataclasses.replace(algo.hp, learning_rate=LinearSchedule(1e-3, 1e-4, algo.hp.num_updates), clip_eps=LinearSchedule(0.2, 0.1, 5))
    annealed = dataclasses.replace(algo, hp=hp)
    made = with_values(annealed, {"learning_rate": 0.5, "num_epochs": 6})
    assert made.hp.num_updates == 3 * algo.hp.num_updates == made.hp.learning_rate.transition_steps
    assert made.hp.clip_eps.transition_steps == 5
    assert (made.hp.learning_rate.init_value, made.hp.learning_rate.end_value) == (0.5, np.float32(1e-4))
    assert with_values(annealed, {"learning_rate.end_value": 0.5}).hp.learning_rate.end_value == 0.5


@pytest.mark.parametrize(
    "point, named",
    [
        ({"gama": 0.5}, "PPO has no 'gama' to sweep; did you mean gamma"),
        ({"hp.advantage.gamma": 0.5}, "no 'hp.advantage.gamma'"),
        ({"advantage": 0.5}, "no 'advantage' to sweep"),
        ({"advantage.lambda": 0.5}, "there is no 'advantage.lambda' to sweep; there is gamma, gae_lambda"),
        ({"optimizer.lr": 0.5}, "sweep the hyperparameter it is made of"),
        ({"collector.num_envs": 2}, "only floats of a part can be swept"),
        ({"gamma": 1.5}, r"PPOHParams.gamma must be in \[0.0, 1.0\], got 1.5"),
        ({"advantage.gamma": 1.5}, r"GAE.gamma must be in \[0.0, 1.0\], got 1.5"),
        ({"num_envs": 0}, "PPOHParams.num_envs must be at least 1"),
    ],
)
def test_what_cannot_be_swept(algo, point, named):
    with pytest.raises((ValueError, TypeError), match=named):
        with_values(algo, point)


def test_a_name_that_nothing_reads():
    algo = tiny(advantage=GAE(gamma=0.75, gae_lambda=0.1))
    check_read(algo, ["advantage.gae_lambda", "hp.learning_rate"])
    with pytest.raises(ValueError, match="hp.gae_lambda is swept, but no part reads it"):
        check_read(algo, ["hp.gae_lambda"])


def test_those_that_differ_in_floats_only_share_a_program(algo):
    points = [dict(gamma=0.5, num_envs=3), dict(gamma=0.5, num_envs=6), dict(gamma=0.25, num_envs=3), dict(gamma=0.75, num_envs=6)]
    algos = [with_values(algo, x) for x in points]
    assert groups(algos) == [[0, 2], [1, 3]]
    first = [algos[0], algos[2]]
    many, axes = stacked(first, varying(first), [0, 1, 1])
    assert many.hp.gamma.tolist() == [0.5, 0.25, 0.25] and axes.hp.gamma == 0 and many.hp.learning_rate.shape == ()
    assert jax.tree.leaves(axes) == [0]


def test_chunks_are_equal_and_a_multiple_of_the_devices():
    for rows in range(1, 40):
        for most in range(1, 40):
            for devices in (1, 2, 3):
                each = chunk_size(rows, most, devices)
                assert each % devices == 0 and each <= max(most, devices)
                assert -(-rows // each) <= -(-rows // (max(most // devices, 1) * devices))
    assert chunk_size(9, 8, 2) == 6 and chunk_size(5, 100, 2) == 6


@pytest.mark.slow
def test_the_estimate_of_memory_is_above_what_a_program_needs():
    """Of XLA's own account of it, and within a factor of ten where there is something to account for."""
    algo = tiny(num_envs=64, num_steps=64, num_seeds_per_eval=4)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.eval_shape(jax.vmap(lambda key: eqx.filter(algo.init_train_state(key), eqx.is_array)), keys)
    _, static = eqx.partition(eqx.filter_eval_shape(algo.init_train_state, keys[0]), lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def iterations(states):
        one = lambda ts: eqx.filter(algo.iterations(eqx.combine(ts, static), 2)[0], eqx.is_array)  # noqa: E731
        return jax.vmap(one)(states)

    analysis = jax.jit(iterations, donate_argnums=0).lower(states).compile().memory_analysis()
    needed = (analysis.temp_size_in_bytes + analysis.argument_size_in_bytes) / 3
    assert needed < bytes_of(algo) < 10 * needed
