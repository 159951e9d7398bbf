"""Programs that the command keeps on disk."""

import os
import stat
import subprocess
import sys
import zlib

import jax
import pytest

from eqxrl._program_cache import keep_programs, tidy

SCRIPT = """
import warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
from eqxrl._program_cache import keep_programs
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).sum(), sum(hits), jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture
def run(tmp_path):
    def run(**environment):
        names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        environment = {**{k: x for k, x in os.environ.items() if k not in names}, "XDG_CACHE_HOME": str(tmp_path), **environment}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
        number, hits, folder = done.stdout.split()
        return float(number), int(hits), folder

    return run


def test_a_second_process_finds_what_the_first_compiled_and_what_is_cut_short_is_compiled_again(run, tmp_path):
    number, hits, folder = run()
    assert hits == 0 and folder.startswith(str(tmp_path / "eqxrl" / "programs"))
    files = sorted((tmp_path / "eqxrl" / "programs").rglob("*-cache"))
    again = run()
    assert again == (number, len(files), folder) and files
    for path in files:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        path.write_bytes(path.read_bytes()[:-20])
    assert run() == (number, 0, folder)
    assert run() == again


def test_what_the_environment_says_counts(run, tmp_path):
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))[2] == str(tmp_path / "mine")
    assert run(JAX_ENABLE_COMPILATION_CACHE="0")[2] == "None"
    assert not (tmp_path / "eqxrl").exists()


def test_where_nothing_can_be_written_nothing_is_kept(run, tmp_path):
    (tmp_path / "eqxrl").write_text("a file")
    assert run()[2] == "None"


def test_what_was_used_longest_ago_goes(tmp_path):
    for i in range(4):
        path = tmp_path / "kind" / f"jit_{i}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(os.urandom(1000)))
        os.utime(path, (1e9 + i, 1e9 - i))
    tidy(tmp_path, 2500)
    left = sorted(x.name for x in (tmp_path / "kind").iterdir())
    assert left == ["jit_2-cache", "jit_3-cache"]
    tidy(tmp_path, 2500)
    assert sorted(x.name for x in (tmp_path / "kind").iterdir()) == left


def test_in_a_process_that_keeps_them_already_nothing_changes():
    before = jax.config.jax_compilation_cache_dir
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == before is not None
