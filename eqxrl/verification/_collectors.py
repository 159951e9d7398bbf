from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from eqxrl._structs import TrajectoryWithLastObs, Transitions
from eqxrl._typing import Observation, Scalar, describe, validate
from eqxrl.buffers import AbstractBuffer
from eqxrl.collectors import AbstractCollector
from eqxrl.envs import AbstractWrapper
from eqxrl.nn import AbstractActorCritic, AbstractPolicy
from eqxrl.spaces import Box, Discrete, as_space, bounds
from eqxrl.verification._report import NotApplicable, law
from eqxrl.verification._tools import AbstractLaws, close, keys_used_once, quick_jit, same, same_arrays


class Glass(AbstractWrapper):
    """An environment that tells with its reward what a step led to: `tells(obs, terminated, truncated)`, and NaN where the action
    lies outside the action space. A box of actions is narrowed to nearly a point, so that actions must be clipped."""

    env: Any
    tells: Callable

    def reset(self, key: Key[Array, ""], params: Any = None) -> Any:
        return self.env.reset(key, params)

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Any:
        obs, state, _, terminated, truncated, info = self.env.step(key, state, action, params)
        space = self.action_space(params)
        low, high = (0, space.n - 1) if isinstance(space, Discrete) else bounds(space)
        inside = jnp.all((action >= low) & (action <= high))
        return obs, state, jnp.where(inside, self.tells(obs, terminated, truncated), jnp.nan), terminated, truncated, info

    def action_space(self, params: Any = None) -> Any:
        space = as_space(self.env.action_space(params))
        if not isinstance(space, Box):
            return space
        low, high = (jnp.clip(x, -1e3, 1e3) for x in bounds(space))
        middle, width = (low + high) / 2, 1e-3 * (high - low)
        return Box(middle - width, middle + width, space.shape, space.dtype)


def coin(obs: Observation) -> Scalar:
    """1 or -1, by chance but always the same for the same observation."""
    flat = jnp.arcsinh(jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(obs)]))
    weights = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)
    return jnp.where(jnp.sin(50 * (flat @ weights)) >= 0, 1.0, -1.0)


