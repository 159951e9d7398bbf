"""Wrappers of rewards, actions, observations and parameters, against gymnasium's, and against plain loops."""

import collections
import copy

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation
from gymnasium.wrappers import RescaleAction as GymnasiumRescaleAction
from helpers import quick_jit
from toy_envs import Params, Walk

from eqxrl import PPO, EpisodeEvaluator, PPOHParams, RolloutCollector, check_env, make
from eqxrl.envs import (
    AbstractRewardWrapper,
    ClipReward,
    EnvError,
    FrameStack,
    HideObservation,
    NeverReset,
    RandomizeParams,
    RescaleAction,
    ResetFromPool,
    ResetWhenDone,
    ScaleReward,
    ShowLastStep,
    SignReward,
    StickyActions,
    TimeLimit,
    TransformReward,
    env_name,
    episode_limit,
)
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import Box, Dict, Discrete, MultiDiscrete
from eqxrl.verification._laws import keys_used_once

PARAMS = Params(3, noise=0.0)


class Echo(eqx.Module):
    """The observation says which action was executed, how many steps there were, and what `params` are. An episode has `max_steps`."""

    space: object = eqx.field(static=True, default=Discrete(1000))
    max_steps: int = eqx.field(static=True, default=6)
    default_params = jnp.float32(0.0)

    def reset(self, key, params):
        return jnp.stack([-1.0, 0.0, params]), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        obs = jnp.stack([jnp.sum(action).astype(jnp.float32), (state + 1).astype(jnp.float32), params])
        return obs, state + 1, obs[0], jnp.asarray(False), state + 1 >= self.max_steps, {}

    def observation_space(self, params):
        return Box(-1.0, 1000.0, (3,))

    def action_space(self, params):
        return self.space


class Images(Echo):
    """Random images. A user's own may inherit from a user's own."""

    shape: tuple = eqx.field(static=True, default=(3, 4, 2))

    def reset(self, key, params):
        return jr.randint(key, self.shape, 0, 256, jnp.uint8), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        return jr.randint(key, self.shape, 0, 256, jnp.uint8), *super().step(key, state, action, params)[1:]

    def observation_space(self, params):
        low = jnp.zeros(self.shape, jnp.uint8).at[0].set(1)
        return Box(low * 0, jnp.uint8(255) - low, self.shape, jnp.uint8)

    def picture(self, state, params):
        return jnp.full((2, 2, 3), state, jnp.uint8)


def wider(key, params):
    return params.replace(length=jr.uniform(key, (), jnp.float32, 0.25, 1.0))


def noisier(key, params):
    return Params(params.max_steps_in_episode, jr.uniform(key, (), jnp.float32, 0.0, 0.1))


def halved(reward):
    return reward / 2


WRAPPERS = {
    "ClipReward": ClipReward,
    "ScaleReward": lambda env: ScaleReward(env, 0.1),
    "SignReward": SignReward,
    "TransformReward": lambda env: TransformReward(env, halved),
    "StickyActions": StickyActions,
    "FrameStack": lambda env: FrameStack(env, 3),
    "HideObservation": HideObservation,
    "RandomizeParams": lambda env: RandomizeParams(env, noisier),
}


def test_the_contract_with_all_of_them():
    check_env(FrameStack(ShowLastStep(HideObservation(ClipReward(StickyActions(RandomizeParams(Walk(), noisier))))), 2), num_steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_contract(name):
    check_env(WRAPPERS[name](Walk()), num_steps=100)


@pytest.mark.slow
def test_the_contract_with_gymnax():
    check_env(RescaleAction(StickyActions(make("Pendulum-v1")[0])), num_steps=40)
    check_env(RandomizeParams(make("CartPole-v1")[0], wider), num_steps=100)
    check_env(FrameStack(SignReward(make("Breakout-MinAtar")[0]), 4), num_steps=40)


@pytest.mark.parametrize("name", WRAPPERS)
def test_equal_hashed_copied_and_delegated(name):
    wrap, inner = WRAPPERS[name], make("CartPole-v1")[0]
    env = wrap(inner)
    assert env == wrap(inner) and hash(env) == hash(wrap(inner)) and env != wrap(Walk())
    assert type(copy.deepcopy(env)) is type(env) is type(copy.copy(env))
    assert env_name(env) == "CartPole-v1" and env.default_params == inner.default_params
    assert not hasattr(env, "picture")
    assert episode_limit(None, wrap(TimeLimit(Walk(), 9))) == 9


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "RandomizeParams"])
def test_pictures_are_of_the_state_inside(name):
    env = WRAPPERS[name](Images())
    _, state = env.reset(jr.key(0), jnp.float32(0))
    state = env.step(jr.key(1), state, jnp.int32(0), jnp.float32(0))[1]
    np.testing.assert_array_equal(env.picture(state, None), np.ones((2, 2, 3)))


