"""What training states take is known, byte for byte, before anything compiles; and a run that can't fit isn't begun."""


import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from test_sac import discrete, sac

from eqxrl import cli, sweep
from eqxrl.algorithms import DQN, DQNHParams, MakeNetwork, MakePart, _memory
from eqxrl.algorithms._memory import bytes_in, free_bytes, in_units, state_size
from eqxrl.training import Trainer

SIZES = dict(num_envs=2, num_steps=4, buffer_size=1000, batch_size=5, learning_starts=0, num_seeds_per_eval=2, total_timesteps=32,
             eval_freq=16)  # fmt: skip
NETWORK = MakeNetwork("q", dict(hidden_sizes=(4,)))


def dqn(**hp):
    return DQN.create("CartPole-v1", hp=DQNHParams(**SIZES | hp), q_network=NETWORK)


def prioritized():
    return DQN.create("CartPole-v1", hp=DQNHParams(**SIZES), q_network=NETWORK, buffer=MakePart("prioritized"))


@pytest.mark.parametrize("make", [dqn, prioritized, sac, discrete, tiny])
def test_sizes_are_those_of_the_arrays(make):
    state = make().init_train_state(0)
    arrays = lambda tree: [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]  # noqa: E731
    held = lambda tree: sum(x.on_device_size_in_bytes() if hasattr(x, "on_device_size_in_bytes") else x.nbytes for x in arrays(tree))  # noqa: E731
    buffer = held(getattr(state, "buffer_state", ()))
    size = state_size(make(), 3)
    assert (size.buffer, size.rest, size.agents) == (buffer, held(state) - buffer, 3) and size.total == 3 * held(state)


def test_a_buffer_by_hand():
    """A CartPole transition: two observations of four floats, an int32 action, a float reward, two flags; and two counters."""
    assert state_size(dqn()).buffer == 1000 * (2 * 4 * 4 + 4 + 4 + 2) + 2 * 4


def test_keys_and_units():
    assert bytes_in(jax.random.key(0)) == 8 and bytes_in(jax.random.key(0, impl="rbg")) == 16
    assert bytes_in((jnp.zeros((3, 5), jnp.int8), "a name", 3, np.zeros(2))) == 15 + 16
    assert [in_units(x) for x in (0, 999, 1000, 1_240_000_000, 3 * 10**12)] == ["0 bytes", "999 bytes", "1.0 kB", "1.2 GB", "3.0 TB"]
    assert str(state_size(dqn(), 2)).startswith("85.2 kB (buffer 84.0 kB) for 2 seeds") and "buffer" not in str(state_size(tiny()))


@pytest.fixture
def forbid(monkeypatch):
    """With that much free memory; and nothing may be compiled or allocated."""

    def set_free(free):
        monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: free)
        monkeypatch.setattr("jax._src.compiler.compile_or_get_cached", lambda *_, **__: pytest.fail("something was compiled"))

    return set_free


def keys(n):
    return jax.random.split(jax.random.key(0), n)


RUNS = {
    "train": lambda algo, n: algo.train(jax.random.key(0)),
    "fit": lambda algo, n: Trainer().fit(algo, keys(n)),
}  # fmt: skip


@pytest.mark.parametrize("how, n", [("train", 1), ("fit", 1), ("fit", 5)])
def test_one_that_cannot_fit_is_refused_before_anything_is_compiled(how, n, forbid):
    algo, free, given = dqn(), 30_000 * n, (keys(n), jax.random.key(0))
    del given  # made before compiling is forbidden
    size = state_size(algo, n)
    forbid(free)
    with pytest.raises(ValueError, match="of memory are free. Lower buffer_size") as error:
        RUNS[how](algo, n)
    said = str(error.value)
    seeds = f"{n} seed{'s' * (n > 1)}"
    parts = f"the buffer, of 1000 transitions, {in_units(n * size.buffer)}, the rest {in_units(n * size.rest)}"
    assert f"the training state of {seeds} takes {in_units(size.total)}: {parts}; but {in_units(free)}" in said
    most = int(said.split("buffer_size (at most ")[1].split(")")[0])
    assert state_size(dqn(buffer_size=most), n).total <= free + 16 * n and state_size(dqn(buffer_size=most + 10), n).total > free


