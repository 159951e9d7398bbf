"""eqxrl's PPO beside its peers: the same configurations and networks in the same process, in turn, medians; networks have two layers of 64
each. rejax is among the test extra; PureJaxRL has no package, so clone it and say where it is.

    python benchmarks/peers.py                                 # rejax alone
    python benchmarks/peers.py --purejaxrl path/to/purejaxrl   # both
    python benchmarks/peers.py "4 x 128" --runs 15             # one configuration
    python benchmarks/peers.py --gpu                           # configurations for a GPU
    python benchmarks/peers.py --gpu --fraction 0.01           # the same, with a hundredth of the seeds, environments and iterations

Env steps per second, without compilation; seconds to trace and compile; and eqxrl's against the fastest peer's. `peak` is the share of the
arithmetic that the machine has been seen to do, in a product of large matrices on as many devices, which eqxrl's networks use. Where there
are two cores, seeds of eqxrl are sharded over both, and rows that say so have one agent on both (`num_devices=2`), beside the same runs of
the peers as the row above; peers know no such thing.
"""

import argparse
import dataclasses
import gc
import itertools
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from eqxrl import PPO, MLPActorCritic, PPOHParams, set_cpu_flags

set_cpu_flags(num_devices=min(2, os.cpu_count() or 1))  # before gymnax, which starts the backend on import

import equinox as eqx  # noqa: E402
import gymnax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

SIZE, GAMMA, GAE_LAMBDA, CLIP, ENT, VF, NORM, RATE = 64, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5, 2.5e-4


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    env_id: str
    num_envs: int
    num_steps: int
    num_minibatches: int
    num_epochs: int
    iterations: int
    """About a second of them."""
    seeds: int | None = None
    divided: bool = False
    """Also with one agent on two devices."""

    @property
    def env_steps(self) -> int:
        return self.num_envs * self.num_steps * self.iterations * (self.seeds or 1)


CASES = [
    Case("4 x 128", "CartPole-v1", 4, 128, 4, 4, 300),
    Case("8 x 32, 20 epochs", "CartPole-v1", 8, 32, 1, 20, 150),
    Case("64 x 64", "CartPole-v1", 64, 64, 4, 4, 60, divided=True),
    Case("2048 x 16", "CartPole-v1", 2048, 16, 4, 4, 8, divided=True),
    Case("Pendulum 16 x 256", "Pendulum-v1", 16, 256, 32, 10, 15),
    Case("Breakout 64 x 128", "Breakout-MinAtar", 64, 128, 8, 4, 10, divided=True),
    Case("16 seeds of 4 x 128", "CartPole-v1", 4, 128, 4, 4, 30, 16),
    Case("8 seeds of 8 x 32", "CartPole-v1", 8, 32, 1, 20, 30, 8),
]


GPU_CASES = [
    Case("2048 agents, 5e5 steps", "CartPole-v1", 4, 128, 4, 4, 977, 2048),
    Case("4096 x 128", "CartPole-v1", 4096, 128, 4, 4, 20),
    Case("Breakout 64 x 128, 1e7 steps", "Breakout-MinAtar", 64, 128, 8, 4, 1221),
]


def smaller(case: Case, fraction: float) -> Case:
    """Of a GPU's: enough to see that it runs."""
    few = lambda n: max(2, round(n * fraction))  # noqa: E731
    seeds = case.seeds and few(case.seeds)
    return dataclasses.replace(case, seeds=seeds, num_envs=max(4, round(case.num_envs * fraction)), iterations=few(case.iterations))


