"""What policies that remember are worth, and what they cost.

    python benchmarks/memory.py chains     # MemoryChain: a bit is shown once and asked for so many steps later
    python benchmarks/memory.py popgym     # eight tasks, with memory and without, each policy shown its last action and reward
    python benchmarks/memory.py speed      # learning from rollouts of 1,024 steps: a linear recurrence beside a GRU
"""

import argparse
import dataclasses
import statistics
import time

import equinox as eqx
import jax
from learning import judge
from scipy.stats import ttest_ind

from eqxrl import PPO, PPOHParams, make, set_cpu_flags
from eqxrl.envs import ShowLastStep
from eqxrl.nn import GRUActorCritic, LRUActorCritic, MLPActorCritic

TASKS = (
    "Autoencode", "Concentration", "CountRecall", "HigherLower", "Minesweeper", "MultiarmedBandit", "RepeatFirst", "RepeatPrevious",
)
GAMMA = {"HigherLower": 0.0}
"""Where an action changes nothing that comes later; else PPO's default."""
SEEDS = 6
# length, network, env steps, seeds, target in words, target as a test of the seeds' means
CHAINS = [
    (10, GRUActorCritic, 300_000, 10, ">= 0.95 in 9 of 10", lambda x: sum(x >= 0.95) >= 9),
    (32, LRUActorCritic, 300_000, 10, ">= 0.95 in 9 of 10", lambda x: sum(x >= 0.95) >= 9),
    (100, LRUActorCritic, 1_000_000, 5, "", lambda x: True),
]


def chains() -> None:
    """Without memory a policy gets 0 on average; 1 is the most. Only the last action earns anything, so none before it is credited:
    lambda is 0."""
    print("| length | network | env steps | seeds | mean | min | >= 0.95 | target | held | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length, network, total, seeds, target, held in CHAINS:
        env, params = make("MemoryChain-bsuite")
        hp = PPOHParams(
            num_envs=32, num_steps=128, num_minibatches=8, num_epochs=4, total_timesteps=total, eval_freq=total, learning_rate=1e-3,
            max_grad_norm=0.5, clip_value=False, ent_coef=0.0, gamma=0.5, gae_lambda=0.0,
        )
        ppo = PPO.create(env=env, env_params=params.replace(memory_length=length), hp=hp, actor_critic=network)
        x, steps, seconds = judge(ppo, seeds)
        figures = f"{x.mean():.3f} | {x.min():.3f} | {sum(x >= 0.95)} of {seeds}"
        row = f"| {length} | {network.__name__} | {steps:,} | {seeds} | {figures} | {target} | "
        print(row + f"{('yes' if held(x) else 'NO') if target else ''} | {seconds:.0f} |", flush=True)


def popgym() -> None:
    """Returns lie in [-1, 1]. Held: the mean with memory is above that without, Welch's test, one-sided p < 0.05."""
    print("| task | env steps | seeds | MLP: mean (min to max) | GRU: mean (min to max) | p | held | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    hp = PPOHParams(
        num_envs=64, num_steps=128, num_minibatches=8, num_epochs=4, total_timesteps=1_000_000, eval_freq=1_000_000, learning_rate=1e-3,
        max_grad_norm=0.5, clip_value=False,
    )
    for task in TASKS:
        env, params = make(f"popgym/{task}Easy")
        worth, took = [], 0.0
        task_hp = dataclasses.replace(hp, gamma=GAMMA.get(task, float(hp.gamma)))
        for network in (MLPActorCritic, GRUActorCritic):
            ppo = PPO.create(env=ShowLastStep(env), env_params=params, hp=task_hp, actor_critic=network)
            x, steps, seconds = judge(ppo, SEEDS)
            worth.append(x)
            took += seconds
        p = float(ttest_ind(*worth[::-1], equal_var=False, alternative="greater").pvalue)
        figures = " | ".join(f"{x.mean():.3f} ({x.min():.3f} to {x.max():.3f})" for x in worth)
        print(f"| {task}Easy | {steps:,} | {SEEDS} | {figures} | {p:.1g} | {'yes' if p < 0.05 else 'NO'} | {took:.0f} |", flush=True)


def speed() -> None:
    """Medians of nine interleaved updates: 8 environments, 4 epochs of 4 minibatches, two memories of 64."""
    env, params = make("popgym/RepeatPreviousEasy")
    hp = PPOHParams(num_envs=8, num_steps=1024, num_minibatches=4, num_epochs=4, total_timesteps=8192, eval_freq=8192)
    times: dict[str, list[float]] = {}
    ready = []
    for network in (GRUActorCritic, LRUActorCritic):
        ppo = PPO.create(env=env, env_params=params, hp=hp, actor_critic=network)
        ts, rollout = eqx.filter_jit(lambda ppo, ts: ppo.get_batch(ts, 0))(ppo, ppo.init_train_state(0))
        learn = eqx.filter_jit(lambda ppo, ts, rollout: ppo.training_step(0, ts, rollout))
        jax.block_until_ready(learn(ppo, ts, rollout))
        ready.append((network.__name__, learn, (ppo, ts, rollout)))
    for _ in range(9):
        for name, learn, args in ready:
            start = time.perf_counter()
            jax.block_until_ready(learn(*args))
            times.setdefault(name, []).append(time.perf_counter() - start)
    gru, lru = (statistics.median(times[name]) for name, *_ in ready)
    print(f"GRU {1e3 * gru:.1f} ms, LRU {1e3 * lru:.1f} ms an update: {gru / lru:.2f} times as fast; at least 3: {gru / lru >= 3}")


def main() -> None:
    set_cpu_flags()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"chains": chains, "popgym": popgym, "speed": speed}
    parser.add_argument("table", choices=tables)
    tables[parser.parse_args().table]()


if __name__ == "__main__":
    main()
