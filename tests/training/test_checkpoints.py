import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import eqxrl.training._files as files
from eqxrl.training import CheckpointDamaged, CheckpointMismatch, Checkpoints, load, read_metadata


def tree(x):
    return {"x": jnp.full(50, x, jnp.float32)}


LIKE = tree(0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(path, at=-1):
    """Flips a bit, in a file of its own: `best.eqx` may be another name for a checkpoint."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


HEADER = 300
"""The place of a byte in a header. That it is damaged is seen without reading the arrays."""


def save_all(folder, iterations, **kwargs):
    for i in iterations:
        folder.save(tree(i), iteration=i, **kwargs)


def test_what_is_saved_is_the_latest(tmp_path):
    folder = Checkpoints(tmp_path / "run")
    path = folder.save(tree(5), iteration=5, metadata={"env": "CartPole-v1"})
    assert path == tmp_path / "run" / "checkpoint-000000005.eqx"
    loaded, metadata = folder.latest(LIKE)
    assert loaded["x"][0] == 5
    assert metadata == {"env": "CartPole-v1", "iteration": 5, "score": None} == read_metadata(path)
    assert load(path, LIKE)["x"][0] == 5


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    folder = Checkpoints(tmp_path, keep=keep)
    for i in range(5):
        folder.save(tree(i), iteration=i)
        expected = [f"checkpoint-{j:09d}.eqx" for j in range(max(0, i - keep + 1), i + 1)]
        assert names(tmp_path) == expected
        assert folder.latest(LIKE)[1]["iteration"] == i


def test_iterations_are_ordered_as_numbers(tmp_path):
    folder = Checkpoints(tmp_path)
    save_all(folder, [999_999_999, 1_000_000_000, 1_000_000_001])
    assert folder.latest(LIKE)[1]["iteration"] == 1_000_000_001
    assert "checkpoint-1000000000.eqx" in names(tmp_path)


def test_an_iteration_saved_again_is_replaced(tmp_path):
    folder = Checkpoints(tmp_path)
    folder.save(tree(1), iteration=3)
    folder.save(tree(2), iteration=3)
    assert names(tmp_path) == ["checkpoint-000000003.eqx"] and folder.latest(LIKE)[0]["x"][0] == 2


def test_the_best_is_kept_whatever_its_age(tmp_path):
    scores = [1.0, 3.0, float("nan"), 2.0, 3.0, None]
    for i, score in enumerate(scores):
        Checkpoints(tmp_path).save(tree(i), iteration=i, score=score)  # a new process each time
    assert names(tmp_path) == ["best.eqx", "checkpoint-000000004.eqx", "checkpoint-000000005.eqx"]
    loaded, metadata = Checkpoints(tmp_path).best(LIKE)
    assert loaded["x"][0] == 1 and metadata == {"iteration": 1, "score": 3.0}
    Checkpoints(tmp_path).save(tree(6), iteration=6, score=4)
    assert Checkpoints(tmp_path).best(LIKE)[1] == {"iteration": 6, "score": 4.0}


def test_a_first_score_of_nan_is_not_the_best(tmp_path):
    folder = Checkpoints(tmp_path)
    folder.save(tree(0), iteration=0, score=float("nan"))
    with pytest.raises(FileNotFoundError, match="best.eqx"):
        folder.best(LIKE)
    folder.save(tree(1), iteration=1, score=-5.0)
    assert folder.best(LIKE)[1]["score"] == -5.0


def test_the_best_and_the_newest_are_written_once(tmp_path, monkeypatch):
    folder = Checkpoints(tmp_path)
    folder.save(tree(0), iteration=0, score=1.0)
    assert (tmp_path / "best.eqx").samefile(tmp_path / "checkpoint-000000000.eqx")
    folder.save(tree(1), iteration=1, score=0.0)
    folder.save(tree(2), iteration=2, score=0.0)
    assert folder.best(LIKE)[0]["x"][0] == 0 and folder.latest(LIKE)[0]["x"][0] == 2

    def no_links(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    folder.save(tree(3), iteration=3, score=2.0)
    assert (tmp_path / "best.eqx").read_bytes() == (tmp_path / "checkpoint-000000003.eqx").read_bytes()
    assert not (tmp_path / "best.eqx").samefile(tmp_path / "checkpoint-000000003.eqx")


def test_a_damaged_best_is_replaced(tmp_path):
    folder = Checkpoints(tmp_path)
    folder.save(tree(0), iteration=0, score=10.0)
    damage(tmp_path / "best.eqx", HEADER)
    with pytest.raises(CheckpointDamaged):
        folder.best(LIKE)
    with pytest.warns(UserWarning, match="best.eqx is damaged.*replaced by"):
        folder.save(tree(1), iteration=1, score=2.0)
    assert folder.best(LIKE)[1] == {"iteration": 1, "score": 2.0}


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    folder = Checkpoints(tmp_path, keep=3)
    save_all(folder, [1, 2, 3])
    damage(tmp_path / "checkpoint-000000003.eqx")
    with pytest.warns(UserWarning, match=r"000000003.eqx is damaged \(payload checksum\).*Fell back to checkpoint-000000002"):
        assert folder.latest(LIKE)[0]["x"][0] == 2
    (tmp_path / "checkpoint-000000002.eqx").write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert folder.latest(LIKE)[0]["x"][0] == 1
    assert ["000000003" in str(caught[0].message), r"000000002.eqx is damaged (size)" in str(caught[1].message)] == [True] * 2
    damage(tmp_path / "checkpoint-000000001.eqx")
    with pytest.raises(CheckpointDamaged, match=r"none of the 3 checkpoints(.|\n)*003.eqx(.|\n)*002.eqx(.|\n)*001.eqx"):
        folder.latest(LIKE)


def test_a_mismatch_is_no_reason_to_fall_back(tmp_path):
    folder = Checkpoints(tmp_path)
    save_all(folder, [1])
    folder.save({"x": jnp.ones(3)}, iteration=2)
    with pytest.raises(CheckpointMismatch, match=r"000000002.eqx(.|\n)*\['x'\]: the file has float32\[3\]; expected"):
        folder.latest(LIKE)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    folder = Checkpoints(tmp_path, keep=2)
    save_all(folder, [1, 2])
    damage(tmp_path / "checkpoint-000000002.eqx", HEADER)
    folder.save(tree(3), iteration=3)
    assert len(names(tmp_path)) == 3
    damage(tmp_path / "checkpoint-000000003.eqx")
    with pytest.warns(UserWarning):
        assert folder.latest(LIKE)[0]["x"][0] == 1
    save_all(folder, [3, 4])
    assert names(tmp_path) == ["checkpoint-000000003.eqx", "checkpoint-000000004.eqx"]
    (tmp_path / "checkpoint-000000004.eqx").write_bytes((tmp_path / "checkpoint-000000003.eqx").read_bytes()[:-1])
    save_all(folder, [5])
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("keep", [1, 2])
def test_whatever_is_damaged_the_last_good_one_stays(tmp_path, keep):
    """Any of the older files may be damaged in any way: there is always one to go on from, the one just written."""
    for i in range(6):
        Checkpoints(tmp_path, keep=keep).save(tree(i), iteration=i, score=i)
        for j, (_, path) in enumerate(Checkpoints(tmp_path).files()[1:]):
            damage(path, (HEADER, -1, 3)[(i + j) % 3])
        loaded, metadata = Checkpoints(tmp_path).latest(LIKE)
        assert loaded["x"][0] == metadata["iteration"] == i


def test_saving_reads_no_arrays(tmp_path, monkeypatch):
    """Whatever the state's size, of older checkpoints only the headers are read."""
    folder, sizes = Checkpoints(tmp_path, keep=3), []
    for i in range(3):
        folder.save({"x": np.zeros(2**18)}, iteration=i, score=i)
    real = open

    def counting(path, mode="r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        if "r" not in mode:
            return file
        file.close()
        return Counting(path)

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            sizes.append(len(data))
            return data

        def readinto(self, buffer):
            raise AssertionError("an array was read")

    monkeypatch.setattr(files, "open", counting, raising=False)
    folder.save({"x": np.zeros(2**18)}, iteration=3, score=-1.0)
    folder.save({"x": np.zeros(2**18)}, iteration=4, score=9.0)
    assert len(names(tmp_path)) == 4 and 0 < sum(sizes) < 2**14


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = Checkpoints(tmp_path)
    save_all(folder, [10, 20])
    with pytest.raises(ValueError, match="iteration 5 would not be the latest in .* holds iteration 20; pass another folder"):
        folder.save(tree(5), iteration=5)
    assert names(tmp_path) == ["checkpoint-000000010.eqx", "checkpoint-000000020.eqx"]
    damage(tmp_path / "checkpoint-000000020.eqx")
    with pytest.warns(UserWarning, match="000000020.eqx is damaged"):
        assert folder.latest(LIKE)[1]["iteration"] == 10
    Checkpoints(tmp_path).save(tree(15), iteration=15)
    assert names(tmp_path) == ["checkpoint-000000010.eqx", "checkpoint-000000015.eqx", "checkpoint-000000020.eqx.damaged"]
    assert folder.latest(LIKE)[1]["iteration"] == 15
    save_all(folder, [20, 25])
    assert names(tmp_path) == ["checkpoint-000000020.eqx", "checkpoint-000000020.eqx.damaged", "checkpoint-000000025.eqx"]
    assert folder.latest(LIKE)[1]["iteration"] == 25


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder(tmp_path, exists):
    folder = Checkpoints(tmp_path if exists else tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in this folder: .*" + str(folder.folder)):
        folder.latest(LIKE)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "checkpoint-final.eqx").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".notes.tmp").write_text("mine")
    save_all(Checkpoints(tmp_path, keep=1), [1, 2])
    assert names(tmp_path) == [".notes.tmp", "checkpoint-000000002.eqx", "checkpoint-final.eqx", "notes.txt"]


def test_a_killed_writers_leftover_is_ignored_and_cleaned_up(tmp_path):
    folder = Checkpoints(tmp_path)
    save_all(folder, [1])
    leftover = tmp_path / ".checkpoint-000000002.eqx.0a1b2c3d.tmp"
    leftover.write_bytes(b"half")
    assert folder.latest(LIKE)[1]["iteration"] == 1
    assert leftover.exists()  # the writer may be alive
    save_all(folder, [2])
    assert names(tmp_path) == ["checkpoint-000000001.eqx", "checkpoint-000000002.eqx"]


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="iteration must be at least 0, got -1"):
        Checkpoints(tmp_path).save(tree(0), iteration=-1)
    with pytest.raises(ValueError, match=r"metadata must not hold \['score'\]"):
        Checkpoints(tmp_path).save(tree(0), iteration=0, metadata={"score": 1})
    assert names(tmp_path) == []


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch):
    folder = Checkpoints(tmp_path)
    save_all(folder, [1, 2])

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left.*couldn't write"):
            save_all(folder, [3])
    assert names(tmp_path) == ["checkpoint-000000001.eqx", "checkpoint-000000002.eqx"]


