"""Runs that are killed anywhere, started twice, blown up, and whose files are damaged. The long versions, of which the first takes
an hour (every change of a file is a process's last), the last one half an hour (200 kills; `EQXRL_KILLS=20` for fewer):

    pytest -m slow -n 0 tests/training/test_survival.py
    pytest -m slow -n 0 tests/test_cli.py -k four_hundred
    pytest -m slow -n 0 tests/training/test_resume.py -k kill_9
"""

import builtins
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

from eqxrl import PPO, EvalMetrics, MakeNetwork, PPOHParams
from eqxrl.training import (
    Callback,
    CheckpointDamaged,
    Checkpoints,
    JSONLLogger,
    NanGuard,
    NonFinite,
    Run,
    RunConfig,
    Trainer,
    load,
    load_checkpoint,
    save,
)
from eqxrl.training import _lock as lock
from eqxrl.training import _numerics as numerics

SIZES = dict(num_envs=3, num_steps=8, num_seeds_per_eval=2, eval_freq=24 * 2, num_minibatches=2, num_epochs=1)


@functools.cache
def ppo(total_timesteps=24 * 4, **hparams):
    hp, network = PPOHParams(**SIZES, **hparams, total_timesteps=total_timesteps), MakeNetwork("mlp", dict(hidden_sizes=(4,)))
    return PPO.create("CartPole-v1", hp=hp, actor_critic=network)


@pytest.fixture
def compiled_once(monkeypatch):
    """Of one algorithm, programs are compiled once."""
    monkeypatch.setattr(RunConfig, "create", lambda self: ppo(self.hp["total_timesteps"]))


def is_that_of(folder, whole):
    """The same files, bit for bit; there may be one checkpoint more, that would have been deleted next."""
    there = contents(folder)
    more = ["/" + k for k in there.keys() - whole.keys()]
    return whole == {k: x for k, x in there.items() if k in whole} and len(more) < 2 and all("/checkpoint-" in k for k in more)


def contents(folder):
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file() and x.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "create", lambda self: ppo(self.hp["total_timesteps"]))
        run = Run.new(ppo(), tmp_path_factory.mktemp("runs"), "run", num_seeds=2, seed=5)
        run.fit()
    return run


def stopped(folder):
    """A run after two of its three evaluations."""
    run = Run.new(ppo(), folder, "run", num_seeds=2, seed=5)
    with pytest.raises(ZeroDivisionError):
        run.fit([at(2, lambda trainer: 1 / 0, "on_validation_epoch_end")])
    return run


def at(iteration, what, hook):
    """A callback that does something in a hook, at an iteration."""
    do = lambda self, trainer, *_: what(trainer) if trainer.iteration == iteration else None  # noqa: E731
    return type("At", (Callback,), {hook: do})()


# Killed at any instant.


def watch(patch, before):
    """Calls `before` each time that anything is about to change in the file system."""

    def watched(module, name, is_change=lambda *_, **__: True):
        real = getattr(module, name)

        def call(*args, **kwargs):
            if is_change(*args, **kwargs):
                before()
            return real(*args, **kwargs)

        patch.setattr(module, name, call)

    for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "link", "fsync", "truncate", "write"):
        watched(os, name)
    for_writing = lambda file, mode="r", *_, **__: not isinstance(file, int) and set("wax+") & set(mode)  # noqa: E731
    watched(builtins, "open", for_writing)
    watched(io, "open", for_writing)
    watched(os, "open", lambda path, flags, *_, **__: flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))


def snapshots(patch, folder, to):
    """Copies the folder before each change: what a process leaves that is killed at that instant, since a kill undoes nothing, and what
    Python hasn't yet given to the system isn't in the copy either. Those that equal the one before are left out."""
    taken, last, busy = [], [None], [False]

    def before():
        if busy[0]:
            return
        busy[0] = True
        now = {str(x.relative_to(folder)): x.is_file() and x.read_bytes() for x in folder.rglob("*")}
        if now != last[0]:
            last[0] = now
            taken.append(shutil.copytree(folder, to / f"{len(taken):03d}"))
        busy[0] = False

    watch(patch, before)
    return taken


