"""What it costs that PPO is made of parts: the assembled one beside a twin that is written out by hand in one piece, without a class, a
check or a seam, and gives the same parameters. Medians of interleaved runs.

    python benchmarks/twin.py                   # the configurations of peers.py with CartPole
    python benchmarks/twin.py "4 x 128"
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hlo import instructions
from peers import CASES, CLIP, ENT, GAE_LAMBDA, GAMMA, NORM, RATE, SIZE, VF, Case, eqxrl_train

from eqxrl import make, set_cpu_flags
from eqxrl._threefry import unrolled
from eqxrl.learners import swap_or_not


class State(NamedTuple):
    params: Any
    """Weights `[out in]` and biases of the actor's layers and of the critic's."""
    opt_state: Any
    num_updates: Any
    learning_rng: Any
    acting_rng: Any
    obs: Any
    env_state: Any
    last_done: Any
    num_iterations: Any
    episode_return: Any
    episode_length: Any


def twin_train(case: Case) -> Callable[[Any], Any]:
    """From a key to the state and the metrics after all iterations."""
    env, env_params = make(case.env_id)
    steps, envs, size = case.num_steps, case.num_envs, case.num_steps * case.num_envs
    num_actions = env.action_space(env_params).n
    sizes = [*env.observation_space(env_params).shape, SIZE, SIZE]
    optimizer = optax.flatten(optax.chain(optax.clip_by_global_norm(NORM), optax.adam(jnp.float32(RATE), eps=1e-5)))
    gamma, gae_lambda, clip, ent, vf = (jnp.float32(x) for x in (GAMMA, GAE_LAMBDA, CLIP, ENT, VF))
    reset = jax.vmap(lambda key: env.reset(key, env_params))

    def layers(key, sizes, scale):
        shapes = list(zip(sizes[1:], sizes[:-1]))
        ends = np.cumsum([math.prod(x) for x in shapes])
        noise = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
        made = []
        for x, (rows, columns), scale in zip(noise, shapes, [math.sqrt(2), math.sqrt(2), scale]):
            x = x.reshape(rows, columns)
            q, r = jnp.linalg.qr(x.T if rows < columns else x)
            q = q * jnp.sign(jnp.diag(r))[None]
            made.append((scale * (q.T if rows < columns else q), jnp.zeros(rows)))
        return made

    def init(key):
        network_key, env_key, learning_rng = jax.random.split(key, 3)
        actor_key, critic_key, *_ = jax.random.split(network_key, 8)
        params = layers(actor_key, [*sizes, num_actions], 0.01), layers(critic_key, [*sizes, 1], 1.0)
        acting_rng, *_ = keys = jax.random.split(env_key, envs + 1)
        obs, env_state = reset(keys[1:])
        zero = jnp.zeros((), jnp.int32)
        return State(
            params, optimizer.init(params), zero, learning_rng, acting_rng, obs, env_state, jnp.zeros(envs, bool), zero, jnp.zeros(envs),
            jnp.zeros(envs, jnp.int32),
        )

    def forward(layers, x):
        (first, b), *hidden, last = layers
        x = jnp.tanh(x @ jax.lax.optimization_barrier(first.T) + b[None])
        for w, b in hidden:
            x = jnp.tanh(x @ w.T + b[None])
        return x @ last[0].T + last[1][None]

    def collect(s):
        keys = jax.random.split(s.acting_rng, 2 + steps * (1 + 2 * envs))
        actor, critic = s.params
        turned = [(w.T, b) for w, b in actor]

        def step(carried, keys):
            obs, env_state = carried
            logits = forward([(w.T, b) for w, b in turned], obs)
            action = jax.random.categorical(unrolled(keys[0]), logits).astype(jnp.int32)
            after = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys[1][0], env_state, action, env_params)
            final_obs, env_state, reward, terminated, truncated, _ = after
            done, cut_off = terminated | truncated, truncated & ~terminated
            goes_on = final_obs, env_state
            first = jax.lax.cond(jnp.any(done), lambda: reset(keys[1][1]), lambda: goes_on)
            choose = lambda a, b: jnp.where(done.reshape(-1, *[1] * (b.ndim - 1)), a, b)  # noqa: E731
            values = jax.lax.cond(jnp.any(cut_off), lambda: forward(critic, final_obs)[:, 0], lambda: jnp.zeros(envs))
            kept = obs, action, logits, reward.astype(jnp.float32), terminated, truncated, jnp.where(cut_off, values, 0.0)
            return jax.tree.map(choose, first, goes_on), kept

        per_step = keys[2 : 2 + steps], keys[2 + steps :].reshape(steps, 2, envs)
        (last_obs, env_state), kept = jax.lax.scan(step, (s.obs, s.env_state), per_step)
        obs, action, logits, reward, terminated, truncated, final_value = kept
        done = terminated | truncated
        ended, at = jnp.any(done, axis=0), jnp.arange(steps)[:, None]
        over = at <= jnp.max(jnp.where(done, at, -1), axis=0, keepdims=True)
        episodes = (
            jnp.sum(done, dtype=jnp.float32),
            jnp.sum(jnp.where(over, reward, 0.0)) + jnp.sum(jnp.where(ended, s.episode_return, 0.0)),
            jnp.sum(over, dtype=jnp.float32) + jnp.sum(jnp.where(ended, s.episode_length, 0), dtype=jnp.float32),
        )
        s = s._replace(
            acting_rng=keys[0], obs=last_obs, env_state=env_state, last_done=done[-1], num_iterations=s.num_iterations + 1,
            episode_return=jnp.where(ended, 0.0, s.episode_return) + jnp.sum(jnp.where(over, 0.0, reward), axis=0),
            episode_length=jnp.where(ended, 0, s.episode_length) + jnp.sum(~over, axis=0, dtype=jnp.int32),
        )
        value = forward(critic, obs.reshape(size, -1)).reshape(steps, envs)
        return s, (obs, action, log_prob_of(logits, action), value, reward, done, truncated & ~terminated, final_value), episodes

    def log_prob_of(logits, action):
        return jnp.sum(jnp.where(jax.nn.one_hot(action, num_actions, dtype=bool), jax.nn.log_softmax(logits), 0.0), axis=-1)

    def advantages_of(s, batch):
        _, _, _, value, reward, done, cut_off, final_value = batch
        following = jnp.concatenate([value[1:], forward(s.params[1], s.obs)[:, 0][None]])
        following = jnp.where(done, jnp.where(cut_off, final_value, 0.0), following)
        delta = reward + gamma * following - value
        decay = jnp.where(done, 0.0, gamma * gae_lambda)
        back = lambda a, x: ((a := x[0] + x[1] * a), a)  # noqa: E731
        _, advantages = jax.lax.scan(back, jnp.zeros(envs), (delta, decay), reverse=True, unroll=8)
        return advantages, advantages + value

    def loss(params, obs, action, old_log_prob, old_value, advantages, targets):
        logits, value = forward(params[0], obs), forward(params[1], obs)[:, 0]
        advantages = advantages - advantages[0]
        advantages = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
        log_ratio = log_prob_of(logits, action) - old_log_prob
        ratio = jnp.exp(log_ratio)
        policy_loss = -jnp.mean(jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages))
        near = old_value + jnp.clip(value - old_value, -clip, clip)
        value_loss = 0.5 * jnp.mean(jnp.maximum(jnp.square(value - targets), jnp.square(near - targets)))
        log_p = jax.nn.log_softmax(logits)
        entropy = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
        approx_kl, clipped = jnp.mean((ratio - 1) - log_ratio), jnp.mean(jnp.abs(ratio - 1) > clip)
        return policy_loss + vf * value_loss - ent * entropy, (policy_loss, value_loss, entropy, approx_kl, clipped)

    def learn(s, samples, key):
        def update(learned, indices):
            params, opt_state, num_updates = learned
            grads, metrics = jax.grad(loss, has_aux=True)(params, *(samples if indices is None else (x[indices] for x in samples)))
            norm = optax.tree.norm(jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)]))
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, num_updates + 1), (*metrics, norm)

        def epoch(carried, _):
            learned, key = carried
            if case.num_minibatches == 1:
                learned, metrics = update(learned, None)
                return (learned, key), metrics
            key, permutation_key = jax.random.split(key)
            learned, metrics = jax.lax.scan(update, learned, swap_or_not(permutation_key, size).reshape(case.num_minibatches, -1))
            return (learned, key), jax.tree.map(jnp.mean, metrics)

        (learned, _), metrics = jax.lax.scan(epoch, ((s.params, s.opt_state, s.num_updates), key), length=case.num_epochs)
        return s._replace(params=learned[0], opt_state=learned[1], num_updates=learned[2]), jax.tree.map(jnp.mean, metrics)

    def iteration(s):
        s, batch, episodes = collect(s)
        advantages, targets = advantages_of(s, batch)
        learning_rng, key = jax.random.split(s.learning_rng)
        flat = [x.reshape(size, *x.shape[2:]) for x in (*batch[:4], advantages, targets)]
        s, metrics = learn(s._replace(learning_rng=learning_rng), flat, key)
        variance = jnp.var(targets)
        explained = jnp.where(variance > 0, 1 - jnp.var(targets - batch[3]) / jnp.where(variance > 0, variance, 1), 0.0)
        return s, ((*metrics, explained), episodes)

    def train(key):
        def add(_, carried):
            s, x = iteration(carried[0])
            x = jax.tree.map(lambda x, lost: x - lost, x, carried[2])
            total = jax.tree.map(jnp.add, carried[1], x)
            return s, total, jax.tree.map(lambda after, before, x: (after - before) - x, total, carried[1], x)

        zeros = ((jnp.zeros(()),) * 7, (jnp.zeros(()),) * 3)
        s, (means, episodes), _ = jax.lax.fori_loop(0, case.iterations, add, (init(key), zeros, zeros))
        return s, jax.tree.map(lambda x: x / case.iterations, means), episodes

    return train


def compiled(train: Callable) -> tuple[Any, float, int]:
    """The program, the seconds that tracing and compiling took, and the instructions in the bodies of its loops."""
    start = time.perf_counter()
    program = jax.jit(train).lower(jax.random.key(0)).compile()
    seconds = time.perf_counter() - start
    return program, seconds, sum(n for _, n in instructions(program.as_text()))


def compare(case: Case, runs: int) -> str:
    trains = {"parts": eqxrl_train(case), "twin": twin_train(case)}
    compiling: dict[str, list[float]] = {name: [] for name in trains}
    programs, counts = {}, {}
    for _ in range(5):
        for name, train in trains.items():
            jax.clear_caches()
            programs[name], seconds, counts[name] = compiled(train)
            compiling[name].append(seconds)
    times: dict[str, list[float]] = {name: [] for name in trains}
    for i in range(runs + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(jax.random.key(i)))
            if i:
                times[name].append(time.perf_counter() - start)
    row = [statistics.median(x["parts"]) / statistics.median(x["twin"]) for x in (times, compiling)]
    return f"| {case.name} | {row[0]:.2f} | {counts['parts'] / counts['twin']:.2f} | {row[1]:.2f} | {apart(case):.0e} |"


def apart(case: Case, iterations: int = 3) -> float:
    """The greatest difference of a parameter, before roundings have grown."""
    few, key = dataclasses.replace(case, iterations=iterations), jax.random.key(0)
    agent, params = jax.jit(eqxrl_train(few))(key)[0].agent, jax.jit(twin_train(few))(key)[0].params
    ours = [(layer.weight, layer.bias) for tower in (agent.actor, agent.critic) for layer in tower]
    theirs = [layer for tower in params for layer in tower]
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", default="", help="only configurations whose name begins like this")
    parser.add_argument("--runs", type=int, default=11, help="of each, after one that warms up")
    args = parser.parse_args()
    set_cpu_flags()
    print("| parts / twin | time | instructions | compile | greatest difference after three iterations |\n|---|---|---|---|---|")
    for case in CASES:
        if case.env_id == "CartPole-v1" and case.seeds is None and case.name.startswith(args.case):
            print(compare(case, args.runs), flush=True)


if __name__ == "__main__":
    main()
