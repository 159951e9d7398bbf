"""The minibatch learner: which samples it uses when, and what it does with their gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments import spaces

from eqxrl import PPO, AbstractLoss, AdvantageMinibatch, MinibatchLearner, MLPActorCritic, PPOHParams, PPOLoss, Trajectory
from eqxrl.learners import LearnerState, flatten, gradient_update, init_learner_state, swap_or_not

STEPS, ENVS, EPOCHS, MINIBATCHES = 6, 4, 2, 3
UPDATES = EPOCHS * MINIBATCHES
LARGE = 2.0**-8  # powers of two, so that the schedule's closed form is exact


def reversed_order(key, n):
    return jnp.arange(n, dtype=jnp.int32)[::-1]


@pytest.fixture(scope="module")
def agent():
    return MLPActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), hidden_sizes=(5,), key=jax.random.key(0))


@pytest.fixture(scope="module")
def rollout():
    """Every array tells which sample it belongs to: `t * ENVS + env`."""
    index = jnp.arange(STEPS * ENVS, dtype=jnp.float32).reshape(STEPS, ENVS)
    return AdvantageMinibatch(
        trajectories=Trajectory(
            obs=jnp.stack([index, index / 24, jnp.sin(index)], axis=-1),
            action=(index % 2).astype(jnp.int32),
            log_prob=-index / 24,
            reward=index,
            value=index / 10,
            terminated=index % 3 == 0,
            truncated=index % 5 == 0,
            final_value=index,
        ),
        advantages=jnp.cos(index),
        targets=index,
    )


def flat(rollout, indices):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[np.asarray(indices)], rollout)


def test_equals_a_plain_optax_chain_bitwise(agent, rollout):
    schedule = optax.linear_schedule(LARGE, 0.0, 8)
    learner = MinibatchLearner(
        loss=PPOLoss(clip_eps=0.1),
        optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5)),
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        permutation=reversed_order,
    )
    ours, state, metrics = eqx.filter_jit(learner)(agent, learner.init(agent), rollout, jax.random.key(0))

    chain = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(eps=1e-5))
    params, static = eqx.partition(agent, eqx.is_array)

    @jax.jit
    def update(params, opt_state, minibatch, rate):
        grads = jax.grad(lambda p: PPOLoss(clip_eps=0.1)(eqx.combine(p, static), minibatch)[0])(params)
        updates, opt_state = chain.update(grads, opt_state)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state, optax.tree.norm(grads)

    opt_state, norms = chain.init(params), []
    for k in range(UPDATES):
        part = np.arange(STEPS * ENVS)[::-1].reshape(MINIBATCHES, -1)[k % MINIBATCHES]
        rate = np.float32(LARGE * (1 - k / 8))
        params, opt_state, norm = update(params, opt_state, flat(rollout, part), rate)
        norms.append(norm)
    assert min(norms) > 0.5  # the clip was at work in every update
    for a, b in zip(jax.tree.leaves(eqx.filter(ours, eqx.is_array)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert state.num_updates == UPDATES
    np.testing.assert_allclose(metrics["grad_norm"], np.mean(norms), rtol=1e-6)  # before clipping


@pytest.mark.parametrize("size", [0.1, 100.0])
def test_the_norm_is_clipped_not_the_elements(size):
    """The first moment of Adam after one update is a tenth of the gradient that reached it."""
    ppo = PPO.create("CartPole-v1", hp=PPOHParams(max_grad_norm=0.5))
    gradient = {"w": size * jnp.array([[3.0, -4.0], [0.0, 1e-3]]), "b": size * jnp.array([12.0])}  # of norm 13 * size
    optimizer = ppo.learner.optimizer
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    moments = [s.mu for s in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu")]
    factor = min(1, 0.5 / (13 * size))
    np.testing.assert_allclose(moments[0], 0.1 * factor * np.concatenate([gradient["b"], gradient["w"].ravel()]), rtol=1e-5)


def test_metrics_are_what_the_loss_reports_and_the_gradients_norm(agent, rollout):
    learner = MinibatchLearner(PPOLoss(), optax.sgd(0.0), num_epochs=2, num_minibatches=1, permutation=reversed_order)
    _, _, metrics = eqx.filter_jit(learner)(agent, learner.init(agent), rollout, jax.random.key(0))
    by_hand = eqx.filter_jit(eqx.filter_value_and_grad(PPOLoss(), has_aux=True))
    (_, expected), gradient = by_hand(agent, flatten(rollout))
    expected = {**expected, "grad_norm": optax.tree.norm(gradient)}
    assert set(metrics) == set(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(metrics[name], x, rtol=1e-4, err_msg=name)


class Returns(AbstractLoss):
    """A loss that returns what it is told to."""

    result: object = eqx.field(static=True)

    def __call__(self, agent, minibatch):
        return self.result(jnp.sum(agent.actor[0].bias), minibatch.advantages)

    def at_step(self, num_updates):
        return self


@pytest.mark.parametrize(
    "result, message",
    [
        (lambda loss, x: loss, r"Returns returned .*; return \(loss, metrics\): a scalar, and a dict of scalars by name"),
        (lambda loss, x: (loss, {}, x), r"returned \(float32\[\], float32\[24\]\); return \(loss, metrics\)"),
        (lambda loss, x: (loss, x), r"returned \(float32\[\], float32\[24\]\); return \(loss, metrics\)"),
        (lambda loss, x: (loss + x, {}), r"returned float32\[24\] for the loss; return a float scalar, such as a mean"),
        (lambda loss, x: (loss.astype(jnp.int32), {}), r"returned int32\[\] for the loss; return a float scalar"),
        (lambda loss, x: (loss, {"mine": x}), r"returned float32\[24\] for mine; return a float scalar"),
        (lambda loss, x: (loss, {"mine": jnp.argmax(x)}), r"returned int32\[\] for mine; return a float scalar"),
    ],
    ids=["alone", "three", "no dict", "batch", "integer", "batch metric", "integer metric"],
)
def test_a_loss_that_returns_something_else(agent, rollout, result, message):
    optimizer = optax.sgd(0.1)
    state = init_learner_state(optimizer, agent)
    with pytest.raises(TypeError, match=message):
        eqx.filter_eval_shape(gradient_update, Returns(result), optimizer, agent, state, flatten(rollout))


class Spy(AbstractLoss):
    """Shows each minibatch to the host."""

    seen: list = eqx.field(static=True)

    def __call__(self, agent, minibatch):
        jax.debug.callback(lambda m: self.seen.append(jax.device_get(m)), minibatch, ordered=True)
        return sum(jnp.sum(x) for x in jax.tree.leaves(agent.actor)), {}

    def at_step(self, num_updates):
        return self


class Spied(list):
    """A list that may be part of a compiled function's static arguments."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_every_sample_once_per_epoch_in_orders_that_differ(agent, rollout):
    seen = Spied()
    learner = MinibatchLearner(loss=Spy(seen), optimizer=optax.sgd(0.0), num_epochs=3, num_minibatches=MINIBATCHES)
    learn, state = eqx.filter_jit(learner), learner.init(agent)
    for key in jax.random.split(jax.random.key(0), 2):
        _, state, _ = learn(agent, state, rollout, key)
    jax.effects_barrier()
    assert len(seen) == 2 * 3 * MINIBATCHES
    orders = np.array([m.targets for m in seen], int).reshape(2 * 3, -1)
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(STEPS * ENVS), orders.shape))
    assert len(np.unique(orders, axis=0)) == len(orders)
    for minibatch in seen:  # and a sample's arrays stay together
        expected = flat(rollout, minibatch.targets.astype(int))
        assert eqx.tree_equal(jax.tree.map(np.asarray, expected), jax.tree.map(np.asarray, minibatch))


