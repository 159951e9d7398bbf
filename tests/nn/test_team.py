"""One policy for a team: what its agents have in common, and what the distribution of all their actions is made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from helpers import quick_jit

from eqxrl import PPO, PPOHParams, verify
from eqxrl.algorithms import MakeNetwork
from eqxrl.nn import (
    AbstractActorCritic,
    CNNActorCritic,
    GRUActorCritic,
    LRUActorCritic,
    Masked,
    MultiCategorical,
    NormalizedActorCritic,
    SharedAgents,
)
from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete
from eqxrl.testing import check_actor_critic

KEY, OBS = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 4))
ROWS, CHOICES, RAGGED, FLOATS = Box(-1.0, 1.0, (3, 4)), MultiDiscrete([5, 5, 5]), MultiDiscrete([2, 4, 3]), Box(-2.0, 1.0, (3, 2))
SHIFTED = jnp.array([1, 2, 0])


def team(action_space=CHOICES, **options):
    agent = SharedAgents(ROWS, action_space, **{"hidden_sizes": (8,), **options}, key=KEY)
    numbers, rest = eqx.partition(agent, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), numbers), rest)


def act(agent, obs):
    return agent(obs, agent.initial_carry())[:2]


@pytest.mark.parametrize("space, options", [(CHOICES, {"ids": True, "central": True}), (RAGGED, {}), (FLOATS, {"central": True})])
def test_it_keeps_to_the_contract(space, options):
    check_actor_critic(team(space, **options), OBS, space)


@pytest.mark.parametrize("box", [{}, {"state_std": True}, {"box": "squashed"}, {"box": "beta"}])
def test_agents_that_change_places_change_actions(box):
    space = FLOATS if box else CHOICES
    agent = team(space, **box)
    (one, value), (other, other_value) = act(agent, OBS), act(agent, OBS[SHIFTED])
    np.testing.assert_allclose(other.mode(), one.mode()[SHIFTED], rtol=1e-5, atol=1e-6)
    action = one.sample(KEY)
    np.testing.assert_allclose(other.log_prob(action[SHIFTED]), one.log_prob(action), rtol=1e-4)
    assert not np.isclose(other.log_prob(action), one.log_prob(action), rtol=1e-4)
    np.testing.assert_allclose(other.entropy(), one.entropy(), rtol=1e-4)
    np.testing.assert_allclose(other_value, value, rtol=1e-5)


def test_an_agents_action_depends_on_its_own_row_alone():
    agent = team()
    before, after = (act(agent, obs)[0].logits.reshape(3, 5) for obs in (OBS, OBS.at[1].add(1.0)))
    np.testing.assert_array_equal(before[SHIFTED[1:]], after[SHIFTED[1:]])
    assert not np.isclose(before[1], after[1], atol=1e-3).any()


@pytest.mark.parametrize("space", [CHOICES, RAGGED, FLOATS])
def test_the_teams_log_prob_and_entropy_are_the_sums_of_the_agents(space):
    """Those with fewer options choose among the first logits."""
    agent = team(space)
    distribution, value = act(agent, OBS)
    each, values, _ = jax.vmap(lambda row: agent.actor_critic({"own": row}, ()))(OBS)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-6)
    action = distribution.sample(KEY)
    assert action.shape == space.shape
    if space is FLOATS:
        np.testing.assert_allclose(distribution.log_prob(action), each.log_prob(action).sum(), rtol=1e-5)
        np.testing.assert_allclose(distribution.entropy(), each.entropy().sum(), rtol=1e-5)
        return
    assert isinstance(distribution, MultiCategorical) and distribution.nvec == space.nvec
    log_p = [scipy.special.log_softmax(x[:n]) for x, n in zip(np.asarray(each.logits), space.nvec, strict=True)]
    np.testing.assert_allclose(distribution.log_prob(action), sum(x[a] for x, a in zip(log_p, action, strict=True)), rtol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), -sum((np.exp(x) * x).sum() for x in log_p), rtol=1e-5)


def test_agents_that_are_told_apart():
    alike = jnp.broadcast_to(OBS[0], OBS.shape)
    for ids in (False, True):
        logits = act(team(ids=ids), alike)[0].logits.reshape(3, 5)
        assert np.allclose(logits, logits[0], atol=1e-4) == (not ids)


def test_a_central_critic_sees_them_all_together():
    """The mean of values of one row each has no mixed derivatives of two rows."""
    for central in (False, True):
        agent = team(central=central)
        mixed = jax.hessian(lambda obs: act(agent, obs)[1])(OBS)[0, :, 1, :]
        assert np.any(np.abs(mixed) > 1e-5) == central
        before, after = (act(agent, obs)[1] for obs in (OBS, OBS[SHIFTED]))
        assert np.isclose(before, after, rtol=1e-5) == (not central)


@pytest.mark.parametrize("make", [GRUActorCritic, LRUActorCritic])
@pytest.mark.parametrize("options", [{}, {"ids": True, "central": True}])
def test_each_remembers_for_itself(make, options):
    """A sequence at once as step by step, with an episode that begins in it; and of another's row an agent remembers nothing."""
    agent, steps = team(make=make, memory_size=6, **options), 5
    obs, starts = jax.random.normal(KEY, (steps, 3, 4)), jnp.arange(steps) == 3
    distribution, value, carry = quick_jit(lambda agent, obs: agent.sequence(obs, starts, agent.initial_carry()))(agent, obs)
    expected, expected_value, expected_carry = AbstractActorCritic.sequence(agent, obs, starts, agent.initial_carry())
    np.testing.assert_allclose(distribution.logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), carry, expected_carry)
    moved, *_ = agent.sequence(obs.at[0, 1].add(1.0), starts, agent.initial_carry())
    same = np.isclose(moved.logits, distribution.logits, rtol=1e-4, atol=1e-5).reshape(steps, 3, 5).all(-1)
    np.testing.assert_array_equal(same[:, [0, 2]], True)
    np.testing.assert_array_equal(same[:, 1], starts | (jnp.arange(steps) > 3))


