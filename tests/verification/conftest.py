import itertools

import jax
import pytest

COUNT = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_some_programs():
    """All that a slow run of these tests compiles would take gigabytes."""
    yield
    if next(COUNT) % 16 == 0:
        jax.clear_caches()