class CollectorLaws(AbstractLaws):
    """Of a collector, with an environment and what it is to act with: an `AbstractPolicy` if it collects `Transitions`, an
    `AbstractActorCritic` if it collects rollouts."""

    def __init__(self, collector: AbstractCollector, env: Any, env_params: Any, policy: AbstractActorCritic | AbstractPolicy):
        self.collector, self.env, self.env_params, self.policy = collector, env, env_params, policy
        self.makes = Transitions if isinstance(policy, AbstractPolicy) else TrajectoryWithLastObs
        self.call = lambda policy, state: collector(env, env_params, policy, state)
        self.init = lambda key: collector.init(env, env_params, policy, key)
        self.keys = list(jax.random.split(jax.random.key(2), 2))

    def steps(self, batch: Any) -> Any:
        return batch.transitions if self.makes is Transitions else batch.trajectories

    def agent(self) -> Any:
        if self.makes is Transitions:
            raise NotApplicable("it collects transitions")
        if jax.tree.leaves(eqx.filter_eval_shape(lambda agent: agent.initial_carry(), self.policy)):
            raise NotApplicable("the policy has a hidden state")
        return self.policy

    def members(self) -> list[Any]:
        init = quick_jit(self.init)
        return [(self.policy, init(key)) for key in self.keys]

    @cached_property
    def run(self) -> tuple[list[Any], list[Any]]:
        """The states before, between and after two rollouts, and the rollouts."""
        (_, before), (between, first) = self.given[0], self.results[0]
        after, second = self.compiled(self.policy, between)
        return [before, between, after], [first, second]

    def through_glass(self, tells: Callable[..., Any]) -> list[list[Any]]:
        """The states after each of two rollouts, and the rollouts, where rewards are what `tells` says."""
        def program(key: Any) -> Any:
            world = Glass(self.env, tells), self.env_params, self.policy
            state = self.collector.init(*world, key)
            def one(state: Any, _: None) -> Any:
                result = self.collector(*world, state)
                return result[0], result
            states, batches = jax.lax.scan(one, state, length=2)[1]
            return [[jax.tree.map(lambda x, i=i: x[i], of) for i in range(2)] for of in (states, batches)]
        return quick_jit(program)(self.keys[0])

    def tells(self, obs: Any, terminated: Any, truncated: Any) -> Any:
        """A step's reward in glass: 0 if it terminated, else the coin of what it led to, or -1 if that isn't stored (at a cut-off)."""
        side = coin(obs) if self.makes is Transitions else jnp.where(truncated, -1.0, coin(obs))
        return jnp.where(terminated, 0.0, side)

    @cached_property
    def glass(self) -> list[dict[str, Any]]:
        """Of each rollout in glass: its steps, the signs of their rewards, and `told`, what these should be by the other fields."""
        seen, coins = [], quick_jit(jax.vmap(jax.vmap(coin)))
        for state, batch in zip(*self.through_glass(self.tells)):
            t = self.steps(batch)
            side = coins(jax.tree.map(lambda x, last: jnp.concatenate([x[1:], last[None]]), t.obs, state.last_obs))
            side = jnp.where(t.truncated, coins(t.next_obs) if self.makes is Transitions else -1.0, side)
            fields = {name: np.asarray(getattr(t, name)) for name in ("terminated", "truncated", "done", "action")}
            told = np.asarray(jnp.where(t.terminated, 0.0, side))
            seen.append(fields | dict(sign=np.sign(t.reward), told=told, state=state, episodes=batch.episodes))
        return seen

    def seen(self, *names: str) -> list[np.ndarray]:
        return [np.concatenate([rollout[name] for rollout in self.glass]) for name in names]

    @law("shapes", "what init and __call__ return; weak types come of Python numbers", gate=True)
    def shapes(self) -> str:
        sizes: dict[str, Any] = dict(steps=self.collector.num_steps, envs=self.collector.num_envs)
        def traced(key: Any) -> Any:
            state = validate(self.collector, self.init(key), batch="envs", envs=sizes["envs"])
            after, batch = self.call(self.policy, state)
            assert isinstance(batch, self.makes), f"it returned {describe(batch)}; return (state, {self.makes.__name__})"
            validate(self.collector, after, batch="envs", envs=sizes["envs"])
            validate(self.collector, batch, batch="steps envs", **sizes)
            return state, after
        before, after = eqx.filter_eval_shape(traced, self.keys[0])
        same_arrays(before, after, "its state")
        return " ".join(f"{name}={size}" for name, size in sizes.items())

    @law("actions are stored unclipped", "spaces.to_env_action, on the way to the environment only")
    def actions_are_stored_unclipped(self) -> str:
        space, (action,) = Glass(self.env, coin).action_space(self.env_params), self.seen("action")
        if isinstance(space, Discrete):
            raise NotApplicable("the actions are discrete")
        low, high = map(np.asarray, bounds(space))
        clipped = np.all((action >= low) & (action <= high), axis=tuple(range(2, action.ndim))).mean()
        assert clipped < 0.5, f"{clipped:.0%} of the stored actions lie in a space with hardly any extent: they were stored clipped"
        return f"{1 - clipped:.0%} of the stored actions outside a narrow space"

    @law("steps follow one another", "[steps envs] and not [envs steps]; obs before the step, reward after it; to_env_action")
    def steps_follow(self) -> str:
        """What a step led to is what the next one starts from. Rewards may be scaled or clipped, if they keep their sign."""
        done, sign, told = self.seen("done", "sign", "told")
        outside = np.isnan(sign).mean()
        assert not outside, f"the environment got actions outside its action space, at {outside:.0%} of the steps"
        assert not done.all(), "every episode lasts one step only"
        wrong = np.mean((sign != told)[~done])
        what = "the next step of an environment starts from another observation than the last one led to, or its reward isn't that step's"
        assert wrong <= 0.01, f"{what}: {wrong:.0%} of the steps don't fit"  # by rounding, a coin may fall on another side
        return f"{(~done).sum()} steps"

    @law("flags", "terminated and truncated are those of the same step, and neither stands in the place of the other")
    def flags(self) -> str:
        sign, told, terminated, truncated = self.seen("sign", "told", "terminated", "truncated")
        cut = truncated & ~terminated
        if not np.any((sign == 0) | terminated | truncated):
            raise NotApplicable(f"no episode ended in {len(sign)} steps")
        missed, invented, wrong = (sign == 0) & ~terminated, (sign != 0) & terminated, cut & (sign != told)
        assert not missed.any(), f"{missed.sum()} steps that terminated the episode are stored as if they hadn't"
        assert not invented.any(), f"{invented.sum()} steps are stored as terminated that didn't terminate the episode"
        assert not wrong.any(), f"{wrong.sum()} of {cut.sum()} steps that are stored as truncated weren't, or led to another next_obs"
        return f"{terminated.sum()} terminated, {cut.sum()} cut off"

    @law("rollouts go on", "what of the state is returned, the key for the next rollout too")
    def rollouts_go_on(self) -> None:
        states, batches = self.run
        for before, after, batch in zip(states, states[1:], batches):
            t = self.steps(batch)
            assert same(jax.tree.map(lambda x: x[0], t.obs), before.last_obs), "a rollout doesn't open where the one before it stopped"
            assert same(after.last_done, t.done[-1]), "the state's last_done isn't the last step's done"
            for name in ("last_obs", "last_done") if isinstance(batch, TrajectoryWithLastObs) else ():
                assert same(getattr(batch, name), getattr(after, name)), f"the rollout's {name} isn't the state's"
        counted = [int(state.global_step) for state in states]
        assert counted == list(range(len(states))), f"global_step goes {counted}; it counts rollouts"
        rngs = {jax.random.key_data(state.rng).tobytes() for state in states}
        assert len(rngs) == len(states), "the state's rng is the same after a rollout: return the key for the next one"

    def keys_used_once(self) -> None:
        keys_used_once(lambda key: self.call(self.policy, self.init(key)), self.keys[0])

    @law("environments start differently", "split the key of init, once for each environment")
    def starts(self) -> None:
        possible = quick_jit(jax.vmap(lambda key: self.env.reset(key, self.env_params)[0]))(jax.random.split(self.keys[1], 8))
        alike = lambda obs: all(len(np.unique(x, axis=0)) == 1 for x in jax.tree.leaves(obs))  # noqa: E731
        if self.collector.num_envs == 1 or alike(possible):
            raise NotApplicable("there is one environment, or one first observation")
        assert not alike(self.run[0][0].last_obs), "all environments start alike"

    @law("episodes are counted", "EpisodeStats, and the state's episode_return and episode_length")
    def episodes_are_counted(self) -> str:
        """How many episodes ended, how long they were and what they returned, in the environment's own units."""
        (lengths, returns), total = np.zeros((2, self.collector.num_envs)), 0
        for rollout in self.glass:
            want = np.zeros(3)
            for done, reward in zip(rollout["done"], rollout["told"]):
                lengths, returns = lengths + 1, returns + reward
                want += [done.sum(), lengths[done].sum(), returns[done].sum()]
                lengths[done], returns[done] = 0, 0
            got, state, total = rollout["episodes"], rollout["state"], total + int(want[0])
            close((got.count, got.total_length), (want[0], want[1]), "the rollout's episodes (count, length)")
            close((state.episode_length, state.episode_return), (lengths, returns), "the state's episode_length and episode_return")
            close(got.total_return, want[2], "the return of the episodes, in the environment's own units,")
        return f"{total} episodes"

    @law("next_obs opens the next step", "next_obs is what the action led to, before any reset; obs is what it was chosen for")
    def next_obs(self) -> None:
        if self.makes is not Transitions:
            raise NotApplicable("it collects rollouts")
        for state, batch in zip(self.run[0][1:], self.run[1]):
            t = batch.transitions
            for x, led_to, last in zip(*map(jax.tree.leaves, (t.obs, t.next_obs, state.last_obs))):
                wrong = np.any(np.reshape(led_to != np.concatenate([x[1:], last[None]]), (*t.done.shape, -1)), axis=-1) & ~t.done
                assert not wrong.any(), f"at {wrong.sum()} of {wrong.size} steps next_obs isn't the next step's obs"

    @law("log-probs and values are the policy's", "store the action as drawn, its own log-prob, and the observation that it is for")
    def replayed(self) -> str:
        @quick_jit
        def again(agent: Any, t: Any) -> Any:
            distribution, value, _ = jax.vmap(jax.vmap(lambda obs: agent(obs, agent.initial_carry())))(t.obs)
            return distribution.log_prob(t.action), value
        agent, steps = self.agent(), [self.steps(batch) for batch in self.run[1]]
        for t in steps:
            log_prob, value = again(agent, t)
            close(t.log_prob, log_prob, "the stored action's log_prob")
            close(t.value, value, "the stored observation's value")
        return f"{len(steps)} rollouts"

    @law("final values where cut off", "value the final observation, not that after the reset, where truncated and not terminated")
    def final_values(self) -> str:
        """Where an episode was cut off, the critic's value of its last observation, and 0 elsewhere. In glass the reward is that
        value, times what the collector scales rewards with."""
        agent, seen = self.agent(), []
        for batch in self.through_glass(lambda obs, *_: agent(obs, agent.initial_carry())[1])[1]:
            t = batch.trajectories
            value, reward, goes_on = np.asarray(t.value, np.float64), np.asarray(t.reward, np.float64), ~np.asarray(t.done)[:-1]
            following, paid = value[1:][goes_on], reward[:-1][goes_on]
            scale = np.sum(following * paid) / max(np.sum(following**2), 1e-12) or 1.0
            if not np.allclose(paid / scale, following, 1e-4, 1e-4):
                raise NotApplicable("rewards are changed by more than a factor, or aren't their own step's")
            seen.append((reward / scale, t.final_value, t.truncated & ~t.terminated))
        led_to, got, needed = map(np.concatenate, zip(*seen))
        stray = np.count_nonzero(got[~needed])
        assert not stray, f"final_value isn't 0 at {stray} steps that weren't cut off, or that terminated"
        if not np.any(needed):
            raise NotApplicable(f"no episode was cut off in {len(needed)} steps")
        return f"{needed.sum()} episodes cut off, {close(got[needed], led_to[needed], 'final_value')}"


