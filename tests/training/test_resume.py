"""Runs that are cut off, and go on."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same, tiny, with_limit
from rich.console import Console

from eqxrl.envs import TimeLimit, TimeLimitIsTerminal
from eqxrl.training import (
    Callback,
    CheckpointMismatch,
    CheckpointNotWritten,
    Checkpoints,
    EarlyStopping,
    HParamLog,
    Interrupted,
    JSONLLogger,
    NanGuard,
    ProgressBar,
    Throughput,
    Trainer,
    load,
    load_checkpoint,
)
from eqxrl.training._callback import decode_state, encode_state
from eqxrl.training._interrupts import Interrupts


class Killed(BaseException):
    """As by `kill -9`: the trainer has no chance to do anything."""


class CutOff(Callback):
    """Does something once, in a hook, at an iteration; and listens to batches, to be there at each, if it's told to."""

    def __init__(self, iteration, what, hook="on_train_batch_end"):
        self.iteration, self.what, self.done = iteration, what, False
        setattr(self, hook, self.hook)

    def hook(self, trainer, *_):
        if trainer.iteration == self.iteration and not self.done:
            self.done = True
            self.what()


class Tally(Callback):
    """A callback with a state: counts the iterations that it has seen, and keeps what it saw of evaluations."""

    def __init__(self):
        self.state = {"epochs": 0, "returns": [], "array": np.zeros(2, np.int16)}

    def on_train_epoch_end(self, trainer, algo, state, outputs):
        self.state["epochs"] += 1
        self.state["array"] += 1

    def on_validation_epoch_end(self, trainer, algo, state, metrics):
        self.state["returns"].append(float(metrics.cumulative_reward.mean()))


def kill():
    raise Killed


def fail():
    raise ZeroDivisionError


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def train(algo, keys):
    return eqx.filter_vmap(algo.train)(keys) if keys.ndim else algo.train(keys)


