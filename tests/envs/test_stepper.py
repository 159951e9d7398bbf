"""The steppers against a reset at every step, against gymnax's own, and against each other bit by bit."""

import functools
import inspect
from pathlib import Path

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper
from toy_envs import Params, ResetEveryStep, Walk, box

import eqxrl
from eqxrl.envs import (
    Gymnax,
    NeverReset,
    ResetFromPool,
    ResetWhenDone,
    TimeLimit,
    TimeLimitIsTerminal,
    as_environment,
    default_stepper,
    make,
)
from eqxrl.spaces import sample

ENVS, STEPS = 5, 300
NAMES = [name for name in gymnax.registered_envs if "MNIST" not in name]


def rollout(stepper, env, params, key, num_steps=STEPS, num_envs=ENVS):
    """Everything that a random policy sees, `[steps envs ...]`."""
    key, reset_key, refresh_key = jr.split(key, 3)
    obs, state, kept = stepper.init(env, params, jr.split(reset_key, num_envs))
    kept = stepper.refresh(env, params, refresh_key, kept)

    def step(carry, key):
        state, kept = carry
        act_key, step_key = jr.split(key)
        action = jax.vmap(lambda k: sample(env.action_space(params), k))(jr.split(act_key, num_envs))
        keys = jax.vmap(jr.split)(jr.split(step_key, num_envs)).T  # as gymnax splits them
        out = stepper.step(env, params, keys, state, kept, action)
        return (out.env_state, out.reset_state), out

    return (obs, state), jax.lax.scan(step, (state, kept), jr.split(key, num_steps))[1]


def limited(name, limit):
    env, params = make(name)
    return env, params.replace(max_steps_in_episode=limit)


CASES = {
    "cartpole": lambda: limited("CartPole-v1", 30),
    "pendulum": lambda: limited("Pendulum-v1", 17),
    "catch": lambda: make("Catch-bsuite"),
    "scalar observations": lambda: limited("FrozenLake-misc", 9),
    "float limit": lambda: limited("BernoulliBandit-misc", 7.5),
    "time limit": lambda: (TimeLimit(make("CartPole-v1")[0], 9), make("CartPole-v1")[1]),
    "terminal time limit": lambda: (TimeLimitIsTerminal(make("Pendulum-v1")[0]), limited("Pendulum-v1", 9)[1]),
    "one's own": lambda: (Walk(), Params(20)),
    "whole step": lambda: (Gymnax(LogWrapper(gymnax.make("CartPole-v1")[0])), limited("CartPole-v1", 30)[1]),
}


def assert_bitwise_equal(a, b):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


SLOW = {"scalar observations", "float limit", "terminal time limit"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_reset_when_done_is_bit_for_bit_a_reset_at_every_step(case, key):
    env, params = CASES[case]()
    run = jax.jit(lambda stepper: rollout(stepper, env, params, key))
    reference = run(ResetEveryStep())
    assert 3 < reference[1].done.sum() < ENVS * STEPS
    for stepper in (ResetWhenDone(), ResetWhenDone(every_step=True)):
        assert_bitwise_equal(reference, run(stepper))


def gymnaxs_own(env, params, key, num_steps):
    """`rollout` with the automatic reset of `env`, which is gymnax's: obs, reward, terminated, truncated, final_obs, and the
    state."""
    key, reset_key, _ = jr.split(key, 3)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(jr.split(reset_key, ENVS), params)

    def step(state, key):
        act_key, step_key = jr.split(key)
        action = jax.vmap(env.action_space(params).sample)(jr.split(act_key, ENVS))
        keys = jr.split(step_key, ENVS)
        obs, state, *rest, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, action, params)
        return state, (obs, *rest, info["final_observation"], state)

    return jax.lax.scan(step, state, jr.split(key, num_steps))[1]


OF_GYMNAX = {
    "CartPole-v1": functools.partial(gymnax.make, "CartPole-v1"),
    "Acrobot-v1": functools.partial(gymnax.make, "Acrobot-v1"),
    "FrozenLake-misc": functools.partial(gymnax.make, "FrozenLake-misc"),
    "Breakout-MinAtar": functools.partial(gymnax.make, "Breakout-MinAtar"),  # random dynamics
    "LogWrapper": lambda: (LogWrapper(gymnax.make("CartPole-v1")[0]), gymnax.make("CartPole-v1")[1]),
    "FlattenObservationWrapper": lambda: (FlattenObservationWrapper(gymnax.make("Catch-bsuite")[0]), gymnax.make("Catch-bsuite")[1]),
    "DeepSea-bsuite": functools.partial(gymnax.make, "DeepSea-bsuite"),
}
CARRIED_OVER = {
    "LogWrapper": {".returned_episode_returns", ".returned_episode_lengths", ".returned_episode_valid"},
    "DeepSea-bsuite": {".total_bad_episodes", ".denoised_return"},
}
"""What gymnax hands over to the next episode, and the stepper doesn't; nothing that is observed or rewarded depends on it."""


