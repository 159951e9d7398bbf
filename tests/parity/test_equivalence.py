"""Equivalence with rejax 0.1.3 in distribution, where `test_rejax.py` shows equality number by number: whole runs of both, with
seeds, initial networks, environments and shuffles of their own, learn equally well at the same number of real env steps.

eqxrl is composed as in `test_rejax.py`, so that equivalence is to be expected; what stays its own are its keys, the reset only
on the steps that need one, and the shuffle without a sort. Both are evaluated in the same way, by rejax's evaluator: episodes
with actions drawn from the policy.

    pytest -m slow -n 0 -s tests/parity/test_equivalence.py
"""

import dataclasses
from typing import Any

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import optax
import pytest
import rejax
from equivalence import NUM_EVALS, compare, play, train_rejax
from rejax_parts import NormalizeEachStep, ScaleRewardsEachStep, standardize
from rejax_side import FiveValueStep, to_agent

from eqxrl import PPO, MinibatchLearner, MLPActorCritic, PPOHParams, PPOLoss, RolloutCollector
from eqxrl.envs import ResetWhenDone, TimeLimitIsTerminal

NUM_SEEDS = 100
"""Of each of the two."""
MARGIN = 0.02
"""Of the return range."""


@dataclasses.dataclass(frozen=True)
class Case:
    env_id: str
    low: float
    high: float
    """The return range."""
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
    normalize_rewards: bool
    hidden_sizes: tuple[int, ...] = (64, 64)
    clip_eps: float = 0.2
    vf_coef: float = 0.5

    @property
    def env_steps(self) -> int:
        return NUM_EVALS * self.iterations_per_eval * self.num_envs * self.num_steps


# What is compared is the mean return over all evaluations of a run, early and late. The sizes are chosen for a spread of it
# over seeds of some 4 % of the return range: the standard error over 100 + 100 seeds is then a quarter of the margin or so.
# Rewards are scaled, for without that the clipped values follow returns of this size only slowly, and the spread is larger.
CARTPOLE = Case(
    env_id="CartPole-v1",
    low=0.0,
    high=500.0,
    iterations_per_eval=8,
    num_envs=64,
    num_steps=128,
    num_minibatches=32,
    num_epochs=6,
    learning_rate=5e-4,
    gamma=0.99,
    gae_lambda=0.95,
    max_grad_norm=0.5,
    ent_coef=0.0,
    normalize_observations=False,
    normalize_rewards=True,
)
PENDULUM = Case(
    env_id="Pendulum-v1",
    low=-1700.0,
    high=0.0,
    iterations_per_eval=10,
    num_envs=16,
    num_steps=100,
    num_minibatches=10,
    num_epochs=8,
    learning_rate=1e-3,
    gamma=0.9,
    gae_lambda=0.95,
    max_grad_norm=0.5,
    ent_coef=0.0,
    normalize_observations=True,
    normalize_rewards=True,
)


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
        normalize_rewards=case.normalize_rewards,
        reward_normalization_discount=case.gamma,
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

    collector = RolloutCollector(
        case.num_envs, case.num_steps, stepper=NormalizeEachStep() if case.normalize_observations else ResetWhenDone()
    )
    if case.normalize_rewards:
        collector = ScaleRewardsEachStep(collector, jnp.asarray(case.gamma, jnp.float32), case.num_envs, case.num_steps)
    return PPO.create(
        env=TimeLimitIsTerminal(env),
        env_params=env_params,
        hp=PPOHParams(
            num_envs=case.num_envs,
            num_steps=case.num_steps,
            num_minibatches=case.num_minibatches,
            num_epochs=case.num_epochs,
            gamma=case.gamma,
            gae_lambda=case.gae_lambda,
        ),
        actor_critic=rejax_network,
        collector=collector,
        learner=MinibatchLearner(
            loss=PPOLoss(clip_eps=case.clip_eps, vf_coef=case.vf_coef, ent_coef=case.ent_coef),
            optimizer=optax.chain(optax.clip(case.max_grad_norm), optax.adam(case.learning_rate)),
            num_epochs=case.num_epochs,
            num_minibatches=case.num_minibatches,
        ),
    )


def train_eqxrl(algo: PPO, case: Case, key):
    ts = algo.init_train_state(key)
    arrays, static = eqx.partition(ts, eqx.is_array)

    def chunk(arrays, key):
        ts, _ = algo.iterations(eqx.combine(arrays, static), case.iterations_per_eval)

        def act(obs, rng):
            if case.normalize_observations:
                _, moments = ts.data_collection_state.reset_state
                obs = standardize(moments, obs)
            return algo.make_actor(ts)(obs, rng)

        return eqx.filter(ts, eqx.is_array), play(case, act, key)

    keys = jax.random.split(jax.random.fold_in(key, 1), NUM_EVALS)
    arrays, returns = jax.lax.scan(chunk, arrays, keys)
    return returns, arrays.data_collection_state.global_step * algo.iteration_size


SIDES = {"rejax": (make_rejax, train_rejax), "eqxrl": (make_eqxrl, train_eqxrl)}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", [CARTPOLE, PENDULUM], ids=lambda case: case.env_id)
def test_learns_as_rejax_does(case):
    with jax.numpy_rank_promotion("allow"):  # which rejax's normalisation relies on
        assert compare(case, NUM_SEEDS, SIDES, MARGIN) < 0.05
