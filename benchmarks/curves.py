"""Learning curves of the presets outside gymnax: ten evaluations on the way, of each seed. What is measured is kept in curves.json
beside this file, so that suites which can't be installed together share the picture, curves.png.

    python benchmarks/curves.py                     # all that are installed
    python benchmarks/curves.py brax navix          # two suites
    python benchmarks/curves.py --draw              # only the picture, of what is kept
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from learning import ROWS

from eqxrl import Trainer, set_cpu_flags
from eqxrl.algorithms import preset
from eqxrl.envs import known_suites

KEPT = Path(__file__).with_suffix(".json")
COLUMNS = 4


def measure(env_id: str, algorithm: str, name: str, seeds: int) -> dict[str, Any]:
    tuned = preset(env_id, algorithm, name)
    algo = tuned.create(eval_freq=tuned.hp["total_timesteps"] // 10)
    _, metrics = Trainer().fit(algo, jax.random.split(jax.random.key(0), seeds))
    env_steps = np.concatenate([[0], np.cumsum(algo.chunks)]) * algo.iteration_size
    returns = np.asarray(metrics.cumulative_reward, np.float64).mean(-1)
    return {"env_steps": env_steps.tolist(), "returns": returns.round(3).tolist()}


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.3 * rows), dpi=80, layout="tight")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes[len(curves) :]:
        ax.remove()
    for ax, (env_id, curve) in zip(axes, sorted(curves.items())):
        returns = np.asarray(curve["returns"])
        ax.plot(curve["env_steps"], returns.T, color="#0072B2", linewidth=0.8, alpha=0.5)
        ax.plot(curve["env_steps"], returns.mean(0), color="#0072B2", linewidth=2)
        ax.set_title(f"{env_id}, {len(returns)} seeds", fontsize=8, loc="left")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="only these")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    set_cpu_flags()
    for env_id, algorithm, name, _, seeds, *_ in [] if args.draw else ROWS:
        suite = env_id.partition("/")[0]
        if "/" not in env_id or (args.suites and suite not in args.suites):
            continue
        if missing := known_suites().get(suite):
            print(f"{env_id} needs {missing}", flush=True)
            continue
        curve = measure(env_id, algorithm, name, seeds)
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps(dict(sorted({**kept, env_id: curve}.items()))).replace('}, "', '},\n "') + "\n")
        print(env_id, *np.mean(curve["returns"], axis=0).round(2), flush=True)
    draw(json.loads(KEPT.read_text()), KEPT.with_suffix(".png"))


if __name__ == "__main__":
    main()