SLOW_OF_GYMNAX = {"Acrobot-v1", "FrozenLake-misc"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW_OF_GYMNAX else ()) for n in OF_GYMNAX])
def test_reset_when_done_undoes_and_redoes_gymnaxs_own_reset(name, key):
    """Bit for bit. Discrete actions only: those are drawn alike here and there."""
    raw, params = OF_GYMNAX[name]()
    params = params.replace(max_steps_in_episode=min(params.max_steps_in_episode, 40))
    own = jax.jit(lambda: gymnaxs_own(raw, params, key, 130))()
    _, out = jax.jit(lambda: rollout(ResetWhenDone(), as_environment(raw, params), params, key, 130))()
    assert 3 < out.done.sum()
    *values, state = own
    for x, y in zip((out.obs, out.reward, out.terminated, out.truncated, out.final_obs), values, strict=True):
        np.testing.assert_array_equal(x, y)
    carried_over = CARRIED_OVER.get(name, set())
    for (path, x), y in zip(jax.tree.leaves_with_path(out.env_state), jax.tree.leaves(state), strict=True):
        if jax.tree_util.keystr(path) not in carried_over:
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_whole_steps_with_random_dynamics_have_the_same_distribution(key):
    """The whole step splits its key once more, so the numbers are others."""
    raw, params = gymnax.make("DeepSea-bsuite")
    params = params.replace(deterministic=False)
    returns = [
        np.asarray(jax.jit(lambda: gymnaxs_own(raw, params, key, 4000))()[1]).mean(),
        np.asarray(jax.jit(lambda: rollout(ResetWhenDone(), Gymnax(raw), params, key, 4000))()[1].reward).mean(),
    ]
    assert abs(returns[0] - returns[1]) < 4 * 0.36 * (2 / 4000 / ENVS) ** 0.5  # noise of size 1 at an eighth of the steps


@pytest.mark.parametrize("stepper", [ResetWhenDone(), pytest.param(ResetFromPool(4), marks=pytest.mark.slow)], ids=repr)
def test_every_seed_of_a_vmap_is_the_run_of_that_seed(stepper, key):
    env, params = CASES["cartpole"]()
    keys = jr.split(key, 3)
    run = jax.jit(jax.vmap(lambda key: rollout(stepper, env, params, key, 60)[1]))(keys)
    alone = jax.jit(lambda key: rollout(stepper, env, params, key, 60)[1])(keys[1])
    assert alone.done.any()
    assert_bitwise_equal(jax.tree.map(lambda x: x[1], run), alone)


def test_parameters_may_be_swept(key):
    env, params = make("Pendulum-v1")
    limits = jnp.array([5, 8])
    run = jax.vmap(lambda n: rollout(ResetWhenDone(), env, params.replace(max_steps_in_episode=n), key, 16)[1].truncated)
    ends = np.asarray(run(limits)).all(-1)
    np.testing.assert_array_equal(ends, [[(t + 1) % n == 0 for t in range(16)] for n in (5, 8)])


@pytest.mark.parametrize("stepper", [ResetEveryStep(), ResetWhenDone(), ResetFromPool(3), NeverReset()], ids=repr)
def test_final_observation_and_flags(stepper):
    """By hand: a walk that is cut off after 3 steps."""
    env, params = Walk(), Params(3, noise=0.0)
    obs, state, kept = stepper.init(env, params, jr.split(jr.key(0), 2))
    start = np.asarray(obs[:, 0])
    for t in range(3):
        out = stepper.step(env, params, jr.split(jr.key(t), (2, 2)), state, kept, jnp.array([2, 2]))
        state = out.env_state
        np.testing.assert_allclose(out.final_obs[:, 0], start + 0.2 * (t + 1), rtol=1e-5)
    assert out.truncated.all() and out.done.all()
    if isinstance(stepper, NeverReset):
        np.testing.assert_array_equal(state.time, 3)
        np.testing.assert_array_equal(out.obs, out.final_obs)
    else:
        np.testing.assert_array_equal(state.time, 0)
        assert (np.abs(out.obs[:, 0]) <= 0.5).all() and (out.obs[:, 1] == 0).all()


def test_never_reset_steps_as_the_others_do(key):
    env, params = CASES["cartpole"]()
    keys, (obs, state, _) = jr.split(key, (2, ENVS)), NeverReset().init(env, params, jr.split(key, ENVS))
    assert_bitwise_equal((obs, state, ()), ResetWhenDone().init(env, params, jr.split(key, ENVS)))
    action = jnp.ones(ENVS, jnp.int32)
    assert_bitwise_equal(*(s.step(env, params, keys, state, (), action) for s in (NeverReset(), ResetWhenDone())))


