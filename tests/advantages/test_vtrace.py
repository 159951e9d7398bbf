"""V-trace against rlax, and against the sum of its paper, episode by episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import quick_jit, rollout_with_every_end

from eqxrl import GAE, TrajectoryWithLastObs
from eqxrl.advantages import VTrace
from eqxrl.testing import check_advantage

STEPS, ENVS = 8, 30


@pytest.fixture(scope="module")
def case():
    """A rollout with every kind of end, and none in the first four environments; its last values, newer values, and log-ratios."""
    rollout, last_value, newer, log_ratio = rollout_with_every_end(STEPS, ENVS, more=2)
    return rollout.trajectories, last_value, newer, log_ratio


def by_hand(trajectory, last_value, value, log_ratio, *, gamma, gae_lambda, rho_clip, c_clip):
    """Espeholt et al. 2018, eq. 1, as the sum of products that it is."""
    t = trajectory
    reward, value, final_value, last_value = (np.asarray(x, np.float64) for x in (t.reward, value, t.final_value, last_value))
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    targets, advantages = np.zeros((STEPS, ENVS)), np.zeros((STEPS, ENVS))
    for env in range(ENVS):
        after = np.zeros(STEPS)
        for s in range(STEPS):
            after[s] = value[s + 1, env] if s + 1 < STEPS else last_value[env]
            after[s] = 0.0 if t.terminated[s, env] else final_value[s, env] if t.truncated[s, env] else after[s]
        for s in range(STEPS):
            targets[s, env], weight = value[s, env], 1.0
            for k in range(s, STEPS):
                rho = min(rho_clip, ratio[k, env])
                targets[s, env] += weight * rho * (reward[k, env] + gamma * after[k] - value[k, env])
                weight *= gamma * gae_lambda * min(c_clip, ratio[k, env])
                if t.terminated[k, env] or t.truncated[k, env]:
                    break
        for s in range(STEPS):
            ends = s + 1 == STEPS or t.terminated[s, env] or t.truncated[s, env]
            then = after[s] if ends else gae_lambda * targets[s + 1, env] + (1 - gae_lambda) * after[s]
            advantages[s, env] = min(rho_clip, ratio[s, env]) * (reward[s, env] + gamma * then - value[s, env])
    return advantages, targets


@pytest.mark.parametrize(
    "numbers",
    [
        dict(gamma=0.9, gae_lambda=1.0, rho_clip=1.0, c_clip=1.0),
        dict(gamma=0.9, gae_lambda=0.7, rho_clip=2.0, c_clip=0.5),
        dict(gamma=1.0, gae_lambda=0.0, rho_clip=0.3, c_clip=3.0),
        dict(gamma=0.5, gae_lambda=1.0, rho_clip=1e6, c_clip=1e6),
    ],
)
def test_equals_the_papers_sum(case, numbers):
    got = quick_jit(lambda *args: VTrace(**numbers).corrected(*args))(*case)
    for a, b in zip(got, by_hand(*case, **numbers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gae_lambda, rho_clip", [(1.0, 1.0), (0.8, 1.0), (0.8, 2.5)])
def test_equals_rlax(case, gae_lambda, rho_clip):
    """Which clips c at 1, on environments where no episode ends."""
    t, last_value, value, log_ratio = case
    after = jnp.concatenate([value[1:], last_value[None]])

    def one(value, after, reward, log_ratio):
        discount = jnp.full(STEPS, 0.9)
        return rlax.vtrace_td_error_and_advantage(
            value, after, reward, discount, jnp.exp(log_ratio), gae_lambda, rho_clip, clip_pg_rho_threshold=rho_clip
        )

    expected = jax.vmap(one, in_axes=1, out_axes=1)(*(x[:, :4] for x in (value, after, t.reward, log_ratio)))
    vtrace = VTrace(gamma=0.9, gae_lambda=gae_lambda, rho_clip=rho_clip)
    advantages, targets = quick_jit(lambda *args: vtrace.corrected(*args))(*case)
    np.testing.assert_allclose(advantages[:, :4], expected.pg_advantage, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((targets - value)[:, :4], expected.errors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_on_policy_it_is_gae(case, gae_lambda):
    t, last_value, *_ = case
    rollout = TrajectoryWithLastObs(trajectories=t, last_done=t.done[-1], last_obs=jnp.zeros(ENVS))
    ours, gae = (quick_jit(x(gamma=0.9, gae_lambda=gae_lambda))(rollout, last_value) for x in (VTrace, GAE))
    for a, b in zip(ours, gae, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_contract():
    check_advantage(VTrace(gamma=0.9, gae_lambda=0.8))


def test_wrong_numbers():
    with pytest.raises(ValueError, match=r"VTrace.rho_clip must be in \(0.0, inf\], got 0"):
        VTrace(rho_clip=0.0)
    with pytest.raises(ValueError, match=r"VTrace.c_clip must be in \[0.0, inf\], got -1"):
        VTrace(c_clip=-1.0)