def test_a_run_that_is_killed_at_any_instant_goes_on(compiled_once, tmp_path):
    """From the first folder on, through the end, and through an extension: all files end as those of the undisturbed run."""
    out, whole = tmp_path / "runs", {}
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        taken = snapshots(patch, out, tmp_path / "killed")
        run = Run.new(ppo(), out, "run", num_seeds=2, seed=5)
        run.fit()
        whole[24 * 4] = contents(run.folder)
        run.extend(24 * 5)
        run.fit()
        whole[24 * 5] = contents(run.folder)
    assert len(taken) > 40
    none = others = 0
    for killed in taken:
        for file in killed.rglob(f".*.{os.getpid()}.tmp"):
            file.rename(file.with_name(file.name.replace(str(os.getpid()), "1")))  # the process that goes on is another one
            others += 1
        try:
            run = Run(killed / "run")
        except FileNotFoundError as error:
            assert "no config.json (there is none)" in str(error) and none < 4, "nothing was written yet"
            none += 1
            run = Run.new(ppo(), killed, "run", num_seeds=2, seed=5)
        if not run.finished:
            run.fit()
        assert is_that_of(run.folder, whole[run.config.hp["total_timesteps"]]), killed
    assert none and others


def test_a_trainer_that_is_killed_at_any_instant_goes_on(tmp_path, three):
    """With the same call each time."""
    out = tmp_path / "run"
    out.mkdir()

    def fit(folder):
        return Trainer([], [JSONLLogger(folder / "m.jsonl")], folder / "checkpoints").fit(ppo(), three, resume=True)

    with pytest.MonkeyPatch.context() as patch:
        taken = snapshots(patch, out, tmp_path / "killed")
        wanted = fit(out)
    assert len(taken) > 20
    for killed in taken:
        same(fit(killed), wanted)
        assert is_that_of(killed, contents(out)), killed


DIES = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import pytest
from test_survival import watch
from eqxrl import cli
count = [int(sys.argv[2])]

def before():
    count[0] -= 1
    if count[0] < 0:
        os._exit(9)

patch = pytest.MonkeyPatch()
if count[0] >= 0:
    watch(patch, before)
sys.argv = ["eqxrl", *sys.argv[3:]]
cli.main()
"""
TRAIN = ["--hp.num-envs", "3", "--hp.num-steps", "8", "--hp.num-minibatches", "2", "--hp.num-epochs", "1", "--hp.num-seeds-per-eval", "2"]
TRAIN += ["--hp.eval-freq", "48", "--hp.total-timesteps", "96", "--preset", "default", "--quiet", "--name", "run"]


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_the_command_dies_at_every_change_of_a_file_and_is_resumed(tmp_path):
    """`os._exit`, which cleans nothing up, at each of them; and the process that goes on dies there as well, once."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])

    def eqxrl(cwd, last, *args):
        cwd.mkdir(exist_ok=True)
        command = [sys.executable, "-c", DIES, path, str(last), *args]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode

    assert eqxrl(tmp_path / "whole", -1, "train", "CartPole-v1", *TRAIN) == 0
    whole = contents(tmp_path / "whole/runs/run")
    for last in range(1000):
        cwd = tmp_path / f"{last:03d}"
        code = eqxrl(cwd, last, "train", "CartPole-v1", *TRAIN)
        for again in (last, -1):
            if code == 9 and eqxrl(cwd, again, "train", "--resume", "runs/run") == 2:  # nothing was written yet, or it has finished
                if not (cwd / "runs/run/policy.eqx").exists():
                    assert eqxrl(cwd, -1, "train", "CartPole-v1", *TRAIN) == 0
                break
        assert is_that_of(cwd / "runs/run", whole), last
        if code == 0:
            break
    assert last > 60


# One owner.


def test_a_second_trainer_is_refused_before_it_touches_anything(tmp_path, finished):
    """While the first one trains; in this process or another, locks are the same."""
    run, seen = Run.new(ppo(), tmp_path, "run", num_seeds=2, seed=5), []

    def second(trainer):
        before = contents(run.folder)
        other = Run(run.folder)
        who = f"process {os.getpid()} on .* is writing to this folder; wait for it"
        for write in (
            other.fit,
            lambda: other.extend(10**6),
            lambda: Trainer([], [JSONLLogger(tmp_path / "m.jsonl")], run.checkpoints).fit(ppo(), 0, resume=True),
        ):
            with pytest.raises(BlockingIOError, match=who):
                write()
        assert contents(run.folder) == before and not (tmp_path / "m.jsonl").exists()
        assert other.load()[1].num_iterations == 2 and other.curve().env_steps.tolist() == [0, 48]
        seen.append(True)

    run.fit([at(4, second, "on_train_epoch_end")])
    assert seen and contents(run.folder).keys() == contents(finished.folder).keys()
    assert not list(run.folder.rglob(".lock"))


