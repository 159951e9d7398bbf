"""REPPO beside PPO at equal env steps, over seeds: the returns along the way, as a table and as curves.

    python benchmarks/reppo.py                             # Pendulum-v1, by the presets of both
    python benchmarks/reppo.py brax/inverted_pendulum      # needs pip install 'eqxrl[brax]'
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eqxrl import PPO, REPPO, Trainer, make, set_cpu_flags
from eqxrl.algorithms import PPOHParams, REPPOHParams, preset
from eqxrl.viz import plot_learning_curves

SIZES = dict(num_envs=16, num_steps=128, num_minibatches=16, num_epochs=8, total_timesteps=204_800, eval_freq=20_480, num_seeds_per_eval=16)
"""Of both, where there are no presets; what follows is tuned for neither."""


def algorithms(env_id: str) -> dict[str, Any]:
    if not env_id.startswith("brax/"):
        return {name: preset(env_id, name).create() for name in ("ppo", "reppo")}
    env, env_params = make(env_id)
    ppo = PPOHParams(
        **SIZES, learning_rate=1e-3, ent_coef=0.0, max_grad_norm=0.5, clip_value=False, normalize_observations=True, normalize_rewards=True
    )
    reppo = REPPOHParams(**SIZES, learning_rate=1e-3)
    return {"ppo": PPO.create(env=env, env_params=env_params, hp=ppo), "reppo": REPPO.create(env=env, env_params=env_params, hp=reppo)}


def main() -> None:
    set_cpu_flags()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id", nargs="?", default="Pendulum-v1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reppo.png"), help="the picture")
    args = parser.parse_args()
    curves = {}
    for name, algo in algorithms(args.env_id).items():
        start = time.perf_counter()
        _, metrics = Trainer().fit(algo, jax.random.split(jax.random.key(0), args.seeds))
        env_steps = np.concatenate([[0], np.cumsum(algo.chunks)]) * algo.iteration_size
        curves[name] = env_steps, np.asarray(metrics.cumulative_reward.mean(-1))
        if name == "ppo":
            print(f"| {args.env_id}, {args.seeds} seeds, env steps | {' | '.join(f'{x:,}' for x in env_steps)} | seconds |")
            print("|---" * (len(env_steps) + 2) + "|")
        means = " | ".join(f"{x:.1f}" for x in curves[name][1].mean(0))
        print(f"| {name} | {means} | {time.perf_counter() - start:.0f} |", flush=True)
    print(plot_learning_curves(curves, args.out, title=args.env_id))


if __name__ == "__main__":
    main()
