import contextlib
import dataclasses
import io
import json
import re
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from jaxtyping import Array, Float
from PIL import Image
from user_algorithm import own

from eqxrl import EvalMetrics, TrainStepMetrics, spaces
from eqxrl._schedules import LinearSchedule
from eqxrl._structs import TrajectoryCollectionState, no_episodes
from eqxrl.training import (
    Callback,
    Checkpointing,
    EarlyStopping,
    EpisodeRendering,
    HParamLog,
    JSONLLogger,
    NanGuard,
    NonFinite,
    ProgressBar,
    Throughput,
    Trainer,
    load_checkpoint,
)
from eqxrl.training._run_state import RunState


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Returns(Callback):
    """Before all others: makes the evaluations say what the test wants, `[evals]` or `[evals seeds]`."""

    def __init__(self, *returns):
        self.returns = returns

    def on_validation_epoch_end(self, trainer, algo, state, metrics):
        wanted = np.float32(self.returns[len(trainer.evaluations) - 1])
        metrics.cumulative_reward[...] = wanted[..., None]


@pytest.fixture
def writable(monkeypatch):
    """Fetched metrics that `Returns` can write to."""
    get = jax.device_get
    monkeypatch.setattr(
        jax, "device_get", lambda x: jax.tree.map(lambda y: np.array(y) if isinstance(y, np.ndarray) else y, get(x))
    )


# Early stopping.


@pytest.mark.parametrize(
    "stopping, returns, iterations",
    [
        (dict(threshold=5.0), (1, 2, 5, 9, 9), 4),
        (dict(threshold=5.0), (6, 0, 0, 0, 0), 0),
        (dict(threshold=5.0), (1, 2, 3, 4, 4.9), 7),
        (dict(patience=2), (3, 1, 4, 4, 5), 7),
        (dict(patience=2), (3, 1, 3, 9, 9), 4),
        (dict(patience=1), (1, 2, 3, 3, 4), 6),
        (dict(patience=2, min_delta=1.0), (3, 4, 4, 9, 9), 4),
        (dict(patience=3, threshold=4.0), (3, 4, 4, 9, 9), 2),
        (dict(patience=1), (1, np.nan, 3, 4, 5), 2),
    ],
)
def test_early_stopping(algo, one, writable, stopping, returns, iterations):
    trainer = Trainer([Returns(*returns), EarlyStopping(**stopping)])
    trainer.fit(algo, one)
    assert trainer.iteration == iterations
    assert (trainer.stop_reason is None) == (iterations == 7)


def test_early_stopping_judges_each_seed_by_itself(algo, three, writable):
    stopping = EarlyStopping(threshold=5.0)
    trainer = Trainer([Returns((0, 0, 0), (0, 5, 0), (0, 0, 0), (9, 0, 0), (0, 0, 0)), stopping])
    state, _ = trainer.fit(algo, three)
    assert trainer.stopped.tolist() == [True, True, False] and trainer.iteration == 7
    assert state.data_collection_state.global_step.tolist() == [6, 2, 7]


def test_early_stopping_that_never_stops():
    with pytest.raises(ValueError, match="would never stop"):
        EarlyStopping()
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        EarlyStopping(patience=0)


# The NaN guard.


class SimpleState(eqx.Module):
    weights: Float[Array, " n"]
    collection: TrajectoryCollectionState


class Spoil(Callback):
    """Puts a NaN into a weight of the second seed before the third iteration."""

    def on_train_epoch_start(self, trainer, algo, state):
        if trainer.iteration == 2:
            index = (1, 0, 0) if trainer.num_seeds else (0, 0)
            weight = lambda s: s.agent.actor_critic.critic[0].weight  # noqa: E731
            trainer.state = eqx.tree_at(weight, state, weight(state).at[index].set(jnp.nan))


def test_nan_guard_names_the_first_and_leaves_the_last_good_checkpoint(algo, one, tmp_path):
    trainer = Trainer([Spoil(), NanGuard()], folder=tmp_path)
    with pytest.raises(NonFinite, match=r"outputs\.means\['approx_kl'\] isn't finite after iteration 4 of 7") as caught:
        trainer.fit(algo, one)
    assert "is of before" in caught.value.__notes__[0]
    state, metrics = load_checkpoint(tmp_path, algo)
    assert algo.env_steps(state) == 2 * 24 and metrics.cumulative_reward.shape == (2, 2)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(eqx.filter(state.agent, eqx.is_inexact_array)))
    state, _ = Trainer([NanGuard()], folder=tmp_path).fit(algo, resume=True)
    same(state, Trainer().fit(algo, one)[0])


def test_nan_guard_names_the_seed(algo, three):
    with pytest.raises(NonFinite, match=r"outputs\.means\['approx_kl'\] of seed 1 isn't finite"):
        Trainer([Spoil(), NanGuard()]).fit(algo, three)