def test_pool_opens_episodes_from_its_states(key):
    env, params = CASES["cartpole"]()
    stepper = ResetFromPool(4)
    _, out = jax.jit(lambda: rollout(stepper, env, params, key))()
    firsts = np.asarray(out.obs)[np.asarray(out.done)]
    pool = np.asarray(out.reset_state[0][0][0])
    assert len(np.unique(pool, axis=0)) == 4
    assert {x.tobytes() for x in firsts} == {x.tobytes() for x in pool}
    np.testing.assert_array_equal(np.asarray(out.env_state.time)[np.asarray(out.done)], 0)


def test_pool_is_renewed(key):
    env, params = make("CartPole-v1")
    stepper = ResetFromPool(4)
    _, _, (pool, num_opened) = stepper.init(env, params, jr.split(key, 2))
    assert num_opened == 0
    renewed = stepper.refresh(env, params, jr.key(1), (pool, jnp.array(4)))
    assert not np.isin(np.asarray(renewed[0][0]), np.asarray(pool[0])).any() and renewed[1] == 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype), renewed[0]) == jax.tree.map(lambda x: (x.shape, x.dtype), pool)
    kept = pool, jnp.array(3)
    assert_bitwise_equal(stepper.refresh(env, params, jr.key(1), kept), kept)
    with pytest.raises(ValueError, match="num_states=0"):
        ResetFromPool(0)


