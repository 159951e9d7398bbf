"""PPO on an environment of brax beside brax's own PPO: env steps per second of training, without compilation.

    python benchmarks/brax_ppo.py                      # inverted_pendulum; needs pip install 'eqxrl[brax]'
    python benchmarks/brax_ppo.py halfcheetah

Both: 64 environments, 32 steps, 4 minibatches, 4 epochs, networks of 64 x 64 swish units, observations normalised. Three rounds of
brax's and ours in turn, of each three epochs of 10 iterations; medians of all nine.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from eqxrl import PPO, PPOHParams, make, set_cpu_flags
from eqxrl.algorithms import MakeNetwork

NUM_ENVS, NUM_STEPS, MINIBATCHES, EPOCHS, ITERATIONS, TIMED, ROUNDS = 64, 32, 4, 4, 10, 3, 3
STEPS = NUM_ENVS * NUM_STEPS * ITERATIONS
SIZES = (64, 64)


def brax_rates(name: str) -> list[float]:
    """Its `train` compiles in the first epoch, which isn't counted."""
    import brax.envs
    from brax.training.agents.ppo import networks, train

    rates: list[float] = []
    # brax 0.14.2 relies on it, and newer JAX has it no longer.
    jax.device_put_replicated = lambda tree, devices: jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)
    train.train(
        brax.envs.get_environment(name), num_timesteps=STEPS * (TIMED + 1), num_evals=TIMED + 2, num_eval_envs=1, episode_length=1000,
        num_envs=NUM_ENVS, unroll_length=NUM_STEPS, batch_size=NUM_ENVS // MINIBATCHES, num_minibatches=MINIBATCHES,
        num_updates_per_batch=EPOCHS, learning_rate=3e-4, discounting=0.99, normalize_observations=True,
        network_factory=partial(networks.make_ppo_networks, policy_hidden_layer_sizes=SIZES, value_hidden_layer_sizes=SIZES),
        progress_fn=lambda _, metrics: rates.extend([float(metrics["training/sps"])] if "training/sps" in metrics else []),
    )
    return rates[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="inverted_pendulum")
    name = parser.parse_args().name
    set_cpu_flags(num_devices=1)
    env, params = make(f"brax/{name}")
    hp = PPOHParams(
        num_envs=NUM_ENVS, num_steps=NUM_STEPS, num_minibatches=MINIBATCHES, num_epochs=EPOCHS, total_timesteps=STEPS, eval_freq=STEPS,
        normalize_observations=True,
    )
    network = MakeNetwork("mlp", dict(hidden_sizes=SIZES, activation="swish"))
    algo = PPO.create(env=env, env_params=params, hp=hp, actor_critic=network)
    iterate = jax.jit(lambda state: algo.iterations(state, ITERATIONS)[0])

    def seconds(state: Any) -> float:
        start = time.perf_counter()
        jax.block_until_ready(iterate(state))
        return time.perf_counter() - start

    state = algo.init_train_state(0)
    seconds(state)
    theirs, ours = [], []
    for _ in range(ROUNDS):
        theirs += brax_rates(name)
        ours += [STEPS / seconds(state) for _ in range(TIMED)]
    a, b = statistics.median(theirs), statistics.median(ours)
    print("| environment | brax's PPO | eqxrl | ratio |\n|---|---|---|---|")
    print(f"| brax/{name} | {a / 1000:.1f}k | {b / 1000:.1f}k | {b / a:.2f} |")


if __name__ == "__main__":
    main()