class BufferLaws(AbstractLaws):
    """Of a replay buffer, with an example of the rows that it is to keep (or its shapes)."""

    def __init__(self, buffer: AbstractBuffer, example: PyTree):
        self.buffer, self.call = buffer, self.add_and_sample
        self.example = {"row": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)}
        self.example["number"] = jax.ShapeDtypeStruct((), jnp.int32)

    def add(self, state: Any, start: Any) -> Any:
        """Adds rows `[steps envs ...]`, each filled with its number, in the order of time; the first one is `start`."""
        number = start + jnp.arange(6).reshape(2, 3)
        fill = lambda x: jnp.broadcast_to(number.reshape(2, 3, *[1] * len(x.shape)), (2, 3, *x.shape)).astype(x.dtype)  # noqa: E731
        return self.buffer.add(state, jax.tree.map(fill, self.example))

    def add_and_sample(self, state: Any, start: Any, key: Any) -> Any:
        state = self.add(state, start)
        return state, self.buffer.sample(state, key)

    def members(self) -> list[Any]:
        keys = jax.random.split(jax.random.key(11), 2)
        return [(self.buffer.init(self.example), jnp.int32(i), key) for i, key in enumerate(keys)]

    @cached_property
    def filled(self) -> dict[int, tuple[int, Any]]:
        """After so many rows, fewer and more than its capacity: its size, and rows that were drawn, `[draws batch ...]`."""
        add, draw = quick_jit(self.add), quick_jit(jax.vmap(self.buffer.sample, in_axes=(None, 0)))
        state, seen, total, size = self.given[0][0], {}, 0, 0
        while total < 1000 and total <= 2 * size:  # until all of it was written twice
            state = add(state, jnp.int32(total + 1))
            total, size = total + 6, int(state.size)
            if not seen or (len(seen) == 1 and size < total) or total > 2 * size:
                seen[total] = size, jax.device_get(draw(state, jax.random.split(jax.random.key(12), 400)))
        return seen

    @law("shapes", "what add and sample return", gate=True)
    def shapes(self) -> str:
        after, batch = jax.eval_shape(self.call, *self.given[0])
        same_arrays(self.given[0][0], after, "its state")
        sizes = {x.shape[:1] for x in jax.tree.leaves(batch)}
        assert len(sizes) == 1, f"sample returned {describe(batch)}; return [batch ...]"
        same_arrays(self.example, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch), "a sampled row")
        return "[batch={}]".format(*sizes.pop())

    @law("whole rows", "one index for all arrays of a row")
    def whole_rows(self) -> None:
        for _, drawn in self.filled.values():
            for x in jax.tree.leaves(drawn["row"]):
                number = drawn["number"].reshape(*x.shape[:2], *[1] * (x.ndim - 2)).astype(x.dtype)
                assert (x == number).all(), "what comes out isn't what went in, or a row is put together from several"

    @law("the newest rows", "where rows are written, and the bound up to which is drawn: never what wasn't filled")
    def newest(self) -> None:
        for total, (size, drawn) in self.filled.items():
            oldest = drawn["number"].min()
            assert oldest > total - size, f"of {total} rows the newest {size} are kept, but row {oldest} was drawn"

    @law("uniform", "the bounds of the random index, and whether the key is used")
    def uniform(self) -> None:
        for total, (size, drawn) in self.filled.items():
            counts = np.bincount(drawn["number"].ravel() - (total - size) - 1, minlength=size)
            excess = (np.sum((counts - counts.mean()) ** 2) / counts.mean() - (size - 1)) / np.sqrt(2 * max(size - 1, 1))
            assert excess < 8, f"the {size} rows aren't drawn equally often: {counts.min()} to {counts.max()} times"
