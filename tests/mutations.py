"""Plants bugs one at a time and counts how many the default tests catch.

    python tests/mutations.py                 # all of them; about two hours on two cores
    python tests/mutations.py 3 17            # only these
    python tests/mutations.py --list

Each bug is a replacement in one file of a copy of the repository. The tests of the room that it's in run first, then the
rest, up to the first failure. The results are written to `tests/mutations.md`, beside this script. Those marked with a
number are defects of well-known implementations.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

GAE, BASE = "advantages/_gae.py", "advantages/_base.py"
LOSS, DIST, NORM = "losses/_ppo.py", "nn/_distributions.py", "nn/_normalize.py"
ACTING, ROLLOUT, SCALING = "collectors/_base.py", "collectors/_rollout.py", "collectors/_reward_scaling.py"
RUN, ITERATION, HPARAMS = "algorithms/_base.py", "algorithms/_on_policy.py", "algorithms/_hparams.py"
LEARNER, UPDATE, SHUFFLE = "learners/_minibatch.py", "learners/_base.py", "learners/_permutation.py"
CLIPPED, PARALLEL = "learners/_clipped.py", "collectors/_data_parallel.py"
EVALUATOR, STEPPER, TRANSITIONS = "evaluators/_episodes.py", "envs/_stepper.py", "collectors/_transitions.py"
DQN, BUFFER, ENCODE = "algorithms/_dqn.py", "buffers/_uniform.py", "nn/_encode.py"
TARGETS, SEQUENCES, OFF_POLICY = "learners/_target_updates.py", "buffers/_sequences.py", "algorithms/_off_policy.py"
SAC, TD3, SOFT, REDUCTIONS = "algorithms/_sac.py", "algorithms/_td3.py", "losses/_soft_values.py", "losses/_reductions.py"
EXPLORATION, REPPO, PATHWISE, SOFT_RETURNS = "nn/_exploration.py", "algorithms/_reppo.py", "losses/_pathwise.py", "advantages/_returns.py"
TD, PRIORITIZED, Q_NETWORK = "losses/_td.py", "buffers/_prioritized.py", "nn/_q_network.py"
POLICY, MEMORY, MASKED, LAYERS = "nn/_actor_critic.py", "nn/_memory.py", "nn/_masked.py", "nn/_layers.py"
JOINT, BOUNDED = "nn/_joint.py", "nn/_bounded.py"
VTRACE, VTRACE_LOSS, TARGET_KL = "advantages/_vtrace.py", "losses/_vtrace.py", "learners/_target_kl.py"

# what is planted, where, what it replaces, with what
BUGS = [
    ("GAE's trace isn't cut at truncation", GAE, "jnp.where(t.done, 0.0,", "jnp.where(t.terminated, 0.0,"),
    ("GAE runs forwards in time", GAE, "reverse=True", "reverse=False"),
    ("GAE forgets lambda", GAE, "self.gamma * self.gae_lambda)", "self.gamma)"),
    ("the value's sign in the temporal difference", GAE, "- t.value\n", "+ t.value\n"),
    ("targets without the value", GAE, "advantages, advantages + t.value", "advantages, advantages"),
    ("GAE over the wrong axis", GAE, "(delta, decay), reverse", "(delta[::-1], decay), reverse"),
    ("time limits are terminal", BASE, "trajectory.truncated, trajectory.final_value,", "trajectory.truncated, 0.0,"),
    ("bootstraps where terminated and truncated", BASE, "jnp.where(trajectory.terminated, 0.0", "jnp.where(trajectory.terminated & ~trajectory.truncated, 0.0"),
    ("next values off by one", BASE, "trajectory.value[1:]", "trajectory.value[:-1]"),
    ("max for min in the surrogate", LOSS, "jnp.minimum(ratio * advantages", "jnp.maximum(ratio * advantages"),
    ("min for max in value clipping", LOSS, "jnp.maximum(error", "jnp.minimum(error"),
    ("the entropy's sign", LOSS, "- ent_coef * entropy", "+ ent_coef * entropy"),
    ("the ratio upside down", LOSS, "distribution.log_prob(t.action) - t.log_prob", "t.log_prob - distribution.log_prob(t.action)"),
    ("the value loss without its half", LOSS, "0.5 * jnp.mean(error)", "jnp.mean(error)"),
    ("advantages are centred but not scaled", LOSS, "/ (jnp.std(advantages) + 1e-8)", "/ 1.0"),
    ("approx_kl's sign", LOSS, "(ratio - 1) - log_ratio", "(ratio - 1) + log_ratio"),
    ("the normal's log-prob without its scale", DIST, "0.5 * z**2 + self.log_std", "0.5 * z**2"),
    ("the normal's entropy without e", DIST, "math.log(2 * math.pi * math.e)", "math.log(2 * math.pi)"),
    ("variances merged without the means' distance", NORM, " + batch_delta**2 * weight * (1 - weight)", ""),
    ("statistics are trained", NORM, "lambda _: False, x", "lambda _: True, x"),
    ("normalised observations aren't clipped", NORM, "jnp.clip(scaled, -self.clip, self.clip)", "scaled"),
    ("normaliser updated before learning", ITERATION, "self.learner(ts.agent,", "self.learner(observe(ts.agent, batch.trajectories.obs),"),
    ("the first observation isn't counted", ITERATION, "observe(agent, batch.trajectories.obs)", "observe(agent, batch.trajectories.obs[1:])"),
    ("the learner's key never advances", ITERATION, "learner_state=learner_state, rng=rng)", "learner_state=learner_state)"),
    ("every evaluation uses one key", RUN, "key = _evaluation_key(ts) if rng is None else as_key(rng)\n        metrics", "key = jax.random.key(0)\n        metrics"),
    ("the budget is overrun", RUN, "math.ceil(self.hp.total_timesteps / self.iteration_size)", "1 + math.ceil(self.hp.total_timesteps / self.iteration_size)"),
    ("one permutation for all epochs", LEARNER, "key, permutation_key = jax.random.split(key)", "permutation_key = key"),
    ("the last minibatch is left out", LEARNER, ".reshape(self.num_minibatches, -1)", ".reshape(self.num_minibatches, -1)[:-1]"),
    ("clipping of elements, not of the norm", CLIPPED, "optax.clip_by_global_norm(max_grad_norm)", "optax.clip(max_grad_norm)"),
    ("max_grad_norm is never used", CLIPPED, "optax.clip_by_global_norm(max_grad_norm)", "optax.identity()"),
    ("a schedule's horizon omits minibatches", HPARAMS, " * self.num_epochs * self.num_minibatches", " * self.num_epochs"),
    ("schedules stand still", UPDATE, "num_updates=one_more(state.num_updates)", "num_updates=state.num_updates"),
    ("some samples twice, others never", SHUFFLE, "_mixed_bit(jnp.maximum(index, partner) ^ salt)", "_mixed_bit(index ^ salt)"),
    ("the clipped action is stored", ROLLOUT, "action=acted.action,", "action=__import__('eqxrl').spaces.to_env_action(env.action_space(env_params), acted.action),"),
    ("the observation after the reset is bootstrapped", ROLLOUT, "after.final_obs, carry", "after.obs, carry"),
    ("one key for two uses", ACTING, "keys[2 + num_steps :]", "keys[2:-num_steps]"),
    ("hidden states survive the end of an episode", ACTING, "select(done, policy.initial_carry(), carry)", "carry"),
    ("episode returns run on", ACTING, "jnp.where(ended, 0.0, state.episode_return) + under_way", "state.episode_return + under_way"),
    ("scaled returns run on over the end", SCALING, "jnp.where(done, 0.0, running), running", "running, running"),
    ("an evaluation counts rewards after the end", EVALUATOR, "jnp.where(done, 0.0, after.reward)", "after.reward"),
    ("every environment is reset where one episode ended", STEPPER, "done.reshape(-1, *[1] * (b.ndim - 1)), a, b)", "jnp.any(done), a, b)"),
    ("a transition leads into the next episode", TRANSITIONS, "next_obs=acted.final_obs", "next_obs=jax.tree.map(lambda x: jax.numpy.roll(x, -1, 0), acted.obs)"),
    ("a choice is seen as a number", ENCODE, "return jax.nn.one_hot(choices[0], self.nvec[0], dtype=dtype)", "return jnp.pad(choices.astype(dtype), (0, self.nvec[0] - 1))"),
    ("the target network is never copied", TARGETS, "jnp.where(now, x, t)", "t"),
    ("action values are bootstrapped past the end", TD, "jnp.where(t.terminated, 0.0, following)", "following"),
    ("the buffer's newest rows are overwritten", BUFFER, "(state.num_added + jnp.arange(steps * envs, dtype=jnp.int32)) % state.capacity", "jnp.minimum(state.num_added, state.capacity - steps * envs) + jnp.arange(steps * envs, dtype=jnp.int32)"),
    ("learning never forgets where an episode begins", POLICY, "[jnp.zeros_like(trajectory.done[:1]), trajectory.done[:-1]]", "[jnp.zeros_like(trajectory.done)]"),
    ("learning forgets a step too early", POLICY, "[jnp.zeros_like(trajectory.done[:1]), trajectory.done[:-1]]", "[trajectory.done]"),
    ("a sequence of a cell never forgets", MEMORY, "self(x, forgetting(start, self.initial_carry(), carry))", "self(x, carry)"),
    ("forgetting multiplies by 0", MEMORY, "jnp.where(starts, a, b)", "jnp.where(starts, a, 0) + b * (1 - starts)"),
    ("the linear recurrence never forgets", MEMORY, "decay[None] * jnp.where(start[:, None], 0, h)", "decay[None] * h"),
    ("the linear recurrence forgets before the first step", MEMORY, "(jnp.ones_like(h), h, jnp", "(jnp.ones_like(h), 0 * h, jnp"),
    ("a rollout remembers from its end", ROLLOUT, "state.last_obs, initial_carry, episodes", "state.last_obs, state.carry, episodes"),
    ("last values with a fresh memory", ITERATION, "(batch.last_obs, carry)", "(batch.last_obs, jax.tree.map(jnp.zeros_like, carry))"),
    ("final values with a memory from the rollout's beginning", ROLLOUT, "after.final_obs, carry, after", "after.final_obs, initial_carry, after"),
    ("memories aren't shuffled with their environments", UPDATE, "leaves((rollout.initial_carry, rollout.last_value), 0)", "jax.tree.map(lambda x: x[: indices.size], (rollout.initial_carry, rollout.last_value))"),
    ("chunks begin with a fresh memory", UPDATE, "carries = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carries)", "carries = jax.tree.map(lambda x: jnp.zeros_like(x.reshape(-1, *x.shape[2:])), carries)"),
    ("what is forbidden is only unlikely", DIST, "self.logits, -jnp.inf))\n\n    def mode", "self.logits, self.logits - 10))\n\n    def mode"),
    ("a mask forbids what it should allow", DIST, "return mask != 0", "return mask == 0"),
    ("a sequence isn't masked", MASKED, "return distribution.masked(_mask(obs)), value, carry\n\n    def initial_carry", "return distribution, value, carry\n\n    def initial_carry"),
    ("networks aren't masked", ITERATION, "if has_action_mask(observation_space) and", "if False and"),
    ("the parts of a joint action are drawn with one key", JOINT, "[part.sample(k) for part, k in", "[part.sample(key) for part, k in"),
    ("choices of several in the wrong order", JOINT, "jnp.concatenate(logits, axis=-1)", "jnp.concatenate(logits[::-1], axis=-1)"),
    ("squashing without its slope", BOUNDED, " + self._log_slope(u), axis=-1)", ", axis=-1)"),
    ("a convolution's patches are turned", LAYERS, "shifted(i, j) for i in range", "shifted(j, i) for i in range"),
    ("bytes of an image as they are", ENCODE, "obs.astype(dtype) / jnp.asarray(self.highest, dtype)[None, None]", "obs.astype(dtype)"),
    ("V-trace's ratios aren't clipped", VTRACE, "jnp.minimum(self.rho_clip, ratio)", "ratio"),
    ("gradients flow through V-trace's targets", VTRACE_LOSS, "jax.lax.stop_gradient(estimate)", "estimate"),
    ("quantiles at the ends of their parts", TD, "+ 0.5) / n", ") / n"),
    ("quantiles against the wrong side", TD, "(u < 0)", "(u > 0)"),
    ("an empty row is drawn where rounding leads", PRIORITIZED, " & (right > 0)", ""),
    ("priorities of rows that are there twice are added", PRIORITIZED, ".at[node].max(p", ".at[node].add(p"),
    ("weights without their exponent", PRIORITIZED, "(jnp.min(p) / p) ** self.beta", "jnp.min(p) / p"),
    ("batches aren't stratified", PRIORITIZED, "(jnp.arange(n, dtype=jnp.float32) + jax.random.uniform(key, (n,), jnp.float32)) / n", "jax.random.uniform(key, (n,), jnp.float32)"),
    ("advantages keep their mean", Q_NETWORK, " + values - jnp.mean(values, axis=0, keepdims=True)", " + values"),
    ("one draw of noise for all layers", LAYERS, "jax.random.fold_in(key, next(number))", "key"),
    ("the network and its target have the same noise", DQN, "perturbed(target, target_key)", "perturbed(target, own_key)"),
    ("importance weights are left out", DQN, "jnp.mean(batch.weight * losses)", "jnp.mean(losses)"),
    ("rows are drawn that nothing was written to", BUFFER, "0, state.size)", "0, state.capacity)"),
    ("several steps run on over an episode's end", SEQUENCES, "~t.done[:, :-1]], axis=1)", "jnp.ones_like(t.done[:, :-1])], axis=1)"),
    ("several steps end at terminations alone", SEQUENCES, "~t.done[:, :-1]], axis=1)", "~t.terminated[:, :-1]], axis=1)"),
    ("several steps run round the ring into old rows", SEQUENCES, "num_newer[:, None] >= later", "num_newer[:, None] >= 0 * later"),
    ("the next row of another environment follows", SEQUENCES, "later = state.stride *", "later = 1 *"),
    ("several steps are discounted as one", SEQUENCES, "last, gamma**num_steps,", "last, gamma + 0.0 * num_steps,"),
    ("it learns before learning starts", OFF_POLICY, "ready = ts.num_iterations >= math.ceil(self.hp.learning_starts / self.iteration_size)", "ready = ts.num_iterations >= 1"),
    ("what was learned from keeps its priority", OFF_POLICY, "buffer_state = dataclasses.replace(buffer_state, priorities=priorities)", "pass"),
    ("off-policy targets run on over the end", OFF_POLICY, "jnp.where(batch.terminated[:, None], 0.0, following)", "following"),
    ("a truncated step has no future", OFF_POLICY, "jnp.where(batch.terminated[:, None], 0.0, following)", "jnp.where(batch.done[:, None], 0.0, following)"),
    ("the running mean's two parts are swapped", TARGETS, "t + self.tau * (x - t)", "x + self.tau * (t - x)"),
    ("targets of the critics themselves", SAC, "values_chosen(policy, learner.target,", "values_chosen(policy, learner.critics,"),
    ("entropy is a cost in targets", SAC, "following - (temperature * log_prob)", "following + (temperature * log_prob)"),
    ("entropy is a cost for the actor", SAC, "jnp.mean(temperature * log_prob - value)", "jnp.mean(-temperature * log_prob - value)"),
    ("the temperature runs away from its target", SAC, "(entropy - self._target_entropy())", "(self._target_entropy() - entropy)"),
    ("critics learn to please the actor", SAC, "values_chosen(policy, fixed(critics)", "values_chosen(policy, critics"),
    ("entropy in the units of the bounds", SAC, "return given + log_volume(space)", "return given"),
    ("values and log-probs of two actions", SOFT, "action, log_prob = distribution.sample_and_log_prob(key)\n        return", "action, log_prob = distribution.sample(key), distribution.sample_and_log_prob(jax.random.fold_in(key, 1))[1]\n        return"),
    ("the highest critic is believed", REDUCTIONS, "jnp.min(values", "jnp.max(values"),
    ("the lowest quantiles are left out", REDUCTIONS, "together[:, : together.shape[-1] - self.dropped * values.shape[0]]", "together[:, self.dropped * values.shape[0] :]"),
    ("targets without noise", TD3, "with_noise(box, jax.vmap(old_actor)(batch.next_obs), hp.target_noise, key, hp.target_noise_clip)", "jax.vmap(old_actor)(batch.next_obs)"),
    ("targets by the actor itself", TD3, "jax.vmap(old_actor)(batch.next_obs)", "jax.vmap(learner.actor)(batch.next_obs)"),
    ("the actor doesn't wait", TD3, "num_updates % hp.policy_delay == 0", "num_updates >= 0"),
    ("noise of twice the deviation", EXPLORATION, "action + 0.5 * (high - low) * noise", "action + (high - low) * noise"),
    ("noisy actions leave the bounds", EXPLORATION, "jnp.clip(action + 0.5 * (high - low) * noise, low, high)", "action + 0.5 * (high - low) * noise"),
    ("a policy that never acts at random", EXPLORATION, "jnp.where(self.random, a.astype(b.dtype), b)", "b"),
    ("soft returns run on over the end", SOFT_RETURNS, "jnp.where(terminated, 0.0, later)", "later"),
    ("soft returns run on over a cut", SOFT_RETURNS, "jnp.where(t.done.at[-1].set(True), 0.0, trusted)", "jnp.where(t.terminated.at[-1].set(True), 0.0, trusted)"),
    ("updates go on beyond target_kl", TARGET_KL, "cond_each(~jnp.asarray(over),", "cond_each(jnp.asarray(True),"),
    ("devices learn without each other", UPDATE, "mean_over_devices(jax.grad(objective, has_aux=True)(params))", "jax.grad(objective, has_aux=True)(params)"),
    ("all devices draw the same", PARALLEL, "keys[1:], common)", "keys[1:2].repeat(self.num_devices), common)"),
    ("each device normalises by itself", NORM, "if num_shares() > 1:", "if False:"),
]


def planted(folder: Path, file: str, old: str, new: str) -> str:
    """The file's text with the bug in it."""
    text = (folder / "eqxrl" / file).read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{file} has {text.count(old)} places that read {old!r}, not one: mend the list of bugs")
    return text.replace(old, new)


