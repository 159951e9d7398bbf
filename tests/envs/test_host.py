"""What environments on the host share, whichever suite they are of."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxrl import PPO, PPOHParams, Trainer, make
from eqxrl.envs import AbstractWrapper, FrameStack, NeverReset, ResetWhenDone, ScaleReward, TimeLimit, known_suites
from eqxrl.envs._make import SUITES
from eqxrl.envs.suites._host import hashed
from eqxrl.envs.suites._pools import GOES_ON, Pools

THERE = [pytest.param(x, marks=pytest.mark.skipif(bool(known_suites()[x]), reason="isn't installed")) for x in ("envpool", "gymnasium")]
of_each_suite = pytest.mark.parametrize("suite", THERE)


def cartpole(suite, **options):
    return make(f"{suite}/CartPole-v1", **options)[0]


def anew(env):
    """The same environments, as another process has them."""
    host = env.host
    return dataclasses.replace(env, host=Pools(host.make, host.observation_space, host.action_space))


class ByHand:
    """The suite's own environments, with the seeds of states `[n]`."""

    def __init__(self, suite, states, **options):
        seeds = np.asarray(states.on_host).reshape(-1, 3)[:, 0].tolist()
        if suite == "envpool":
            import envpool

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # gymnasium's, of bounds in float64
                born = [[x % (2**31 - 1) + 1 for x in seeds], [x * 48271 % (2**31 - 1) + 1 for x in seeds]]
                self.pool, other = (envpool.make_gymnasium("CartPole-v1", num_envs=len(x), seed=x, **options) for x in born)
                assert self.pool.observation_space is not None and other.observation_space is not None
            self.first = self.pool.reset()[0]
            self.step = lambda actions: self.pool.step(np.asarray(actions, np.int32))[0]
            # Another one plays next, or it is envpool's own reset, a step of which the action is left out.
            self.reset = lambda: other.reset()[0] if seeds[0] & GOES_ON else self.step(np.zeros(len(seeds)))
        else:
            import gymnasium

            envs = [gymnasium.make("CartPole-v1", **options) for _ in seeds]
            self.first = np.stack([env.reset(seed=x)[0] for env, x in zip(envs, seeds)])
            self.step = lambda actions: np.stack([env.step(a)[0] for env, a in zip(envs, actions)])
            self.reset = lambda: np.stack([env.reset()[0] for env in envs])


@of_each_suite
def test_what_follows_the_end_is_filler(suite):
    env = cartpole(suite, max_episode_steps=3)
    obs, state = env.reset(jax.random.key(0))
    for _ in range(3):
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.array(0))
    again, after, reward, terminated, truncated, _ = env.step(jax.random.key(0), state, jnp.array(0))
    np.testing.assert_array_equal(again, obs)
    np.testing.assert_array_equal(after.on_host, state.on_host)
    assert reward == 0 and truncated and not terminated


@of_each_suite
def test_a_state_can_be_stepped_again_and_otherwise(suite):
    """All is done anew up to there, also in a later episode."""
    env = cartpole(suite, max_episode_steps=6)
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action)[:2])
    obs, state = env.reset(jax.random.key(1))
    theirs = ByHand(suite, state, max_episode_steps=6)
    np.testing.assert_array_equal(obs, theirs.first[0])
    for action in (0, 1, 0, 0, 1, 1):
        state = step(state, jnp.array(action))[1]
        theirs.step([action])
    first, middle = env.reset_where(jax.random.key(2), jnp.array(True), state)
    np.testing.assert_array_equal(first, theirs.reset()[0])
    left, right = (step(middle, jnp.array(a)) for a in (0, 1))
    assert eqx.tree_equal(step(middle, jnp.array(0)), left)
    np.testing.assert_array_equal(right[0], theirs.step([1])[0])
    np.testing.assert_array_equal(step(right[1], jnp.array(1))[0], theirs.step([1])[0])
    same = jax.vmap(step)(jax.tree.map(lambda x: jnp.stack([x, x]), middle), jnp.array([1, 0]))
    jax.tree.map(lambda x, a, b: np.testing.assert_array_equal(x, jnp.stack([a, b])), same, right, left)