def test_the_picture_is_of_the_episodes_own_parameters():
    class Pictured(Echo):
        def picture(self, state, params):
            return params

    env = RandomizeParams(Pictured(), lambda key, params: params + 7)
    assert env.picture(env.reset(jr.key(0), jnp.float32(1))[1], jnp.float32(1)) == 8


def test_other_settings_are_no_new_program():
    """Numbers that may be swept are leaves; and wrapping anew compiles nothing."""
    traces = []

    @eqx.filter_jit
    def reset(env):
        traces.append(1)
        return env.reset(jr.key(0), None)

    inner = Images()
    for setting in (0.1, 0.1, 0.2):
        reset(ClipReward(ScaleReward(StickyActions(HideObservation(inner, setting), setting), setting), -setting, setting))
    assert len(traces) == 1


# rewards


@pytest.mark.parametrize(
    "wrap, expected",
    [
        (lambda env: ClipReward(env, -0.3, 0.1), lambda r: max(-0.3, min(r, 0.1))),
        (ClipReward, lambda r: max(-1.0, min(r, 1.0))),
        (lambda env: ScaleReward(env, 0.25), lambda r: 0.25 * r),
        (SignReward, lambda r: (r > 0) - (r < 0)),
        (lambda env: TransformReward(env, lambda r: r**3), lambda r: r**3),
    ],
)
def test_rewards(wrap, expected):
    """Of kinds that environments give: floats, integers, arrays of one number."""
    for make_reward in (lambda r: r, lambda r: jnp.round(r).astype(jnp.int32), lambda r: r[None]):

        class Paying(Walk):
            def spoil(self, obs, state, reward, *rest):
                return obs, state, make_reward(3 * obs[0]), *rest

        env, inner = wrap(Paying()), Paying()
        state = inner.reset(jr.key(3), PARAMS)[1]
        for t in range(3):
            got, own = env.step(jr.key(t), state, 2 * (t % 2), PARAMS), inner.step(jr.key(t), state, 2 * (t % 2), PARAMS)
            assert got[2].dtype == jnp.float32 and got[2].shape == ()
            np.testing.assert_allclose(got[2], expected(float(np.ravel(own[2])[0])), rtol=1e-6)
            assert (got[3], got[4]) == (own[3], own[4]) and np.array_equal(got[0], own[0])
            state = own[1]


def test_rewards_that_are_none():
    with pytest.raises(ValueError, match="ClipReward got low=1 and high=1; low must be below high"):
        ClipReward(Walk(), 1, 1)
    with pytest.raises(EnvError, match=r"TransformReward's function made float32\[2\] of the reward.*must return a scalar"):
        check_env(TransformReward(Walk(), lambda r: jnp.stack([r, r])))
    with pytest.raises(TypeError, match="ScaleReward.scale must be one number, got float32.2."):
        ScaleReward(Walk(), jnp.ones(2))


def test_the_example_in_the_docstring():
    code = "\n".join(line.removeprefix("        ") for line in AbstractRewardWrapper.__doc__.splitlines()[2:])
    names = dict(AbstractRewardWrapper=AbstractRewardWrapper, Any=object)
    exec(code, names)
    state = Walk().reset(jr.key(0), PARAMS)[1]
    assert names["HalfReward"](Walk()).step(jr.key(0), state, 1, PARAMS)[2] == Walk().step(jr.key(0), state, 1, PARAMS)[2] / 2


def test_a_clipped_reward_may_be_swept():
    def paid(high):
        return ClipReward(Echo(), -high, high).step(jr.key(0), jnp.int32(0), jnp.int32(5), jnp.float32(0))[2]

    np.testing.assert_array_equal(jax.vmap(paid)(jnp.array([1.0, 2.0, 9.0])), [1, 2, 5])


# actions

