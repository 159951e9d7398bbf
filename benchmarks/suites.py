"""Environments of other suites, stepped at random: env steps per second through the package, beside the suite used by hand.

    python benchmarks/suites.py                      # those that are installed
    python benchmarks/suites.py navix gymnasium/HalfCheetah-v5
    python benchmarks/suites.py envpool/Breakout-v5 --runs 7
    python benchmarks/suites.py envpool/CartPole-v1 --envs 256

64 environments at once, medians of 21 runs of 200 steps, interleaved (of 3 with PPO). By hand: the suite's own step with its own automatic
reset, in a scan, or on the host in a loop. Both sides have the same actions. These, the keys, and what is made before the first step aren't
in the time: this is of stepping and resetting alone. Where a suite resets in the place of a step, that isn't counted as a step. PPO: env
steps per second of training with 64 environments, 128 steps, 4 minibatches, 4 epochs, without compilation.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.random as jr
import numpy as np

from eqxrl import PPO, PPOHParams, make, set_cpu_flags
from eqxrl.envs import default_stepper, known_suites
from eqxrl.spaces import sample

NUM_ENVS, NUM_STEPS, RUNS = 64, 200, 21
ENVS = {
    "gymnax": "CartPole-v1", "brax": "brax/inverted_pendulum", "craftax": "craftax/Craftax-Classic-Symbolic-v1",
    "envpool": "envpool/CartPole-v1", "gymnasium": "gymnasium/CartPole-v1", "jaxmarl": "jaxmarl/MPE_simple_spread_v3",
    "jumanji": "jumanji/Snake-v1", "navix": "navix/Navix-Empty-8x8-v0", "pgx": "pgx/2048", "playground": "playground/CartpoleBalance",
    "popgym": "popgym/RepeatPreviousEasy", "xminigrid": "xminigrid/MiniGrid-Empty-8x8",
}
By = tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]
"""`reset(key) -> state` and `step(key, state, action) -> state` of one environment, which resets by itself."""
Side = tuple[Callable[[Any], Any], Callable[[Any, Any, Any], tuple[Any, int]]]
"""`start(keys) -> state`, and `run(state, keys, actions) -> (state, steps)`."""


def gymnax_by_hand(name: str) -> By:
    import gymnax

    env, params = gymnax.make(name)
    return lambda key: env.reset(key, params)[1], lambda key, state, action: env.step(key, state, action, params)[1]


def brax_by_hand(name: str) -> By:
    import brax.envs

    env = brax.envs.create(name, episode_length=1000, auto_reset=True)
    return env.reset, lambda key, state, action: env.step(jax.tree.map(lambda x: x, state), action)


def craftax_by_hand(name: str) -> By:
    from craftax.craftax_env import make_craftax_env_from_name

    env: Any = make_craftax_env_from_name(name, auto_reset=True)
    params = env.default_params
    return lambda key: env.reset(key, params)[1], lambda key, state, action: env.step(key, state, action, params)[1]


def jaxmarl_by_hand(name: str) -> By:
    import jaxmarl

    env: Any = jaxmarl.make(name)
    return lambda key: env.reset(key)[1], lambda key, state, action: env.step(key, state, dict(zip(env.agents, action)))[1]


def jumanji_by_hand(name: str) -> By:
    import jumanji
    from jumanji.wrappers import AutoResetWrapper

    env = AutoResetWrapper(jumanji.make(name))
    return lambda key: env.reset(key)[0], lambda key, state, action: env.step(state, action)[0]


def navix_by_hand(name: str) -> By:
    import navix

    env = navix.make(name)
    return env.reset, lambda key, state, action: env.step(state, action)


def pgx_by_hand(name: str) -> By:
    import pgx
    from pgx.experimental.wrappers import auto_reset

    env = pgx.make(name)
    step = auto_reset(env.step, env.init)
    return env.init, lambda key, state, action: step(state, action, key)


def playground_by_hand(name: str) -> By:
    """Of a batch, for which its wrapper is made, and with the bits of keys, whose shapes it reads."""
    from mujoco_playground import dm_control_suite, wrapper

    env = wrapper.wrap_for_brax_training(dm_control_suite.load(name, config_overrides={"impl": "jax"}), episode_length=1000)
    return lambda keys: env.reset(jr.key_data(keys)), lambda key, state, action: env.step(state, action)


def xminigrid_by_hand(name: str) -> By:
    import xminigrid
    from xminigrid.wrappers import GymAutoResetWrapper

    env, params = xminigrid.make(name)
    env = GymAutoResetWrapper(env)
    return lambda key: env.reset(params, key), lambda key, state, action: env.step(params, state, action)


def scanned(reset: Any, step: Any) -> Side:
    @jax.jit
    def scan(state: Any, keys: Any, actions: Any) -> Any:
        return jax.lax.scan(lambda state, xs: (step(*xs, state), ()), state, (keys, actions))[0]

    return jax.jit(reset), lambda *args: (scan(*args), NUM_STEPS * NUM_ENVS)


def through_package(env: Any, params: Any) -> Side:
    stepper = default_stepper(env)

    def step(keys: Any, action: Any, state: Any) -> Any:
        after = stepper.step(env, params, keys, *state, action)
        return after.env_state, after.reset_state

    return scanned(lambda keys: stepper.init(env, params, keys)[1:], step)


def by_hand(suite: str, name: str) -> Side | None:
    if suite in ("envpool", "gymnasium"):
        return partial(globals()[f"{suite}_on_host"], name), on_host
    made = globals().get(f"{suite}_by_hand")
    if made is None:
        return None
    reset, step = made(name)
    if suite != "playground":
        reset, step = jax.vmap(reset), jax.vmap(step)
    return scanned(reset, lambda keys, action, state: step(keys[1], state, action))


def envpool_on_host(name: str, keys: Any) -> Any:
    import envpool

    envs = envpool.make_gymnasium(name, num_envs=NUM_ENVS, seed=0)
    envs.reset()
    return envs


def gymnasium_on_host(name: str, keys: Any) -> Any:
    import gymnasium

    envs = gymnasium.make_vec(name, NUM_ENVS, vectorization_mode="sync")
    envs.reset(seed=0)
    return envs


def on_host(envs: Any, keys: Any, actions: Any) -> tuple[Any, int]:
    ends = 0
    for action in np.asarray(actions):
        _, _, terminated, truncated, _ = envs.step(action)
        ends += np.count_nonzero(terminated | truncated)
    return envs, NUM_STEPS * NUM_ENVS - ends


@partial(jax.jit, static_argnums=(1, 2, 3))
def drawn(key: Any, action_space: Any, num_steps: int, num_envs: int) -> tuple[Any, Any]:
    """Keys and actions of a run."""
    action_key, key = jr.split(key)
    actions = jax.vmap(jax.vmap(partial(sample, action_space)))(jr.split(action_key, (num_steps, num_envs)))
    return jr.split(key, (num_steps, 2, num_envs)), actions


def rate(run: Callable[..., tuple[Any, int]], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    state, steps = run(*args)
    jax.block_until_ready(state)
    return state, steps / (time.perf_counter() - start)


def ppo_rate(env: Any, params: Any) -> float:
    steps = NUM_ENVS * 128 * 4
    hp = PPOHParams(num_envs=NUM_ENVS, num_steps=128, num_minibatches=4, num_epochs=4, total_timesteps=steps, eval_freq=steps)
    algo = PPO.create(env=env, env_params=params, hp=hp)
    iterations = jax.jit(lambda state: algo.iterations(state, 4)[0])
    iterate = lambda state: (iterations(state), steps)  # noqa: E731
    state = algo.init_train_state(0)
    rate(iterate, state)
    return statistics.median(rate(iterate, state)[1] for _ in range(3))


def main() -> None:
    global NUM_ENVS, RUNS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="suite[/name]")
    parser.add_argument("--envs", type=int, default=NUM_ENVS, help="environments at once, also PPO's")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each, after one that warms up")
    args = parser.parse_args()
    NUM_ENVS, RUNS = args.envs, args.runs
    wanted = args.suites or [suite for suite, missing in known_suites().items() if not missing and suite in ENVS]
    set_cpu_flags(num_devices=1)
    print("| environment | by hand | eqxrl | ratio | with PPO |\n|---|---|---|---|---|")
    for env_id in (ENVS.get(x, x) for x in wanted):
        env, params = make(env_id)
        suite, name = env_id.split("/", 1) if "/" in env_id else ("gymnax", env_id)
        sides = [by_hand(suite, name), through_package(env, params)]
        states = [side and side[0](jr.split(jr.key(0), NUM_ENVS)) for side in sides]
        rates: list[list[float]] = [[], []]
        for i in range(RUNS + 1):
            args = jax.block_until_ready(drawn(jr.key(1 + i), env.action_space(params), NUM_STEPS, NUM_ENVS))
            for j, side in enumerate(sides):
                if side is not None:
                    states[j], of_run = rate(side[1], states[j], *args)
                    rates[j].append(of_run)
        theirs, ours = (statistics.median(x[1:]) if x else None for x in rates)
        beside = f"{theirs / 1000:,.1f}k" if theirs else "-"
        ratio = f"{ours / theirs:.2f}" if theirs else "-"
        print(f"| {env_id} | {beside} | {ours / 1000:,.1f}k | {ratio} | {ppo_rate(env, params) / 1000:,.1f}k |", flush=True)


if __name__ == "__main__":
    main()