@of_each_suite
def test_a_state_can_be_stepped_again_after_episodes_that_followed_each_other(suite):
    env = cartpole(suite, max_episode_steps=3).with_resets()
    step = jax.jit(jax.vmap(lambda state, action: env.step(jax.random.key(0), state, action)))
    reset = jax.vmap(lambda state, info: env.reset_where(jax.random.key(0), jnp.array(True), state, None, info))
    state = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), 2))[1]
    for action in (0, 1, 1, 0, 0, 1, 1, 0, 0):
        _, state, _, _, truncated, info = step(state, jnp.array([action, 1]))
        state = reset(state, info)[1] if truncated.all() else state
    assert state.on_host[:, 1].tolist() == [12, 12] and len(env.host.pools) == 1
    here, there = (step(state, jnp.array(actions))[:2] for actions in ([0, 1], [1, 0]))
    assert (here[0] != there[0]).any() and len(env.host.pools) == 2  # the second time others played, from their births
    assert eqx.tree_equal(step(state, jnp.array([0, 1]))[:2], here)


@of_each_suite
def test_a_state_of_another_process_is_cut_off_and_a_new_life_begins(suite):
    env = cartpole(suite)
    obs, state = env.reset(jax.random.key(5))
    for _ in range(2):
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.array(1))
    other = anew(env)
    after, same, reward, terminated, truncated, _ = other.step(jax.random.key(0), state, jnp.array(1))
    np.testing.assert_array_equal(after, obs)
    assert reward == 0 and truncated and not terminated
    with pytest.raises(ValueError, match="can't be drawn: another process played its episode"):
        other.picture(state)
    assert eqx.tree_equal(other.reset_where(jax.random.key(6), jnp.array(True), same), env.reset(jax.random.key(6)))


@of_each_suite
def test_states_in_another_order_and_episodes_that_still_go_on(suite):
    env = cartpole(suite, max_episode_steps=2)
    step = jax.jit(jax.vmap(lambda state, action: env.step(jax.random.key(0), state, action)[:2]))
    obs, state = jax.vmap(env.reset)(jax.random.split(jax.random.key(8), 3))
    theirs = ByHand(suite, state, max_episode_steps=2)
    turned = jax.tree.map(lambda x: x[::-1], state)
    obs, after = step(turned, jnp.array([0, 1, 1]))
    np.testing.assert_array_equal(obs[::-1], theirs.step([1, 1, 0]))
    obs, ended = step(after, jnp.array([0, 1, 0]))
    np.testing.assert_array_equal(obs[::-1], theirs.step([0, 1, 0]))
    mixed = jax.tree.map(lambda x, y: x.at[1].set(y[1]), ended, after)  # the middle one still goes on: a life of its own begins
    keys = jax.random.split(jax.random.key(9), 3)
    first, new = jax.vmap(env.reset_where, in_axes=(0, None, 0))(keys, jnp.array(True), mixed)
    np.testing.assert_array_equal(first[::2][::-1], theirs.reset()[::2])
    np.testing.assert_array_equal(first[1], env.reset(keys[1])[0])
    assert new.on_host[:, 1].tolist() == [3, 0, 3]


@of_each_suite
def test_only_what_ended_is_reset(suite, monkeypatch):
    env, resets = anew(cartpole(suite)), []
    stepper, keys = ResetWhenDone(), jax.random.split(jax.random.key(0), 4)
    _, state, kept = stepper.init(env, None, keys)
    (pool,) = env.host.pools
    reset = pool.instances.reset
    monkeypatch.setattr(pool.instances, "reset", lambda ids: resets.extend(ids.tolist()) or reset(ids))
    step = jax.jit(lambda keys, state: stepper.step(env, None, keys, state, kept, jnp.array([0, 1, 0, 1])))
    ended = []
    for t in range(40):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        state, ended = out.env_state, ended + np.flatnonzero(out.done).tolist()
    assert len(ended) > 4 and resets == ended and len(env.host.pools) == 1


