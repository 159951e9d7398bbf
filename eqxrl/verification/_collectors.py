from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import EvalMetrics, TrajectoryWithLastObs, Transitions
from eqxrl._typing import describe, validate
from eqxrl.collectors import AbstractCollector, DataParallelCollector
from eqxrl.envs import episode_limit
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import Box, bounds, parts
from eqxrl.verification._copies import modules
from eqxrl.verification._glass import Marked, glass, replay
from eqxrl.verification._laws import TOLERANCE, AbstractLaws, NotApplicable, close, keys_used_once, law, quick_jit, same, same_arrays

NEAR = 1e-3  # that far rounding may take an observation in the course of an episode
ENDS = ("went on", "terminated", "were cut off", "did both")


class CollectorLaws(AbstractLaws):
    """Of a collector, in glass, with an `AbstractPolicy` if it is to collect `Transitions`, else with an `AbstractActorCritic`; where
    several devices share an agent, of what each of them does."""
    def __init__(self, collector: AbstractCollector, env: Any, env_params: Any, policy: Any):
        collector = collector.inner if isinstance(collector, DataParallelCollector) else collector
        self.part, self.policy, self.env_params = collector, policy, env_params
        self.makes = Transitions if isinstance(policy, AbstractPolicy) else TrajectoryWithLastObs
        self.env = glass(env, env_params)
        self.call = lambda policy, state: collector(self.env, env_params, policy, state)
        self.init = lambda key: collector.init(self.env, env_params, policy, key)
        self.keys = list(jax.random.split(jax.random.key(2), 2))

    def members(self) -> list[Any]:
        init = quick_jit(self.init)
        return [(self.policy, init(key)) for key in self.keys]

    @cached_property
    def run(self) -> tuple[list[Any], list[Any]]:
        """The states before, between and after several rollouts, and the rollouts; at least 300 steps."""
        (_, before), (between, first) = self.given[0], self.results[0]
        states, batches = [before, between], [first]
        while len(batches) < max(2, 300 / (self.part.num_envs * self.part.num_steps)):
            after, batch = self.compiled(self.policy, states[-1])
            states, batches = [*states, after], [*batches, batch]
        return states, batches

    @cached_property
    def seen(self) -> tuple[Any, dict[str, Any]]:
        """Of these, as one rollout `[rollouts*steps envs]`: what was stored, and what really happened."""
        steps = [batch.transitions if self.makes is Transitions else batch.trajectories for batch in self.run[1]]
        stored = jax.tree.map(lambda *xs: jnp.concatenate(xs), *steps)
        told = quick_jit(lambda obs, action: replay(self.env, self.env_params, obs, action))(stored.obs, stored.action)
        return jax.device_get((stored, told))

    def judgement(self, obs: Any, action: Any, after: bool) -> Any:
        """The log-prob of each action and the value of each observation, with what the policy remembered before, or `after`, each step."""
        if self.makes is Transitions:
            raise NotApplicable("it collects transitions")
        agent, stored = self.policy, self.seen[0]
        starts = np.concatenate([np.ones_like(stored.terminated[:1]), (stored.terminated | stored.truncated)[:-1]])
        def one(carry: Any, step: Any) -> Any:
            own_obs, start, obs, action = step
            before = jax.tree.map(lambda fresh, x: jnp.where(start, fresh, x), agent.initial_carry(), carry)
            carry = agent(own_obs, before)[2]
            distribution, value, _ = agent(obs, carry if after else before)
            return carry, (distribution.log_prob(action), value)
        scan = lambda *steps: jax.lax.scan(one, agent.initial_carry(), steps)[1]  # noqa: E731
        return jax.device_get(quick_jit(jax.vmap(scan, 1, 1))(stored.obs, starts, obs, action))

    @law("shapes", "what init and __call__ return; weak types come of Python numbers", gate=True)
    def shapes(self) -> str:
        sizes: dict[str, Any] = dict(steps=self.part.num_steps, envs=self.part.num_envs)
        def traced(key: Any) -> Any:
            state = validate(self.part, self.init(key), batch="envs", envs=sizes["envs"])
            after, batch = self.call(self.policy, state)
            assert isinstance(batch, self.makes), f"it returned {describe(batch)}; return (state, {self.makes.__name__})"
            validate(self.part, batch, batch="steps envs", **sizes)
            return state, after
        before, after = eqx.filter_eval_shape(traced, self.keys[0])
        same_arrays(before, after, "its state")
        return " ".join(f"{name}={size}" for name, size in sizes.items())

    @law("actions are stored unclipped", "spaces.to_env_action, on the way to the environment only")
    def actions_are_stored_unclipped(self) -> str:
        spaces = parts(self.env.action_space(self.env_params))
        boxes = [pair for pair in zip(jax.tree.leaves(spaces), jax.tree.leaves(self.seen[0].action)) if isinstance(pair[0], Box)]
        if not boxes:
            raise NotApplicable("the actions are discrete")
        def inside(space: Box, action: Any) -> Any:
            low, high = map(np.asarray, bounds(space))
            return np.all((action >= low) & (action <= high), axis=tuple(range(2, action.ndim))).mean()
        clipped = max(inside(*pair) for pair in boxes)
        assert clipped < 0.5, f"{clipped:.0%} of the stored actions lie in a space with hardly any extent: they were stored clipped"
        return f"{1 - clipped:.0%} of the stored actions outside a narrow space"

    @law("steps follow one another", "[steps envs] and not [envs steps]; obs before the step; the action that to_env_action was given")
    def steps_follow(self) -> str:
        stored, told = self.seen
        outside, wrong = np.isnan(stored.reward).mean(), np.argwhere(told["off"] > NEAR)
        assert not outside, f"the environment got actions outside its action space, at {outside:.0%} of the steps"
        for step, env in wrong[:1]:
            how = "doesn't open an episode" if told["opens"][step, env] >= 0 else "isn't what the action before it led to"
            share = f"{len(wrong) / told['off'].size:.0%} of the steps don't fit"
            raise AssertionError(f"another observation than the environment's: at step {step} of environment {env} it {how}; {share}")
        return f"{told['off'].size} steps"

    @law("flags", "terminated and truncated are those of the same step, and neither stands in the place of the other")
    def flags(self) -> str:
        got, want = (x["terminated"] + 2 * x["truncated"] for x in (vars(self.seen[0]), self.seen[1]))
        count = [[int(np.sum((want == w) & (got == g))) for g in range(4)] for w in range(4)]
        wrong = [(w, g) for w in range(4) for g in range(4) if w != g and count[w][g]]
        said = [f"{count[w][g]} of {sum(count[w])} steps that {ENDS[w]} are stored as steps that {ENDS[g]}" for w, g in wrong]
        assert not wrong, "; ".join(said)
        return ", ".join(f"{sum(n)} {name}" for n, name in zip(count, ENDS))

    @law("rewards are their step's", "the reward of the same step and environment, also where the episode ends")
    def rewards(self) -> str:
        """They may be scaled, clipped, shaped: but it shows in them what the environment paid for this step, and not for another."""
        got, paid, done = self.seen[0].reward.astype(np.float64), self.seen[1]["reward"], self.seen[1]["done"]
        like = lambda a, b: abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0  # noqa: E731
        own, ends = like(got, paid), like(got[done], paid[done])
        name, other = max(("before", like(got[1:], paid[:-1])), ("after", like(got[:-1], paid[1:])), key=lambda x: x[1])
        assert own > max(0.3, other), f"they follow those of their step by {own:.2f}, and of the step {name} by {other:.2f} (correlation)"
        assert ends > 0.2, f"where episodes end they don't follow those that were paid there (correlation {ends:.2f})"
        return f"correlation {own:.2f}"

    @law("rollouts go on", "what of the state is returned, the key for the next rollout too")
    def rollouts_go_on(self) -> None:
        states, batches = self.run
        for before, after, batch in zip(states, states[1:], batches):
            if isinstance(batch, TrajectoryWithLastObs):
                alike = same((batch.last_obs, batch.last_done), (after.last_obs, after.last_done))
                assert alike, "the rollout's last_obs and last_done aren't the state's"
            assert not same(before.rng, after.rng), "the state's rng is the same after a rollout: return the key for the next one"
        stored, size = self.seen[0], self.part.num_steps
        done = np.ravel((stored.terminated | stored.truncated)[size - 1 :: size])
        assert same(done, np.concatenate([x.last_done for x in states[1:]])), "the state's last_done isn't the last step's done"
        counted = [int(state.global_step) for state in states]
        assert counted == list(range(len(states))), f"global_step goes {counted}; it counts rollouts"

    def keys_used_once(self) -> None:
        keys_used_once(lambda key: self.call(self.policy, self.init(key)), self.keys[0])

    @law("environments start differently", "split the key of init and of each step, once for each environment; the seed")
    def starts(self) -> str:
        if self.env.num_firsts == 1:
            raise NotApplicable("the environment has one first observation")
        opens = self.seen[1]["opens"]
        first, later = opens[0], opens[1:][opens[1:] >= 0]
        assert len(first) == 1 or len(set(first)) > 1, "all environments start alike"
        assert len(later) < 5 or len(set(later)) > 1, f"all of {len(later)} episodes after the first ones start alike"
        (_, one), (_, other) = self.given
        assert not same(one.last_obs, other.last_obs), "two seeds start alike: init doesn't look at its key"
        return f"{len(set(first))} of {len(first)} environments, {len(set(later))} of {len(later)} later episodes"

    @law("episodes are counted", "EpisodeStats, and the state's episode_return and episode_length")
    def episodes_are_counted(self) -> str:
        (lengths, returns), total = np.zeros((2, self.part.num_envs)), 0
        split = lambda name: np.split(self.seen[1][name], len(self.run[1]))  # noqa: E731
        for dones, rewards, state, batch in zip(split("done"), split("reward"), self.run[0][1:], self.run[1]):
            want = np.zeros(3)
            for done, reward in zip(dones, rewards):
                lengths, returns = lengths + 1, returns + reward
                want += [done.sum(), lengths[done].sum(), returns[done].sum()]
                lengths[done], returns[done] = 0, 0
            got, total = batch.episodes, total + int(want[0])
            close((got.count, got.total_length), (want[0], want[1]), "the rollout's episodes (count, length)")
            close((state.episode_length, state.episode_return), (lengths, returns), "the state's episode_length and episode_return")
            close(got.total_return, want[2], "the return of the episodes, in the environment's own units,")
        return f"{total} episodes"

    @law("next_obs is what the step led to", "the observation before any reset, also where the episode ends")
    def next_obs(self) -> None:
        if self.makes is not Transitions:
            raise NotApplicable("it collects rollouts")
        stored, told = self.seen
        for x, led_to in zip(*map(jax.tree.leaves, (stored.next_obs, told["next_obs"]))):
            wrong = np.any(np.reshape(~np.isclose(x, led_to, NEAR, NEAR), (*told["done"].shape, -1)), axis=-1)
            ends = f"{(wrong & told['done']).sum()} of them where an episode ended"
            assert not wrong.any(), f"next_obs isn't what the step led to at {wrong.sum()} of {wrong.size} steps, {ends}"

    @law("log-probs and values are the policy's", "store the action as drawn, its own log-prob, and the observation that it is for")
    def replayed(self) -> str:
        stored, _ = self.seen
        log_prob, value = self.judgement(stored.obs, stored.action, after=False)
        close(stored.value, value, "the stored observation's value")
        return close(stored.log_prob, log_prob, "the stored action's log_prob")

    @law("final values where cut off", "value the final observation, not that after the reset, where truncated and not terminated")
    def final_values(self) -> str:
        stored, told = self.seen
        _, value = self.judgement(told["next_obs"], stored.action, after=True)
        cut, got = told["truncated"] & ~told["terminated"], stored.final_value
        stray = np.count_nonzero(got[~cut])
        assert not stray, f"final_value isn't 0 at {stray} steps that weren't cut off, or that terminated"
        return f"{cut.sum()} episodes cut off, {close(got[cut], value[cut], 'final_value', 10 * TOLERANCE)}"


