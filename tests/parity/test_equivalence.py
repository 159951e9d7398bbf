"""Equivalence with rejax 0.1.3 in distribution, where `test_rejax.py` shows equality number by number: whole runs of both, with
seeds, initial networks, environments and shuffles of their own, learn equally well at the same number of real env steps.

eqxrl is composed as in `test_rejax.py`, so that equivalence is to be expected; what stays its own is the chain of keys, the reset
on the steps that need one, and the shuffle without a sort. Both are evaluated in the same way, by rejax's evaluator: episodes with
actions drawn from the policy.

    pytest -m slow -n 0 -s tests/parity/test_equivalence.py
"""

import dataclasses
import functools
import time
from typing import Any

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rejax
from rejax.evaluate import evaluate
from rejax_parts import NormalizeEachStep, standardize
from rejax_side import FiveValueStep, to_agent
from scipy import stats

from eqxrl import PPO, MinibatchLearner, MLPActorCritic, PPOHParams, PPOLoss, RolloutCollector
from eqxrl.envs import TimeLimitIsTerminal

NUM_SEEDS, CHUNK = 100, 20
"""Of each implementation; how many are trained at once, which bounds the memory."""
NUM_EVALS, NUM_EPISODES = 10, 32
MARGIN = 0.02
"""Of the return range."""


@dataclasses.dataclass(frozen=True)
class Case:
    env_id: str
    return_range: float
    iterations_per_eval: int
    num_envs: int
    num_steps: int
    num_minibatches: int
    num_epochs: int
    learning_rate: float
    gamma: float
    gae_lambda: float
    max_grad_norm: float
    ent_coef: float
    normalize_observations: bool
    hidden_sizes: tuple[int, ...] = (64, 64)
    clip_eps: float = 0.2
    vf_coef: float = 0.5

    @property
    def env_steps(self) -> int:
        return NUM_EVALS * self.iterations_per_eval * self.num_envs * self.num_steps


CASES = {}


def make_env(case: Case) -> tuple[Any, Any]:
    return gymnax.make(case.env_id)


def make_rejax(case: Case) -> rejax.PPO:
    env, env_params = make_env(case)
    same = ("num_envs", "num_steps", "num_minibatches", "num_epochs", "learning_rate", "gamma", "gae_lambda", "max_grad_norm")
    algo = rejax.PPO.create(
        env=FiveValueStep(env),
        env_params=env_params,
        agent_kwargs=dict(activation="tanh", hidden_layer_sizes=case.hidden_sizes),
        **{name: getattr(case, name) for name in same},
        ent_coef=case.ent_coef,
        clip_eps=case.clip_eps,
        vf_coef=case.vf_coef,
        normalize_observations=case.normalize_observations,
        # rejax rounds both of these up, and takes as many steps as that makes: these need no rounding
        eval_freq=case.env_steps // NUM_EVALS,
        total_timesteps=case.env_steps,
        skip_initial_evaluation=True,
    )

    def mean_return(algo, ts, rng):
        return play(case, algo.make_act(ts), jax.random.fold_in(rng, 0))

    return algo.replace(eval_callback=mean_return)


def make_eqxrl(case: Case) -> PPO:
    env, env_params = make_env(case)
    oracle = make_rejax(case)

    def rejax_network(observation_space, action_space, *, key):
        template = eqx.filter_eval_shape(
            MLPActorCritic, observation_space, action_space, hidden_sizes=case.hidden_sizes, key=jax.random.key(0)
        )
        networks = oracle.initialize_network_params(key)
        return to_agent(template, networks["actor_ts"].params, networks["critic_ts"].params)

    return PPO.create(
        env=TimeLimitIsTerminal(env),
        env_params=env_params,
        hp=PPOHParams(gamma=case.gamma, gae_lambda=case.gae_lambda),
        actor_critic=rejax_network,
        collector=RolloutCollector(
            case.num_envs, case.num_steps, reset=NormalizeEachStep() if case.normalize_observations else None
        ),
        learner=MinibatchLearner(
            loss=PPOLoss(clip_eps=case.clip_eps, vf_coef=case.vf_coef, ent_coef=case.ent_coef),
            optimizer=optax.chain(optax.clip(case.max_grad_norm), optax.adam(case.learning_rate)),
            num_epochs=case.num_epochs,
            num_minibatches=case.num_minibatches,
        ),
    )


def play(case: Case, act, key):
    """The mean return of whole episodes."""
    env, env_params = make_env(case)
    _, returns = evaluate(act, key, FiveValueStep(env), env_params, NUM_EPISODES, env_params.max_steps_in_episode)
    return jnp.mean(returns)


def train_rejax(algo: rejax.PPO, case: Case, key):
    ts, returns = algo.train(key)
    return returns, ts.global_step


def train_eqxrl(algo: PPO, case: Case, key):
    ts = algo.init_train_state(key)
    arrays, static = eqx.partition(ts, eqx.is_array)

    def chunk(arrays, key):
        ts, _ = algo.iterations(eqx.combine(arrays, static), case.iterations_per_eval)
        act = algo.make_actor(ts)

        def act_on_normalized(obs, rng):
            _, moments = ts.data_collection_state.reset_state
            return act(standardize(moments, obs), rng)

        returns = play(case, act_on_normalized if case.normalize_observations else act, key)
        return eqx.filter(ts, eqx.is_array), returns

    keys = jax.random.split(jax.random.fold_in(key, 1), NUM_EVALS)
    arrays, returns = jax.lax.scan(chunk, arrays, keys)
    return returns, arrays.data_collection_state.global_step * algo.iteration_size


def learning_curves(train, algo, case: Case, seed: int, num_seeds: int) -> np.ndarray:
    """`[seeds evals]`"""
    many = eqx.filter_jit(jax.vmap(functools.partial(train, algo, case)))
    keys = jax.random.split(jax.random.key(seed), num_seeds)
    curves = []
    for start in range(0, num_seeds, CHUNK):
        returns, env_steps = many(keys[start : start + CHUNK])
        assert np.all(np.asarray(env_steps) == case.env_steps)
        curves.append(np.asarray(returns))
    return np.concatenate(curves)


def tost(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    """The p-value of "the means differ by `margin` or more": two one-sided Welch tests. Schuirmann 1987,
    https://doi.org/10.1007/BF01068419."""
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    return max(above, below)