@of_each_suite
def test_where_one_ends_the_next_begins_in_the_same_call(suite, monkeypatch):
    env, calls = anew(cartpole(suite)), []
    for name in ("step", "reset_where"):
        method = getattr(env.host, name)
        monkeypatch.setattr(env.host, name, lambda *args, name=name, method=method, **more: calls.append(name) or method(*args, **more))
    ends = rollout(ResetWhenDone(), env, 40).sum()
    assert ends > 4 and calls == ["step"] * 40


@of_each_suite
def test_beside_one_of_another_process_the_others_go_on(suite):
    env = cartpole(suite, max_episode_steps=2).with_resets()
    step = jax.jit(jax.vmap(lambda state, action: env.step(jax.random.key(0), state, action)))
    _, state = jax.vmap(env.reset)(jax.random.split(jax.random.key(8), 3))
    theirs, actions = ByHand(suite, state, max_episode_steps=2), np.array([1, 0, 1])
    state = step(state, actions)[1]
    strange = eqx.tree_at(lambda state: state.on_host, state, state.on_host.at[0, 2].add(1))
    obs, after, reward, _, truncated, info = step(strange, actions)
    theirs.step(actions)
    np.testing.assert_array_equal(obs[1:], theirs.step(actions)[1:])
    begun, first = info["next"]
    assert truncated.all() and reward.tolist() == [0, 1, 1] and begun.tolist() == [False, True, True]
    np.testing.assert_array_equal(first[1:], theirs.reset()[1:])
    keys = jax.random.split(jax.random.key(9), 3)
    obs, new = jax.vmap(env.reset_where, in_axes=(0, None, 0, None, 0))(keys, jnp.array(True), after, None, info)
    np.testing.assert_array_equal(obs, jnp.concatenate([env.reset(keys[0])[0][None], first[1:]]))
    assert new.on_host[:, 1].tolist() == [0, 3, 3]


@of_each_suite
def test_what_a_wrapper_cuts_off_is_another_life(suite):
    """The host's own episode isn't over."""
    ends = rollout(ResetWhenDone(), TimeLimit(cartpole(suite), 5), 12)
    assert ends.tolist() == [[t in (4, 9)] * 4 for t in range(12)]


@of_each_suite
def test_keys_are_used_once(suite):
    """Also where it is found out first whether a step can prepare for resets."""
    with jax.debug_key_reuse(True):
        rollout(ResetWhenDone(), cartpole(suite), 2)


class StartsAtOne(AbstractWrapper):
    """Its episodes all begin at one state, which was made without a stepper."""

    env: object
    first: tuple

    def reset(self, key, params=None):
        return self.first

    def step(self, key, state, action, params=None):
        return self.env.step(key, state, action, params)


@of_each_suite
def test_a_wrapper_may_keep_states_made_without_a_stepper(suite):
    env = cartpole(suite, max_episode_steps=3)
    first = env.reset(jax.random.key(5))
    ends = rollout(ResetWhenDone(), StartsAtOne(env, first), 6)
    assert ends.tolist() == [[t in (2, 5)] * 4 for t in range(6)]


def rollout(stepper, env, num_steps):
    """Where episodes ended, `[steps envs]`, each followed by a first observation."""
    _, state, kept = stepper.init(env, None, jax.random.split(jax.random.key(0), 4))
    step = jax.jit(lambda keys, state: stepper.step(env, None, keys, state, kept, jnp.array([0, 1, 0, 1])))
    done = []
    for t in range(num_steps):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        assert (np.abs(out.obs[out.done]) < 0.05).all()
        state = out.env_state
        done.append(np.asarray(out.done))
    return np.stack(done)


@of_each_suite
def test_other_devices_than_the_cpu_see_the_same(suite, monkeypatch):
    def play(env):
        def body(state, key):
            obs, state, *rest = jax.vmap(env.step)(jax.random.split(key, 2), state, jnp.array([0, 1]))
            return state, (obs, rest)

        _, state = jax.vmap(env.reset)(jax.random.split(jax.random.key(3), 2))
        return jax.lax.scan(body, state, jax.random.split(jax.random.key(4), 12))

    here = jax.jit(play, static_argnums=0)(cartpole(suite))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    assert eqx.tree_equal(here, jax.jit(play, static_argnums=0)(anew(cartpole(suite))))