class EvaluatorLaws(AbstractLaws):
    """Of an evaluator, in glass, with a policy for the environment."""
    def __init__(self, evaluator: AbstractEvaluator, env: Any, env_params: Any, policy: AbstractPolicy):
        self.part, world = evaluator, glass(env, env_params)
        self.policy = Marked(policy, world, env_params)
        self.call = lambda policy, key: evaluator(world, env_params, policy, key)
        limits = [episode_limit(env_params, env), getattr(evaluator, "max_steps", None)]
        self.longest = min((int(x) for x in limits if x is not None), default=200)
        self.how = "drawn" if any(getattr(x, "deterministic", None) is False for x in modules(evaluator)) else "best"

    def members(self) -> list[Any]:
        return [(self.policy, key) for key in jax.random.split(jax.random.key(9), 2)]

    @cached_property
    def played(self) -> tuple[EvalMetrics, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Evaluations, and lengths and returns of the episodes that there are, as the policy plays them without a key, and with one."""
        @quick_jit
        def program(policy: Marked, keys: Any) -> Any:
            there = dict(best=policy.episodes(None, self.longest), drawn=policy.episodes(keys[0], self.longest))
            return jax.vmap(lambda key: self.call(policy, key))(keys), there
        return jax.device_get(program(self.policy, jax.random.split(jax.random.key(9), 64)))

    @law("shapes", "what is returned: EvalMetrics of [episodes]", gate=True)
    def shapes(self) -> str:
        metrics = eqx.filter_eval_shape(self.call, *self.given[0])
        assert isinstance(metrics, EvalMetrics), f"it returned {describe(metrics)}; return EvalMetrics"
        got, shape = describe((metrics.episode_length, metrics.cumulative_reward)), metrics.cumulative_reward.shape
        assert len(shape) == 1 and shape == metrics.episode_length.shape, f"lengths and returns are {got}; both are [episodes]"
        return f"[episodes={shape[0]}]"

    @law("episodes as played", "terminated | truncated; rewards after the end, and the last one; the action that the policy chose")
    def as_played(self) -> str:
        metrics, there = self.played
        n, r = metrics.episode_length.ravel(), metrics.cumulative_reward.ravel()
        fit = {how: ((n[:, None] == x) & np.isclose(r[:, None], y, 1e-3, 1e-3)).any(1) for how, (x, y) in there.items()}
        asked = "actions are drawn with a key, as in training: pass the policy None, or have a field `deterministic` that is False"
        assert self.how == "drawn" or not fit["drawn"].all() or fit["best"].all(), asked
        (lengths, returns), stray = there[self.how], ~fit[self.how]
        for i in np.flatnonzero(stray):
            alike = [f"{x:.3g}" for x in returns[lengths == n[i]]] or ["nothing: none takes so many"]
            share = f"{stray.mean():.0%} of the reported episodes are none that the policy plays"
            raise AssertionError(f"{share}: {r[i]:.4g} in {n[i]} steps, say, in which it earns {', '.join(alike[:4])}")
        return f"{n.size} episodes of {n.min()} to {n.max()} steps, actions {dict(best='as held best', drawn='drawn')[self.how]}"

    @law("neither picked nor repeated", "a maximum or minimum over episodes; the key, split once for each episode")
    def not_picked(self) -> str:
        got, all_of = self.played[0].cumulative_reward, self.played[1][self.how][1]
        if np.ptp(all_of) == 0:
            raise NotApplicable("every episode has the same return")
        together = got if got.shape[1] > 1 and all_of.size > 3 else got.reshape(1, -1)
        alike = np.mean(np.ptp(together, axis=1) == 0)
        assert alike < 0.5, f"in {alike:.0%} of the evaluations all of {got.shape[1]} episodes have the same return"
        off = (got.mean() - all_of.mean()) / all_of.std()
        means = f"their mean return is {got.mean():.4g}, that of all the policy plays {all_of.mean():.4g}, {off:+.1f} deviations away"
        assert abs(off) < 0.6, f"the episodes that are reported were picked: {means}"
        return f"{off:+.2f} deviations"
