import jax
import pytest
from helpers import tiny


@pytest.fixture(scope="session")
def algo():
    """Everything normalised; 7 iterations of 24 env steps, evaluated every other one, so that the last chunk is shorter. The
    same object for all tests of a process, which then share its compiled programs."""
    sizes = dict(num_minibatches=2, total_timesteps=24 * 7, eval_freq=24 * 2)
    return tiny(**sizes, normalize_observations=True, normalize_rewards=True)


@pytest.fixture(scope="session")
def one():
    """A key for a single agent."""
    return jax.random.key(1)


@pytest.fixture(scope="session")
def three():
    """Keys for three."""
    return jax.random.split(jax.random.key(2), 3)