@of_each_suite
@pytest.mark.parametrize("stepper", [ResetWhenDone(), NeverReset()])
def test_many_at_once_and_seeds_of_many_are_each_as_if_alone(suite, stepper):
    env = cartpole(suite, max_episode_steps=12)

    def play(key):
        obs, state, kept = stepper.init(env, None, jax.random.split(key, 3))

        def body(carry, key):
            out = stepper.step(env, None, jax.random.split(key, (2, 3)), *carry, jnp.array([0, 1, 0]))
            return (out.env_state, out.reset_state), (out.obs, out.final_obs, out.reward, out.terminated, out.truncated)

        return jax.lax.scan(body, (state, kept), jax.random.split(key, 40))[1]

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(play))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[i]), jax.jit(play)(key), together)
    obs, final_obs, reward, terminated, _ = (np.asarray(x) for x in together)
    assert terminated.any((0, 1)).all() and (obs != final_obs).any() == isinstance(stepper, ResetWhenDone)
    assert len(np.unique(obs[terminated], axis=0)) > 5  # each episode begins elsewhere


@of_each_suite
def test_what_is_left_alone_is_dropped_and_what_is_long_ago_is_forgotten(suite, monkeypatch):
    monkeypatch.setattr("eqxrl.envs.suites._pools.KEPT_STEPS", 50)
    env = anew(cartpole(suite))
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action))
    middles = []
    for i in range(8):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(4):
            state = step(state, jnp.array(i % 2))[1]
        middles.append(state)
    assert len(env.host.pools) == 4 and len(env.host.logged) == 8
    obs = step(middles[0], jnp.array(1))[0]
    theirs = ByHand(suite, middles[0])
    for action in (0, 0, 0, 0, 1):
        expected = theirs.step([action])
    np.testing.assert_array_equal(obs, expected[0])
    for i in range(8, 40):
        state = env.reset(jax.random.key(i))[1]
        for _ in range(6):
            state = step(state, jnp.array(i % 2))[1]
    host = env.host
    assert host.kept_steps <= 50 and len(host.logged) <= 10 and len(host.born) <= 10 and len(host.pools) <= 4
    cut = step(middles[1], jnp.array(1))
    assert bool(cut[4]) and float(cut[2]) == 0.0


@of_each_suite
def test_evaluations_drop_no_device_of_the_seeds_that_are_trained(suite, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 6)
    env = anew(cartpole(suite))
    for i in range(6):
        env.host.reset([], [np.empty((2, 4), np.float32)], [np.uint32([2 * i, 2 * i + 1])])
    trained = list(env.host.pools)
    for i in range(12):
        env.host.reset([], [np.empty((1, 4), np.float32)], [np.uint32([100 + i])])
    assert all(pool.instances is not None for pool in trained)


@of_each_suite
def test_states_are_drawn_each_as_its_own(suite):
    env = cartpole(suite, max_episode_steps=7)
    states = [env.reset(jax.random.key(i))[1] for i in (0, 3)]
    one, other = map(env.picture, states)
    assert one.dtype == np.uint8 and (one != other).any()
    moved = states[0]
    for _ in range(3):
        moved = env.step(jax.random.key(0), moved, jnp.array(1))[1]
    later = env.picture(moved)
    assert (later != one).any() and (env.picture(moved) == later).all() and (env.picture(states[0]) == one).all()


def ppo(env, params, total_timesteps):
    hp = PPOHParams(
        num_envs=2, num_steps=8, num_minibatches=1, num_epochs=1, total_timesteps=total_timesteps, eval_freq=16, num_seeds_per_eval=2
    )
    return PPO.create(env=env, env_params=params, hp=hp)


@of_each_suite
def test_two_seeds_train_and_one_is_drawn(suite, tmp_path):
    algo = ppo(*make(f"{suite}/CartPole-v1", max_episode_steps=20), 32)
    state, metrics = Trainer().fit(algo, jax.random.split(jax.random.key(0), 2))
    assert np.isfinite(metrics.cumulative_reward).all() and metrics.cumulative_reward.shape == (2, 3, 2)
    one = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, state)
    assert algo.visualize(one, tmp_path / "episode.gif", jax.random.key(0)).stat().st_size > 1000