def first_failure(folder: Path, room: str | None) -> str | None:
    """The first default test that fails, or None. Those of `room`, where the bug is, run first, and then the algorithms'."""
    tests = folder / "tests"
    rooms = [p for p in sorted(tests.iterdir()) if p.is_dir() and any(p.glob("test_*.py"))]
    first = [tests / name for name in dict.fromkeys([room or "algorithms", "algorithms"])]
    rest = [p for p in rooms if p not in first] + sorted(tests.glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    for paths in (first, rest):
        run = subprocess.run([*command, *map(str, paths)], cwd=folder, env=environment, capture_output=True, text=True)
        if run.returncode != 0:
            found = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
            return found.group(1) if found else run.stdout.strip().splitlines()[-1]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = [(i, bug) for i, bug in enumerate(BUGS, 1) if not args.numbers or i in args.numbers]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        whole, mutant = Path(temporary) / "whole", Path(temporary) / "mutant"
        shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".git", "runs", "*.egg-info", "__pycache__", ".venv"))
        for number, (what, file, old, new) in chosen:  # before anything runs: does each still fit the code?
            planted(whole, file, old, new)
            if args.list:
                print(number, what, file)
        if args.list:
            return
        if failed := first_failure(whole, None):
            sys.exit(f"{failed} fails without any bug planted, so nothing can be learned: mend it first")
        for number, (what, file, old, new) in chosen:
            start = time.perf_counter()
            shutil.copytree(whole, mutant)
            (mutant / "eqxrl" / file).write_text(planted(whole, file, old, new))
            test = first_failure(mutant, Path(file).parts[0])
            shutil.rmtree(mutant)
            rows.append((number, what, file, test))
            print(f"{number:2} {what}: {test or 'NOT CAUGHT'} ({time.perf_counter() - start:.0f} s)", flush=True)
    caught = sum(test is not None for *_, test in rows)
    print(f"{caught} of {len(rows)} caught")
    if not args.numbers:
        table = [f"| {n} | {what} | `{file}` | {f'`{test}`' if test else '**not caught**'} |" for n, what, file, test in rows]
        head = [f"`python tests/mutations.py`: {caught} of {len(rows)} planted bugs were caught by the default tests.", ""]
        lines = [*head, "| | planted bug | in | caught first by |", "|---|---|---|---|", *table, ""]
        Path(__file__).with_suffix(".md").write_text("\n".join(lines))
    sys.exit(caught < len(rows) - 2)


if __name__ == "__main__":
    main()
