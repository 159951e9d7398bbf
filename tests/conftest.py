"""What every test runs under: JAX with its loose ends tied, and every function of the package type-checked
(`pyproject.toml`)."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart():
    # Not above: the package must not be imported before jaxtyping's hook, which checks its functions, is in place.
    from eqxrl import set_cpu_flags

    set_cpu_flags()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Those that a module compiled are of no use to the next one, and all of them together would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)