def test_rows_that_are_images():
    agent = SharedAgents(Box(0.0, 1.0, (2, 5, 6, 3)), MultiDiscrete([4, 4]), make=CNNActorCritic, key=KEY)
    check_actor_critic(agent, jax.random.uniform(KEY, (2, 5, 6, 3)), MultiDiscrete([4, 4]))
    assert len(agent.actor_critic.encoders[0].parts[0].convolutions) == 1


def test_masked_and_normalized():
    """The mask isn't looked at, but kept to."""
    space = Dict({"rows": ROWS, "action_mask": Box(0, 1, (9,), bool)})
    agent = Masked(SharedAgents(space, RAGGED, hidden_sizes=(8,), ids=True, key=KEY))
    mask = jnp.array([1, 0, 0, 0, 1, 1, 0, 1, 0], bool)
    obs = {"rows": OBS, "action_mask": mask}
    distribution, _ = act(NormalizedActorCritic(agent, obs), obs)
    assert agent.actor_critic.actor_critic.encoders[0].size == 4 + 3
    np.testing.assert_array_equal(distribution.logits == -jnp.inf, ~mask)
    action = np.asarray(jax.vmap(distribution.sample)(jax.random.split(KEY, 200)))
    assert {*action[:, 0]} == {0} and {*action[:, 1]} == {2, 3} and {*action[:, 2]} == {1}


@pytest.mark.parametrize(
    "obs, space, error, why",
    [
        (Box(-1, 1, (2, 4)), CHOICES, ValueError, r"acts for 3 agents, so it needs observations that are Boxes \[3 ...\], but got Box"),
        (Dict({"rows": ROWS, "turn": Discrete(3)}), CHOICES, TypeError, r"Boxes \[3 ...\], but got Discrete"),
        (ROWS, Discrete(5), TypeError, "acts in a MultiDiscrete, or a Box with a row for each agent, but the action space is Discrete"),
    ],
)
def test_spaces_that_are_no_teams(obs, space, error, why):
    with pytest.raises(error, match=why):
        SharedAgents(obs, space, key=KEY)


def test_agents_that_cant_be_joined():
    class Pair(AbstractActorCritic):
        def __call__(self, obs, carry):
            return MultiCategorical(obs["own"], (2, 2)), jnp.sum(obs["own"]), carry

        def initial_carry(self):
            return ()

    agent = SharedAgents(ROWS, CHOICES, make=lambda *spaces, **options: Pair(), key=KEY)
    with pytest.raises(TypeError, match="can't join agents that act by a MultiCategorical to a team that acts in MultiDiscrete"):
        act(agent, OBS)


class Apart(eqx.Module):
    """Three agents are paid for each of them that chooses the place that it sees, for 5 steps."""

    max_steps = 5

    def reset(self, key, params):
        return jax.nn.one_hot(jax.random.randint(key, (3,), 0, 4), 4), (key, jnp.array(0))

    def step(self, key, state, action, params):
        old, time = state
        shown = self.reset(old, params)[0]
        return self.reset(key, params)[0], (key, time + 1), jnp.mean(action == shown.argmax(-1)), False, time + 1 >= 5, {}

    def observation_space(self, params):
        return Box(0.0, 1.0, (3, 4))

    def action_space(self, params):
        return MultiDiscrete([4, 4, 4])


def test_it_is_chosen_as_other_networks_are_and_learns():
    with pytest.raises(ValueError, match="MakeNetwork got the kind of agent 'mpl'; there is mlp"):
        MakeNetwork("agents", dict(of="mpl"))
    hp = PPOHParams(num_envs=16, num_steps=20, num_minibatches=2, num_epochs=4, total_timesteps=9_600, eval_freq=4_800, learning_rate=5e-3,
                    num_seeds_per_eval=32)
    ppo = PPO.create(env=Apart(), hp=hp, actor_critic=MakeNetwork("agents", dict(hidden_sizes=(16,), activation="relu")))
    _, metrics = ppo.train(0)
    returns = np.asarray(metrics.cumulative_reward).mean(-1)
    assert returns[0] < 4 and returns[-1] > 4.9


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(ids=True, central=True), dict(of="gru", memory_size=6)])
def test_the_laws_of_ppo(options):
    hp = PPOHParams(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=2, total_timesteps=320, eval_freq=160)
    report = verify(PPO.create(env=Apart(), hp=hp, actor_critic=MakeNetwork("agents", dict(hidden_sizes=(8,), **options))))
    assert report.ok, report