class FiveValues:
    """A gymnax 1.x environment with the step of gymnax 0.x, as both peers unpack it."""

    def __init__(self, env: Any):
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def __deepcopy__(self, memo: Any) -> "FiveValues":
        return self

    def step(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        action = jnp.asarray(action, self.env.action_space(params).dtype)
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, jnp.asarray(reward, jnp.float32), terminated | truncated, info


Train = Callable[[Any], Any]
"""From a key to whatever a whole run gives."""


def eqxrl_ppo(case: Case, num_devices: int = 1) -> PPO:
    hp = PPOHParams(
        num_envs=case.num_envs, num_steps=case.num_steps, num_minibatches=case.num_minibatches, num_epochs=case.num_epochs,
        gamma=GAMMA, gae_lambda=GAE_LAMBDA, clip_eps=CLIP, ent_coef=ENT, vf_coef=VF, max_grad_norm=NORM, learning_rate=RATE,
        num_devices=num_devices,
    )
    return PPO.create(case.env_id, hp=hp, actor_critic=MLPActorCritic)  # for images, too, as the peers' are


def eqxrl_train(case: Case, num_devices: int = 1) -> Train:
    ppo = eqxrl_ppo(case, num_devices)

    def train(key: Any) -> Any:
        ts, metrics = ppo.iterations(ppo.init_train_state(key), case.iterations)
        return eqx.filter(ts, eqx.is_array), metrics

    return train


def rejax_train(case: Case) -> Train:
    import rejax

    env, env_params = gymnax.make(case.env_id)
    algo = rejax.PPO.create(
        env=FiveValues(env), env_params=env_params, agent_kwargs=dict(activation="tanh", hidden_layer_sizes=(SIZE, SIZE)),
        num_envs=case.num_envs, num_steps=case.num_steps, num_minibatches=case.num_minibatches, num_epochs=case.num_epochs,
        gamma=GAMMA, gae_lambda=GAE_LAMBDA, clip_eps=CLIP, ent_coef=ENT, vf_coef=VF, max_grad_norm=NORM, learning_rate=RATE,
    )
    return lambda key: jax.lax.fori_loop(0, case.iterations, lambda _, ts: algo.train_iteration(ts), algo.init_state(key))


def purejaxrl_train(folder: Path, case: Case) -> Train:
    """From its file, as it is; Pendulum is not for it: `ppo.py` has discrete actions only."""
    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):  # imported there, not used here
        sys.modules.setdefault(name, mock.MagicMock())
    folder = folder / "purejaxrl" if (folder / "purejaxrl").is_dir() else folder
    sys.path.insert(0, str(folder))
    module = types.ModuleType("purejaxrl_ppo")
    exec(compile((folder / "ppo.py").read_text(), str(folder / "ppo.py"), "exec"), module.__dict__)
    make = gymnax.make
    with mock.patch.object(gymnax, "make", lambda name: (FiveValues(make(name)[0]), make(name)[1])):
        return module.make_train({
            "LR": RATE, "NUM_ENVS": case.num_envs, "NUM_STEPS": case.num_steps, "UPDATE_EPOCHS": case.num_epochs,
            "NUM_MINIBATCHES": case.num_minibatches, "TOTAL_TIMESTEPS": case.num_envs * case.num_steps * case.iterations, "GAMMA": GAMMA,
            "GAE_LAMBDA": GAE_LAMBDA, "CLIP_EPS": CLIP, "ENT_COEF": ENT, "VF_COEF": VF, "MAX_GRAD_NORM": NORM, "ACTIVATION": "tanh",
            "ENV_NAME": case.env_id, "ANNEAL_LR": False,
        })


def flops(case: Case) -> float:
    """Additions and multiplications in the products of both networks: one pass for each env step, three for each sample of an epoch."""
    env, params = gymnax.make(case.env_id)
    observed, space = env.observation_space(params).shape, env.action_space(params)
    out = getattr(space, "n", None) or space.shape[0]
    weights = sum(a * b for size in (out, 1) for a, b in ((int(jnp.prod(jnp.array(observed))), SIZE), (SIZE, SIZE), (SIZE, size)))
    return 2.0 * weights * case.env_steps * (1 + 3 * case.num_epochs)


def peak() -> float:
    """Operations per second of one device: the best of several products of matrices of 1,024."""
    x = jnp.ones((1024, 1024))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()

    def once() -> float:
        start = time.perf_counter()
        product(x).block_until_ready()
        return time.perf_counter() - start

    return 2 * 1024**3 / min(once() for _ in range(10))


