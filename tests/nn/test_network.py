"""Networks for any spaces: images, parts of observations, joint actions, masks, what is shared, and how boxes are acted in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, same

from eqxrl import PPO, PPOHParams, check_env, spaces, verify
from eqxrl.nn import (
    ActorCritic,
    Beta,
    Categorical,
    CNNActorCritic,
    Convolve,
    DiagGaussian,
    Encoder,
    GRUActorCritic,
    Joint,
    Masked,
    MLPActorCritic,
    MultiCategorical,
    NormalizedActorCritic,
    QNetwork,
    SquashedGaussian,
    StochasticActor,
    check_actor_critic,
    default_actor_critic,
    has_memory,
    make_head,
    trainable,
)

KEY = jax.random.key(0)
BOX, BYTES = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(0, 255, (7, 6, 2), jnp.uint8)
SMALL = [(3, 3, 2)]
TWO = spaces.Discrete(2)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (4, 2), (2, 3)])
def test_a_convolution_is_that_of_xla(kernel, stride):
    image = jax.random.normal(KEY, (11, 9, 2))
    encoder = Convolve((11, 9, 2), layers=[(5, kernel, stride)], size=7, key=KEY)
    convolution = encoder.convolutions[0]
    weights = convolution.linear.weight.reshape(5, kernel, kernel, 2).transpose(1, 2, 3, 0)
    expected = jax.lax.conv_general_dilated(
        image[None], weights, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    np.testing.assert_allclose(convolution(image), expected, rtol=1e-5, atol=1e-5)
    vector = encoder(image, jnp.float32)
    assert vector.shape == (encoder.size,) == (7,) and (vector >= 0).all() and (vector > 0).any()


def test_images_by_their_size_and_dtype():
    large = eqx.filter_eval_shape(lambda key: Convolve((84, 84, 4), key=key), KEY)
    small = Convolve((10, 10, 4), key=KEY)
    assert [(c.linear.out_features, c.kernel, c.stride) for c in large.convolutions] == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert large.out.in_features == 7 * 7 * 64 and large.size == 512  # as in the paper
    assert small.out.in_features == 8 * 8 * 16 and small.size == 128
    image = jax.random.randint(KEY, (10, 10, 4), 0, 256)
    np.testing.assert_allclose(small(image.astype(jnp.uint8), jnp.float32), small(image / 255.0, jnp.float32), rtol=1e-5, atol=1e-6)
    tiles = spaces.Box(0, [12, 2], (5, 5, 2), jnp.uint8)  # numbers of things, far from 255
    image, (encoder,) = spaces.sample(tiles, KEY), Encoder(tiles, convolve=True, key=KEY).parts
    np.testing.assert_allclose(encoder(image, jnp.float32), encoder(image / jnp.array([[[12.0, 2.0]]]), jnp.float32), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"a convolution of 3 x 3 doesn't fit 2 x 8 pixels, of an image \[2, 8, 1\]"):
        Convolve((2, 8, 1), key=KEY)


def test_each_part_of_an_observation_has_its_encoder():
    space = spaces.Dict({"image": BYTES, "place": spaces.Discrete(5), "speed": BOX, "gears": spaces.MultiDiscrete([2, 3])})
    obs = {"image": jnp.zeros((7, 6, 2), jnp.uint8), "place": jnp.int32(3), "speed": jnp.arange(3.0), "gears": jnp.array([1, 0])}
    flat = Encoder(space, key=KEY)
    assert flat.size == 7 * 6 * 2 + 5 + 3 + 5
    encoder = Encoder(space, convolve=True, embed=4, layers=SMALL, key=KEY)
    vector = encoder(obs, jnp.float32)
    assert vector.shape == (encoder.size,) == (5 + 128 + 4 + 3,)  # in the order of the names
    np.testing.assert_array_equal(vector[:5], [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(vector[-3:], [0, 1, 2])
    np.testing.assert_array_equal(vector[-7:-3], encoder.parts[2].vectors.weight[:, 3])
    seen = Encoder(space, only=["speed", "gears"], key=KEY)
    np.testing.assert_array_equal(seen(obs, jnp.float32), [0, 1, 1, 0, 0, 0, 1, 2])
    with pytest.raises(ValueError, match="the observation has no part 'sped'; it has 'gears', 'image', 'place', 'speed'"):
        Encoder(space, only=["sped"], key=KEY)


def test_policy_and_critic_may_see_different_parts():
    space = spaces.Dict({"own": BOX, "secret": spaces.Box(-1.0, 1.0, (2,))})
    for make in (MLPActorCritic, GRUActorCritic):
        agent = make(space, TWO, actor_sees=["own"], key=KEY)
        obs = {"own": jnp.ones(3), "secret": jnp.zeros(2)}
        other = obs | {"secret": jnp.ones(2)}
        (a, v, _), (b, w, _) = (agent(x, agent.initial_carry()) for x in (obs, other))
        same(a, b)
        assert v != w
    with pytest.raises(ValueError, match="shared=True, but actor_sees="):
        ActorCritic(space, TWO, shared=True, actor_sees=["own"], key=KEY)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_shared_is_there_once(shared):
    agent = ActorCritic(BYTES, TWO, shared=shared, sizes_before=(6,), hidden_sizes=(), convolutions=SMALL, key=KEY)
    assert len(agent.encoders) == len(agent.before) == (1 if shared else 2)
    score = lambda agent: agent(jnp.ones((7, 6, 2), jnp.uint8), ())[0].log_prob(jnp.int32(0))  # noqa: E731
    gradient = eqx.filter_grad(score)(agent)
    reached = [bool(np.any(encoder.parts[0].out.weight)) for encoder in gradient.encoders]
    assert reached == ([True] if shared else [True, False])  # the critic's has no part in the action


@pytest.mark.parametrize("x64", [False, True])
def test_without_orthogonal_weights_layers_are_equinoxs_own(x64):
    """Numbers are drawn for all layers at once; they are those that each would draw by itself."""
    with jax.enable_x64(x64):
        agent = MLPActorCritic(BOX, TWO, hidden_sizes=(8, 5), orthogonal=False, key=KEY)
        for layers, key in zip((agent.actor, agent.critic), jax.random.split(KEY, 8)):
            for layer, layer_key in zip(layers, jax.random.split(key, 3), strict=True):
                own = eqx.nn.Linear(layer.weight.shape[1], layer.weight.shape[0], key=layer_key)
                same((layer.weight, layer.bias), (own.weight, own.bias))
                assert layer.weight.dtype == own.weight.dtype


def test_layer_normalisation_is_in_hidden_layers():
    agent = MLPActorCritic(BOX, TWO, hidden_sizes=(8, 8), layer_norm=True, key=KEY)
    x = jnp.array([1.0, -2.0, 0.5])
    h = x
    for layer in agent.actor[:-1]:
        h = layer.linear.weight @ h + layer.linear.bias
        h = jnp.tanh((h - h.mean()) / jnp.sqrt(h.var() + 1e-5))
    np.testing.assert_allclose(agent(x, ())[0].logits, agent.actor[-1](h), rtol=1e-4, atol=1e-6)
    q = QNetwork(BOX, TWO, layer_norm=True, key=KEY)
    assert len(jax.tree.leaves(eqx.filter(q, eqx.is_array))) == 3 * 2 + 2 * 2


def test_layer_normalisation_is_in_convolutions():
    image = jax.random.normal(KEY, (7, 6, 2))
    actor_critic = CNNActorCritic(BYTES, TWO, convolutions=SMALL, layer_norm=True, key=KEY)
    encoder = actor_critic.encoders[0].parts[0]
    plain = eqx.tree_at(lambda x: x.linear, encoder.convolutions[0], encoder.convolutions[0].linear.linear)
    standardised = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)  # noqa: E731
    x = np.maximum(standardised(np.asarray(plain(image))), 0.0).ravel()  # the channels at each place
    x = np.maximum(standardised(encoder.out.linear.weight @ x + encoder.out.linear.bias), 0.0)
    np.testing.assert_allclose(encoder(image, jnp.float32), x, rtol=1e-4, atol=1e-5)
    for network in (QNetwork(BYTES, TWO, layer_norm=True, key=KEY), StochasticActor(BYTES, BOX, layer_norm=True, key=KEY)):
        assert isinstance(network.encoder.parts[0].out.norm, eqx.nn.LayerNorm)


def test_convolutions_are_the_default_for_images_only():
    agent = default_actor_critic(BYTES, TWO, key=KEY)
    assert isinstance(agent.encoders[0].parts[0], Convolve) and len(agent.encoders) == 1
    same(default_actor_critic(BOX, TWO, key=KEY), MLPActorCritic(BOX, TWO, key=KEY))
    remembering = GRUActorCritic(BYTES, TWO, key=KEY)
    assert has_memory(remembering) and isinstance(remembering.encoders[0].parts[0], Convolve)


SPACES = {
    "choices": (spaces.MultiDiscrete([2, 3]), MultiCategorical, 5),
    "dict": (spaces.Dict({"move": spaces.Discrete(4), "aim": spaces.Box(-1.0, 2.0, (2,))}), Joint, 6),
    "tuple": (spaces.Tuple([spaces.Discrete(2), spaces.Tuple([spaces.MultiDiscrete([2, 2]), BOX])]), Joint, 9),
}


@pytest.mark.parametrize("kind", SPACES)
def test_joint_actions(kind):
    space, distribution, size = SPACES[kind]
    agent = MLPActorCritic(BOX, space, hidden_sizes=(4,), key=KEY)
    assert agent.head.size == size
    made, _, _ = jax.vmap(agent, in_axes=(0, None))(jnp.ones((5, 3)), ())
    assert type(made) is distribution and made.log_prob(made.sample(KEY)).shape == (5,)
    like = spaces.sample(space, KEY)
    drawn = jax.tree.map(lambda x: x[0], made.sample(KEY))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(lambda x: (x.shape, x.dtype), like)


def test_a_joint_policy_is_made_of_the_parts_outputs():
    head = make_head(SPACES["dict"][0], log_std_init=-1.0)
    outputs = jnp.arange(6.0)
    made = head(outputs)
    assert isinstance(made.parts["aim"], DiagGaussian) and isinstance(made.parts["move"], Categorical)
    np.testing.assert_array_equal(made.parts["aim"].mean, outputs[:2])  # in the order of the names
    np.testing.assert_array_equal(made.parts["aim"].log_std, [-1, -1])
    np.testing.assert_array_equal(made.parts["move"].logits, outputs[2:])


def test_how_boxes_are_acted_in():
    box = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]))
    x = jnp.array([0.5, -0.5, 1.0, 9.0])
    by_state = make_head(box, state_std=True, log_std_init=-1.0)(x)
    np.testing.assert_array_equal(by_state.mean, x[:2])
    np.testing.assert_array_equal(by_state.log_std, [0.0, 2.0])  # at most e²
    squashed = make_head(box, box="squashed")(x[:2])
    assert isinstance(squashed, SquashedGaussian) and squashed.low == (-2, 0) and squashed.high == (2, 10)
    np.testing.assert_allclose(squashed.mode(), [2 * np.tanh(0.5), 5 + 5 * np.tanh(-0.5)], rtol=1e-6)
    beta = make_head(box, box="beta")(x)
    assert isinstance(beta, Beta)
    np.testing.assert_allclose(beta.alpha, 1 + np.log1p(np.exp(x[:2])), rtol=1e-6)
    np.testing.assert_allclose(beta.beta, 1 + np.log1p(np.exp(x[2:])), rtol=1e-6)
    with pytest.raises(ValueError, match="box='beta' needs finite bounds, but the action space is .*inf"):
        make_head(spaces.Box(-jnp.inf, 1.0, (2,)), box="beta")
    with pytest.raises(ValueError, match="box must be one of gaussian, squashed, beta, got 'normal'"):
        make_head(box, box="normal")
    with pytest.raises(TypeError, match="bounds that are known when it is made"):
        jax.vmap(lambda high: make_head(spaces.Box(0.0, high, (1,)), box="beta")(x[:2]).mode())(jnp.ones(3))


class State(eqx.Module):
    wanted: jax.Array
    time: jax.Array


class Locks(eqx.Module):
    """One of eight doors is open, which the mask alone shows; trying another one costs 8. The numbers beside it say nothing."""

    num_doors: int = eqx.field(static=True, default=8)
    max_steps: int = eqx.field(static=True, default=8)
    dtype: type = eqx.field(static=True, default=bool)

    def _obs(self, key, state):
        mask = (jnp.arange(self.num_doors) == state.wanted).astype(self.dtype)
        return {"noise": 100 * jax.random.normal(key, (3,)), "action_mask": mask}

    def reset(self, key, params):
        state = State(jax.random.randint(key, (), 0, self.num_doors), jnp.int32(0))
        return self._obs(jax.random.fold_in(key, 1), state), state

    def step(self, key, state, action, params):
        reward = jnp.where(action == state.wanted, 1.0, -8.0)
        state = State(jax.random.randint(key, (), 0, self.num_doors), state.time + 1)
        return self._obs(jax.random.fold_in(key, 1), state), state, reward, jnp.array(False), state.time >= self.max_steps, {}

    def observation_space(self, params):
        mask = spaces.Box(0, 1, (self.num_doors,), self.dtype)
        return spaces.Dict({"noise": spaces.Box(-jnp.inf, jnp.inf, (3,)), "action_mask": mask})

    def action_space(self, params):
        return spaces.Discrete(self.num_doors)


@pytest.mark.parametrize("actor_critic", [None, GRUActorCritic], ids=["mlp", "gru"])
def test_what_the_mask_forbids_is_never_done(actor_critic):
    """Also where observations are normalised: untrained, every door is the right one."""
    check_env(Locks())
    hp = PPOHParams(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=1, normalize_observations=True)
    ppo = PPO.create(env=Locks(), hp=hp, actor_critic=actor_critic)

    @quick_jit
    def two(ppo):
        ts, metrics = ppo.iteration(ppo.init_train_state(0), 0)
        after, rollout = ppo.get_batch(ts, 1)
        return ts, metrics, rollout, ppo.eval_callback(ts)

    ts, metrics, rollout, evaluation = two(ppo)
    assert isinstance(ts.agent, NormalizedActorCritic) and isinstance(ts.agent.actor_critic, Masked)
    assert (rollout.trajectories.reward == 1).all() and (evaluation.cumulative_reward == 8).all()
    np.testing.assert_array_equal(rollout.trajectories.log_prob, 0)
    assert all(np.isfinite(x) for x in metrics.means.values())
    assert not any(jax.tree.leaves(trainable(ts.agent).statistics))
    assert ts.agent.statistics["action_mask"] is None


def test_a_sequence_is_masked_as_its_steps():
    env, rng = Locks(), np.random.default_rng(0)
    agent = Masked(GRUActorCritic(env.observation_space(None), env.action_space(None), key=jax.random.key(0)))
    obs = {"noise": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), "action_mask": jnp.asarray(rng.random((5, 8)) < 0.5)}
    distribution, _, _ = quick_jit(lambda agent: agent.sequence(obs, jnp.zeros(5, bool), agent.initial_carry()))(agent)
    assert np.array_equal(np.isneginf(distribution.logits), ~np.asarray(obs["action_mask"]))
    carry = agent.initial_carry()
    for step in range(5):
        one, _, carry = agent(jax.tree.map(lambda x: x[step], obs), carry)
        np.testing.assert_allclose(distribution.logits[step], one.logits, rtol=1e-5, atol=1e-6)


def test_a_mask_of_floats_is_refused():
    """It would be standardised with the rest of the observation."""
    with pytest.raises(TypeError, match=r"action_mask is Box\(0, 1, \(8,\), float32\), .* make it Box\(0, 1, \(8,\), dtype=bool\)"):
        PPO.create(env=Locks(dtype=jnp.float32), hp=PPOHParams())


def test_a_mask_that_does_not_fit_the_actions():
    class Wide(Locks):
        def action_space(self, params):
            return spaces.Discrete(9)

    with pytest.raises(TypeError, match="Masked does not take the environment's observation.*mask"):
        PPO.create(env=Wide(), hp=PPOHParams())


@pytest.mark.parametrize("kind", SPACES)
def test_joint_actions_are_learned_from(kind):
    """An iteration, an evaluation and an actor, in an environment whose reward is in the action."""
    space = SPACES[kind][0]

    class Echo(eqx.Module):
        max_steps: int = 4

        def reset(self, key, params):
            return jnp.zeros(3), jnp.int32(0)

        def step(self, key, state, action, params):
            inside = jnp.stack([jnp.all(jnp.abs(x) <= 4) for x in jax.tree.leaves(action)])
            return jnp.zeros(3), state + 1, jnp.mean(inside * 1.0), jnp.array(False), state + 1 >= self.max_steps, {}

        def observation_space(self, params):
            return BOX

        def action_space(self, params):
            return space

    check_env(Echo())
    ppo = PPO.create(env=Echo(), hp=PPOHParams(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=2, num_seeds_per_eval=3))
    ts, metrics = quick_jit(lambda ppo: ppo.iteration(ppo.init_train_state(0), 0))(ppo)
    assert all(np.isfinite(x) for x in metrics.means.values())
    action = ppo.make_actor(ts)(jnp.zeros(3), 0)
    jax.tree.map(lambda x, like: np.testing.assert_equal((x.shape, x.dtype), (like.shape, like.dtype)), action, spaces.zeros(space))
    assert (ppo.eval_callback(ts).cumulative_reward == 4).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPACES)
def test_the_laws_hold_for_joint_actions(kind):
    class Doors(Locks):
        def action_space(self, params):
            return spaces.Dict({"door": spaces.Discrete(8), "more": SPACES[kind][0]})

        def observation_space(self, params):
            noise = super().observation_space(params).spaces["noise"]
            return spaces.Dict({"noise": noise, "action_mask": spaces.Dict({"door": spaces.Box(0, 1, (8,), bool)})})

        def _obs(self, key, state):
            obs = super()._obs(key, state)
            return {"noise": obs["noise"], "action_mask": {"door": obs["action_mask"]}}

        def step(self, key, state, action, params):
            return super().step(key, state, action["door"], params)

    hp = PPOHParams(normalize_observations=True)
    report = verify(PPO.create(env=Doors(), hp=hp, actor_critic=GRUActorCritic if kind == "tuple" else None), quiet=True)
    assert report.ok, report


def test_a_policy_for_another_joint_space_is_named():
    own, other = SPACES["dict"][0], spaces.Dict({"move": spaces.Discrete(3), "aim": spaces.Box(-1.0, 2.0, (2,))})
    with pytest.raises(ValueError, match=r"ActorCritic chooses among 3 actions, but the space is Discrete\(n=4"):
        check_actor_critic(MLPActorCritic(BOX, other, key=KEY), jnp.zeros(3), own)
    with pytest.raises(ValueError, match="ActorCritic returned actions int32.*, but the action space is Dict"):
        check_actor_critic(MLPActorCritic(BOX, TWO, key=KEY), jnp.zeros(3), own)
    with pytest.raises(ValueError, match=r"chooses among \(2, 3\) actions, but the space is MultiDiscrete\(nvec=\(3, 2\)"):
        check_actor_critic(MLPActorCritic(BOX, SPACES["choices"][0], key=KEY), jnp.zeros(3), spaces.MultiDiscrete([3, 2]))


def test_cnn_policies_train():
    """Two iterations in a small world of pixels."""
    hp = PPOHParams(num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1, num_seeds_per_eval=2)
    ppo = PPO.create("Breakout-MinAtar", hp=hp, actor_critic=lambda *s, key: CNNActorCritic(*s, convolutions=[(2, 3, 2)], key=key))
    ts, metrics = quick_jit(lambda ppo: ppo.iteration(ppo.init_train_state(0), 0))(ppo)
    assert isinstance(ts.agent.encoders[0].parts[0], Convolve) and np.isfinite(metrics.means["grad_norm"])