def test_nan_guard_looks_at_the_state(algo, one):
    class SpoilLate(Callback):
        def on_train_epoch_end(self, trainer, algo, state, outputs):
            where = lambda s: s.agent.actor_critic.critic[0].weight  # noqa: E731
            trainer.state = eqx.tree_at(where, state, where(state).at[0, 0].set(jnp.inf))

    with pytest.raises(NonFinite, match=r"state\.agent\.actor_critic\.critic\[0\]\.weight isn't finite"):
        Trainer([SpoilLate(), NanGuard()]).fit(algo, one)


@pytest.mark.parametrize(
    "where, path",
    [
        (lambda s: s.weights, "state.weights"),
        (lambda s: s.collection.episode_return, "state.collection.episode_return"),
        (lambda s: s.collection.env_state["x"], None),
        (lambda s: s.collection.reset_state, None),
    ],
)
def test_nan_guard_leaves_to_environments_what_is_theirs(where, path):
    zeros = jnp.zeros(3)
    collection = TrajectoryCollectionState(
        last_obs=zeros, env_state={"x": zeros}, rms_state=(), last_done=zeros > 0, global_step=jnp.int32(0), rng=jax.random.key(0),
        episode_return=zeros, episode_length=jnp.zeros(3, jnp.int32), reset_state=zeros,
    )  # fmt: skip
    state = eqx.tree_at(where, SimpleState(weights=zeros, collection=collection), jnp.array([0.0, jnp.nan, 0.0]))
    outputs = TrainStepMetrics(means={"loss": jnp.float32(1)}, episodes=no_episodes())
    settings = dict(num_seeds=None, key_impl="threefry2x32", skip_initial_evaluation=True, first_env_step=0, stopped=None)
    run = RunState(state, **settings, ends=np.array([2]), iteration_size=24, iteration=2, pending=[(2, None, outputs)])
    with pytest.raises(NonFinite, match=re.escape(path)) if path else contextlib.nullcontext():
        NanGuard().on_train_epoch_end(SimpleNamespace(run=run), None, state, outputs)


# The others.


@pytest.mark.parametrize("keys", ["one", "three"])
def test_episode_rendering(algo, keys, request, tmp_path):
    Trainer([EpisodeRendering(tmp_path, every_epochs=2)]).fit(algo, request.getfixturevalue(keys))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"episode-{24 * i:09d}.gif" for i in (0, 4, 7)]
    with Image.open(tmp_path / names[-1]) as gif:
        assert gif.format == "GIF" and gif.n_frames > 1


def test_episode_rendering_of_a_sweep_shows_the_first_seed(three, tmp_path):
    """Also of what is swept: nobody could draw three gravities at once."""
    algo = own()
    algo = eqx.tree_at(lambda a: a.env_params, algo, algo.env_params.replace(gravity=jnp.array([1.0, 9.8, 20.0])))
    axes = eqx.tree_at(lambda a: a.env_params.gravity, jax.tree.map(lambda _: None, algo), 0, is_leaf=lambda x: x is None)
    Trainer([EpisodeRendering(tmp_path, start=False)]).fit(algo, three, axes=axes)
    assert [path.name for path in tmp_path.iterdir()] == ["episode-000000168.gif"]


def test_episode_rendering_writes_none_where_none_is_asked_for(algo, one, tmp_path):
    Trainer([EpisodeRendering(tmp_path, start=False, end=False)]).fit(algo, one)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keys", ["one", "three"])
def test_progress_bar(algo, keys, request):
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    trainer = Trainer([ProgressBar(console)])
    _, metrics = trainer.fit(algo, request.getfixturevalue(keys))
    text = console.file.getvalue()
    last = text[text.rindex("CartPole-v1") :]
    assert "168/168" in last and "/s" in last
    means = np.mean(metrics.cumulative_reward[..., -1, :], -1)
    assert f"return {means.mean():.1f}" in last and ("±" in last) == (keys == "three")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden and is there again