def test_killed_at_any_system_call_a_whole_checkpoint_remains(tmp_path, monkeypatch):
    """Every call that changes the folder is, in turn, the last."""

    class Killed(BaseException):
        pass

    calls = 0
    for last in range(100):
        folder = Checkpoints(tmp_path / str(last), keep=1)
        folder.save(tree(1), iteration=1, score=1.0)
        with monkeypatch.context() as m:
            calls = 0

            def dies(real):
                def call(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls > last:  # the dead do no cleaning up either
                        raise Killed
                    return real(*args, **kwargs)

                return call

            for name in ("fsync", "replace", "unlink", "link"):
                m.setattr(os, name, dies(getattr(os, name)))
            try:
                folder.save(tree(2), iteration=2, score=2.0)
            except Killed:
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded, metadata = Checkpoints(tmp_path / str(last)).latest(LIKE)
            assert loaded["x"][0] == metadata["iteration"]
            assert Checkpoints(tmp_path / str(last)).best(LIKE)[0]["x"][0] in (1, 2)
        if calls <= last:
            break
    assert metadata["iteration"] == 2 and last == calls == 9


WRITER = """
import sys, numpy as np
from eqxrl.training import Checkpoints
folder = Checkpoints(sys.argv[1])
start = int(sys.argv[2])
for i in range(start, start + 100_000):
    folder.save({"x": np.full(200_000, i, np.float32)}, iteration=i, score=i)
    print(i, flush=True)
"""


def test_kill_9_always_leaves_a_loadable_checkpoint(tmp_path):
    like = {"x": jnp.zeros(200_000)}
    waits = random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = 1
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as p:
            saved = int(p.stdout.readline())
            time.sleep(waits.uniform(0, 0.2))
            os.kill(p.pid, signal.SIGKILL)
            saved = max([saved, *map(int, p.stdout.read().split())])
        for read in (Checkpoints(tmp_path).latest, Checkpoints(tmp_path).best):
            loaded, metadata = read(like)  # a warning would be an error
            assert metadata["iteration"] in (saved, saved + 1)
            assert (loaded["x"] == metadata["iteration"]).all()
        start = saved + 2
    Checkpoints(tmp_path).save(like, iteration=start)
    assert len(names(tmp_path)) == 3 and not list(tmp_path.glob(".*"))
