"""`set_cpu_flags`, each time in a process of its own, since JAX reads the flags once."""

import os
import subprocess
import sys

import pytest


def run(script, flags="", timeout=None):
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "always", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=timeout)


def test_flags_are_added_once_and_those_that_are_set_stay():
    script = "import os, eqxrl; eqxrl.set_cpu_flags(); eqxrl.set_cpu_flags(); print(os.environ['XLA_FLAGS'])"
    printed = run(script, "--xla_cpu_multi_thread_eigen=true --xla_dump_to=x").stdout.split()
    assert sorted(printed) == [
        "--xla_cpu_experimental_ynn_fusion_type=",
        "--xla_cpu_multi_thread_eigen=true",
        "--xla_dump_to=x",
    ]


@pytest.mark.parametrize("before, late", [("", False), ("jax.numpy.zeros(2).block_until_ready(); ", True)])
def test_too_late_is_said(before, late):
    said = run(f"import jax, eqxrl; {before}eqxrl.set_cpu_flags()").stderr
    assert ("set_cpu_flags() came too late" in said) == late


def test_a_process_that_compiles_ever_new_programs_lives_on():
    """As if Linux granted few memory maps: their number stays bounded, whatever is compiled; and equal algorithms share a program."""
    printed = run(
        """
import eqxrl; eqxrl.set_cpu_flags()
import pathlib, sys, tempfile
from eqxrl import PPO, PPOHParams, _xla
from eqxrl.training import Trainer

def maps():
    return pathlib.Path("/proc/self/maps").read_bytes().count(b"\\n")

def fit(num_steps):
    hp = PPOHParams(num_envs=2, num_steps=num_steps, num_minibatches=1, num_epochs=1, total_timesteps=8, num_seeds_per_eval=2)
    Trainer().fit(PPO.create("CartPole-v1", hp=hp), 0)
    return maps()

if sys.platform == "linux":
    first = fit(4)
    assert all(fit(4) < first + 100 for _ in range(20)), "an equal algorithm compiled anew"
    assert fit(5) > first + 300
    _xla._MOST_MAPS = pathlib.Path(tempfile.mkdtemp(), "most")
    _xla._MOST_MAPS.write_text(str(2 * first))
    assert fit(6) < first + 300, "nothing was forgotten"
print("done")
"""
    )
    assert printed.stdout.strip() == "done"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("flags", ["", "eqxrl.set_cpu_flags(); "], ids=["without", "with"])
def test_vmapped_training_does_not_hang(flags):
    """Networks are initialised by QR, one seed after the other. Batched, two of these at once wait for each other for good on XLA's
    thread pool, as they do in other libraries under vmap over seeds."""
    script = f"""
import eqxrl; {flags}
import equinox as eqx, jax
hp = eqxrl.PPOHParams(num_envs=4, num_steps=32, num_minibatches=4, num_epochs=2, total_timesteps=1024, num_seeds_per_eval=4)
ppo = eqxrl.PPO.create("CartPole-v1", hp=hp)
print(eqx.filter_vmap(ppo.train)(jax.random.split(jax.random.key(0), 8))[1].cumulative_reward.shape)
"""
    for _ in range(20):
        assert run(script, timeout=120).stdout.strip() == "(8, 2, 4)"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("step", [0, 1], ids=["equal", "new"])
def test_three_hundred_fits(step):
    """Equal ones need no more maps and memory than the first; new ones stay within what Linux grants."""
    printed = run(
        f"""
import eqxrl; eqxrl.set_cpu_flags()
import pathlib
from eqxrl import PPO, PPOHParams
from eqxrl.training import Trainer

for i in range(300):
    hp = PPOHParams(num_envs=2, num_steps=4 + {step} * i, num_minibatches=1, num_epochs=1, total_timesteps=8, num_seeds_per_eval=2)
    Trainer().fit(PPO.create("CartPole-v1", hp=hp), i)
    megabytes = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
    print(pathlib.Path("/proc/self/maps").read_bytes().count(b"\\n"), megabytes)
"""
    )
    maps, megabytes = zip(*(map(float, line.split()) for line in printed.stdout.splitlines()), strict=True)
    print(f"maps {min(maps)} to {max(maps)}, {megabytes[0]:.0f} MiB after the first, at most {max(megabytes):.0f}")
    assert len(maps) == 300 and max(maps) < 40_000
    assert step or (max(maps) < maps[0] + 100 and max(megabytes) < 1.1 * megabytes[0])
    assert max(megabytes[150:]) < 1.3 * max(megabytes[:150])