def test_seeds_are_named_where_fewer_would_fit(forbid):
    algo, all_keys = dqn(), keys(5)
    each = state_size(algo).total
    forbid(3 * each)
    with pytest.raises(ValueError, match=r"buffer_size \(at most \d+\) or the number of seeds \(at most 3\)"):
        Trainer().fit(algo, all_keys)
    ppo = tiny()
    forbid(3 * state_size(ppo).total)
    with pytest.raises(ValueError, match=r"Lower the number of seeds \(at most 3\)"):
        Trainer().fit(ppo, all_keys)
    forbid(10)
    with pytest.raises(ValueError, match="Lower num_envs, or the sizes of the networks"):
        Trainer().fit(ppo, all_keys)


def test_what_just_fits_is_trained(monkeypatch):
    algo = dqn()
    total = state_size(algo).total
    monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: total)
    state, _ = algo.train(0)
    monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: total - 1)
    for start in (lambda: algo.train(train_state=state), lambda: Trainer().fit(algo, train_state=state)):
        with pytest.raises(ValueError, match="of memory are free"):
            start()


def test_where_memory_is_not_known_nothing_is_refused(monkeypatch):
    def unknown(num_devices=None):
        raise NotImplementedError

    monkeypatch.setattr(_memory, "free_bytes", unknown)
    assert int(dqn().train(0)[0].num_iterations) == 4


def test_a_run_that_no_longer_fits_is_not_resumed(tmp_path, monkeypatch):
    algo = dqn()
    Trainer(folder=tmp_path).fit(algo, keys(2))
    monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: 1000)
    with pytest.raises(ValueError, match="the training state of 2 seeds takes 85.2 kB"):
        Trainer(folder=tmp_path).fit(dqn(total_timesteps=64), resume=True)


def test_free_memory_is_the_systems_or_the_control_groups(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  300 kB\n")
    monkeypatch.setattr(_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(_memory, "_CGROUP", tmp_path)
    assert free_bytes() == 300 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == 300 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_bytes() == 3000
    (tmp_path / "meminfo").unlink()
    with pytest.raises(NotImplementedError, match="pass chunk="):
        free_bytes()


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    def run(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["eqxrl", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


ARGS = ["CartPole-v1", "--algo", "dqn", "--preset", "default", "--hp.num-envs", 2, "--hp.buffer-size", 1000, "--hp.batch-size", 5,
        "--hp.total-timesteps", 64, "--hp.eval-freq", 64, "--hp.num-seeds-per-eval", 2]  # fmt: skip


def test_the_command_refuses_it_without_leaving_a_folder(command, monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: 10_000)
    code, out, errors = command("train", *ARGS, "--seeds", 3)
    assert code == 2 and "the training state of 3 seeds takes" in errors and errors.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_large_the_state_is_if_it_is_large(command, monkeypatch):
    monkeypatch.setattr(cli, "WORTH_SAYING", 1000)
    code, out, _ = command("train", *ARGS, "--seeds", 2)
    assert code == 0 and out.splitlines()[1].startswith("state: ") and out.splitlines()[1].endswith(" for 2 seeds")
    assert "(buffer 84.0 kB)" in out.splitlines()[1]
    monkeypatch.setattr(cli, "WORTH_SAYING", 100_000_000)
    assert "state: " not in command("train", *ARGS)[1]


def test_a_sweep_says_its_chunks_and_refuses_those_that_do_not_fit(monkeypatch, tmp_path):
    algo, said = dqn(), []
    space = {"gamma": [0.9, 0.99], "buffer_size": [1000, 2000]}
    sweep(algo, space, seeds=2, chunk=3, folder=tmp_path / "a", say=said.append)
    sizes = [state_size(dqn(buffer_size=n), 2) for n in (1000, 2000)]
    assert said == [f"chunks of 2 agents at once; state: {size}" for size in sizes]
    monkeypatch.setattr(_memory, "free_bytes", lambda num_devices=None: sizes[1].total - 1)
    with pytest.raises(ValueError, match=r"buffer_size \(at most 19\d\d\) or chunk \(at most 1\)"):
        sweep(algo, space, seeds=2, chunk=3, folder=tmp_path / "b", say=said.append)
