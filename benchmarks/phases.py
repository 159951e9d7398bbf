"""Where the time of a PPO iteration goes: collecting, advantages, each part of a minibatch; beside each what it can't do without, and how
many instructions XLA runs in the body of each loop.

    python benchmarks/phases.py                # every configuration of peers.py
    python benchmarks/phases.py "4 x 128"
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from hlo import instructions
from peers import CASES, Case, eqxrl_ppo

from eqxrl.learners import flatten, gradient_update
from eqxrl.learners._base import take
from eqxrl.nn import trainable


def timed(f: Callable, *args: Any, runs: int = 21) -> float:
    """Microseconds of a call, median."""
    f = eqx.filter_jit(f)
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def repeated(f: Callable, n: int = 50) -> Callable:
    """`f` `n` times in one program, each time of what it gave before, so that what a call costs outside doesn't count."""
    return lambda x, *args: jax.lax.fori_loop(0, n, lambda _, x: f(x, *args), x)


def text_of(f: Callable, *args: Any) -> str:
    """The compiled program."""
    arrays, static = eqx.partition(args, eqx.is_array)
    return jax.jit(lambda arrays: eqx.filter(f(*eqx.combine(arrays, static)), eqx.is_array)).lower(arrays).compile().as_text()


def profile(case: Case) -> None:
    ppo = eqxrl_ppo(case)
    ts = eqx.filter_jit(lambda ppo: ppo.init_train_state(0))(ppo)
    ts, rollout = eqx.filter_jit(lambda ppo, ts: ppo.get_batch(ts, 0))(ppo, ts)
    estimate = eqx.filter_jit(lambda ppo, ts, rollout: ppo.estimate_advantages(ts, rollout))(ppo, ts, rollout)
    updates = case.num_epochs * case.num_minibatches
    samples, size = flatten(estimate), case.num_envs * case.num_steps // case.num_minibatches
    minibatch = take(samples, jnp.arange(size))
    params, static = eqx.partition(ts.agent, trainable(ts.agent))
    loss, optimizer = ppo.loss, ppo.optimizer

    def act(obs: Any, agent: Any) -> Any:
        """Only the two networks."""
        distribution, value, _ = jax.vmap(lambda obs: agent(obs, ()))(obs)
        return obs + 0 * (value.sum() + sum(x.sum() for x in jax.tree.leaves(distribution)))

    def gradients(params: Any, minibatch: Any) -> Any:
        grads = jax.grad(lambda p: loss(eqx.combine(p, static), minibatch)[0])(params)
        return jax.tree.map(lambda p, g: p - 1e-9 * g, params, grads)

    def optimize(carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(lambda x: 1e-3 * x, params), state, params)
        return optax.apply_updates(params, updates), state

    def update(carry: Any, minibatch: Any) -> Any:
        agent, state = carry
        agent, state, _ = gradient_update(loss, optimizer, eqx.combine(agent, static), state, minibatch)
        return eqx.filter(agent, trainable(agent)), state

    def gather(indices: Any, samples: Any) -> Any:
        taken = take(samples, indices)
        total = sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(taken))
        return (indices + (total > 1e30)) % samples.advantages.shape[0]

    collecting = timed(lambda ppo, ts: ppo.get_batch(ts, 0), ppo, ts)
    learning = timed(lambda ppo, ts, x: ppo.learner(ts.agent, ts.learner_state, x, ts.rng), ppo, ts, estimate)
    networks = timed(repeated(act, case.num_steps), ts.data_collection_state.last_obs, ts.agent)
    rows = [
        ("iteration", timed(lambda ppo, ts: ppo.iteration(ts, 0), ppo, ts), 1),
        ("collect", collecting, 1),
        ("  a step", collecting / case.num_steps, case.num_steps),
        ("  its networks", networks / case.num_steps, case.num_steps),
        ("advantages", timed(lambda ppo, ts, x: ppo.estimate_advantages(ts, x), ppo, ts, rollout), 1),
        ("learn", learning, 1),
        ("  a minibatch", learning / updates, updates),
        ("  taking it", timed(repeated(gather), jnp.arange(size), samples) / 50, updates),
        ("  one update", timed(repeated(update), (params, ts.learner_state), minibatch) / 50, updates),
        ("  its gradients", timed(repeated(gradients), params, minibatch) / 50, updates),
        ("  its optimiser", timed(repeated(optimize), (params, ts.learner_state.opt_state)) / 50, updates),
    ]
    print(f"\n{case.name}\n| | µs | times | ms an iteration |\n|---|---|---|---|")
    for name, microseconds, times in rows:
        print(f"| {name} | {microseconds:.1f} | {times} | {microseconds * times / 1e3:.2f} |")
    print("\n| loop | instructions in its body |\n|---|---|")
    for name, count in instructions(text_of(lambda ppo, ts: ppo.iteration(ts, 0), ppo, ts)):
        print(f"| {name.removeprefix('jit(<lambda>)/')} | {count} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="only configurations whose name begins like this")
    args = parser.parse_args()
    for case in CASES:
        if case.seeds is None and (args.case is None or case.name.startswith(args.case)):
            profile(case)


if __name__ == "__main__":
    main()
