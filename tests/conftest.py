"""What every test runs under: JAX with its loose ends tied, and every function of the package type-checked (pyproject.toml)."""

import os

# XLA's CPU runtime can hang for good in vmapped programs while its worker threads sleep; this ends it. It has to be set
# before the backend starts.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)