@pytest.fixture(scope="module", params=["one", "three"])
def keys(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def undisturbed(algo, keys, tmp_path_factory):
    """A run that nothing befell: what `fit` returned, what it logged, what the callback knows."""
    folder, tally = tmp_path_factory.mktemp("undisturbed"), Tally()
    result = Trainer([tally], [JSONLLogger(folder / "m.jsonl")]).fit(algo, keys)
    return result, folder, tally.state


CUTS = [
    (interrupt, Interrupted, "on_train_epoch_end"),
    (terminate, Interrupted, "on_validation_epoch_start"),
    (interrupt, Interrupted, "on_validation_epoch_end"),
    (fail, ZeroDivisionError, "on_train_epoch_start"),
    (fail, ZeroDivisionError, "on_validation_epoch_start"),
    (fail, ZeroDivisionError, "on_validation_epoch_end"),
    (kill, Killed, "on_train_epoch_start"),
    (kill, Killed, "on_validation_epoch_end"),
]


@pytest.mark.parametrize("iteration", [2, 6])
@pytest.mark.parametrize("what, error, hook", CUTS)
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(algo, keys, undisturbed, tmp_path, what, error, hook, iteration):
    """State, evaluations, logs and callbacks; whatever stopped it, and wherever."""
    result, folder, tallied = undisturbed

    def trainer(*callbacks):
        return Trainer([Tally(), *callbacks], [JSONLLogger(tmp_path / "m.jsonl")], tmp_path / "checkpoints")

    with pytest.raises(error):
        trainer(CutOff(iteration, what, hook)).fit(algo, keys)
    resumed = trainer()
    same(resumed.fit(algo, resume=True), result)
    assert resumed.callbacks[0].state["returns"] == tallied["returns"]
    assert (resumed.callbacks[0].state["array"] == tallied["array"]).all() and resumed.callbacks[0].state["array"].dtype == np.int16
    for name in ("m.jsonl", "m.csv", "m.hyperparameters.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize("iteration", range(1, 8))
@pytest.mark.parametrize("what, error", [(interrupt, Interrupted), (fail, ZeroDivisionError)])
def test_a_run_that_was_cut_off_between_two_iterations(algo, one, tmp_path, what, error, iteration):
    wanted = Trainer().fit(algo, one)
    watched = Trainer([CutOff(-1, fail)], [JSONLLogger(tmp_path / "watched.jsonl")])
    same(watched.fit(algo, one), wanted)
    log = tmp_path / "m.jsonl"
    with pytest.raises(error):
        Trainer([CutOff(iteration, what)], [JSONLLogger(log)], tmp_path).fit(algo, one)
    state, _ = load_checkpoint(tmp_path, algo)
    assert algo.env_steps(state) == 24 * iteration
    same(Trainer([], [JSONLLogger(log)], tmp_path).fit(algo, resume=True), wanted)
    watched, cut = [[json.loads(x) for x in path.read_text().splitlines()] for path in (tmp_path / "watched.jsonl", log)]
    assert len(watched) == len(cut)
    for a, b in zip(watched, cut, strict=True):  # means over lots of iterations that were cut otherwise
        assert a.keys() == b.keys() and all(b[k] == pytest.approx(a[k], rel=1e-5, abs=1e-7) for k in a)


@pytest.mark.parametrize("iteration", [0, 3])
def test_a_callback_that_fails_within_an_iteration(algo, one, tmp_path, iteration):
    with pytest.raises(ZeroDivisionError):
        Trainer([CutOff(iteration, fail, "on_train_batch_start")], folder=tmp_path).fit(algo, one)
    same(Trainer(folder=tmp_path).fit(algo, resume=True), Trainer().fit(algo, one))


def test_an_interrupt_while_the_run_ends_is_not_lost(algo, one, tmp_path):
    for resume in (False, True):
        with pytest.raises(Interrupted, match="after iteration 7 of 7"):
            Trainer([CutOff(7, interrupt, "on_fit_end")], folder=tmp_path).fit(algo, one, resume=resume)


def test_members_go_on_where_an_evaluation_is_due(algo, one, tmp_path):
    """They never saw the iterations before it start."""
    members = lambda: [ProgressBar(Console(file=io.StringIO(), force_terminal=True)), Throughput(), NanGuard(), HParamLog()]  # noqa: E731
    with pytest.raises(Interrupted):
        Trainer([*members(), CutOff(4, interrupt, "on_validation_epoch_start")], folder=tmp_path).fit(algo, one)
    with pytest.raises(ZeroDivisionError):
        Trainer([*members(), CutOff(6, fail, "on_validation_epoch_start")], folder=tmp_path).fit(algo, resume=True)
    same(Trainer(members(), folder=tmp_path).fit(algo, resume=True), Trainer().fit(algo, one))


def test_interrupted_says_how_to_go_on(algo, one, tmp_path, capfd):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        Trainer([CutOff(2, interrupt, "on_train_epoch_start")], folder=tmp_path).fit(algo, one)
    assert str(caught.value) == (
        "stopped by SIGINT after iteration 2 of 7, at 48 env steps. Go on with "
        f"Trainer(folder={str(tmp_path)!r}, ...).fit(algo, resume=True)."
    )
    assert caught.value.signal == signal.SIGINT and isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.checkpoint == tmp_path / "checkpoint-000000002.eqx"
    assert "press Ctrl-C again to leave at once" in capfd.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_interrupted_without_a_folder_keeps_the_state(algo, one):
    with pytest.raises(Interrupted, match="No checkpoint was written .there is no folder") as caught:
        Trainer([CutOff(4, terminate, "on_validation_epoch_end")]).fit(algo, one)
    assert caught.value.checkpoint is None and caught.value.signal == signal.SIGTERM
    assert algo.env_steps(caught.value.state) == 4 * 24
    Trainer().fit(algo, train_state=caught.value.state)


def test_outside_of_the_main_thread_signals_are_left_alone(algo, one):
    before, result = signal.getsignal(signal.SIGINT), []
    look = CutOff(2, lambda: result.append(signal.getsignal(signal.SIGINT)), "on_train_epoch_start")
    thread = threading.Thread(target=lambda: result.append(Trainer([look]).fit(algo, one)))
    thread.start()
    thread.join()
    assert result[0] is before
    same(result[1], Trainer().fit(algo, one))


BUSY = """
from eqxrl.training._interrupts import Interrupts
with Interrupts():
    print("ready", flush=True)
    while True:  # as a run whose every program takes long
        sum(range(100_000))
"""


@pytest.mark.parametrize("first, second", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_leaves_at_once(first, second):
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stderr.readline() == "\n" and "press Ctrl-C again" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=10) == -second


def test_in_an_interactive_session_a_second_signal_is_an_exception(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupt()
        assert interrupts.received == signal.SIGINT
        interrupt()


# A new process.

CHILD = """
import sys, jax
from pathlib import Path
from helpers import tiny
from eqxrl import set_cpu_flags
from eqxrl.training import Trainer, save
set_cpu_flags()
algo = tiny(**{hparams})
for folder in map(Path, sys.argv[1:]):
    save(folder / "result.eqx", Trainer(folder=folder).fit(algo, resume=True))
"""


def in_a_new_process(folders, **hparams):
    """Goes on with runs, and returns what `fit` returned of each."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])}
    program = CHILD.replace("{hparams}", repr(hparams))
    subprocess.run([sys.executable, "-c", program, *map(str, folders)], env=environment, check=True)
    return [folder / "result.eqx" for folder in folders]


def test_in_a_new_process(algo, one, tmp_path):
    cuts = [
        (2, kill, Killed, "on_train_epoch_start"),
        (3, interrupt, Interrupted, "on_train_batch_end"),
        (6, fail, ZeroDivisionError, "on_validation_epoch_start"),
    ]
    folders = [tmp_path / str(i) for i in range(len(cuts))]
    for (iteration, what, error, hook), folder in zip(cuts, folders, strict=True):
        with pytest.raises(error):
            Trainer([CutOff(iteration, what, hook)], folder=folder).fit(algo, one)
    hparams = dict(num_minibatches=2, total_timesteps=24 * 7, eval_freq=48, normalize_observations=True, normalize_rewards=True)
    wanted = Trainer().fit(algo, one)
    for path in in_a_new_process(folders, **hparams):
        same(load(path, wanted), wanted)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("seeds", [None, 3])
def test_after_every_update_of_fifty(normalize, seeds, tmp_path):
    """A 50-update run, saved after each update and gone on with in a new process."""
    hparams = dict(total_timesteps=24 * 50, eval_freq=24 * 7, normalize_observations=normalize, normalize_rewards=normalize)
    algo, keys = tiny(**hparams), jax.random.key(3) if seeds is None else jax.random.split(jax.random.key(3), seeds)
    wanted = train(algo, keys)
    folders = [tmp_path / f"{i:02d}" for i in range(1, 50)]
    for i, folder in enumerate(folders, 1):
        with pytest.raises(Interrupted):
            Trainer([CutOff(i, interrupt)], folder=folder).fit(algo, keys)
        assert algo.env_steps(load_checkpoint(folder, algo)[0]) == 24 * i
    for path in in_a_new_process(folders, **hparams):
        same(load(path, wanted), wanted)


KILLED = """
import os, sys, jax
from pathlib import Path
from helpers import tiny
from eqxrl import set_cpu_flags
from eqxrl.training import Callback, JSONLLogger, Trainer, save
set_cpu_flags()
algo, folder = tiny(total_timesteps=24 * 12000, eval_freq=24 * 4), Path(sys.argv[1])

class Ready(Callback):
    said = False

    def on_train_epoch_end(self, *_):
        if not self.said:
            print("ready", flush=True)
        self.said = True

result = Trainer([Ready()], [JSONLLogger(folder / "m.jsonl")], folder / "checkpoints").fit(algo, jax.random.key(4), resume=True)
save(folder / "result.eqx", result)
"""


KILLS = int(os.environ.get("EQXRL_KILLS", 200))


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_two_hundred_times_kill_9(tmp_path):
    """At random instants, of which some are in the midst of writing a checkpoint or a row; each loses one interval at most."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    rng, algo, instants = np.random.default_rng(0), tiny(total_timesteps=24 * 12000, eval_freq=24 * 4), []

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], env=environment, stdout=subprocess.PIPE, text=True)

    for _ in range(KILLS):
        with start(tmp_path / "killed") as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 1))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        state, _ = load_checkpoint(tmp_path / "killed/checkpoints", algo)
        lines = (tmp_path / "killed/m.jsonl").read_text().splitlines(keepends=True)
        logged = json.loads([line for line in lines if line.endswith("\n")][-1])["env_steps"]
        assert 0 <= logged - algo.env_steps(state) <= 96
        instants.append(algo.env_steps(state))
    assert instants == sorted(instants) and len(set(instants)) > KILLS // 2  # where a busy machine leaves time for a checkpoint
    for folder in (tmp_path / "killed", tmp_path / "undisturbed"):
        with start(folder) as process:
            assert process.wait() == 0
    assert (tmp_path / "killed/result.eqx").read_bytes() == (tmp_path / "undisturbed/result.eqx").read_bytes()
    assert (tmp_path / "killed/m.jsonl").read_text() == (tmp_path / "undisturbed/m.jsonl").read_text()


