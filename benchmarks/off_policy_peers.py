"""Env steps per second of DQN and SAC beside rejax's, at the same configuration: runs and compilations in one
process, in turn, and medians of them.

    python benchmarks/off_policy_peers.py
"""

import argparse
import dataclasses
from typing import Any

import equinox as eqx
import jax
from peers import FiveValues, Train, measured

from eqxrl import DQN, SAC
from eqxrl.algorithms import DQNHParams, MakeNetwork, SACHParams


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    env_id: str
    num_envs: int
    batch_size: int
    buffer_size: int
    iterations: int
    """Each is a step of all environments and a gradient update; about a second of them."""
    learning_starts: int = 1_000
    """Env steps."""
    seeds: int | None = None

    @property
    def env_steps(self) -> int:
        return self.num_envs * self.iterations * (self.seeds or 1)


CASES = [
    Case("DQN", "CartPole-v1", 1, 64, 10_000, 5_000),
    Case("DQN, 8 environments", "CartPole-v1", 8, 64, 10_000, 4_000),
    Case("DQN, 8 seeds", "CartPole-v1", 1, 64, 10_000, 2_000, 1_000, 8),
    Case("SAC", "Pendulum-v1", 1, 256, 10_000, 3_000),
    Case("SAC, 8 environments", "Pendulum-v1", 8, 256, 10_000, 3_000),
    Case("SAC, 8 seeds", "Pendulum-v1", 1, 256, 10_000, 1_500, 1_000, 8),
]
SIZES = (64, 64)
TARGET = 500
"""Iterations between copies of the network, for DQN."""


def shared(case: Case) -> dict[str, Any]:
    return dict(num_envs=case.num_envs, batch_size=case.batch_size, buffer_size=case.buffer_size, gamma=0.99)


def eqxrl_train(case: Case) -> Train:
    steps = case.num_envs * case.iterations
    iteration = dict(num_steps=1, updates_per_iteration=1, learning_starts=case.learning_starts, total_timesteps=steps)
    algo: Any
    if case.env_id == "CartPole-v1":
        hp = DQNHParams(**shared(case), **iteration, target_update_freq=TARGET, max_grad_norm=float("inf"))
        algo = DQN.create(case.env_id, hp=hp, q_network=MakeNetwork("q", dict(hidden_sizes=SIZES, activation="swish")))
    else:
        networks = {part: MakeNetwork(kind, dict(hidden_sizes=SIZES)) for part, kind in (("actor", "actor"), ("critic", "action_value"))}
        algo = SAC.create(case.env_id, hp=SACHParams(**shared(case), **iteration, tau=0.005), **networks)

    def train(key: Any) -> Any:
        ts, metrics = algo.iterations(algo.init_train_state(key), case.iterations)
        return eqx.filter(ts, eqx.is_array), metrics

    return train


def rejax_train(case: Case) -> Train:
    import gymnax  # which starts the backend, so after `peers` has made cores devices
    import rejax

    env, env_params = gymnax.make(case.env_id)
    same = dict(
        env=FiveValues(env), env_params=env_params, **shared(case), fill_buffer=case.learning_starts, num_epochs=1,
        total_timesteps=case.num_envs * case.iterations,
    )
    if case.env_id == "CartPole-v1":
        rate = DQNHParams().learning_rate
        algo: Any = rejax.DQN.create(**same, learning_rate=rate, target_update_freq=case.num_envs * TARGET, polyak=0.0)
    else:
        algo = rejax.SAC.create(**same, learning_rate=SACHParams().learning_rate, polyak=0.995, hidden_layer_sizes=SIZES)
    return lambda key: jax.lax.fori_loop(0, case.iterations, lambda _, ts: algo.train_iteration(ts), algo.init_state(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="only configurations whose name begins like this")
    parser.add_argument("--runs", type=int, default=7, help="of each, and compilations, after one that warms up")
    args = parser.parse_args()
    print("| env steps/s | rejax | eqxrl | ratio | compile: rejax | eqxrl | ratio |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        if args.case is None or case.name.startswith(args.case):
            seconds, compiling = measured({"rejax": rejax_train(case), "eqxrl": eqxrl_train(case)}, case, args.runs)
            speeds = " | ".join(f"{case.env_steps / seconds[name] / 1e3:.1f}k" for name in ("rejax", "eqxrl"))
            compiles = " | ".join(f"{compiling[name]:.1f}" for name in ("rejax", "eqxrl"))
            faster, slower = seconds["rejax"] / seconds["eqxrl"], compiling["eqxrl"] / compiling["rejax"]
            print(f"| {case.name} | {speeds} | {faster:.2f} | {compiles} | {slower:.2f} |", flush=True)


if __name__ == "__main__":
    main()