def compiler(train: Train, case: Any, sharded: bool) -> Callable[[], tuple[Callable[[], None], float]]:
    """Each call traces and compiles it anew: a run, with new keys at each call, and the seconds that it took."""
    count = itertools.count()
    mesh, seeds = jax.make_mesh((len(jax.devices()),), ("seeds",)), jax.sharding.PartitionSpec("seeds")

    def keys() -> Any:
        key = jax.random.key(next(count))
        if case.seeds is None:
            return key
        keys = jax.random.split(key, case.seeds)
        if not sharded:
            return keys
        return jax.device_put(keys, jax.sharding.NamedSharding(mesh, seeds))

    if case.seeds is not None:
        train = jax.vmap(train)
        if sharded:  # each device its share by itself: partitioned by the compiler, loops would wait for one another
            train = jax.shard_map(train, mesh=mesh, in_specs=(seeds,), out_specs=seeds, check_vma=False)
    first = keys()

    def compiled() -> tuple[Callable[[], None], float]:
        jax.clear_caches()
        gc.collect()
        gc.disable()  # as `timeit` does: what it takes depends on all that lies in memory, also of the other libraries
        try:
            start = time.perf_counter()
            program = jax.jit(train).lower(first).compile()
            seconds = time.perf_counter() - start
        finally:
            gc.enable()
        return lambda: jax.block_until_ready(program(keys())), seconds

    return compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="only configurations whose name begins like this")
    parser.add_argument("--purejaxrl", type=Path, help="a clone of it")
    parser.add_argument("--runs", type=int, default=7, help="of each, and compilations, after one that warms up")
    parser.add_argument("--gpu", action="store_true", help="the configurations for a GPU")
    parser.add_argument("--fraction", type=float, default=1.0, help="of a GPU's configurations")
    args = parser.parse_args()
    fastest = peak()
    print(f"{args.runs} runs of each, in turn; {len(jax.devices())} devices of {fastest / 1e9:.0f} GFLOP/s\n")
    print("| env steps/s | rejax | PureJaxRL | eqxrl | ratio | peak | compile: rejax | PureJaxRL | eqxrl | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in [smaller(case, args.fraction) for case in GPU_CASES] if args.gpu else CASES:
        if args.case is None or case.name.startswith(args.case):
            print(rows(case, args, fastest), flush=True)


def measured(trains: dict[str, Train], case: Any, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Of each, by its name: the medians of the seconds that a run takes, and that tracing and compiling take, all of them in turn after one
    that warms up. `case.seeds` says how many are trained at once."""
    compilers = {name: compiler(train, case, sharded=name == "eqxrl") for name, train in trains.items()}
    programs: dict[str, Callable[[], None]] = {}
    compiling: dict[str, list[float]] = {name: [] for name in trains}
    for i in range(runs + 1):
        for name, compiled in compilers.items():
            programs[name], took = compiled()
            if i > 0:
                compiling[name].append(took)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(runs + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in seconds.items()}, {name: statistics.median(x) for name, x in compiling.items()}


def rows(case: Case, args: argparse.Namespace, fastest: float) -> str:
    trains: dict[str, Train] = {"rejax": rejax_train(case)}
    # PureJaxRL's vmapped initialisation waits for itself in XLA's pool of threads on CPU (a batched QR), so it has no seeds there.
    if args.purejaxrl and "Pendulum" not in case.env_id and (case.seeds is None or jax.default_backend() != "cpu"):
        trains["PureJaxRL"] = purejaxrl_train(args.purejaxrl, case)
    peers, ours = list(trains), {"eqxrl": (case.name, 1 if case.seeds is None else len(jax.devices()))}
    trains["eqxrl"] = eqxrl_train(case)
    if case.divided and len(jax.devices()) > 1:
        trains["divided"], ours["divided"] = eqxrl_train(case, 2), (f"{case.name}, 2 devices", 2)
    seconds, compiling = measured(trains, case, args.runs)
    return "\n".join(row(title, name, peers, case, seconds, compiling, fastest * devices) for name, (title, devices) in ours.items())


def row(
    title: str, name: str, peers: list[str], case: Case, seconds: dict[str, float], compiling: dict[str, float], fastest: float
) -> str:
    speed, shown = {x: case.env_steps / took for x, took in seconds.items()}, ("rejax", "PureJaxRL", name)
    share = flops(case) / case.env_steps * speed[name] / fastest
    speeds = [f"{speed[x] / 1e3:.0f}k" if x in speed else "" for x in shown]
    compiles = [f"{compiling[x]:.1f}" if x in compiling else "" for x in shown]
    faster, slower = speed[name] / max(speed[x] for x in peers), compiling[name] / min(compiling[x] for x in peers)
    return f"| {title} | {' | '.join(speeds)} | {faster:.2f} | {share:.0%} | {' | '.join(compiles)} | {slower:.2f} |"


if __name__ == "__main__":
    main()
