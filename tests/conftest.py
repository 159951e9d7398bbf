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


@pytest.fixture
def key():
    return jax.random.key(0)