def test_progress_bar_gives_the_terminal_back_after_an_error(algo, one):
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True)
    wrong = type("Wrong", (Callback,), {"on_train_epoch_end": lambda *_: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        Trainer([ProgressBar(console), wrong]).fit(algo, one)
    assert "\x1b[?25h" in console.file.getvalue()


def test_progress_bar_is_quiet_where_there_is_no_terminal(algo, one, capsys):
    Trainer([ProgressBar()]).fit(algo, one)
    assert capsys.readouterr() == ("", "")


def test_throughput(algo, one, tmp_path):
    Trainer([Throughput()], [JSONLLogger(tmp_path / "metrics.jsonl")]).fit(algo, one)
    first, *later = rows(tmp_path / "metrics.jsonl")
    assert "time/env_steps_per_second" not in first and first["time/evaluation_seconds"] > 0
    for row, n in zip(later, algo.chunks, strict=True):
        assert row["time/env_steps_per_second"] == pytest.approx(24 * n / row["time/train_seconds"])
    elapsed = [row["time/elapsed_seconds"] for row in (first, *later)]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("num_updates, rate", [(14, 1e-2), ([0, 7, 28], 1e-2), ([0, 7, 28], [1e-2, 1e-1, 1e-3])])
def test_hparam_log(algo, num_updates, rate):
    annealed = eqx.tree_at(lambda a: a.hp.learning_rate, algo, LinearSchedule(1e-2, 0.0, 28))
    annealed = eqx.tree_at(lambda a: a.hp.learning_rate.init_value, annealed, jnp.float32(rate))
    axes = jax.tree.map(lambda _: None, annealed)
    if isinstance(rate, list):
        axes = eqx.tree_at(lambda a: a.hp.learning_rate.init_value, axes, 0, is_leaf=lambda x: x is None)
    state, logged = SimpleNamespace(num_updates=jnp.array(num_updates)), {}
    metrics = EvalMetrics(episode_length=jnp.ones(2, jnp.int32), cumulative_reward=jnp.ones(2))
    trainer = SimpleNamespace(log=logged.update, axes=axes if isinstance(num_updates, list) else False)
    HParamLog().on_validation_epoch_end(trainer, annealed, state, metrics)
    np.testing.assert_array_equal(logged["hp/num_updates"], num_updates)
    np.testing.assert_allclose(logged["hp/learning_rate"], np.array(rate) * (1 - np.array(num_updates) / 28), rtol=1e-6)
    assert logged["hp/gamma"] == np.float32(0.99)
    assert "hp/num_envs" not in logged


@pytest.mark.parametrize("keys", ["one", "three"])
def test_members_serve_any_algorithm(keys, request, tmp_path):
    """One without an agent, a learner or a collector, and whose environment has no name."""
    algo = own()
    env = Nameless()
    algo = dataclasses.replace(algo, env=env, env_params=None)
    assert not hasattr(env, "name")
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    members = [ProgressBar(console), Throughput(), HParamLog(), NanGuard(), EarlyStopping(threshold=1e9), Checkpointing()]
    trainer = Trainer(members, [JSONLLogger(tmp_path / "m.jsonl")], tmp_path / "run")
    trainer.fit(algo, request.getfixturevalue(keys))
    assert "Nameless" in console.file.getvalue()
    last = rows(tmp_path / "m.jsonl")[-1]
    assert {"hp/noise", "hp/num_updates", "train/better", "train/episode_return", "time/env_steps_per_second"} < last.keys()


class Nameless(eqx.Module):
    """An episode of 5 steps, whatever one does."""

    max_steps: int = eqx.field(static=True, default=5)

    def reset(self, key, params):
        return jax.random.normal(key, (4,)), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        return jnp.ones(4), state + 1, jnp.float32(1), state == 4, jnp.array(False), {}

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (4,))

    def action_space(self, params):
        return spaces.Discrete(2)


def test_what_hparam_log_says_is_logged(algo, one, tmp_path):
    Trainer([HParamLog()], [JSONLLogger(tmp_path / "m.jsonl")]).fit(algo, one)
    assert [(row["hp/num_updates"], row["hp/learning_rate"]) for row in rows(tmp_path / "m.jsonl")] == [
        (4 * i, 0.0003) for i in (0, 2, 4, 6, 7)
    ]


def test_checkpointing_by_epochs_and_the_best(algo, one, writable, tmp_path):
    written = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, algo, state):
            written.append(sorted(path.name for path in tmp_path.glob("*.eqx")))

    returns = Returns(1.0, 5.0, 2.0, 3.0, 4.0)
    Trainer([returns, Checkpointing(every_epochs=2, keep=1), Look()], folder=tmp_path).fit(algo, one)
    name = "checkpoint-{:09d}.eqx".format
    assert written == [["best.eqx", name(0)], ["best.eqx", name(2)], ["best.eqx", name(4)], ["best.eqx", name(4)]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.eqx", name(7)]
    assert algo.env_steps(load_checkpoint(tmp_path, algo, best=True)[0]) == 2 * 24


def test_checkpointing_by_time(algo, one, monkeypatch, tmp_path):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("eqxrl.training._builtin.time.monotonic", lambda: next(clock))
    asked = []
    monkeypatch.setattr(Trainer, "request_checkpoint", lambda self, score: asked.append(self.iteration))
    Trainer([Checkpointing(None, every_seconds=25, best=False)], folder=tmp_path).fit(algo, one)
    assert asked == [4]  # the clock says 10, 20, 30; then it is read again, 40; and 50, 60


def test_checkpointing_wants_a_folder():
    with pytest.raises(ValueError, match="folder=None; pass at most one, and a folder with it"):
        Trainer([Checkpointing()])
    with pytest.raises(ValueError, match="got 2 Checkpointing"):
        Trainer([Checkpointing(), Checkpointing()], folder="x")
    with pytest.raises(ValueError, match="every_epochs must be above 0"):
        Checkpointing(every_epochs=0)


def test_a_score_that_is_nan_is_never_the_best(algo, one, tmp_path):
    checkpointing = Checkpointing()
    trainer = Trainer([checkpointing], folder=tmp_path)
    trainer.fit(algo, one)
    before = checkpointing.state["best_score"]
    nan = EvalMetrics(episode_length=jnp.ones(2, jnp.int32), cumulative_reward=jnp.full(2, jnp.nan))
    checkpointing.on_validation_epoch_end(trainer, algo, trainer.state, nan)
    assert checkpointing.state["best_score"] == before
