import jax
import pytest
from helpers import small, tiny, with_limit
from user_algorithm import own

from eqxrl import A2C, DQN, A2CHParams, DQNHParams
from eqxrl.nn import QNetwork

SIZES = dict(num_envs=3, num_steps=8, num_seeds_per_eval=2, total_timesteps=24 * 7, eval_freq=24 * 2)
"""7 iterations of 24 env steps, evaluated every other one, so that the last chunk is shorter."""


TENANTS = {
    "a2c": lambda: A2C.create("CartPole-v1", hp=A2CHParams(**SIZES), actor_critic=small),
    "dqn": lambda: DQN.create(
        "CartPole-v1",
        hp=DQNHParams(**SIZES, buffer_size=40, batch_size=6, learning_starts=60, target_update_freq=3, updates_per_iteration=2),
        q_network=lambda *spaces, key: QNetwork(*spaces, hidden_sizes=(5,), key=key),
    ),
    "own": own,
}


@pytest.fixture(scope="session")
def algo():
    """Everything normalised. The same object for all tests of a process, which then share its compiled programs."""
    return tiny(**SIZES, num_minibatches=2, normalize_observations=True, normalize_rewards=True)


@pytest.fixture(scope="session", params=[pytest.param(x, marks=pytest.mark.slow if x == "a2c" else []) for x in TENANTS])
def tenant(request):
    """Every other kind of algorithm."""
    return with_limit(TENANTS[request.param](), 7)


@pytest.fixture(scope="session")
def one():
    """A key for a single agent."""
    return jax.random.key(1)


@pytest.fixture(scope="session")
def three():
    """Keys for three."""
    return jax.random.split(jax.random.key(2), 3)
