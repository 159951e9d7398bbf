"""What the trainer costs: `Trainer.fit` against `algo.train`, in interleaved runs of the same job; medians, and their ratio.

    python benchmarks/trainer_overhead.py               # should be below 1.03, and 1.05 with progress bar and JSONL logger
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from eqxrl import PPO, PPOHParams, set_cpu_flags
from eqxrl.training import JSONLLogger, ProgressBar, Trainer

ITERATIONS_PER_EVALUATION = 20


def main() -> None:
    set_cpu_flags()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="of each kind, after one that compiles")
    parser.add_argument("--evaluations", type=int, default=5, help="in each run")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=64)
    args = parser.parse_args()
    chunk = ITERATIONS_PER_EVALUATION * args.num_envs * args.num_steps
    hp = PPOHParams(
        num_envs=args.num_envs,
        num_steps=args.num_steps,
        num_epochs=4,
        num_minibatches=4,
        num_seeds_per_eval=16,
        eval_freq=chunk,
        total_timesteps=args.evaluations * chunk,
    )
    algo, key = PPO.create("CartPole-v1", hp=hp), jax.random.key(0)
    folder = Path(tempfile.mkdtemp())

    def watched(i: int) -> object:
        console = Console(file=io.StringIO(), force_terminal=True)
        return Trainer([ProgressBar(console)], [JSONLLogger(folder / f"{i}.jsonl")]).fit(algo, key)

    kinds: dict[str, Callable[[int], object]] = {
        "train": lambda i: algo.train(key),
        "fit": lambda i: Trainer().fit(algo, key),
        "fit, progress bar and JSONL": watched,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(args.runs + 1):
        for kind, run in kinds.items():
            start = time.perf_counter()
            jax.block_until_ready([x for x in jax.tree.leaves(run(i)) if isinstance(x, jax.Array)])
            if i > 0:  # the first one compiles
                seconds[kind].append(time.perf_counter() - start)
    reference = statistics.median(seconds["train"])
    print(f"{args.runs} runs of {hp.total_timesteps} env steps, an evaluation every {ITERATIONS_PER_EVALUATION} iterations")
    print("| | median seconds | ratio |\n|---|---|---|")
    for kind, times in seconds.items():
        print(f"| {kind} | {statistics.median(times):.3f} | {statistics.median(times) / reference:.3f} |")


if __name__ == "__main__":
    main()
