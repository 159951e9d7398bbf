"""An optimiser for each network: the updates of each are those that it makes alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments import spaces
from helpers import quick_jit, same, small, tiny

from eqxrl import PPO
from eqxrl.learners import by_network
from eqxrl.nn import NormalizedActorCritic, trainable


@pytest.fixture(scope="module", params=["bare", "normalised"])
def agent(request):
    agent = small(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), key=jax.random.key(0))
    if request.param == "bare":
        return agent
    obs = jnp.linspace(-1.0, 2.0, 60).reshape(20, 3)
    return NormalizedActorCritic(agent, obs[0]).observe(obs)


def inner(agent):
    return getattr(agent, "actor_critic", agent) if isinstance(agent, NormalizedActorCritic) else agent


def two_steps(optimizer, agent):
    """With gradients of 1 everywhere, and of 2."""
    params, static = eqx.partition(agent, trainable(agent))
    state = optimizer.init(params)
    for size in (1.0, 2.0):
        updates, state = optimizer.update(jax.tree.map(lambda x, size=size: jnp.full_like(x, size), params), state, params)
        params = optax.apply_updates(params, updates)
    return eqx.combine(params, static)


def log_std(agent):
    """Wherever it is."""
    found = [x for path, x in jax.tree.leaves_with_path(agent) if jax.tree_util.keystr(path).endswith(".log_std")]
    assert len(found) == 1
    return found[0]


def test_each_network_as_by_its_own_optimiser_alone(agent):
    own = dict(critic=optax.adamw(0.02, weight_decay=0.3), log_std=optax.sgd(0.5))
    mixed = quick_jit(lambda agent: two_steps(by_network(optax.adam(0.01), **own), agent))(agent)
    network = dict(actor=lambda agent: inner(agent).actor, critic=lambda agent: inner(agent).critic, log_std=log_std)
    for name, optimizer in dict(actor=optax.adam(0.01), **own).items():
        alone = quick_jit(lambda agent, optimizer=optimizer: two_steps(optimizer, agent))(agent)
        same(network[name](mixed), network[name](alone), rtol=1e-6)
        assert not any(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(network[name](x)) for x in (mixed, agent)), strict=True))


def test_the_outermost_name_counts(agent):
    """All weights but the critic's, and its biases."""
    optimizer = by_network(optax.sgd(0.0), weight=optax.sgd(0.1), critic=optax.sgd(0.2))
    after = quick_jit(lambda agent: two_steps(optimizer, agent))(agent)
    for name, weight, bias in (("actor", 0.3, 0.0), ("critic", 0.6, 0.6)):
        for new, old in zip(getattr(inner(after), name), getattr(inner(agent), name), strict=True):
            np.testing.assert_allclose(old.weight - new.weight, np.full(old.weight.shape, weight), rtol=1e-4)
            np.testing.assert_allclose(old.bias - new.bias, np.full(old.bias.shape, bias), rtol=1e-4)


def test_weight_decay_leaves_statistics_alone(agent):
    """Through the default optimiser as well as through a network's own one."""
    adamw = optax.adamw(0.1, weight_decay=4.0)
    after = quick_jit(lambda agent: two_steps(by_network(adamw, actor=adamw), agent))(agent)
    if isinstance(agent, NormalizedActorCritic):
        same(after.statistics, agent.statistics)
    assert np.abs(inner(after).critic[0].weight).mean() < np.abs(inner(agent).critic[0].weight).mean()


def test_in_a_whole_iteration():
    """What has a learning rate of 0 stays, the others learn, and statistics count observations and nothing else."""
    def ppo(**parts):
        return tiny("Pendulum-v1", max_steps=9, normalize_observations=True, **parts)

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), by_network(optax.adamw(1e-2), actor=optax.set_to_zero()))
    algos = [ppo(optimizer=optimizer), ppo(optimizer=optax.sgd(0.0))]
    (start, after), (_, still) = (quick_jit(lambda a: (ts := a.init_train_state(0), a.iteration(ts, 0)[0]))(algo) for algo in algos)
    same(after.agent.actor_critic.actor, start.agent.actor_critic.actor)
    same(after.agent.statistics, still.agent.statistics)
    assert not np.array_equal(after.agent.actor_critic.critic[0].weight, start.agent.actor_critic.critic[0].weight)
    assert not np.array_equal(log_std(after.agent), log_std(start.agent))


def test_a_network_that_is_not_there(agent):
    optimizer = by_network(optax.adam(1e-3), critc=optax.adam(1e-2), encoder=optax.adam(1e-2))
    with pytest.raises(ValueError, match="an optimiser for critc, encoder, but there are only .*actor, weight, bias, critic.*; name one"):
        optimizer.init(eqx.filter(agent, trainable(agent)))
    with pytest.raises(ValueError, match="got an optimiser for log_std, but there are only"):
        PPO.create("CartPole-v1", optimizer=by_network(optax.adam(1e-3), log_std=optax.adam(1e-2)))