@of_each_suite
def test_a_resumed_run_says_what_it_lost(suite, tmp_path):
    """The second time with a host that has played nothing yet, as in another process."""
    env, params = make(f"{suite}/CartPole-v1")
    Trainer(folder=tmp_path).fit(ppo(env, params, 16), jax.random.key(0))
    other = SUITES[suite].make(f"{suite}/CartPole-v1", {})[0]
    algo = dataclasses.replace(ppo(env, params, 32), env=other)
    with pytest.warns(UserWarning, match=f"goes on otherwise than if it hadn't been cut off: {suite}'s environments can't be saved"):
        state, _ = Trainer(folder=tmp_path).fit(algo, resume=True)
    assert int(algo.env_steps(state)) == 32


def test_what_was_done_otherwise_has_another_hash():
    rng = np.random.default_rng(0)
    moves = rng.choice([-1.0, 1.0], (4000, 6)).astype(np.float32)
    moves = np.unique(np.concatenate([moves, rng.normal(size=(100_000, 6)).astype(np.float32), np.eye(6, dtype=np.float32)]), axis=0)
    mixed = jax.vmap(hashed, in_axes=(None, 0))(jnp.uint32(0), moves)
    assert len(np.unique(mixed)) >= len(moves) - 4  # by chance, 1.2 of them share theirs
    once = [hashed(jnp.uint32(0), jnp.int32(a)) for a in range(3)]
    there_and_back = [hashed(once[a], jnp.int32(2 - a)) for a in range(3)]
    assert len({*map(int, once), *map(int, there_and_back)}) == 6


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float32, np.float64])
def test_actions_of_every_size_have_their_own_hash(dtype):
    each = [hashed(jnp.uint32(0), np.asarray(x, dtype)) for x in ([0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0])]
    assert len({*map(int, each)}) == 4


class KeepsItElsewhere(AbstractWrapper):
    env: object

    def reset(self, key, params=None):
        obs, state = self.env.reset(key, params)
        return obs, (state,)

    def step(self, key, state, action, params=None):
        obs, state, *rest = self.env.step(key, state[0], action, params)
        return obs, (state,), *rest


class KeptStatic(AbstractWrapper):
    env: object = eqx.field(static=True)

    def reset(self, key, params=None):
        return self.env.reset(key, params)

    def step(self, key, state, action, params=None):
        return self.env.step(key, state, action, params)


class SaysNothing(AbstractWrapper):
    env: object

    def reset(self, key, params=None):
        return self.env.reset(key, params)

    def step(self, key, state, action, params=None):
        *stepped, _ = self.env.step(key, state, action, params)
        return *stepped, {}


WRAPPERS = {
    "changes rewards": (lambda env: ScaleReward(env, 2.0), False),
    "states of their own": (lambda env: TimeLimit(FrameStack(TimeLimit(env, 400), 2), 500), False),
    "static": (KeptStatic, False),
    "no info": (SaysNothing, False),
    "its state elsewhere": (KeepsItElsewhere, True),
}


@of_each_suite
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_in_wrappers_too_only_what_ended_is_reset(suite, wrapper):
    wrap, all_of_them = WRAPPERS[wrapper]
    host, resets = SUITES[suite].make(f"{suite}/CartPole-v1", {})[0], []
    inner_reset, host.host.reset = host.host.reset, lambda *args: resets.append(args) or inner_reset(*args)
    env, stepper = wrap(host), ResetWhenDone()
    _, state, kept = stepper.init(env, None, jax.random.split(jax.random.key(0), 4))
    step = jax.jit(lambda keys, state: stepper.step(env, None, keys, state, kept, jnp.array([0, 1, 0, 1])))
    ends = 0
    for t in range(40):
        out = step(jax.random.split(jax.random.key(1 + t), (2, 4)), state)
        new, lasted = np.asarray(out.done), np.abs(np.asarray(out.obs)[..., -4:]) < 0.05
        assert lasted.all(axis=tuple(range(1, lasted.ndim)))[new].all()  # a first observation
        state, ends = out.env_state, ends + new.sum()
    assert ends > 4 and (len(resets) > 1) == all_of_them
    assert len(host.host.logged) == 1 or all_of_them  # nothing is played from its birth again
