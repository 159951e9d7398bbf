"""Policies with a hidden state: what they remember, when they forget, and that they are trained as they acted."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, same, tiny

from eqxrl import PPO, AbstractActorCritic, MinibatchLearner, PPOHParams, PPOLoss, make, spaces
from eqxrl.learners import cut
from eqxrl.nn import (
    LRU,
    Categorical,
    Cell,
    GRUActorCritic,
    LRUActorCritic,
    LSTMActorCritic,
    NormalizedActorCritic,
    episode_starts,
    evaluate,
    has_memory,
)
from eqxrl.nn._memory import linear_recurrence

BOX, DISCRETE = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4)
KINDS = {"gru": GRUActorCritic, "lstm": LSTMActorCritic, "lru": LRUActorCritic}


class Counter(AbstractActorCritic):
    """Remembers how many steps of the episode it has seen, and knows no way to look at a whole sequence at once."""

    w: jax.Array

    def __init__(self, observation_space, action_space, *, key):
        self.w = jax.random.normal(key, (action_space.n, observation_space.shape[0]))

    def __call__(self, obs, carry):
        return Categorical(jnp.tanh(carry) * (self.w @ obs)), jnp.sum(self.w[0] * obs) * carry, carry + 1

    def initial_carry(self):
        return jnp.zeros(())


ALL = {**KINDS, "one's own": Counter}


def agent_of(kind, key=0, **options):
    return ALL[kind](BOX, DISCRETE, **options, key=jax.random.key(key))


def episodes(seed, steps=12):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(steps, 3)), jnp.float32), jnp.asarray(rng.random(steps) < 0.3)


def one_by_one(agent, obs, starts, carry):
    """Step after step, forgetting in plain Python."""
    values, logits = [], []
    for x, start in zip(obs, starts, strict=True):
        distribution, value, carry = agent(x, agent.initial_carry() if start else carry)
        values.append(value)
        logits.append(distribution.logits)
    return np.array(logits), np.array(values), carry


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shared", [False, True])
def test_a_sequence_is_its_steps(kind, shared):
    """For the linear recurrence: the associative scan is the sequential one."""
    agent = agent_of(kind, **({} if kind == "one's own" else {"shared": shared, "sizes_before": (5,), "memory_size": 6}))
    (obs, starts), before = episodes(0), jax.tree.map(lambda x: x + 0.5, agent.initial_carry())
    distribution, value, carry = quick_jit(lambda agent, *args: agent.sequence(*args))(agent, obs, starts, before)
    logits, values, after = one_by_one(agent, obs, starts, before)
    np.testing.assert_allclose(distribution.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, values, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), carry, after)


@pytest.mark.parametrize("length", [1, 7, 32, 40, 96])
def test_the_linear_recurrence_is_a_loop(length):
    """Whatever chunks it is cut into; so are its gradients, also where an earlier episode ended in NaN."""
    keys = jax.random.split(jax.random.key(length), 4)
    decay, h = 0.9 * jnp.exp(1j * jnp.linspace(0.0, 1.0, 3)).astype(jnp.complex64), jax.random.normal(keys[0], (3,), jnp.complex64)
    inputs, starts = jax.random.normal(keys[1], (length, 3), jnp.complex64), jax.random.bernoulli(keys[2], 0.1, (length,))
    weights = jax.random.normal(keys[3], (length, 3))

    def loop(decay, inputs, starts, h):
        def step(h, x_and_start):
            h = x_and_start[0] + decay * jnp.where(x_and_start[1], 0, h)
            return h, h

        return jax.lax.scan(step, h, (inputs, starts))[1]

    def loss(recurrence, decay, inputs, h, starts=starts, weights=weights):
        return jnp.sum(weights * jnp.abs(recurrence(decay, inputs, starts, h)))

    def with_gradients(f):
        return quick_jit(lambda *args: (f(args[0], args[1], starts, args[2]), jax.grad(loss, (1, 2, 3))(f, *args)))

    both = [with_gradients(f) for f in (loop, linear_recurrence)]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    jax.tree.map(close, both[0](decay, inputs, h), both[1](decay, inputs, h))
    if length == 96:
        after = jnp.arange(96) >= 50
        late = lambda f: jax.grad(lambda x: loss(f, decay, x, h, starts.at[50].set(True), after[:, None] * weights))  # noqa: E731
        gradient = quick_jit(late(linear_recurrence))(inputs.at[40].set(jnp.nan))
        close(gradient[50:], quick_jit(late(loop))(inputs)[50:])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_begin_orthogonal(kind):
    """Gate by gate, as maps of the hidden state; biases are 0, and an LSTM keeps sigmoid(1) of what it holds when nothing comes in."""
    memory = agent_of(kind, memory_size=6).memories[0]
    gates = np.asarray(memory.cell.weight_hh).reshape(-1, 6, 6)
    assert len(gates) == {"gru": 3, "lstm": 4}[kind]
    np.testing.assert_allclose(gates @ gates.swapaxes(1, 2), np.broadcast_to(np.eye(6), gates.shape), atol=1e-5)
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(gates, 2))
    if kind == "lstm":
        nothing = eqx.tree_at(lambda m: (m.cell.weight_ih, m.cell.weight_hh), memory, replace_fn=jnp.zeros_like)
        _, (_, held) = nothing(jnp.ones(3), (jnp.zeros(6), jnp.ones(6)))
        np.testing.assert_allclose(held, 1 / (1 + np.exp(-1.0)), rtol=1e-6)
    else:
        assert not memory.cell.bias.any() and not memory.cell.bias_n.any()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_or_as_equinox_initialises(kind):
    """Everything is uniform within 1 / √(inputs), where inputs of a cell are what it remembers; biases too."""
    agent = KINDS[kind](BOX, DISCRETE, memory_size=64, hidden_sizes=(64,), orthogonal=False, key=jax.random.key(0))
    for x in jax.tree.leaves((agent.memories, agent.actor, agent.critic)):
        assert np.abs(x).max() <= 1 / 8
        if x.size > 10:
            assert np.abs(x).max() > 0.8 / 8 and abs(np.mean(x)) < 0.06


@pytest.mark.parametrize("kind", ALL)
def test_another_episode_before_changes_nothing(kind):
    """Not even one that ended in NaN."""
    agent, (obs, _), none = agent_of(kind), episodes(0), jnp.zeros(12, bool)
    call = quick_jit(lambda agent, *args: agent.sequence(*args)[:2])
    alone = call(agent, obs, none, agent.initial_carry())
    for earlier in (episodes(1)[0], episodes(1)[0].at[5:].set(jnp.nan)):
        both = call(agent, jnp.concatenate([earlier, obs]), jnp.zeros(24, bool).at[12].set(True), agent.initial_carry())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[12:], b, rtol=1e-5, atol=1e-6), both, alone)
        assert np.isnan(np.asarray(both[1])[11]) == np.isnan(earlier[-1, 0])


@pytest.mark.parametrize("make", [lambda key: Cell(eqx.nn.GRUCell(3, 5, key=key)), lambda key: LRU(3, 5, key=key)], ids=["gru", "lru"])
def test_gradients_go_back_through_time_and_stop_where_an_episode_begins(make):
    memory = make(jax.random.key(0))
    obs, _ = episodes(0)
    starts = jnp.zeros(12, bool).at[4].set(True)
    last = lambda obs: jnp.sum(memory.sequence(obs, starts, memory.initial_carry())[0][-1])  # noqa: E731
    reached = np.abs(jax.grad(last)(obs)).max(1) > 1e-6
    assert reached[4:].all() and not reached[:4].any()


def recurrent(kind, **hparams):
    return tiny(**{"num_envs": 4, "num_minibatches": 2, "actor_critic": ALL[kind], **hparams})


@pytest.mark.parametrize("kind", ALL)
def test_it_is_trained_as_it_acted(kind):
    """Before the first update the ratio is 1, across resets and with normalised observations: what `evaluate` makes of the second
    rollout, from what was remembered when it began, is what was collected."""
    ppo = recurrent(kind, normalize_observations=True)
    assert isinstance(ppo.init_train_state(0).agent, NormalizedActorCritic) and has_memory(ppo.init_train_state(0).agent)

    @quick_jit
    def second(ppo):
        ts, _ = ppo.iteration(ppo.init_train_state(0), 0)
        after, rollout = ppo.get_batch(ts, 1)
        estimate = ppo.estimate_advantages(after, rollout)
        obs = jnp.concatenate([rollout.trajectories.obs, rollout.last_obs[None]])
        starts = jnp.concatenate([episode_starts(rollout.trajectories), rollout.last_done[None]])
        further = jax.vmap(ts.agent.sequence, in_axes=(1, 1, 0), out_axes=(1, 1, 0))(obs, starts, rollout.initial_carry)[1]
        return estimate, evaluate(ts.agent, estimate), PPOLoss()(ts.agent, estimate)[1], further

    estimate, (distribution, value), metrics, further = second(ppo)
    t = estimate.trajectories
    assert t.done.any() and not t.done[-1].all()
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(estimate.initial_carry)), "the second rollout begins amid episodes"
    np.testing.assert_allclose(distribution.log_prob(t.action), t.log_prob, atol=1e-5)
    np.testing.assert_allclose(value, t.value, rtol=1e-5, atol=1e-5)
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == 0
    goes_on = ~np.asarray(t.done[-1])
    np.testing.assert_allclose(np.asarray(estimate.last_value)[goes_on], np.asarray(further[-1])[goes_on], rtol=1e-5, atol=1e-5)


def test_environments_stay_whole():
    """Each is in one minibatch of an epoch, with what was remembered when it began."""
    seen = []

    class Loss(PPOLoss):
        def __call__(self, agent, minibatch):
            jax.debug.callback(lambda x, c: seen.append((np.array(x), np.array(c))), minibatch.advantages, minibatch.initial_carry)
            return super().__call__(agent, minibatch)

    ppo = recurrent("one's own")
    ts, rollout = ppo.get_batch(ppo.init_train_state(0), 0)
    estimate = ppo.estimate_advantages(ts, rollout)
    advantages = jnp.broadcast_to(jnp.arange(4.0), (8, 4)) + jnp.arange(8.0)[:, None] * 10
    estimate = dataclasses.replace(estimate, advantages=advantages, initial_carry=jnp.arange(4.0))
    learner = MinibatchLearner(Loss(), ppo.optimizer, num_epochs=3, num_minibatches=2)
    learner(ts.agent, learner.init(ts.agent), estimate, jax.random.key(0))
    jax.effects_barrier()
    assert len(seen) == 6
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        for advantage, carry in (first, second):
            assert advantage.shape == (8, 2)
            np.testing.assert_array_equal(advantage, carry + np.arange(8)[:, None] * 10)
        assert sorted([*first[1], *second[1]]) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["lru", pytest.param("lstm", marks=pytest.mark.slow), "one's own"])
def test_chunks_start_from_what_was_remembered_there(kind):
    ppo = recurrent(kind, normalize_observations=True)
    ts, rollout = quick_jit(lambda ppo: ppo.get_batch(ppo.iteration(ppo.init_train_state(0), 0)[0], 1))(ppo)
    estimate = quick_jit(lambda ppo, *args: ppo.estimate_advantages(*args))(ppo, ts, rollout)
    for length, begins_within in ((2, False), (4, True)):  # an episode begins at the 7th step, where a chunk does, or within one
        chunks = quick_jit(cut)(ts.agent, estimate, length)
        assert chunks.advantages.shape == (length, 32 // length)
        by_chunk = np.asarray(chunks.advantages).reshape(length, 8 // length, 4).swapaxes(0, 1)
        np.testing.assert_array_equal(by_chunk.reshape(8, 4), estimate.advantages)
        assert episode_starts(chunks.trajectories).any() == begins_within
        distribution, value = quick_jit(evaluate)(ts.agent, chunks)
        np.testing.assert_allclose(distribution.log_prob(chunks.trajectories.action), chunks.trajectories.log_prob, atol=1e-5)
        np.testing.assert_allclose(value, chunks.trajectories.value, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a rollout of 8 steps can't be cut into chunks of 3; remainder 2"):
        cut(ts.agent, estimate, 3)
    shorter = lambda hp: MinibatchLearner(PPOLoss(), ppo.optimizer, hp.num_epochs, hp.num_minibatches, steps_back=2)  # noqa: E731
    recurrent(kind, learner=shorter, num_minibatches=8).iteration(ppo.init_train_state(0), 0)


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"hidden state, so environments stay whole, and their number \(4\) must be"):
        PPO.create("CartPole-v1", hp=PPOHParams(num_envs=4, num_steps=8, num_minibatches=8), actor_critic=GRUActorCritic)


@pytest.mark.parametrize("kind", ["gru", "one's own"])
def test_the_actor_remembers(kind):
    """It plays an episode as the evaluator does."""
    ppo = recurrent(kind, max_steps=30, num_seeds_per_eval=1)
    ts = ppo.init_train_state(3)
    act = ppo.make_actor(ts, deterministic=True)
    with pytest.raises(TypeError, match=r"hidden state: call act\(obs, rng, carry\)"):
        act(jnp.zeros(4), jax.random.key(0))
    _, reset_key = jax.random.split(jax.random.key(7))
    obs, state, _ = ppo.evaluator.stepper.init(ppo.env, ppo.env_params, jax.random.split(reset_key, 1))
    obs, state, carry, length = obs[0], jax.tree.map(lambda x: x[0], state), act.initial_carry(), 0
    step, done = jax.jit(ppo.env.step), False
    while not done:
        action, carry = act(obs, jax.random.key(0), carry)
        obs, state, _, terminated, truncated, _ = step(jax.random.key(0), state, action, ppo.env_params)
        done, length = terminated | truncated, length + 1
    assert length == ppo.eval_callback(ts, jax.random.key(7)).episode_length[0]


@pytest.mark.slow
def test_two_halves_are_the_whole_bit_for_bit():
    whole = recurrent("lru", total_timesteps=4 * 32, eval_freq=32)
    half = dataclasses.replace(whole, hp=dataclasses.replace(whole.hp, total_timesteps=2 * 32))
    same(half.train(train_state=half.train(0)[0])[0], whole.train(0)[0])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("length", "network"), [(10, GRUActorCritic), (32, LRUActorCritic)], ids=["10", "32"])
def test_a_chain_is_remembered(length, network):
    """MemoryChain: a bit is shown once and asked for so many steps later. Without memory the return is 0 on average. Only the last action
    earns anything."""
    env, params = make("MemoryChain-bsuite")
    hp = PPOHParams(
        num_envs=32, num_steps=128, num_minibatches=8, num_epochs=4, total_timesteps=300_000, eval_freq=300_000, learning_rate=1e-3,
        max_grad_norm=0.5, clip_value=False, ent_coef=0.0, gamma=0.5, gae_lambda=0.0,
    )
    ppo = PPO.create(env=env, env_params=params.replace(memory_length=length), hp=hp, actor_critic=network)
    _, metrics = eqx.filter_vmap(lambda key: ppo.train(key, skip_initial_evaluation=True))(jax.random.split(jax.random.key(0), 10))
    assert np.sum(metrics.cumulative_reward[:, -1].mean(-1) >= 0.95) >= 9
