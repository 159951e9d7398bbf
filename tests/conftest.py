"""What every test runs under: JAX with its loose ends tied, and every function of the package type-checked
(`pyproject.toml`)."""

import gc
import itertools
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

TESTS = Path(__file__).parent
CORE = {"advantages", "buffers", "collectors", "evaluators", "learners", "losses", "nn"} | {
    f"test_{name}.py" for name in ("spaces", "structs", "typing")
}
PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqxrl" / "test-programs"
MAX_BYTES = 2**30

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes very many objects that live on; by default an eighth of a test's time goes into looking for garbage among them.
gc.set_threshold(200_000, 20, 100)

# Compiling is two thirds of the tests' time: a second run, and the other workers, find the larger programs on disk. A program's key is
# what it computes, the compiler's version and its options, so another version of the package can't be given a wrong one.
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_sessionstart(session):
    # Not above: the package must not be imported before jaxtyping's hook, which checks its functions, is in place.
    from eqxrl import set_cpu_flags

    set_cpu_flags(num_devices=1)
    if not hasattr(session.config, "workerinput"):
        forget_oldest_programs()


def forget_oldest_programs():
    """JAX's own limit takes a lock and looks at every file each time that it keeps a program."""
    newest = sorted(((p.stat(), p) for p in PROGRAMS.glob("*-cache")), key=lambda x: -x[0].st_mtime)
    for (_, path), total in zip(newest, itertools.accumulate(stat.st_size for stat, _ in newest), strict=True):
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before `-m` chooses among them."""
    for item in items:
        if CORE & set(item.path.relative_to(TESTS).parts) and not item.get_closest_marker("slow"):
            item.add_marker("core")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Those that a module compiled are of no use to the next one, and all of them together would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def promotion_of_ranks():
    """For suites that rely on it; it raises by default, see above."""
    with jax.numpy_rank_promotion("allow"):
        yield
