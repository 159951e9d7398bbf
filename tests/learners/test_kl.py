"""Where updates end for their KL divergence, and the penalty whose weight finds itself, against plain loops of gradient steps."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments import spaces
from helpers import quick_jit, same, small, tiny

from eqxrl import AbstractLoss, AdvantageMinibatch, LinearSchedule, MinibatchLearner, PPOLoss, Trajectory
from eqxrl.learners import AdaptiveKL, LearnerState, flatten, gradient_update
from eqxrl.losses import ActorCriticLoss
from eqxrl.testing import check_learner

STEPS, ENVS, EPOCHS, MINIBATCHES = 8, 6, 3, 4
UPDATES = EPOCHS * MINIBATCHES


def in_order(key, n):
    return jnp.arange(n, dtype=jnp.int32)


@pytest.fixture(scope="module")
def agent():
    return small(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), key=jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(agent):
    """Of that policy, so that the first ratio is 1."""
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(STEPS, ENVS, 3)), jnp.float32)
    distribution, value, _ = quick_jit(jax.vmap(jax.vmap(lambda obs: agent(obs, ()))))(obs)
    action = jnp.asarray(rng.integers(2, size=(STEPS, ENVS)), jnp.int32)
    advantages = jnp.asarray(rng.normal(size=(STEPS, ENVS)), jnp.float32)
    zeros = jnp.zeros((STEPS, ENVS))
    t = Trajectory(obs, action, distribution.log_prob(action), zeros, value, zeros > 0, zeros > 0, zeros)
    return AdvantageMinibatch(t, advantages, value + advantages)


def learner(target_kl=None, optimizer=None, loss=None):
    return MinibatchLearner(
        loss or PPOLoss(), optimizer or optax.adam(LinearSchedule(0.03, 0.0, 40)), num_epochs=EPOCHS, num_minibatches=MINIBATCHES,
        permutation=in_order, target_kl=target_kl,
    )


@pytest.fixture(scope="module")
def by_hand(agent, rollout):
    """Every update that there would be, one by one: states before and after, and metrics."""
    plain = learner()
    update = quick_jit(lambda agent, state, part: gradient_update(plain.loss, plain.optimizer, agent, state, part))
    state, made = plain.init(agent), []
    for k in range(UPDATES):
        part = jax.tree.map(lambda x: x.reshape(MINIBATCHES, -1, *x.shape[1:])[k % MINIBATCHES], flatten(rollout))
        before = agent, state
        agent, state, metrics = update(agent, state, part)
        made.append((before, (agent, state), metrics))
    return made


def run(learner, agent, rollout):
    return quick_jit(learner)(agent, learner.init(agent), rollout, jax.random.key(0))


def test_the_update_that_is_too_far_and_all_later_ones_are_left_out(agent, rollout, by_hand):
    """Whichever it is."""
    kls = np.array([metrics["approx_kl"] for _, _, metrics in by_hand], np.float64)
    ends = [k for k in range(1, UPDATES) if kls[k] > 1.01 * kls[:k].max()]  # a target between these is passed first at k
    assert len(ends) >= 3
    compiled = quick_jit(lambda target: (x := learner(target))(agent, x.init(agent), rollout, jax.random.key(0)))
    for k in (ends[0], ends[len(ends) // 2], ends[-1]):
        target = jnp.float32(np.sqrt(kls[k] * max(kls[:k].max(), 0.5 * kls[k])) / 1.5)
        after, state, metrics = compiled(target)
        same(after, by_hand[k][0][0], rtol=1e-5, atol=1e-6)  # the policy as it was before update k
        assert state.num_updates == UPDATES
        adam, schedule = state.opt_state
        assert adam.count == k and schedule.count == UPDATES  # what schedules look at goes on, and moments don't
        same(adam.mu, by_hand[k][0][1].opt_state[0].mu, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(metrics.pop("updates_made"), k / UPDATES, rtol=1e-6)
        for name, x in metrics.items():
            np.testing.assert_allclose(x, np.mean([m[name] for _, _, m in by_hand[:k]]), rtol=1e-4, atol=1e-6, err_msg=name)


def test_later_updates_are_left_out_though_they_are_near(agent, rollout):
    """Only the second minibatch is far from the policy that acted, by KL (e - 2) there."""
    t = rollout.trajectories
    far = dataclasses.replace(rollout, trajectories=dataclasses.replace(t, log_prob=t.log_prob.at[2:4].add(-1.0)))
    _, _, metrics = run(learner(0.4), agent, far)
    np.testing.assert_allclose(metrics["updates_made"], 1 / UPDATES, rtol=1e-6)


def test_a_target_that_is_not_reached_changes_nothing(agent, rollout):
    (plain, state, metrics), (other, its_state, its_metrics) = (run(learner(target), agent, rollout) for target in (None, 1e6))
    assert its_metrics.pop("updates_made") == 1 and "updates_made" not in metrics
    same((plain, state, metrics), (other, its_state, its_metrics), rtol=1e-5, atol=1e-6)


def test_targets_can_be_swept(agent, rollout):
    def train(target):
        x = learner(target)
        after, state, metrics = x(agent, x.init(agent), rollout, jax.random.key(0))
        return eqx.filter(after, eqx.is_array), state.num_updates, metrics

    targets = jnp.array([1e-5, 0.01, 1e6])
    swept = quick_jit(eqx.filter_vmap(train))(targets)
    for i, target in enumerate(targets):
        same(jax.tree.map(lambda x: x[i], swept), quick_jit(train)(target), rtol=1e-4, atol=1e-6)
    assert 0 < swept[2]["updates_made"][0] < swept[2]["updates_made"][2] == 1


def test_what_is_not_a_number_is_not_hidden(agent, rollout):
    nan = eqx.tree_at(lambda r: r.advantages, rollout, rollout.advantages.at[0, 0].set(jnp.nan))
    after, _, _ = run(learner(0.01), agent, nan)
    assert any(np.isnan(x).any() for x in jax.tree.leaves(eqx.filter(after, eqx.is_array)))


def test_injected_hyperparameters_are_counted_too(agent, rollout):
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.03, 0.0, 40)))
    _, state, metrics = run(learner(1e-4, optimizer), agent, rollout)
    assert 0 < metrics["updates_made"] < 1
    injected = state.opt_state[1]
    assert injected.count == UPDATES and injected.hyperparams_states["learning_rate"].count == UPDATES
    assert optax.tree.get(injected.inner_state, "count") == round(float(metrics["updates_made"]) * UPDATES)


def test_no_target_without_a_kl(agent, rollout):
    with pytest.raises(ValueError, match="target_kl needs a loss that reports approx_kl, and it reports entropy, grad_norm, policy_loss"):
        eqx.filter_eval_shape(run, learner(0.01, loss=ActorCriticLoss()), agent, rollout)
    with pytest.raises(ValueError, match="target_kl needs a loss that reports approx_kl"):
        tiny(target_kl=0.1, loss=ActorCriticLoss())
    with pytest.raises(ValueError, match=r"MinibatchLearner.target_kl must be in \(0.0, inf\], got 0"):
        learner(0.0)


# The penalty whose weight finds itself


def adaptive(target_kl, coef=1.0, **of_learner):
    return AdaptiveKL(learner(**of_learner), target_kl=target_kl, init_coef=coef)


def test_the_penalty_is_ppos(agent, rollout):
    """With the coefficient that it had before."""
    ours, _, metrics = run(adaptive(0.01, coef=3.0), agent, rollout)
    plain, _, _ = run(learner(loss=PPOLoss(kl_coef=3.0)), agent, rollout)
    same(ours, plain, rtol=1e-5, atol=1e-6)
    assert metrics["kl_coef"] == 3.0


def test_the_coefficient_follows_the_rollouts_kl(agent, rollout):
    """Measured of the policy after the last update, in NumPy."""
    learn = quick_jit(lambda target, state: adaptive(target)(agent, state, rollout, jax.random.key(0)))
    start = adaptive(0.01).init(agent)
    after, _, metrics = learn(jnp.float32(0.01), start)
    t = rollout.trajectories
    log_ratio = np.asarray(jax.vmap(jax.vmap(lambda o: after(o, ())[0]))(t.obs).log_prob(t.action), np.float64) - np.asarray(t.log_prob)
    kl = np.mean(np.exp(log_ratio) - 1 - log_ratio)
    np.testing.assert_allclose(metrics["rollout_kl"], kl, rtol=1e-4)
    for factor, expected in ((1.6, 2.0), (1.4, 1.0), (1 / 1.4, 1.0), (1 / 1.6, 0.5)):
        _, state, _ = learn(jnp.float32(kl / factor), start)
        assert state.opt_state[1] == expected, factor


def test_the_coefficient_stays_within_bounds(agent, rollout):
    learn = quick_jit(lambda target, state: adaptive(target)(agent, state, rollout, jax.random.key(0))[1])
    state = adaptive(0.01).init(agent)
    for target, bound in ((1e6, 2.0**-20), (1e-9, 2.0**20)):
        at_bound = dataclasses.replace(state, opt_state=(state.opt_state[0], jnp.float32(bound)))
        assert learn(jnp.float32(target), at_bound).opt_state[1] == bound


def test_the_coefficient_is_in_the_state_and_can_be_swept(agent, rollout):
    def train(coef):
        x = adaptive(0.02, coef)
        state = x.init(agent)
        assert isinstance(state, LearnerState)
        for _ in range(2):
            after, state, _ = x(agent, state, rollout, jax.random.key(0))
        return eqx.filter(after, eqx.is_array), state

    swept = quick_jit(eqx.filter_vmap(train))(jnp.array([0.5, 64.0]))
    for i, coef in enumerate((0.5, 64.0)):
        same(jax.tree.map(lambda x: x[i], swept), quick_jit(train)(jnp.float32(coef)), rtol=1e-4, atol=1e-6)


def test_losses_that_do_not_fit(agent, rollout):
    class Silent(AbstractLoss):
        def __call__(self, agent, minibatch):
            return jnp.sum(agent.actor[0].bias), {"mine": jnp.zeros(())}

        def at_step(self, num_updates):
            return self

    with pytest.raises(ValueError, match="AdaptiveKL needs a loss that reports approx_kl, and Silent reports mine"):
        eqx.filter_eval_shape(run, adaptive(0.01, loss=Silent()), agent, rollout)
    with pytest.raises(ValueError, match="PPOLoss.kl_coef was set, but AdaptiveKL brings the penalty itself"):
        adaptive(0.01, loss=PPOLoss(kl_coef=1.0))
    with pytest.raises(ValueError, match=r"AdaptiveKL.target_kl must be in \(0.0, inf\], got -1"):
        adaptive(-1.0)


def test_sizes_are_compared_with_the_hyperparameters():
    with pytest.raises(ValueError, match="learner has num_epochs=3, but hp has num_epochs=2"):
        tiny(learner=adaptive(0.01))


@pytest.mark.slow
@pytest.mark.parametrize("made", [learner(1.0), adaptive(0.01)], ids=["target_kl", "AdaptiveKL"])
def test_contract(made):
    kind = made if isinstance(made, MinibatchLearner) else made.learner
    shuffled = MinibatchLearner(kind.loss, optax.adam(1e-3), num_epochs=2, num_minibatches=3, target_kl=kind.target_kl)
    check_learner(shuffled if made is kind else dataclasses.replace(made, learner=shuffled))
