from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from eqxrl._structs import EvalMetrics
from eqxrl._typing import describe, validate
from eqxrl.envs import AbstractStepper, AbstractWrapper, NeverReset, episode_limit
from eqxrl.evaluators import AbstractEvaluator
from eqxrl.nn import AbstractPolicy
from eqxrl.spaces import sample
from eqxrl.verification._report import NotApplicable, law
from eqxrl.verification._tools import AbstractLaws, close, quick_jit, same_arrays

ENVS, STEPS = 5, 30


class Clock(AbstractWrapper):
    """An environment that pays 1 for each step, and in which episodes end after `at` steps (0: when they would) and not before."""

    env: Any
    at: Int[Array, ""]
    terminates: Bool[Array, ""]
    """Or is truncated."""

    def reset(self, key: Key[Array, ""], params: Any = None) -> Any:
        obs, state = self.env.reset(key, params)
        return obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: Key[Array, ""], state: Any, action: Any, params: Any = None) -> Any:
        obs, inner, _, *ends, info = self.env.step(key, state[0], action, params)
        over = state[1] + 1 >= self.at
        ends = [jnp.where(self.at > 0, over & flag, end) for flag, end in zip((self.terminates, ~self.terminates), ends)]
        return obs, (inner, state[1] + 1), jnp.ones((), jnp.float32), *ends, info


class EvaluatorLaws(AbstractLaws):
    """Of an evaluator, with an environment and a policy for it."""

    def __init__(self, evaluator: AbstractEvaluator, env: Any, env_params: Any, policy: AbstractPolicy):
        self.play = lambda env, policy, key: evaluator(env, env_params, policy, key)
        self.call, self.env, self.policy = lambda policy, key: self.play(env, policy, key), env, policy
        limits = [episode_limit(env_params, env), getattr(evaluator, "max_steps", None)]
        self.longest = min((int(x) for x in limits if x is not None), default=None)

    def members(self) -> list[Any]:
        return [(self.policy, key) for key in jax.random.split(jax.random.key(9), 2)]

    @cached_property
    def timed(self) -> dict[tuple[int, bool], EvalMetrics]:
        """Evaluations of episodes that end after so many steps, by terminating or not."""
        play = quick_jit(lambda at, terminates: self.play(Clock(self.env, at, terminates), *self.given[0]))
        short = 3 if self.longest is None else min(3, self.longest)
        cases = [(0, True), (short, True), (short, False)] + ([] if self.longest is None else [(self.longest, False)])
        return {(at, flag): jax.device_get(play(jnp.int32(at), jnp.asarray(flag))) for at, flag in cases}

    @law("shapes", "what is returned: EvalMetrics of [episodes]", gate=True)
    def shapes(self) -> str:
        metrics = eqx.filter_eval_shape(self.call, *self.given[0])
        assert isinstance(metrics, EvalMetrics), f"it returned {describe(metrics)}; return EvalMetrics"
        got, shape = describe((metrics.episode_length, metrics.cumulative_reward)), metrics.cumulative_reward.shape
        assert len(shape) == 1 and shape == metrics.episode_length.shape, f"lengths and returns are {got}; both are [episodes]"
        return f"[episodes={shape[0]}]"

    @law("whole episodes", "terminated | truncated, and the loop's bounds: off by one?")
    def whole_episodes(self) -> str:
        for (at, terminates), metrics in self.timed.items():
            lengths = sorted(set(metrics.episode_length.tolist()))
            fits = lengths[0] >= 1 and (self.longest is None or lengths[-1] <= self.longest)
            assert fits, f"episodes last {lengths[0]} to {lengths[-1]} steps, where the limit is {self.longest}"
            end = "terminate" if terminates else "are cut off"
            assert at == 0 or lengths == [at], f"episodes that {end} after {at} steps have the length {lengths}"
        return f"lengths {', '.join(str(at) for at, _ in self.timed if at)}"

    @law("returns", "rewards after the end must not count, that of the last step must")
    def returns(self) -> None:
        for metrics in self.timed.values():
            close(metrics.cumulative_reward, metrics.episode_length, "where each step is paid 1, the return")


