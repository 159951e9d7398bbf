"""Equivalence of DQN and SAC with rejax 0.1.3's in distribution, as `test_equivalence.py` shows it for PPO.

Networks, optimisers and loss are rejax's, or its configuration of them; keys, buffer (rejax draws without replacement) and updates are
eqxrl's: its SAC steps actor, critics and temperature together, rejax one after the other.

    pytest -m slow -n 0 -s tests/parity/test_off_policy_equivalence.py
"""

import dataclasses
import types
from typing import Any
from unittest import mock

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rejax
from equivalence import NUM_EVALS, compare, play, train_rejax
from rejax_side import FiveValueStep

from eqxrl import DQN, SAC
from eqxrl.algorithms import AbstractOffPolicy, DQNHParams, SACHParams
from eqxrl.envs import TimeLimitIsTerminal
from eqxrl.nn import EpsilonGreedy, Sampling, SquashedGaussian

NUM_SEEDS = 50
"""Of each of the two."""
MARGIN = 0.04
"""Of the return range: whole runs differ from seed to seed by some 5 % of it, so that the standard error of a difference is 1 %."""


@dataclasses.dataclass(frozen=True)
class Case:
    env_id: str
    low: float
    high: float
    """The return range."""
    env_steps: int
    num_envs: int
    batch_size: int
    buffer_size: int
    learning_starts: int
    learning_rate: float
    gamma: float


CARTPOLE = Case(
    "CartPole-v1", low=0.0, high=500.0, env_steps=40_000, num_envs=4, batch_size=128, buffer_size=8_000, learning_starts=400,
    learning_rate=1e-3, gamma=0.95,
)
PENDULUM = Case(
    "Pendulum-v1", low=-1700.0, high=0.0, env_steps=40_000, num_envs=8, batch_size=64, buffer_size=8_000, learning_starts=400,
    learning_rate=3e-3, gamma=0.9,
)
TARGET_ITERATIONS, EPSILON_END, EXPLORATION, EVAL_EPSILON, POLYAK = 250, 0.1, 0.4, 0.005, 0.95


def rejax_algo(case: Case, cls: type, **options: Any) -> Any:
    env, env_params = gymnax.make(case.env_id)
    same = ("num_envs", "batch_size", "buffer_size", "learning_rate", "gamma")
    algo = cls.create(
        env=FiveValueStep(env), env_params=env_params, **{name: getattr(case, name) for name in same}, fill_buffer=case.learning_starts,
        num_epochs=1, total_timesteps=case.env_steps, eval_freq=case.env_steps // NUM_EVALS, skip_initial_evaluation=True, **options,
    )
    return algo.replace(eval_callback=lambda algo, ts, rng: play(case, algo.make_act(ts), jax.random.fold_in(rng, 0)))


def rejax_dqn(case: Case) -> rejax.DQN:
    return rejax_algo(
        case, rejax.DQN, target_update_freq=case.num_envs * TARGET_ITERATIONS, polyak=0.0, eps_end=EPSILON_END,
        exploration_fraction=EXPLORATION,
    )


def rejax_sac(case: Case) -> rejax.SAC:
    return rejax_algo(case, rejax.SAC, polyak=POLYAK)


class Flax(eqx.Module):
    """A network of flax's that sees batches, as one of Equinox that sees one row."""

    params: Any
    net: Any = eqx.field(static=True)
    method: str = eqx.field(static=True, default="__call__")

    def __call__(self, *rows: Any) -> Any:
        return jax.tree.map(lambda x: x[0], self.net.apply(self.params, *(x[None] for x in rows), method=self.method))


class FlaxActor(Flax):
    """rejax's policy; its distribution before squashing is distrax's, which comes here as eqxrl's."""

    def __call__(self, obs: Any) -> SquashedGaussian:
        before = self.net.apply(self.params, obs[None], method="_action_dist")
        bounds = (tuple(np.ravel(x).tolist()) for x in self.net.action_range)
        return SquashedGaussian(before.loc[0], jnp.log(before.scale_diag[0]), *bounds, before.loc.shape[1:])


