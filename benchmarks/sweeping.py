"""What a second device is worth to a sweep: members times seeds on CartPole, on one device and on several, each time in a process of its
own, interleaved; medians of the seconds after compiling, and their ratio.

    python benchmarks/sweeping.py                            # 64 members, 4 seeds, one device and two
    python benchmarks/sweeping.py --kill                     # kill -9 in the middle, go on, equal to the undisturbed
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from eqxrl import PPO, PPOHParams, set_cpu_flags
from eqxrl.sweeps._members import stacked, varying, with_values
from eqxrl.training import Trainer


def one(args: argparse.Namespace) -> float:
    """Seconds of the second of two equal runs, the first of which compiles."""
    set_cpu_flags(args.devices)
    hp = PPOHParams(
        num_envs=8, num_steps=32, num_minibatches=4, num_epochs=4, total_timesteps=args.timesteps, eval_freq=args.timesteps,
        num_seeds_per_eval=16, max_grad_norm=0.5,
    )
    algo = PPO.create("CartPole-v1", hp=hp)
    rates = np.geomspace(1e-4, 1e-2, args.members)
    algos = [with_values(algo, {"learning_rate": float(x)}) for x in rates]
    many, axes = stacked(algos, varying(algos), np.repeat(np.arange(args.members), args.seeds).tolist())
    keys = jax.numpy.tile(jax.random.split(jax.random.key(0), args.seeds), args.members)
    for _ in range(2):
        start = time.perf_counter()
        state, _ = Trainer().fit(many, keys, axes=axes, skip_initial_evaluation=True)
        seconds = time.perf_counter() - start
    assert len(state.rng.devices()) == args.devices
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--timesteps", type=int, default=40_960, help="of each agent")
    parser.add_argument("--runs", type=int, default=5, help="of each kind")
    parser.add_argument("--devices", type=int, help="run once, on so many, and print the seconds")
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args()
    if args.kill:
        tests = Path(__file__).parents[1] / "tests" / "sweeps" / "test_sweep.py"
        sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-m", "slow", "-n", "0", f"{tests}::test_kill_9_in_the_middle"]))
    if args.devices:
        print(one(args))
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.runs):
        for devices, times in seconds.items():
            command = [sys.executable, __file__, "--devices", str(devices)]
            command += [f"--{name}={getattr(args, name)}" for name in ("members", "seeds", "timesteps")]
            env = {k: x for k, x in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
            times.append(float(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout))
    first, second = (statistics.median(x) for x in seconds.values())
    steps = args.members * args.seeds * args.timesteps
    print(f"{args.members} members, {args.seeds} seeds, {args.timesteps:,} env steps each; medians of {args.runs} interleaved runs")
    print("| devices | seconds | env steps/s |\n|---|---|---|")
    for devices, x in ((1, first), (2, second)):
        print(f"| {devices} | {x:.2f} | {steps / x:,.0f} |")
    print(f"two devices are {first / second:.2f} times as fast")


if __name__ == "__main__":
    main()