class StepperLaws(AbstractLaws):
    """Of a stepper, with an environment in which first states are random and episodes end within `STEPS` steps of random actions."""

    def __init__(self, stepper: AbstractStepper, env: Any, env_params: Any):
        self.stepper, self.params, self.space = stepper, env_params, env.action_space(env_params)
        self.env = Clock(env, jnp.int32(0), jnp.asarray(False))  # its states hold the time
        self.call = self.run

    def run(self, key: Any) -> Any:
        """First observations and states and what the stepper keeps; the latter renewed; and `STEPS` steps, each with what the
        environment itself, which never resets, makes of it."""
        init_key, refresh_key, key = jax.random.split(key, 3)
        obs, state, kept = self.stepper.init(self.env, self.params, jax.random.split(init_key, ENVS))
        renewed = self.stepper.refresh(self.env, self.params, refresh_key, kept)
        def step(carry: Any, key: Any) -> Any:
            action_key, key = jax.random.split(key)
            action = jax.vmap(lambda key: sample(self.space, key))(jax.random.split(action_key, ENVS))
            after = self.stepper.step(self.env, self.params, jax.random.split(key, ENVS), carry[0], carry[1], action)
            keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.clone(key), ENVS))[:, 0]
            want = jax.vmap(self.env.step, in_axes=(0, 0, 0, None))(keys, carry[0], action, self.params)
            return (after.env_state, after.reset_state), (after, want[:5])
        after, want = jax.lax.scan(step, (state, renewed), jax.random.split(key, STEPS))[1]
        validate(self.stepper, after, batch="steps envs", steps=STEPS, envs=ENVS)
        return (obs, state, kept), renewed, (after, want)

    def members(self) -> list[Any]:
        return [(key,) for key in jax.random.split(jax.random.key(4), 2)]

    @law("shapes", "what init, refresh and step return; eqxrl's own use strong dtypes throughout", gate=True)
    def shapes(self) -> None:
        (obs, state, kept), renewed, (after, _) = jax.eval_shape(self.call, *self.given[0])
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), after)
        same_arrays(kept, renewed, "what it keeps, renewed,")
        same_arrays((obs, state, kept), (one.obs, one.env_state, one.reset_state), "(obs, state, what it keeps)")

    @law("transitions", "final_obs is what the action led to, before any reset")
    def transitions(self) -> None:
        after, want = self.results[0][2]
        obs, state, *rest = want
        for name, x in zip(("final_obs", "reward", "terminated", "truncated"), (obs, *rest)):
            close(getattr(after, name), x, name)
        goes_on = lambda tree: jax.tree.map(lambda x: x[~after.done], tree)  # noqa: E731
        close(goes_on((after.obs, after.env_state)), goes_on((obs, state)), "where the episode goes on, (obs, state)")

    @law("first states where an episode ended", "which observation and state are taken where done")
    def first_states(self) -> str:
        after, want = self.results[0][2]
        assert after.done.any(), f"no episode ended in {STEPS} steps"
        if isinstance(self.stepper, NeverReset):
            close((after.obs, after.env_state), want[:2], "at the end, (obs, state)")
            raise NotApplicable("it never resets")
        opens, led_to = (jax.tree.map(lambda x: np.asarray(x)[after.done], obs) for obs in (after.obs, want[0]))
        started = not np.any(after.env_state[1][after.done]) and not any(map(np.array_equal, *map(jax.tree.leaves, (opens, led_to))))
        assert started, "where an episode ended, the next one doesn't open at its beginning"
        different = max(len(np.unique(x, axis=0)) for x in jax.tree.leaves(opens))
        assert different > 1, "every episode opens in the same state, where first states are random"
        return f"{after.done.sum()} resets, {different} first states"
