import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._typing import validate
from eqxrl.collectors import AbstractCollector
from eqxrl.envs import AbstractReset, ResetEveryStep
from eqxrl.nn import AbstractActorCritic
from eqxrl.testing._probe import ACTIONS, normalized, probe, probe_agent
from eqxrl.testing._transforms import transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, NotApplicable, insist
from eqxrl.verification._spies import Glass, is_recurrent, replay, through_glass


def check_collector(
    collector: AbstractCollector,
    env: Any = None,
    env_params: Any = None,
    agent: AbstractActorCritic | None = None,
) -> None:
    """Holds a collector to its contract: `[steps envs]`, with the same structure, shapes and dtypes of its state, so that it can
    be repeated; stored actions are those that were drawn, with the log-prob and the value that the policy gives them;
    environments get them clipped; one step follows the other, also from one rollout to the next; where an episode was cut
    off, the value of its last observation, and 0 elsewhere; ends counted; each key used once; environments that start
    differently; pure, and the same under jit and vmap.

    **Arguments:** `env`, `env_params`, `agent`: what it is to collect with, all three. Without them it is given an environment
    with discrete actions and one with a box of them.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    if env is not None:
        if agent is None:
            raise ValueError("pass env, env_params and agent, or none of them")
        insist(type(collector).__name__, collector_laws(collector, env, env_params, agent))
        return
    for kind in ACTIONS:
        laws_of_kind = collector_laws(collector, *probe(kind), normalized(probe_agent(kind)))
        insist(f"{type(collector).__name__}, {kind} actions,", laws_of_kind)


def collector_laws(collector: AbstractCollector, env: Any, env_params: Any, agent: AbstractActorCritic) -> list[Law]:
    keys = list(jax.random.split(jax.random.key(2), 2))
    sizes = dict(steps=collector.num_steps, envs=collector.num_envs)

    def init(key: Any) -> Any:
        return collector.init(env, env_params, agent, key)

    def collect(agent: AbstractActorCritic, state: Any) -> Any:
        return collector(env, env_params, agent, state)

    @functools.cache
    def run():
        """States before, between and after two rollouts; the rollouts; log-probs and values computed anew."""
        call = eqx.filter_jit(lambda agent, state: (*(out := collect(agent, state)), replay(agent, out[1])))
        states, rollouts, replayed = [eqx.filter_jit(init)(keys[0])], [], []
        for _ in range(2):
            state, rollout, again = call(agent, states[-1])
            states.append(state)
            rollouts.append(rollout)
            replayed.append(again)
        return states, rollouts, replayed

    @functools.cache
    def glass():
        if is_recurrent(agent):
            raise NotApplicable("the policy has a hidden state")
        return jax.jit(lambda key: through_glass(collector, env, env_params, agent, key))(keys[0])

    def shapes() -> str:
        def traced(key: Any) -> Any:
            state = validate(collector, init(key), batch="envs", envs=sizes["envs"])
            after, rollout = collect(agent, state)
            validate(collector, after, batch="envs", envs=sizes["envs"])
            validate(collector, rollout, batch="steps envs", **sizes)
            return state, after

        before, after = eqx.filter_eval_shape(traced, keys[0])
        laws.same_arrays(before, after, "its state")
        return f"[steps={sizes['steps']} envs={sizes['envs']}]"

    def finite() -> str:
        states, rollouts, _ = run()
        return laws.finite(**{"the state": states[-1], "the rollouts": rollouts})

    def keys_once() -> str:
        def twice(key: Any) -> Any:
            state, _ = collect(agent, init(key))
            return eqx.filter(collect(agent, state), eqx.is_array)

        laws.keys_used_once(twice, keys[0])
        starts = jax.tree.leaves(run()[0][0].last_obs)
        assert sizes["envs"] == 1 or any(len(np.unique(x, axis=0)) > 1 for x in starts), "all environments start alike"
        states = [jax.random.key_data(state.rng).tobytes() for state in run()[0]]
        assert len(set(states)) == len(states), "the state's rng is the same after a rollout: return the key for the next one"
        return "each key once"

    members = [(agent, eqx.filter_jit(init)(key)) for key in keys]
    return [
        Law("shapes", shapes, "what init and __call__ return; weak types come of Python numbers", gate=True),
        Law("finite", finite, "the policy, the environment"),
        Law(
            "the stored action has the stored log-prob",
            lambda: [laws.log_prob_reproducible(r, again[0]) for r, again in zip(*run()[1:])][-1],
            "store the action as drawn, with its own log-prob, and the observation that it was drawn for",
        ),
        Law(
            "the stored value is the critic's",
            lambda: [laws.value_reproducible(r, again[1]) for r, again in zip(*run()[1:])][-1],
            "value and obs must be of the same step",
        ),
        Law(
            "steps follow one another",
            lambda: laws.steps_follow(glass()),
            "[steps envs] and not [envs steps]; obs before the step, reward after it",
        ),
        Law(
            "actions are stored unclipped",
            lambda: laws.actions_unclipped(glass(), Glass(env, agent).action_space(env_params)),
            "envs.to_env_action, on the way to the environment only",
        ),
        Law(
            "final values where cut off",
            lambda: laws.final_values(glass()),
            "value the final observation, not that after the reset, where truncated and not terminated",
        ),
        Law("rollouts go on", lambda: laws.rollouts_go_on(*run()[:2]), "what of the state is returned"),
        Law(
            "episodes are counted",
            lambda: laws.episodes_are_counted(*run()[:2], paid_one=hasattr(env, "ends_at")),  # the probe pays 1
            "EpisodeStats, and the state's episode_return and episode_length",
        ),
        Law("keys used once", keys_once, "split a key before each use, and once for each environment"),
        *transforms(collect, *members),
    ]


def check_reset(reset: AbstractReset) -> None:
    """Holds a reset strategy to its contract, against `ResetEveryStep`: the same transitions; where an episode ended a first
    observation and a first state, drawn anew, and `final_obs` from before; elsewhere `final_obs` is `obs`; the same
    structure, shapes and dtypes throughout; each key used once; pure, and the same under jit and vmap.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(reset).__name__, reset_laws(reset))