# What a folder holds, and whose it is.


def test_a_finished_run_is_returned_as_it_is(algo, keys, undisturbed, tmp_path):
    (state, metrics), *_ = undisturbed
    Trainer(folder=tmp_path).fit(algo, keys)
    before = sorted(tmp_path.iterdir())
    trainer = Trainer(folder=tmp_path)
    same(trainer.fit(algo, resume=True), (state, metrics))
    assert sorted(tmp_path.iterdir()) == before and trainer.iteration == 7
    same(load_checkpoint(tmp_path, algo), (state, metrics))


@pytest.mark.parametrize("iteration, hook", [(3, "on_train_batch_end"), (4, "on_validation_epoch_start")])
def test_any_algorithm_goes_on(tenant, one, tmp_path, iteration, hook):
    """With a replay buffer in its state, or one of a user's own."""
    wanted = Trainer().fit(tenant, one)
    with pytest.raises(Interrupted):
        Trainer([CutOff(iteration, interrupt, hook)], folder=tmp_path).fit(tenant, one)
    same(Trainer(folder=tmp_path).fit(tenant, resume=True), wanted)


def test_a_run_that_was_stopped_early_stays_stopped_and_says_so(algo, one, tmp_path):
    wanted = Trainer([EarlyStopping(threshold=-1.0)], folder=tmp_path).fit(algo, one)
    assert wanted[1].cumulative_reward.shape == (1, 2)
    trainer = Trainer([EarlyStopping(threshold=-1.0)], folder=tmp_path)
    how = r"was stopped \(a mean return of -1.0 was reached\) after iteration 0 of 7, .* total_timesteps is above 168"
    with pytest.warns(UserWarning, match=how):
        same(trainer.fit(algo, resume=True), wanted)
    assert trainer.iteration == 0 and "was reached" in trainer.stop_reason