LOW, HIGH = np.array([[-2.0, 0.5, -0.3], [1.0, 8.0, 1.6]], np.float32)  # the width of the last is rounded up


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5)])
def test_actions_are_rescaled_as_gymnasium_does(low, high):
    class Told(gymnasium.Env):
        action_space = gymnasium.spaces.Box(LOW, HIGH)
        observation_space = gymnasium.spaces.Box(LOW, HIGH)

        def step(self, action):
            return action, 0.0, False, False, {}

    class Tells(Echo):
        def step(self, key, state, action, params):
            return action, *super().step(key, state, action, params)[1:]

    theirs, ours = GymnasiumRescaleAction(Told(), *np.float32([low, high])), RescaleAction(Tells(Box(LOW, HIGH)), low, high)
    for seed in range(20):
        action = np.random.default_rng(seed).uniform(low, high, 3).astype(np.float32)
        action[seed % 3] = (low, high)[seed % 2]
        got = ours.step(jr.key(0), jnp.int32(0), jnp.asarray(action), jnp.float32(0))[0]
        np.testing.assert_allclose(got, theirs.step(action)[0], rtol=1e-5, atol=1e-5)
        assert np.all(got >= LOW) and np.all(got <= HIGH)
    space = ours.action_space(None)
    assert space == Box(low, high, (3,)) and theirs.action_space.shape == space.shape


def test_actions_that_cannot_be_rescaled():
    with pytest.raises(TypeError, match="maps to the bounds of a Box of floats, but the action space is Discrete.*leave it out"):
        PPO.create(env=RescaleAction(Walk()))
    with pytest.raises(TypeError, match=r"those of Box\(-inf, inf, .*are not finite; leave it out, or have action_space"):
        PPO.create(env=RescaleAction(Echo(Box(-jnp.inf, jnp.inf, (2,)))))
    for low, high in ((1.0, 1.0), (2.0, 1.0), (-np.inf, 1.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="both must be finite, and low below high"):
            RescaleAction(Walk(), low, high)


def executed(env, num_steps=600, num_envs=8):
    """Chosen and executed actions and the time in the episode, `[steps envs]`, through a stepper that resets."""
    chosen = jnp.arange(num_steps * num_envs).reshape(num_steps, num_envs) % 1000  # no two in a row are the same

    @quick_jit
    def run(env, key):
        stepper, keys = ResetWhenDone(), jr.split(key, (num_steps + 1, 2, num_envs))
        first = stepper.init(env, jnp.float32(0), keys[0, 0])

        def step(carry, xs):
            out = stepper.step(env, jnp.float32(0), xs[0], carry[0], carry[1], xs[1])
            return (out.env_state, out.reset_state), out.final_obs

        return jax.lax.scan(step, first[1:], (keys[1:], chosen))[1]

    obs = np.asarray(run(env, jr.key(0)))
    return np.asarray(chosen), obs[..., 0], obs[..., 1]


@pytest.mark.parametrize("probability", [0.25, 0.0, 1.0])
def test_sticky_actions(probability):
    chosen, done, time = executed(StickyActions(Echo(), probability))
    first = time == 1
    np.testing.assert_array_equal(done[first], chosen[first])
    repeats = done != chosen
    np.testing.assert_array_equal(done[1:][repeats[1:]], done[:-1][repeats[1:]])  # what was executed, and not what was chosen, before
    share = repeats[~first].mean()
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / (~first).sum()) + 1e-9
    if probability == 0.25:  # each environment, and each step, by a chance of its own
        twice = repeats[1:][~first[1:] & repeats[:-1]].mean()
        assert abs(twice - 0.25) < 0.06 and len({tuple(x) for x in repeats.T}) == repeats.shape[1]


