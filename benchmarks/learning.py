"""Trains each preset over many seeds at once, spread over the devices, and prints what its final policies are worth: deterministic
evaluation, 128 episodes per seed, at real environment steps.

    python benchmarks/learning.py                       # every row of the table
    python benchmarks/learning.py CartPole-v1           # one environment
    python benchmarks/learning.py CartPole-v1 --algo dqn
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from eqxrl import Trainer, set_cpu_flags
from eqxrl.algorithms import AbstractAlgorithm, preset
from eqxrl.envs import known_suites
from eqxrl.viz import iqm

# environment, algorithm, preset, total env steps (None: the preset's), seeds, target in words, target as a test of the seeds' means
ROWS = [
    ("CartPole-v1", "ppo", "zoo", None, 20, "IQM 500.0, 19 of 20 >= 475", lambda x: iqm(x) >= 499.95 and sum(x >= 475) >= 19),
    ("CartPole-v1", "ppo", "zoo", 149_760, 20, "every seed >= 475", lambda x: min(x) >= 475),
    ("CartPole-v1", "a2c", "zoo", None, 20, "IQM >= 475", lambda x: iqm(x) >= 475),
    ("CartPole-v1", "pqn", "tuned", None, 20, ">= 475 in 19 of 20", lambda x: sum(x >= 475) >= 19),
    ("CartPole-v1", "dqn", "zoo", None, 20, "500.0 in 18 of 20", lambda x: sum(x >= 499.95) >= 18),
    ("CartPole-v1", "dqn", "qr", None, 10, ">= 475 in 9 of 10", lambda x: sum(x >= 475) >= 9),
    ("CartPole-v1", "dqn", "rainbow", None, 10, ">= 475 in 9 of 10", lambda x: sum(x >= 475) >= 9),
    ("MountainCar-v0", "dqn", "zoo", None, 10, "mean >= -115", lambda x: x.mean() >= -115),
    ("Acrobot-v1", "dqn", "zoo", None, 10, "mean >= -85", lambda x: x.mean() >= -85),
    ("Acrobot-v1", "dqn", "qr", None, 10, "mean >= -80", lambda x: x.mean() >= -80),
    ("envpool/CartPole-v1", "ppo", "zoo", None, 4, "every seed >= 475", lambda x: min(x) >= 475),
    ("gymnasium/CartPole-v1", "ppo", "zoo", None, 4, "every seed >= 475", lambda x: min(x) >= 475),
    ("navix/Navix-Empty-8x8-v0", "ppo", "tuned", None, 5, "every seed >= 0.9", lambda x: min(x) >= 0.9),
    ("navix/Navix-DoorKey-5x5-v0", "ppo", "tuned", None, 5, "mean >= 0.9", lambda x: x.mean() >= 0.9),
    ("pgx/tic_tac_toe", "ppo", "tuned", None, 5, "mean >= 0.8", lambda x: x.mean() >= 0.8),
    ("jumanji/Game2048-v1", "ppo", "tuned", None, 3, "every seed >= 3195, 3 times random", lambda x: min(x) >= 3195),
    ("brax/inverted_pendulum", "ppo", "tuned", None, 5, "every seed >= 950", lambda x: min(x) >= 950),
    ("brax/fast", "ppo", "tuned", None, 5, "every seed >= 63,500, 0.95 of the most", lambda x: min(x) >= 63_500),
    ("craftax/Craftax-Classic-Symbolic-v1", "ppo", "tuned", None, 2, "every seed >= 1.76, 8 % of the most", lambda x: min(x) >= 1.76),
    ("craftax/Craftax-Symbolic-v1", "ppo", "tuned", None, 2, "every seed >= 3.3, 3 times random", lambda x: min(x) >= 3.3),
    ("playground/CartpoleBalance", "ppo", "tuned", None, 5, "every seed >= 900", lambda x: min(x) >= 900),
    ("playground/CartpoleSwingup", "ppo", "tuned", None, 5, "mean >= 500, untrained 0", lambda x: x.mean() >= 500),
    ("envpool/LunarLander-v3", "ppo", "zoo", None, 2, "every seed >= 200", lambda x: min(x) >= 200),
    ("gymnasium/InvertedPendulum-v5", "ppo", "tuned", None, 3, "every seed >= 950", lambda x: min(x) >= 950),
    ("jumanji/Tetris-v0", "ppo", "tuned", None, 3, "every seed >= 44, 10 times random", lambda x: min(x) >= 44),
    ("pgx/connect_four", "ppo", "tuned", None, 5, "mean >= 0.8", lambda x: x.mean() >= 0.8),
    ("xminigrid/MiniGrid-Empty-8x8", "ppo", "tuned", None, 5, "every seed >= 0.9", lambda x: min(x) >= 0.9),
    ("xminigrid/MiniGrid-DoorKey-5x5", "ppo", "tuned", None, 5, "every seed >= 0.9", lambda x: min(x) >= 0.9),
    ("jaxmarl/MPE_simple_spread_v3", "ppo", "tuned", None, 5, "every seed >= -21, random -27.7", lambda x: min(x) >= -21),
    ("jaxmarl/MPE_simple_speaker_listener_v4", "ppo", "tuned", None, 5, "every seed >= -18, random -42.3", lambda x: min(x) >= -18),
    ("CartPoleNoVel-v1", "ppo", "lstm", None, 10, ">= 475 in 9 of 10", lambda x: sum(x >= 475) >= 9),
    ("CartPoleNoVel-v1", "ppo", "gru", None, 10, ">= 475 in 9 of 10", lambda x: sum(x >= 475) >= 9),
    ("CartPoleNoVel-v1", "ppo", "mlp", None, 10, "each < 150", lambda x: max(x) < 150),
    ("PendulumNoVel-v1", "ppo", "gru", None, 10, "mean >= -250", lambda x: x.mean() >= -250),
    ("MountainCarContinuousNoVel-v0", "ppo", "gru", None, 10, ">= 90 in 8 of 10", lambda x: sum(x >= 90) >= 8),
    ("Acrobot-v1", "ppo", "zoo", None, 20, "mean >= -85", lambda x: x.mean() >= -85),
    ("Acrobot-v1", "pqn", "tuned", None, 10, "mean >= -95", lambda x: x.mean() >= -95),
    ("Pendulum-v1", "ppo", "tuned", None, 20, "mean >= -175", lambda x: x.mean() >= -175),
    ("Pendulum-v1", "sac", "zoo", None, 10, "mean >= -175", lambda x: x.mean() >= -175),
    ("Pendulum-v1", "sac", "tqc", None, 10, "mean >= -170", lambda x: x.mean() >= -170),
    ("Pendulum-v1", "sac", "simba", None, 10, "mean >= -175", lambda x: x.mean() >= -175),
    ("Pendulum-v1", "sac", "crossq", None, 10, "mean >= -175", lambda x: x.mean() >= -175),
    ("Pendulum-v1", "td3", "zoo", None, 10, "mean >= -170", lambda x: x.mean() >= -170),
    ("Pendulum-v1", "td3", "fast", None, 10, "mean >= -170", lambda x: x.mean() >= -170),
    ("CartPole-v1", "sac", "rejax", None, 10, ">= 475 in 8 of 10", lambda x: sum(x >= 475) >= 8),
    ("MountainCarContinuous-v0", "sac", "zoo", None, 10, ">= 90 in 9 of 10", lambda x: sum(x >= 90) >= 9),
    ("Pendulum-v1", "reppo", "tuned", None, 20, "mean >= -175", lambda x: x.mean() >= -175),
    ("MountainCarContinuous-v0", "ppo", "tuned", None, 20, ">= 92 in 19 of 20", lambda x: sum(x >= 92) >= 19),
    ("Breakout-MinAtar", "ppo", "purejaxrl", None, 8, "mean >= 35, each >= 20", lambda x: x.mean() >= 35 and min(x) >= 20),
    ("Breakout-MinAtar", "dqn", "tuned", None, 2, "mean >= 25", lambda x: x.mean() >= 25),
    ("Breakout-MinAtar", "pqn", "purejaxql", None, 8, "mean >= 30", lambda x: x.mean() >= 30),
    ("Breakout-MinAtar", "ppo", "cnn", None, 8, "mean > 37, each >= 25", lambda x: x.mean() > 37 and min(x) >= 25),
]


def judge(algo: AbstractAlgorithm, seeds: int, seed: int = 0) -> tuple[np.ndarray, int, float]:
    """Trains: the mean return of each seed's final policy `[seeds]`, the env steps of each, and the seconds it took."""
    algo = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, eval_freq=algo.hp.total_timesteps))
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), seeds)
    ts, metrics = Trainer().fit(algo, keys, skip_initial_evaluation=True)
    worth = np.asarray(metrics.cumulative_reward[:, -1].mean(-1))
    return worth, int(algo.env_steps(ts)), time.perf_counter() - start


def main() -> None:
    set_cpu_flags()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", help="only this environment")
    parser.add_argument("--algo", help="only this algorithm")
    parser.add_argument("--preset", help="only this preset")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| environment | algorithm | preset | env steps | seeds | mean | IQM | min | max | target | held | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for env_id, algorithm, name, total, seeds, target, held in ROWS:
        wanted = zip((args.env_id, args.algo, args.preset), (env_id, algorithm, name))
        if any(x not in (None, there) for x, there in wanted):
            continue
        if missing := known_suites().get(env_id.partition("/")[0]):
            print(f"| {env_id} | {algorithm} | {name} | needs {missing} |", flush=True)
            continue
        algo = preset(env_id, algorithm, name).create(**({} if total is None else dict(total_timesteps=total)))
        x, steps, seconds = judge(algo, seeds, args.seed)
        figures = " | ".join(f"{v:.{1 if abs(v) >= 10 else 3}f}" for v in (x.mean(), iqm(x), x.min(), x.max()))
        row = f"| {env_id} | {algorithm} | {name} | {steps:,} | {seeds} | {figures} | {target} | "
        print(row + f"{'yes' if held(x) else 'NO'} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