@pytest.mark.parametrize("seeds", [None, 2])
def test_a_pool_costs_an_episode_at_most_one_reset(seeds):
    """Also where a rollout is one step, as off-policy; counted by callbacks, which a branch that isn't run doesn't make."""
    resets = []

    class Counted(Walk):
        def reset(self, key, params):
            obs, state = super().reset(key, params)
            jax.debug.callback(resets.append, state.x)  # one call for each that is batched
            return obs, state

    env, params, stepper = Counted(), Params(3, noise=0.0), ResetFromPool(4)

    def start(key):
        return stepper.init(env, params, jr.split(key, 2))[1:]

    def one(key, state, kept):
        kept = stepper.refresh(env, params, key, kept)
        out = stepper.step(env, params, jr.split(key, (2, 2)), state, kept, jnp.array([1, 1]))
        return out.env_state, out.reset_state

    batched = (lambda f: f) if seeds is None else jax.vmap
    keys = jr.key(0) if seeds is None else jr.split(jr.key(0), seeds)
    carried = jax.jit(batched(start))(keys)
    counts, step = [], jax.jit(batched(one))
    for _ in range(13):
        carried = step(keys, *carried)
        jax.effects_barrier()
        counts.append(len(resets) // (seeds or 1))
    # Two episodes end after every third step, so the four states are used up after the sixth and the twelfth.
    np.testing.assert_array_equal(np.diff(counts), [0] * 5 + [4] + [0] * 5 + [4])


def test_where_a_reset_is_dear_algorithms_draw_first_states_from_a_pool():
    """Unless a collector is passed. Evaluations begin anew."""

    class Dear(Walk):
        reset_pool = 7

    def used(cls, env, **parts):
        algo = cls.create(env=env, **parts)
        assert isinstance(algo.evaluator.stepper, NeverReset)
        return algo.collector.stepper

    wrapped, same = TimeLimit(Dear(), 9), ResetWhenDone()
    for cls in (eqxrl.PPO, eqxrl.A2C, eqxrl.IMPALA, eqxrl.PQN, eqxrl.DQN, eqxrl.SAC):
        assert (used(cls, Dear()), used(cls, wrapped), used(cls, Walk())) == (ResetFromPool(7), ResetFromPool(7), same)
    for cls in (eqxrl.TD3, eqxrl.REPPO):
        for env, expected in ((Dear(), ResetFromPool(7)), (Walk(), same)):
            env.action_space = lambda params: box(-1.0, 1.0, ())
            assert used(cls, env) == expected
    assert used(eqxrl.PPO, Dear(), collector=lambda hp: eqxrl.RolloutCollector(hp.num_envs, hp.num_steps)) == same
    assert used(eqxrl.DQN, Dear(), collector=lambda hp: eqxrl.TransitionCollector(hp.num_envs, hp.num_steps)) == same
    for none in (0, None):
        Dear.reset_pool = none
        assert default_stepper(Dear()) == default_stepper(TimeLimit(Dear(), 9)) == same
    Dear.reset_pool = -1
    with pytest.raises(ValueError, match="num_states=-1"):
        default_stepper(Dear())


def test_the_resets_are_left_out_where_nothing_ended():
    """And between a stepper's step and the environment's there is nothing of the package."""
    resets = []

    class Counted(Walk):
        def reset(self, key, params):
            jax.debug.callback(lambda: resets.append(1))
            return super().reset(key, params)

        def step(self, key, state, action, params):
            frames = [frame.filename for frame in inspect.stack()]
            between = [Path(name).name for name in frames[: frames.index(__file__, 1)] if "/eqxrl/" in name]
            assert between == ["_stepper.py"]
            return super().step(key, state, action, params)

    env, params = Counted(), Params(3, noise=0.0)
    _, state, kept = ResetWhenDone().init(env, params, jr.split(jr.key(0), 2))
    step = jax.jit(lambda state: ResetWhenDone().step(env, params, jr.split(jr.key(1), (2, 2)), state, kept, jnp.array([1, 1])))
    counts = []
    for _ in range(4):
        out = step(state)
        state = out.env_state
        jax.effects_barrier()
        counts.append(len(resets))
    assert counts[0] == counts[1] < counts[2] == counts[3]  # an episode of three steps


@pytest.mark.parametrize("name", NAMES)
def test_every_gymnax_environment_takes_a_step(name):
    env, params = make(name)
    stepper = ResetWhenDone()
    keys = jr.split(jr.key(0), 3)
    assert env.whole_step == (name == "DeepSea-bsuite")

    def run(keys):
        obs, state, kept = stepper.init(env, params, keys)
        action = jax.vmap(lambda k: sample(env.action_space(params), k))(keys)
        return obs, state, stepper.step(env, params, jnp.stack([keys, keys]), state, kept, action)

    with jax.numpy_rank_promotion("allow"):  # Swimmer promotes
        obs, state, out = jax.eval_shape(run, keys)
    assert out.reward.shape == (3,) and out.reward.dtype == jnp.float32
    assert out.terminated.dtype == out.truncated.dtype == bool
    assert obs.shape == out.obs.shape == out.final_obs.shape and obs.dtype == out.obs.dtype
    # strong and the same in and out, so that a scan, and a second call, fit
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(out.env_state), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert not before.weak_type and not after.weak_type


def test_rewards_and_flags_of_other_kinds():
    env, params = make("UmbrellaChain-bsuite")  # integers
    out = jax.jit(lambda: rollout(ResetWhenDone(), env, params, jr.key(0), 20)[1])()
    assert out.reward.dtype == jnp.float32 and set(np.unique(out.reward)) == {-1.0, 1.0}

    class OneNumber(Walk):
        def spoil(self, obs, state, reward, terminated, truncated, info):
            return obs, state, jnp.ones((1,), jnp.int32), terminated[None], False, info

    out = rollout(ResetWhenDone(), OneNumber(), Params(3), jr.key(0), 4)[1]
    assert out.reward.shape == out.terminated.shape == out.truncated.shape == (4, ENVS)


def test_parameters_may_be_anything():
    """They are passed on as they are, not as arrays."""

    class Text(Walk):
        def reset(self, key, params):
            assert params == {"name": "text", "step": 0.2} and type(params["step"]) is float
            return super().reset(key, None)

        def step(self, key, state, action, params):
            assert type(params["step"]) is float
            return super().step(key, state, action, Params(3))

    assert rollout(ResetWhenDone(), Text(), {"name": "text", "step": 0.2}, jr.key(0), 4)[1].done.any()


def test_environment_with_arrays_is_vmapped(key):
    """An `eqx.Module` may hold arrays, which `vmap` sweeps like any others."""

    class Drift(eqx.Module):
        speed: jax.Array

        def reset(self, key, params):
            return jnp.zeros((1,)), jnp.zeros((), jnp.float32)

        def step(self, key, state, action, params):
            state = state + self.speed
            return state[None], state, self.speed, state > 1, jnp.zeros((), bool), {}

        def observation_space(self, params):
            return Walk().observation_space(params)

        def action_space(self, params):
            return Walk().action_space(params)

    def run(speed):
        env = TimeLimit(as_environment(Drift(speed)), 100)
        return rollout(ResetWhenDone(), env, None, key, 12, 2)[1].terminated.sum(0)

    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(jnp.array([0.26, 0.6])), [[3, 3], [6, 6]])


def test_the_example_in_the_docstring(key):
    example = eqxrl.envs._stepper.__doc__.split("in full:")[1]
    names = dict(jax=jax, AbstractStepper=eqxrl.envs.AbstractStepper, vec_step=eqxrl.envs.vec_step)
    exec("\n".join(line.removeprefix("    ") for line in example.splitlines()), names)
    env, params = CASES["cartpole"]()
    (first, _), out = rollout(names["ResetToFirst"](), env, params, key, 60)
    for t, i in np.argwhere(out.done):
        np.testing.assert_array_equal(out.obs[t, i], first[i])
        assert not np.array_equal(out.final_obs[t, i], first[i])
    assert out.done.sum() > 5
