"""`set_cpu_flags`, each time in a process of its own, since JAX reads the flags once."""

import os
import subprocess
import sys

import pytest


def run(script, flags=""):
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "always", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


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