def test_its_own_permutation(agent, rollout):
    seen = Spied()
    learner = MinibatchLearner(Spy(seen), optax.sgd(0.0), num_epochs=1, num_minibatches=2, permutation=reversed_order)
    learner(agent, learner.init(agent), rollout, jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.concatenate([m.targets for m in seen]), np.arange(STEPS * ENVS)[::-1])
    assert MinibatchLearner(Spy(seen), optax.sgd(0.0), num_epochs=1, num_minibatches=1).permutation is swap_or_not


def test_a_single_minibatch_stays_in_order(agent, rollout):
    def never(key, n):
        raise AssertionError("was put in order")

    learners = [MinibatchLearner(PPOLoss(), optax.sgd(LARGE), num_epochs=3, num_minibatches=n, permutation=never) for n in (1, 2)]
    learned, state, metrics = learners[0](agent, learners[0].init(agent), rollout, jax.random.key(0))
    after, plain = agent, init_learner_state(optax.sgd(LARGE), agent)
    for _ in range(3):
        after, plain, _ = gradient_update(PPOLoss(), optax.sgd(LARGE), after, plain, flat(rollout, jnp.arange(STEPS * ENVS)[::-1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(eqx.filter(x, eqx.is_array) for x in (learned, after)))
    assert state.num_updates == plain.num_updates == 3 and metrics["entropy"].shape == ()
    with pytest.raises(AssertionError, match="was put in order"):
        learners[1](agent, learners[1].init(agent), rollout, jax.random.key(0))


def test_coefficients_follow_the_number_of_updates(agent, rollout):
    """The second call goes on where the first one stopped."""

    class Recorded(AbstractLoss):
        now: jax.Array

        def __call__(self, agent, minibatch):
            return 0.0 * jnp.sum(agent.actor[0].bias), {"now": self.now}

        def at_step(self, num_updates):
            return Recorded(num_updates.astype(jnp.float32))

    learner = MinibatchLearner(Recorded(jnp.zeros(())), optax.sgd(0.1), num_epochs=EPOCHS, num_minibatches=MINIBATCHES)
    learn, state = eqx.filter_jit(learner), learner.init(agent)
    for call in range(2):
        _, state, metrics = learn(agent, state, rollout, jax.random.key(call))
        assert metrics["now"] == np.mean(np.arange(UPDATES) + call * UPDATES)
        assert state.num_updates == (call + 1) * UPDATES


def test_the_number_of_updates_is_the_optimisers(agent, rollout):
    learner = MinibatchLearner(PPOLoss(), optax.adam(1e-3), num_epochs=EPOCHS, num_minibatches=MINIBATCHES)
    state = learner.init(agent)
    assert isinstance(state, LearnerState) and state.num_updates == 0
    assert not any(x.weak_type for x in jax.tree.leaves(state) if eqx.is_array(x))
    _, state, _ = eqx.filter_jit(learner)(agent, state, rollout, jax.random.key(0))
    assert optax.tree.get(state.opt_state, "count") == state.num_updates == UPDATES


def test_bad_sizes(agent, rollout):
    learner = MinibatchLearner(PPOLoss(), optax.adam(1e-3), num_epochs=1, num_minibatches=5)
    expected = r"num_envs \* num_steps \(4 \* 6 = 24\) must be divisible by num_minibatches \(5\); remainder 4"
    with pytest.raises(ValueError, match=expected):
        learner(agent, learner.init(agent), rollout, jax.random.key(0))
    for sizes in (dict(num_epochs=0, num_minibatches=1), dict(num_epochs=1, num_minibatches=-1)):
        with pytest.raises(ValueError, match="must be at least 1, got"):
            MinibatchLearner(PPOLoss(), optax.adam(1e-3), **sizes)
    with pytest.raises(TypeError, match="loss"):
        MinibatchLearner(optax.adam(1e-3), PPOLoss(), num_epochs=1, num_minibatches=1)