# Extensions: the same algorithm with a larger total_timesteps.


def longer(algo, iterations=11):
    return dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, total_timesteps=24 * iterations))


def test_a_finished_run_is_extended(algo, keys, tmp_path):
    """The evaluation that ended it stays; those of the longer run come after it; and the state is that of the longer run."""
    _, short = Trainer([], [JSONLLogger(tmp_path / "m.jsonl")], folder=tmp_path / "run").fit(algo, keys)
    state, long = Trainer().fit(longer(algo), keys)
    heard = []
    look = type("Look", (Callback,), {"on_train_epoch_start": lambda self, t, *_: heard.append((t.iteration, t.epoch, t.num_epochs))})
    trainer = Trainer([look()], [JSONLLogger(tmp_path / "m.jsonl")], folder=tmp_path / "run")
    extended = trainer.fit(longer(algo), resume=True)
    same(extended[0], state)
    assert (trainer.iteration, trainer.num_iterations, trainer.epoch, trainer.num_epochs) == (11, 11, 7, 7)
    assert heard == [(7, 4, 7), (8, 5, 7), (10, 6, 7)]
    same(extended[1].cumulative_reward[..., :5, :], short.cumulative_reward)  # after 0, 2, 4, 6 and 7 iterations
    same(extended[1].cumulative_reward[..., 5:, :], long.cumulative_reward[..., 4:, :])  # after 8, 10 and 11
    steps = [json.loads(line)["env_steps"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert steps == [24 * i for i in (0, 2, 4, 6, 7, 8, 10, 11)]
    same(load_checkpoint(tmp_path / "run", longer(algo)), extended)
    same(Trainer(folder=tmp_path / "run").fit(longer(algo), resume=True), extended)
    with pytest.raises(CheckpointMismatch, match="hp/total_timesteps: the run has 264, the algorithm 168"):
        Trainer(folder=tmp_path / "run").fit(algo, resume=True)


@pytest.mark.parametrize("what, error", [(kill, Killed), (interrupt, Interrupted)])
def test_a_run_is_extended_before_it_has_finished_and_while_it_is(algo, one, tmp_path, what, error):
    wanted = Trainer().fit(longer(algo), one)
    with pytest.raises(error):
        Trainer([CutOff(4, what, "on_train_epoch_start")], folder=tmp_path).fit(algo, one)
    with pytest.raises(error):
        Trainer([CutOff(8, what, "on_train_epoch_start")], folder=tmp_path).fit(longer(algo), resume=True)
    same(Trainer(folder=tmp_path).fit(longer(algo), resume=True), wanted)


def test_only_an_extension_is_one(algo, one, tmp_path):
    Trainer(folder=tmp_path).fit(algo, one)
    other = eqx.tree_at(lambda a: a.hp.gamma, longer(algo), jnp.float32(0.5))
    with pytest.raises(CheckpointMismatch, match=r"hp/gamma: .*\n.*hp/total_timesteps: .*\n.*only total_timesteps may be larger"):
        Trainer(folder=tmp_path).fit(other, resume=True)


def test_an_extension_whose_newest_checkpoint_is_damaged(algo, one, tmp_path):
    """Checkpoints of different numbers of evaluations and of different lengths lie beside each other."""
    wanted = Trainer().fit(longer(algo), one)
    Trainer(folder=tmp_path).fit(algo, one)
    with pytest.raises(Interrupted):
        Trainer([CutOff(8, interrupt, "on_train_epoch_start")], folder=tmp_path).fit(longer(algo), resume=True)
    path = tmp_path / "checkpoint-000000008.eqx"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="Fell back to checkpoint-000000007.eqx"), pytest.raises(ZeroDivisionError):
        Trainer([CutOff(7, fail, "on_train_epoch_start")], folder=tmp_path).fit(longer(algo), resume=True)
    same(Trainer(folder=tmp_path).fit(longer(algo), resume=True)[0], wanted[0])


def test_a_checkpoint_before_the_damaged_one(algo, one, tmp_path):
    """What is written next is older than what was damaged, and takes its place."""
    wanted = Trainer().fit(algo, one)
    with pytest.raises(Interrupted):
        Trainer([CutOff(4, interrupt, "on_train_epoch_start")], folder=tmp_path).fit(algo, one)
    path = tmp_path / "checkpoint-000000004.eqx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="Fell back to checkpoint-000000002.eqx"), pytest.raises(Interrupted):
        Trainer([CutOff(3, interrupt)], folder=tmp_path).fit(algo, resume=True)
    same(Trainer(folder=tmp_path).fit(algo, resume=True), wanted)


def test_a_stopped_run_goes_on_when_it_is_extended(algo, one, three, tmp_path):
    stop = lambda: type("Stop", (Callback,), {"on_validation_epoch_end": lambda self, t, *_: self.stop(t)})()  # noqa: E731
    for keys, folder in ((one, tmp_path / "one"), (three, tmp_path / "three")):
        first = stop()
        members = None if keys.ndim == 0 else np.ones(3, bool)
        first.stop = lambda t: t.iteration == 4 and t.request_stop("enough", members=members)  # noqa: B023
        trainer = Trainer([first], folder=folder)
        trainer.fit(algo, keys)
        assert (trainer.iteration, trainer.stop_reason) == (4, "enough")
        trainer = Trainer(folder=folder)
        same(trainer.fit(longer(algo), resume=True), Trainer().fit(longer(algo), keys))
        assert trainer.stop_reason is None and (keys.ndim == 0 or not trainer.stopped.any())


def test_frozen_seeds_stay_frozen(algo, three, tmp_path):
    class Freeze(Callback):
        def on_validation_epoch_end(self, trainer, algo, state, metrics):
            if trainer.iteration == 2:
                trainer.request_stop("seed 1", members=np.array([False, True, False]))

    wanted = Trainer([Freeze()]).fit(algo, three)
    with pytest.raises(Interrupted):
        Trainer([Freeze(), CutOff(4, interrupt, "on_validation_epoch_start")], folder=tmp_path).fit(algo, three)
    trainer = Trainer(folder=tmp_path)
    same(trainer.fit(algo, resume=True), wanted)
    assert trainer.stopped.tolist() == [False, True, False]


def test_a_run_that_goes_on_from_a_state_can_be_cut_off_too(algo, one, tmp_path):
    state, _ = Trainer().fit(algo, one)
    wanted = Trainer().fit(algo, train_state=state, skip_initial_evaluation=True)
    with pytest.raises(Killed):
        cut = CutOff(4, kill, "on_train_epoch_start")
        Trainer([cut], [JSONLLogger(tmp_path / "m.jsonl")], tmp_path).fit(algo, train_state=state, skip_initial_evaluation=True)
    same(Trainer([], [JSONLLogger(tmp_path / "m.jsonl")], tmp_path).fit(algo, resume=True), wanted)
    steps = [json.loads(line)["env_steps"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert steps == [24 * (7 + i) for i in (2, 4, 6, 7)]


def test_resume_starts_what_has_not_started(algo, one, undisturbed, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run to resume in this folder; pass rng"):
        Trainer(folder=tmp_path).fit(algo, resume=True)
    Trainer(folder=tmp_path).fit(algo, one, resume=True)
    with pytest.raises(FileExistsError, match="this folder holds a run"):
        Trainer(folder=tmp_path).fit(algo, one)
    with pytest.raises(ValueError, match="resume=True needs a folder"):
        Trainer().fit(algo, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint in this folder"):
        load_checkpoint(tmp_path / "elsewhere", algo)


def test_a_damaged_checkpoint_is_passed_over(algo, one, tmp_path):
    wanted = Trainer(folder=tmp_path).fit(algo, one)
    newest = tmp_path / "checkpoint-000000007.eqx"
    content = bytearray(newest.read_bytes())
    for position in (200, -3):
        content[position] ^= 1
        newest.write_bytes(content)
        with pytest.warns(UserWarning, match="checkpoint-000000007.eqx is damaged .* Fell back to checkpoint-000000006.eqx"):
            state, metrics = load_checkpoint(tmp_path, algo)
        assert algo.env_steps(state) == 6 * 24 and metrics.cumulative_reward.shape == (4, 2)
    with pytest.warns(UserWarning, match="Fell back"):
        same(Trainer(folder=tmp_path).fit(algo, resume=True), wanted)


class Windy:
    """A plain Python class."""

    def __init__(self, env, wind):
        self.env, self.wind, self.name = env, wind, "Windy"

    def __getattr__(self, name):
        return getattr(self.__dict__["env"], name)


def test_another_algorithm(algo, one, tmp_path):
    Trainer(folder=tmp_path).fit(algo, one)
    with_env = lambda env: dataclasses.replace(algo, env=env)  # noqa: E731
    others = [
        (tiny(num_envs=5, normalize_observations=True), r"hp.num_envs: the run has 3, the algorithm 5"),
        (tiny("Pendulum-v1"), r"env: the run has CartPole-v1, the algorithm Pendulum-v1"),
        (eqx.tree_at(lambda a: a.hp.gamma, algo, np.float32(0.5)), r"hp.gamma: the run has 0.99, the algorithm 0.5"),
        (with_env(TimeLimitIsTerminal(algo.env)), r"environment/type: the run has Gymnax, the algorithm TimeLimitIsTerminal"),
        (with_env(TimeLimit(algo.env, 5)), r"environment/max_steps: the run has None, the algorithm 5"),
        (with_env(Windy(algo.env, 0.5)), r"environment/wind: the run has None, the algorithm 0.5"),
        (with_limit(algo, 8), r"env_params/max_steps_in_episode: the run has 7, the algorithm 8"),
    ]
    for other, difference in others:
        for read in (lambda: Trainer(folder=tmp_path).fit(other, resume=True), lambda: load_checkpoint(tmp_path, other)):  # noqa: B023
            with pytest.raises(CheckpointMismatch, match=difference):
                read()
    Checkpoints(tmp_path / "else").save({"a": np.zeros(2)}, iteration=1)
    with pytest.raises(CheckpointMismatch, match="weren't written by a Trainer"):
        Trainer(folder=tmp_path / "else").fit(algo, resume=True)


def test_callbacks_that_are_gone_are_mentioned(algo, one, tmp_path):
    Trainer([Tally()], folder=tmp_path).fit(algo, one)
    with pytest.warns(UserWarning, match="the state of callbacks that aren't there now: Tally"):
        Trainer(folder=tmp_path).fit(algo, resume=True)


def test_two_callbacks_of_a_class_keep_their_own_state(algo, one, tmp_path):
    first, second = EarlyStopping(patience=90), EarlyStopping(patience=99)
    Trainer([first, second], folder=tmp_path).fit(algo, one)
    first.state["best"] += 1
    with pytest.raises(Interrupted):
        Trainer([first, second, CutOff(2, interrupt, "on_train_epoch_start")], folder=tmp_path / "x").fit(algo, one)
    first, second = EarlyStopping(patience=90), EarlyStopping(patience=99)
    seen = []
    look = CutOff(2, lambda: seen.extend([first.state, second.state]), "on_fit_start")
    Trainer([first, second, look], folder=tmp_path / "x").fit(algo, resume=True)
    assert len(seen) == 2 and seen[0] is not seen[1]


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        {"a": [1, 2.5, None, "x", True], "b": {}},
        np.arange(6, dtype=np.int8).reshape(2, 3).T,
        [np.float32(1.5)],
        {"nan": np.nan},
    ],
)
def test_the_state_of_a_callback(state):
    back = decode_state(json.loads(json.dumps(encode_state(state, "Mine"))))
    assert repr(back) == repr(jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.generic) else x, state))
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


@pytest.mark.parametrize("state, what", [({1: 2}, "dict"), ({"a": object()}, "object"), (np.array(["x", None]), "array of object")])
def test_a_state_that_can_not_be_saved_is_an_error_before_training(algo, one, tmp_path, state, what):
    callback = Tally()
    callback.state = state
    with pytest.raises(TypeError, match=f"the state of callback Tally holds (an )?{what}"):
        Trainer([callback], folder=tmp_path).fit(algo, one)


# Disks.


def full(monkeypatch, at):
    """Checkpoints of these iterations don't find room."""
    write = Checkpoints.save

    def save(self, tree, *, iteration, **kwargs):
        if iteration in at:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / f"checkpoint-{iteration:09d}.eqx"))
        return write(self, tree, iteration=iteration, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", save)


def test_a_disk_that_is_full_for_a_while(algo, one, tmp_path, monkeypatch):
    full(monkeypatch, at=(4, 6))
    with pytest.warns(UserWarning, match="No space left on device.* Training goes on, and will try again"):
        result = Trainer(folder=tmp_path).fit(algo, one)
    same(result, Trainer().fit(algo, one))
    same(load_checkpoint(tmp_path, algo), result)


def test_a_disk_that_stays_full(algo, one, tmp_path, monkeypatch):
    full(monkeypatch, at=(4, 6, 7))
    with pytest.warns(UserWarning, match="No space left"), pytest.raises(CheckpointNotWritten, match="No space left") as caught:
        Trainer(folder=tmp_path).fit(algo, one)
    same(caught.value.result, Trainer().fit(algo, one))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("checkpoint-000000007.eqx")
    assert algo.env_steps(load_checkpoint(tmp_path, algo)[0]) == 2 * 24  # what was there is whole


def test_a_disk_that_is_full_when_the_run_is_interrupted(algo, one, tmp_path, monkeypatch):
    full(monkeypatch, at=(4,))
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.raises(Interrupted, match="No checkpoint was written") as caught,
    ):
        Trainer([CutOff(4, interrupt, "on_validation_epoch_start")], folder=tmp_path).fit(algo, one)
    assert algo.env_steps(caught.value.state) == 4 * 24


def test_a_folder_that_can_not_be_written_to_is_an_error_before_training(algo, one, tmp_path):
    (tmp_path / "file").write_text("")
    heard = []
    with pytest.raises(OSError, match="file"):
        Trainer([CutOff(0, lambda: heard.append(1), "on_fit_start")], folder=tmp_path / "file/run").fit(algo, one)
    assert not heard
