"""Trains each preset over many seeds in one vmapped call and prints what its final policies are worth: deterministic
evaluation, 128 episodes per seed, at real environment steps.

    python benchmarks/learning.py                       # every row of the table
    python benchmarks/learning.py CartPole-v1           # one environment
    python benchmarks/learning.py CartPole-v1 --algo dqn
"""

import argparse
import dataclasses
import time

import equinox as eqx
import jax
import numpy as np

from eqxrl import set_cpu_flags
from eqxrl.algorithms import preset
from eqxrl.viz import iqm

# environment, algorithm, preset, total env steps (None: the preset's), seeds, target in words, target as a test of the seeds' means
ROWS = [
    ("CartPole-v1", "ppo", "zoo", None, 20, "IQM 500.0, 19 of 20 >= 475", lambda x: iqm(x) >= 499.95 and sum(x >= 475) >= 19),
    ("CartPole-v1", "ppo", "zoo", 149_760, 20, "every seed >= 475", lambda x: min(x) >= 475),
    ("CartPole-v1", "a2c", "zoo", None, 20, "IQM >= 475", lambda x: iqm(x) >= 475),
    ("CartPole-v1", "pqn", "tuned", None, 20, ">= 475 in 19 of 20", lambda x: sum(x >= 475) >= 19),
    ("CartPole-v1", "dqn", "zoo", None, 20, ">= 475 in 16 of 20", lambda x: sum(x >= 475) >= 16),
    ("Acrobot-v1", "ppo", "zoo", None, 20, "mean >= -85", lambda x: x.mean() >= -85),
    ("Pendulum-v1", "ppo", "tuned", None, 20, "mean >= -175", lambda x: x.mean() >= -175),
    ("MountainCarContinuous-v0", "ppo", "tuned", None, 20, ">= 92 in 19 of 20", lambda x: sum(x >= 92) >= 19),
    ("Breakout-MinAtar", "ppo", "purejaxrl", None, 8, "mean >= 35, each >= 20", lambda x: x.mean() >= 35 and min(x) >= 20),
]


def main() -> None:
    set_cpu_flags()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", help="only this environment")
    parser.add_argument("--algo", help="only this algorithm")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| environment | algorithm | preset | env steps | seeds | mean | IQM | min | max | target | held | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for env_id, algorithm, name, total, seeds, target, held in ROWS:
        if args.env_id not in (None, env_id) or args.algo not in (None, algorithm):
            continue
        algo = preset(env_id, algorithm, name).create(**({} if total is None else dict(total_timesteps=total)))
        algo = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, eval_freq=algo.hp.total_timesteps))
        start = time.perf_counter()
        keys = jax.random.split(jax.random.key(args.seed), seeds)
        ts, metrics = eqx.filter_vmap(lambda key: algo.train(key, skip_initial_evaluation=True))(keys)
        x = np.asarray(metrics.cumulative_reward[:, -1].mean(-1))
        seconds = time.perf_counter() - start
        figures = " | ".join(f"{v:.1f}" for v in (x.mean(), iqm(x), x.min(), x.max()))
        row = f"| {env_id} | {algorithm} | {name} | {algo.env_steps(ts):,} | {seeds} | {figures} | {target} | "
        print(row + f"{'yes' if held(x) else 'NO'} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