def off_policy_hparams(case: Case, after: int) -> dict[str, Any]:
    """`after` so many iterations more rejax begins to learn."""
    same = ("num_envs", "batch_size", "buffer_size", "learning_rate", "gamma")
    return {name: getattr(case, name) for name in same} | dict(
        num_steps=1, updates_per_iteration=1, learning_starts=case.learning_starts + after * case.num_envs, total_timesteps=case.env_steps,
    )


def eqxrl_dqn(case: Case) -> DQN:
    oracle, (env, env_params) = rejax_dqn(case), gymnax.make(case.env_id)
    hp = DQNHParams(
        **off_policy_hparams(case, 2), target_update_freq=TARGET_ITERATIONS, epsilon_end=EPSILON_END, exploration_fraction=EXPLORATION,
        max_grad_norm=float("inf"),
    )
    return DQN.create(
        env=TimeLimitIsTerminal(env), env_params=env_params, hp=hp,
        q_network=lambda *spaces, key: Flax(oracle.initialize_network_params(key)["q_ts"].params, oracle.agent),
    )


class ActsAtOnce(SAC):
    """The policy collects from the first step on, as rejax's does."""

    def behaviour(self, learner, num_iterations):
        return Sampling(learner.actor)


def eqxrl_sac(case: Case) -> SAC:
    oracle, (env, env_params) = rejax_sac(case), gymnax.make(case.env_id)

    def critic(*spaces: Any, key: Any) -> Flax:
        params = oracle.initialize_network_params(key)["critic_ts"].params
        return OneValue(jax.tree.map(lambda x: x[0], params), oracle.critic)

    return ActsAtOnce.create(
        env=TimeLimitIsTerminal(env), env_params=env_params, hp=SACHParams(**off_policy_hparams(case, 1), tau=1 - POLYAK),
        actor=lambda *spaces, key: FlaxActor(oracle.initialize_network_params(key)["actor_ts"].params, oracle.actor), critic=critic,
    )


class OneValue(Flax):
    def __call__(self, *rows: Any) -> Any:
        return super().__call__(*rows)[None]


def train_eqxrl(algo: AbstractOffPolicy, case: Case, key: Any) -> Any:
    ts = algo.init_train_state(key)
    arrays, static = eqx.partition(ts, eqx.is_array)

    def chunk(arrays: Any, key: Any) -> Any:
        ts, _ = algo.iterations(eqx.combine(arrays, static), case.env_steps // NUM_EVALS // case.num_envs)
        learner = ts.learner
        policy = EpsilonGreedy(learner.q, jnp.float32(EVAL_EPSILON)) if isinstance(algo, DQN) else Sampling(learner.actor)
        act = lambda obs, rng: jnp.squeeze(policy(obs[None], (), rng)[0])  # noqa: E731
        return eqx.filter(ts, eqx.is_array), play(case, act, key)

    arrays, returns = jax.lax.scan(chunk, arrays, jax.random.split(jax.random.fold_in(key, 1), NUM_EVALS))
    return returns, arrays.data_collection_state.global_step * algo.iteration_size


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", [CARTPOLE, PENDULUM], ids=["DQN", "SAC"])
def test_learns_as_rejax_does(case):
    makers = (rejax_dqn, eqxrl_dqn) if case is CARTPOLE else (rejax_sac, eqxrl_sac)
    sides = dict(zip(("rejax", "eqxrl"), zip(makers, (train_rejax, train_eqxrl))))
    # rejax's DQN has the squared error, eqxrl's has Huber's of it: rejax is given that one.
    huber = types.SimpleNamespace(**vars(optax) | dict(l2_loss=optax.huber_loss))
    with jax.numpy_rank_promotion("allow"), mock.patch.object(rejax.algos.dqn, "optax", huber):
        assert compare(case, NUM_SEEDS, sides, MARGIN) < 0.05