def reset_laws(reset: AbstractReset) -> list[Law]:
    num_envs, num_steps = 5, 30
    env, params = probe("discrete")
    keys = list(jax.random.split(jax.random.key(4), 2))

    def run(reset: AbstractReset, key: Any) -> Any:
        """First (obs, state, kept), and what `num_steps` steps of random actions gave, each with the state before it."""
        init_key, refresh_key, key = jax.random.split(key, 3)
        first = reset.init(env, params, jax.random.split(init_key, num_envs))
        kept = reset.refresh(env, params, refresh_key, first[2])

        def step(carry: Any, key: Any) -> Any:
            state, kept = carry
            step_key, action_key = jax.random.split(key)
            action = jax.random.randint(action_key, (num_envs,), 0, 3)
            after = reset.step(env, params, jax.random.split(step_key, num_envs), state, kept, action)
            reference = ResetEveryStep().step(env, params, jax.random.split(action_key, num_envs), state, (), action)
            return (after.env_state, after.reset_state), (after, reference)

        return first, jax.lax.scan(step, (first[1], kept), jax.random.split(key, num_steps))[1]

    @functools.cache
    def ran():
        return eqx.filter_jit(run)(reset, keys[0])

    def shapes() -> str:
        def traced(key: Any) -> Any:
            init_key, refresh_key, step_key = jax.random.split(key, 3)
            obs, state, kept = reset.init(env, params, jax.random.split(init_key, num_envs))
            refreshed = reset.refresh(env, params, refresh_key, kept)
            step_keys = jax.random.split(step_key, num_envs)
            after = reset.step(env, params, step_keys, state, refreshed, jnp.zeros((num_envs,), jnp.int32))
            validate(reset, after, batch="envs", envs=num_envs)
            return kept, refreshed, (obs, state, kept), (after.obs, after.env_state, after.reset_state)

        kept, refreshed, before, after = jax.eval_shape(traced, keys[0])
        laws.same_arrays(kept, refreshed, "what it keeps, refreshed,")
        laws.same_arrays(before, after, "(obs, state, what it keeps)")
        return f"[envs={num_envs}]"

    def transitions() -> str:
        _, (after, want) = ran()
        for name in ("reward", "terminated", "truncated", "final_obs"):
            laws.close(getattr(after, name), getattr(want, name), name)
        on = ~after.done
        laws.close(after.obs[on], after.final_obs[on], "where the episode goes on, obs (against final_obs)")
        laws.close(after.env_state.time[on], want.env_state.time[on], "where the episode goes on, the state's time")
        return f"{on.size} steps"

    def first_states() -> str:
        _, (after, _) = ran()
        done = after.done
        opens, state = after.obs[done], jax.tree.map(lambda x: x[done], after.env_state)
        assert not state.time.any() and not opens[:, 2].any(), "where an episode ended, the next one doesn't open at its beginning"
        laws.close(opens[:, :2], state.position, "the first observation, against the first state,")
        different = len(np.unique(opens, axis=0))
        assert different > 1, "every episode opens in the same state, where first states are random"
        return f"{done.sum()} resets, {different} first states"

    def keys_once() -> str:
        def program(key: Any) -> Any:
            init_key, refresh_key, step_key = jax.random.split(key, 3)
            _, state, kept = reset.init(env, params, jax.random.split(init_key, num_envs))
            kept = reset.refresh(env, params, refresh_key, kept)
            step_keys = jax.random.split(step_key, num_envs)
            return reset.step(env, params, step_keys, state, kept, jnp.zeros((num_envs,), jnp.int32))

        return laws.keys_used_once(program, keys[0])

    return [
        Law("shapes", shapes, "what init, refresh and step return; eqxrl's own use strong dtypes throughout", gate=True),
        Law("transitions", transitions, "final_obs is what the action led to, before any reset"),
        Law("first states where an episode ended", first_states, "which observation and state are taken where done"),
        Law("keys used once", keys_once, "a key for the step and another one for the reset, of each environment"),
        *transforms(lambda key: run(reset, key), *((key,) for key in keys)),
    ]