def test_sticky_actions_of_a_box_stick_as_a_whole():
    class Tells(Echo):
        def step(self, key, state, action, params):
            return action, *super().step(key, state, action, params)[1:]

    env = StickyActions(Tells(Box(-1.0, 1.0, (3,))), 0.5)
    state = env.reset(jr.key(0), jnp.float32(0))[1]
    _, state, *_ = env.step(jr.key(0), state, jnp.zeros(3), jnp.float32(0))
    keys = jr.split(jr.key(1), 40)
    obs = jax.vmap(lambda key: env.step(key, state, jnp.ones(3), jnp.float32(0))[0])(keys)
    assert set(map(tuple, obs.tolist())) == {(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("wrap", [StickyActions, HideObservation, lambda env: RandomizeParams(env, noisier)])
def test_keys_are_used_once(wrap):
    env = wrap(Walk())
    state = env.reset(jr.key(0), Params())[1]
    keys_used_once(lambda key: env.reset(key, Params()), jr.key(0))
    keys_used_once(lambda key: env.step(key, state, jnp.int32(1), Params()), jr.key(0))


def test_probabilities_that_are_none():
    for wrap in (StickyActions, HideObservation):
        with pytest.raises(ValueError, match=rf"{wrap.__name__}.probability must be in \[0.0, 1.0\], got 1.5"):
            wrap(Walk(), 1.5)


# observations


@pytest.mark.parametrize("shape, axis", [((3, 4, 2), -1), ((3, 4, 2), 0), ((5,), -1)])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_frames_are_stacked_as_gymnasium_does(shape, axis, num_frames):
    images = Images(max_steps=4, shape=shape)

    class Theirs(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.asarray(images.reset(jr.key(seed), None)[0]), {}

        def step(self, action):
            self.t += 1
            obs = images.step(jr.key(self.t), jnp.int32(self.t - 1), jnp.int32(0), jnp.float32(0))[0]
            return np.asarray(obs), 0.0, False, self.t >= 4, {}

    env, theirs = FrameStack(images, num_frames, axis), FrameStackObservation(Theirs(), num_frames)
    space = env.observation_space(None)
    for episode in (10, 20):
        obs, state = env.reset(jr.key(episode), None)
        expected = theirs.reset(seed=episode)[0]
        for t in range(5):
            assert obs.dtype == jnp.uint8 and obs.shape == space.shape and space.dtype == jnp.uint8
            np.testing.assert_array_equal(obs, np.concatenate(list(expected), axis))
            obs, state, _, _, truncated, _ = env.step(jr.key(t + 1), state, jnp.int32(0), jnp.float32(0))
            expected, _, _, cut, _ = theirs.step(0)
            assert truncated == cut
    low, high = images.observation_space(None).low, images.observation_space(None).high
    np.testing.assert_array_equal(space.low, np.concatenate(num_frames * [low], axis))
    np.testing.assert_array_equal(space.high, np.concatenate(num_frames * [high], axis))


def test_stacks_begin_anew_where_episodes_do():
    """With a stepper that resets, against a loop over one environment after another; `final_obs` is from before the reset."""
    env = FrameStack(Echo(max_steps=3), 2)
    num_envs, stepper = 3, ResetWhenDone()
    obs, state, kept = stepper.init(env, jnp.float32(0), jr.split(jr.key(0), num_envs))
    frames = collections.deque(2 * [[-1, 0, 0]], maxlen=2)
    for t in range(8):
        out = stepper.step(env, jnp.float32(0), jr.split(jr.key(t), (2, num_envs)), state, kept, jnp.full(num_envs, 10 + t))
        frames.append([10 + t, t % 3 + 1, 0])
        np.testing.assert_array_equal(out.final_obs, num_envs * [np.ravel(frames)])
        if t % 3 == 2:
            frames = collections.deque(2 * [[-1, 0, 0]], maxlen=2)
        np.testing.assert_array_equal(out.obs, num_envs * [np.ravel(frames)])
        state = out.env_state


def test_dicts_are_stacked_array_by_array():
    env = FrameStack(ShowLastStep(Walk()), 2)
    obs, state = env.reset(jr.key(0), PARAMS)
    plain, plain_state = ShowLastStep(Walk()).reset(jr.key(0), PARAMS)
    before = plain
    for t in range(3):
        for name, x in plain.items():
            np.testing.assert_array_equal(obs[name], np.concatenate([np.atleast_1d(before[name]), np.atleast_1d(x)]))
        before = plain
        obs, state, *_ = env.step(jr.key(t), state, jnp.int32(t % 3), PARAMS)
        plain, plain_state, *_ = ShowLastStep(Walk()).step(jr.key(t), plain_state, jnp.int32(t % 3), PARAMS)
    inner = Box(-1e3, 1e3, (4,))
    start = Box(0.0, 1.0, (2,))
    expected = Dict({"obs": inner, "action": MultiDiscrete([3, 3]), "reward": Box(-jnp.inf, jnp.inf, (2,)), "start": start})
    assert env.observation_space(PARAMS) == expected
    assert FrameStack(env, 2).observation_space(PARAMS).spaces["action"] == MultiDiscrete([3, 3, 3, 3])


def test_frames_that_cannot_be_stacked():
    with pytest.raises(ValueError, match="FrameStack.num_frames must be at least 1, got 0"):
        FrameStack(Walk(), 0)
    with pytest.raises(EnvError, match="FrameStack got axis=1, but an observation of Box.* has 1: pass an axis from -1 to 0"):
        PPO.create(env=FrameStack(Walk(), 2, axis=1))


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_observations_are_hidden(probability):
    env, n = HideObservation(Images(), probability), 2000
    reset = jax.vmap(lambda key: env.reset(key, None)[0])(jr.split(jr.key(0), n))
    stepped = jax.vmap(lambda key: env.step(key, jnp.int32(0), jnp.int32(0), jnp.float32(0))[0])(jr.split(jr.key(1), n))
    for obs in (reset, stepped):
        assert obs.dtype == jnp.uint8
        hidden = np.all(np.asarray(obs) == 0, axis=(1, 2, 3))
        assert abs(hidden.mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / n)
        assert np.mean(np.asarray(obs)[~hidden]) > 120  # the others are shown whole


def test_a_dict_is_hidden_as_a_whole_and_its_space_has_zero():
    class Positive(Walk):
        def observe(self, state):
            return {"a": jnp.full(2, 3.0), "b": jnp.int32(1)}

        def observation_space(self, params):
            return Dict({"a": Box(2.0, 4.0, (2,)), "b": Discrete(3)})

    env = HideObservation(Positive(), 0.5)
    obs = jax.vmap(lambda key: env.reset(key, PARAMS)[0])(jr.split(jr.key(0), 50))
    assert set(zip(obs["a"][:, 0].tolist(), obs["b"].tolist())) == {(3.0, 1), (0.0, 0)}
    assert env.observation_space(PARAMS) == Dict({"a": Box(0.0, 4.0, (2,)), "b": Discrete(3)})


# parameters


def uniform(key, params):
    return params + jr.uniform(key, (), jnp.float32)


@pytest.mark.parametrize("stepper", [ResetWhenDone(), ResetFromPool(64)], ids=["when done", "pool"])
def test_each_episode_has_parameters_of_its_own(stepper):
    num_envs, length, episodes = 16, 6, 12
    env, params = RandomizeParams(Echo(max_steps=length), uniform), jnp.float32(5)

    @quick_jit
    def run(keys):
        first = stepper.init(env, params, keys[0, 0])

        def step(carry, keys):
            out = stepper.step(env, params, keys, *carry, jnp.zeros(num_envs, jnp.int32))
            return (out.env_state, out.reset_state), (out.obs[:, 2], out.final_obs[:, 2])

        return first[0][:, 2], jax.lax.scan(step, first[1:], keys[1:])[1]

    first, (shown, final) = map_np(run(jr.split(jr.key(0), (1 + length * episodes, 2, num_envs))))
    final = final.reshape(episodes, length, num_envs)
    assert np.all(final == final[:, :1])  # within an episode
    np.testing.assert_array_equal(final[0, 0], first)
    np.testing.assert_array_equal(final[1:, 0], shown.reshape(episodes, length, num_envs)[:-1, -1])  # seen from the first observation on
    drawn = final[:, 0]
    assert np.all((drawn >= 5) & (drawn < 6))
    if isinstance(stepper, ResetFromPool):  # where first states repeat
        assert len(set(drawn[1:].ravel())) > 50
        return
    assert len(set(drawn.ravel())) == drawn.size
    ordered = np.sort(drawn.ravel()) - 5  # Kolmogorov's test, 0.1 %
    assert np.abs(ordered - np.linspace(0, 1, drawn.size)).max() < 1.95 / np.sqrt(drawn.size)


def map_np(tree):
    return jax.tree.map(np.asarray, tree)


def test_the_dynamics_are_those_of_the_episodes_parameters():
    """CartPole, against gymnax's own with each length."""
    inner, params = make("CartPole-v1")
    env = RandomizeParams(inner, wider)
    keys = jr.split(jr.key(0), 5)
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    assert len(set(np.asarray(state.params.length).tolist())) == 5 and np.all(state.params.gravity == np.float32(9.8))
    after = jax.vmap(env.step, in_axes=(0, 0, None, None))(keys, state, 1, params)[0]
    for i in range(5):
        one = jax.tree.map(lambda x: x[i], state)
        expected = inner.step(keys[i], one.env_state, 1, params.replace(length=float(one.params.length)))[0]
        np.testing.assert_allclose(after[i], expected, rtol=1e-5, atol=1e-7)


def test_evaluations_are_on_drawn_parameters():
    class Still(AbstractPolicy):
        def __call__(self, obs, carry, key):
            return jnp.zeros(len(obs), jnp.int32), carry, ()

        def initial_carry(self):
            return ()

    class Paying(Echo):
        def step(self, key, state, action, params):
            obs, state, _, *rest = super().step(key, state, action, params)
            return obs, state, params, *rest

    evaluator = EpisodeEvaluator(num_episodes=8, stepper=NeverReset())
    env = RandomizeParams(Paying(), uniform)
    returns = quick_jit(lambda key: evaluator(env, jnp.float32(1), Still(), key))(jr.key(0)).cumulative_reward
    assert len(set(returns.tolist())) == 8 and np.all((returns >= 6) & (returns < 12))


def test_parameters_that_do_not_fit():
    cartpole, params = make("CartPole-v1")
    for sample, message in (
        (lambda key, params: params.replace(length=jnp.ones(2)), r"sample turned params.length from float into float32\[2\]"),
        (lambda key, params: params.replace(max_steps_in_episode=2.5), r"turned params.max_steps_in_episode from int into float"),
        (lambda key, params: params.length, "sample must return parameters of the structure of those that it is given"),
        (lambda key, params: params.replace(x_threshold=1 + jr.uniform(key)), "observation_space depends on what sample draws"),
    ):
        with pytest.raises((EnvError, TypeError, ValueError), match=message):
            PPO.create(env=RandomizeParams(cartpole, sample), env_params=params)
    with pytest.raises(TypeError, match="action_space depends on what sample draws: it is Box.-2.0, 2.0.*leave those parameters"):
        PPO.create(env=RandomizeParams(make("Pendulum-v1")[0], lambda key, p: p.replace(max_torque=1 + jr.uniform(key))))


def test_spaces_are_known_while_a_program_is_traced():
    """So that a policy that needs them as numbers can be made there; and that a parameter may be swept."""
    env, params = RandomizeParams(make("CartPole-v1")[0], wider), make("CartPole-v1")[1]
    jax.jit(lambda: np.asarray(env.observation_space(params).high))()
    swept = jax.vmap(lambda g: env.step(jr.key(0), env.reset(jr.key(0), p := params.replace(gravity=g))[1], 1, p)[1].params.gravity)
    np.testing.assert_array_equal(swept(jnp.array([9.0, 10.0])), [9, 10])
    highs = jax.vmap(lambda x: env.observation_space(params.replace(x_threshold=x)).high)(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(highs[:, 0], [2, 4])


def test_a_distribution_may_be_a_module():
    class Between(eqx.Module):
        high: jax.Array

        def __call__(self, key, params):
            return params + jr.uniform(key, (), jnp.float32, 0.0, self.high)

    inner = Echo()
    env = RandomizeParams(inner, Between(jnp.float32(2)))
    assert env == RandomizeParams(inner, Between(jnp.float32(2))) and hash(env) == hash(RandomizeParams(inner, Between(jnp.float32(2))))
    drawn = eqx.filter_vmap(lambda high: RandomizeParams(inner, Between(high)).reset(jr.key(0), jnp.float32(0))[1].params)
    one, two = drawn(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(two, 2 * one)


def test_a_run_with_all_of_them():
    env = FrameStack(HideObservation(ClipReward(StickyActions(RandomizeParams(Walk(), noisier))), 0.1), 2)
    hp = PPOHParams(num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1, total_timesteps=16, num_seeds_per_eval=2)
    ppo = PPO.create(env=env, env_params=Params(5, 0.0), hp=hp, collector=lambda hp: RolloutCollector(hp.num_envs, hp.num_steps))
    ts, metrics = quick_jit(ppo.train)(jr.key(0))
    assert ts.data_collection_state.last_obs.shape == (2, 4) and np.all(np.isfinite(metrics.cumulative_reward))