OWNER = """
import sys, time
from pathlib import Path
from eqxrl.training._lock import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on "), lock.owned(tmp_path):
            pass
        process.kill()
    assert (tmp_path / ".lock").exists()
    with lock.owned(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_lock_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        Trainer(folder=tmp_path / "typo").fit(ppo(), resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["no fcntl", "not on this disk"])
def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, missing):
    if missing == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    with pytest.warns(UserWarning, match="can't be locked .*see to it that no other process writes to it"), lock.owned(tmp_path):
        pass


# What isn't finite.


def spoiled(iteration=2):
    """Puts a NaN into a weight, of the second seed where there are several."""

    def spoil(trainer):
        weight = lambda s: getattr(s.agent, "actor_critic", s.agent).critic[0].weight  # noqa: E731
        value = weight(trainer.state).at[(1, 0, 0) if trainer.num_seeds else (0, 0)].set(jnp.nan)
        trainer.state = eqx.tree_at(weight, trainer.state, value)

    return at(iteration, spoil, "on_train_epoch_start")


@pytest.mark.parametrize("keys", ["one", "three"])
def test_a_trainer_warns_once_and_keeps_the_last_finite_checkpoint(tmp_path, keys, request, algo):
    keys = request.getfixturevalue(keys)
    wanted = Trainer().fit(algo, keys)
    with pytest.warns(UserWarning) as caught:
        _, metrics = Trainer([spoiled()], folder=tmp_path).fit(algo, keys)
    (warning,) = [str(x.message) for x in caught]
    seed = r" of seed 1" if keys.ndim else ""
    assert warning.startswith(
        f"outputs.means['approx_kl']{seed} isn't finite after iteration 4 of 7, at 96 env steps, in interval 2 of 4, which began at 48"
    )
    assert f"the last finite checkpoint, {tmp_path}/checkpoint-000000002.eqx, is of before, and stays" in warning
    assert metrics.cumulative_reward.shape[-2] == 5, "it went on"
    names = {x.name for x in tmp_path.iterdir()}
    assert "checkpoint-000000002.eqx" in names and not names & {f"checkpoint-{i:09d}.eqx" for i in (4, 6, 7)}
    for best in (False, True):
        state, _ = load_checkpoint(tmp_path, algo, best=best)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(eqx.filter(state.agent, eqx.is_inexact_array)))
    same(Trainer(folder=tmp_path).fit(algo, resume=True), wanted)


def test_a_trainer_without_a_folder_warns(algo, three):
    with pytest.warns(UserWarning, match=r"of seed 1 isn't finite after iteration 4 of 7.*there is no folder, and so no checkpoint"):
        Trainer([spoiled()]).fit(algo, three)


def test_what_is_not_finite_is_not_written_when_a_run_is_interrupted(algo, one, tmp_path):
    stop = at(3, lambda trainer: os.kill(os.getpid(), signal.SIGINT), "on_train_batch_end")
    with pytest.warns(UserWarning, match="isn't finite"), pytest.raises(KeyboardInterrupt, match="No checkpoint was written .the state"):
        Trainer([spoiled(), stop], folder=tmp_path).fit(algo, one)
    assert algo.env_steps(load_checkpoint(tmp_path, algo)[0]) == 48


def test_an_evaluation_that_is_not_finite(algo, one, monkeypatch):
    from eqxrl.training import _programs as programs

    evaluate = programs.evaluate
    spoil = lambda *args: eqx.tree_at(lambda m: m.cumulative_reward, evaluate(*args), jnp.full(2, jnp.nan))  # noqa: E731
    monkeypatch.setattr(programs, "evaluate", spoil)
    with pytest.warns(UserWarning, match=r"evaluation.cumulative_reward isn't finite after iteration 0 of 7"):
        Trainer().fit(algo, one)
    with pytest.raises(NonFinite, match=r"evaluation.cumulative_reward isn't finite"):
        Trainer([NanGuard()]).fit(algo, one)


def test_a_run_is_guarded(compiled_once, tmp_path):
    """One seed of two."""
    run = Run.new(ppo(), tmp_path, num_seeds=2)
    with pytest.raises(NonFinite, match=r"of seed 1 isn't finite after iteration 4 of 4.*in interval 2 of 2") as caught:
        run.fit([spoiled()])
    assert f"{run.checkpoints}/checkpoint-000000002.eqx, is of before, and stays" in caught.value.__notes__[0]
    assert not run.finished
    run.fit()
    assert run.finished


# Damage stays where it is.

GARBAGE = [b"\x00\xff", b'{"env_steps": 24, "eval', b"[1]", b'{"env_steps": "24"}', b'{"env_steps": 1e5}', b"", b'{"a": 1}']
GARBAGE += [b"[" * 9000, b'{"env_steps": 1' + b"0" * 30 + b"}", b"9" * 5000]


@pytest.mark.parametrize("line", [x + b"\n" for x in GARBAGE], ids=range(10))
def test_a_damaged_line_is_skipped_and_moved_aside(compiled_once, finished, tmp_path, line):
    run = stopped(tmp_path)
    metrics = run.folder / "metrics.jsonl"
    rows = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(rows[0] + line + b"".join(rows[1:]))
    with pytest.warns(UserWarning, match="metrics.jsonl, line 2: damaged.*left out"):
        assert run.curve().env_steps.tolist() == [0, 48]
    with pytest.warns(UserWarning, match=r"metrics.jsonl, line 2: damaged.*moved to .*metrics.jsonl.damaged"):
        Run(run.folder).fit()
    assert (run.folder / "metrics.jsonl.damaged").read_bytes() == line
    for name in ("metrics.jsonl", "metrics.csv", "policy.eqx"):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()


def test_rows_that_are_no_rows_of_this_run(finished, tmp_path):
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    rows = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for i, x in enumerate(([1.0], ["a", 2], 10**400, {"a": 1}, None)):
        rows[1]["eval/return_mean"] = x
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.warns(UserWarning, match="metrics.jsonl: eval/return_mean isn't a number for each of 2 seeds in 1 of 3 rows"):
            assert run.curve().env_steps.tolist() == [0, 96], i


@pytest.mark.parametrize("change, said", [(dict(num_seeds=3), "num_seeds=3"), (dict(seed=6), "seed=6")])
def test_other_seeds_than_those_of_the_run_are_noticed(compiled_once, tmp_path, change, said):
    run = stopped(tmp_path)
    path = run.folder / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(run.config, **change))))
    before = contents(run.folder)
    for use in (lambda: Run(run.folder).fit(), lambda: Run(run.folder).load()):
        with pytest.raises(ValueError, match=f"config.json says {said}, but the run was started with another; put that back"):
            use()
    assert contents(run.folder) == before


ODD = {
    "a pipe": os.mkfifo,
    "a folder": lambda path: Path(path, "x").mkdir(parents=True),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "another file": lambda path: save(path, {"x": jnp.ones(3)}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ODD)
def test_an_odd_file_instead_of_the_newest_checkpoint(compiled_once, finished, tmp_path, what):
    run = stopped(tmp_path)
    newest = run.checkpoints / "checkpoint-000000002.eqx"
    newest.unlink()
    ODD[what](newest)
    with pytest.warns(UserWarning, match="checkpoint-000000002.eqx .*Fell back to checkpoint-000000000.eqx"):
        assert run.load()[1].num_iterations == 0
    with pytest.warns(UserWarning, match="Fell back to checkpoint-000000000.eqx"):
        run.fit()
    assert os.path.lexists(f"{newest}.damaged") and newest.is_file()
    for name in ("metrics.jsonl", "policy.eqx", "checkpoints/checkpoint-000000004.eqx", "checkpoints/best.eqx"):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.timeout(60)
def test_nothing_that_is_no_file_is_waited_for(tmp_path, finished):
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    for name, use in {
        "metrics.jsonl": run.curve,
        "config.json": lambda: Run(run.folder),
        "policy.eqx": lambda: load(run.policy, {}),
        "checkpoints/best.eqx": lambda: run.load(best=True),
    }.items():
        (run.folder / name).unlink()
        os.mkfifo(run.folder / name)
        with pytest.raises((OSError, CheckpointDamaged), match="should be a file|is no file"):
            use()
    os.mkfifo(tmp_path / "m.jsonl")
    for resumed_at in (None, 3):
        with pytest.raises(OSError, match="this file is there already|should be a file"):
            JSONLLogger(tmp_path / "m.jsonl").start({}, resumed_at)


def test_checkpoints_are_never_in_the_way_of_the_next(tmp_path):
    """Nor is what is damaged deleted."""
    folder = Checkpoints(tmp_path)
    for again in range(3):
        for i in (1, 2, 3):
            (tmp_path / f"checkpoint-{i:09d}.eqx").mkdir()
        (tmp_path / "best.eqx").write_bytes(b"mine")
        with pytest.warns(UserWarning, match="best.eqx is damaged"):
            folder.save({"x": jnp.ones(2)}, iteration=2, score=1.0)
        assert folder.latest({"x": jnp.ones(2)})[1]["iteration"] == 2
        (tmp_path / "checkpoint-000000002.eqx").unlink()
    names = {x.name for x in tmp_path.iterdir()}
    assert {f"checkpoint-{i:09d}.eqx.damaged{end}" for i in (1, 2, 3) for end in ("", "-2", "-3")} < names
    assert (tmp_path / "best.eqx.damaged-2").read_bytes() == b"mine"


def recursive():
    x = [1]
    x.append(x)
    return {"a": x}


@pytest.mark.parametrize(
    "state, why",
    [
        (np.array(["ab"]), "an array of <U2; only numbers"),
        (np.array(["2020-01-01"], "datetime64[D]"), "an array of datetime64"),
        (jax.random.key(0), "only numbers and bools"),
        (recursive(), "nested more than 100 deep, or holds itself"),
        (functools.reduce(lambda x, _: [x], range(900), 1), "nested more than 100 deep"),
    ],
    ids=["strings", "dates", "keys", "recursive", "deep"],
)
def test_a_state_that_could_not_be_read_back_is_refused(tmp_path, three, state, why):
    callback = type("Mine", (Callback,), {"state": state})()
    with pytest.raises(TypeError, match=f"the state of callback Mine .*{why}"):
        Trainer([callback], folder=tmp_path).fit(ppo(), three)


def test_bytes_in_the_other_order_are_saved_as_numbers():
    from eqxrl.training._callback import decode_state, encode_state

    back = decode_state(json.loads(json.dumps(encode_state(np.array([1.5, -2], ">f4"), "Mine"))))
    assert back.tolist() == [1.5, -2] and back.dtype == np.float32


@pytest.mark.slow
def test_ten_thousand_flipped_bits_of_a_checkpoint(finished, tmp_path):
    """Each is found, and the one before is gone back to."""
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    path = run.checkpoints / "checkpoint-000000004.eqx"
    good, rng, (_, state) = path.read_bytes(), np.random.default_rng(0), run.load(None)
    evaluations = EvalMetrics(episode_length=jnp.zeros((3, 2, 2), int), cumulative_reward=jnp.zeros((3, 2, 2)))
    like = {"train_state": state, "evaluations": jax.tree.map(np.asarray, evaluations)}
    load(path, like)
    for bit in rng.choice(8 * len(good), min(10_000, 8 * len(good)), replace=False):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointDamaged):
            load(path, like)
        if bit % 100 == 0:
            with pytest.warns(UserWarning, match="checkpoint-000000004.eqx is damaged.*Fell back to checkpoint-000000002.eqx"):
                assert run.load()[1].num_iterations == 2


# Somewhere else.


def test_what_would_change_the_numbers_is_said_once(compiled_once, finished, tmp_path, monkeypatch):
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    run.policy.unlink()
    Run(run.folder).fit()  # a warning would be an error
    run.policy.unlink()
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=true --xla_dump_to=/tmp/x")
    monkeypatch.setattr(numerics, "instructions", lambda: "x86_64 avx")
    monkeypatch.setattr(numerics, "versions", lambda: {"jax": "9.9", "jaxlib": jax.lib.__version__})
    with pytest.warns(UserWarning) as caught, jax.default_matmul_precision("float32"):
        Run(run.folder).fit()
    (said,) = [str(x.message) for x in caught if "may differ" in str(x.message)]
    assert f"jax: recorded {jax.__version__!r}, now '9.9'; " in said and "instructions: recorded 'x86_64 " in said
    for name, now in (("jax_default_matmul_precision", "'float32'"), ("--xla_cpu_enable_fast_math", "'true'")):
        assert f"{name}: recorded None, now {now}" in said
    assert "jaxlib" not in said and "backend" not in said and "dump" not in said


def test_what_is_recorded(finished):
    from eqxrl.training import read_metadata

    recorded = read_metadata(finished.checkpoints / "best.eqx")["numerics"]
    names = {"jax_threefry_partitionable", "jax_default_prng_impl", "jax_enable_x64", "jax_default_matmul_precision", "jax", "jaxlib"}
    assert names | {"backend", "device"} <= recorded.keys()
    if Path("/proc/cpuinfo").is_file() and recorded["backend"] == "cpu" and "avx2" in Path("/proc/cpuinfo").read_text():
        assert "avx2" in recorded["instructions"].split()
