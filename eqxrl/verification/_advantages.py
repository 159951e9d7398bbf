from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl._typing import validate
from eqxrl.advantages import GAE, AbstractAdvantage
from eqxrl.algorithms._on_policy import Estimate
from eqxrl.verification._report import NotApplicable, law
from eqxrl.verification._tools import TOLERANCE, AbstractLaws, close, finite, quick_jit


class AdvantageLaws(AbstractLaws):
    """Of an advantage estimator. **Arguments:** `rollout`: one that it can work on; its rewards, values and ends are replaced."""

    def __init__(self, advantage: AbstractAdvantage, rollout: TrajectoryWithLastObs):
        self.advantage: Any = advantage
        self.call, self.rollout = lambda *args: advantage(*args), rollout

    def members(self) -> list[Any]:
        return [scrambled(self.rollout, seed) for seed in range(2)]

    @law("shapes", "what is returned: advantages and targets, [steps envs]", gate=True)
    def shapes(self) -> None:
        steps, envs = self.rollout.trajectories.reward.shape
        estimate = Estimate.of(self.advantage, self.results[0])
        validate(self.advantage, estimate, batch="steps envs", steps=steps, envs=envs)

    @law("GAE", "the recursion: discounts, and which value follows a step")
    def gae(self) -> str:
        """Against the double sum that defines it, for an estimator that says it is GAE: by its class, or by having both numbers."""
        advantage = self.advantage
        if not (isinstance(advantage, GAE) or (hasattr(advantage, "gamma") and hasattr(advantage, "gae_lambda"))):
            raise NotApplicable(f"{type(advantage).__name__} doesn't claim to be GAE: it has no gamma and gae_lambda")
        rollout, last_value = self.given[0]
        want = double_sum(rollout, last_value, float(advantage.gamma), float(advantage.gae_lambda))
        return close(self.results[0], want, "(advantages, targets)")

    @law("cut at episode ends", "cut at `done` of the same step, whether it terminated or was truncated")
    def ends_are_cut(self) -> str:
        """What comes after the end of an episode changes nothing up to it."""
        (rollout, last_value), (other, other_last) = scrambled(self.rollout, 1), scrambled(self.rollout, 2)
        t = rollout.trajectories
        done = np.asarray(t.done)
        ends = np.array([np.flatnonzero(column)[0] if column.any() else len(done) for column in done.T])
        after, ended = np.arange(len(done))[:, None] > ends, ends < len(done)  # [steps envs], [envs]
        swap = lambda a, b: np.where(after.reshape(*after.shape, *[1] * (a.ndim - 2)), b, a)  # noqa: E731
        changed = eqx.tree_at(lambda r: r.trajectories, rollout, jax.tree.map(swap, t, other.trajectories))
        before, then = self.compiled(rollout, last_value), self.compiled(changed, np.where(ended, other_last, last_value))
        for name, a, b in zip(("advantages", "targets"), before, then):
            for step, env in np.argwhere(~np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) & ~after)[-1:]:
                kind = " and ".join(k for k in ("terminated", "truncated") if np.asarray(getattr(t, k))[ends[env], env])
                where = f"at step {step} of environment {env}, whose episode {kind} at step {ends[env]}"
                raise AssertionError(f"{name} up to the end of an episode depend on what comes after it: {where}")
        # At a termination nothing follows, whatever stands in final_value.
        bare = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, np.where(t.terminated, np.float32(1e3), t.final_value))
        close(self.compiled(bare, last_value), before, "with another final_value where the MDP ended, the estimate")
        return f"{ended.sum()} episodes, every kind of end"

    @law("a cut-off is bootstrapped", "advantages.next_values takes final_value where truncated")
    def cut_off_is_bootstrapped(self) -> None:
        """Where an episode was cut off, and hadn't terminated, the value of its final observation counts."""
        if hasattr(self.advantage, "gamma") and float(self.advantage.gamma) == 0:
            raise NotApplicable("gamma is 0, so that nothing is bootstrapped")
        rollout, last_value = scrambled(self.rollout, 3)
        cut = np.asarray(rollout.trajectories.truncated & ~rollout.trajectories.terminated)
        more = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, replace_fn=lambda x: np.asarray(x) + cut)
        (_, before), (_, then) = self.compiled(rollout, last_value), self.compiled(more, last_value)
        still = np.isclose(before, then, atol=1e-6)[cut]
        where = f"at {still.sum()} of {still.size} steps where an episode was cut off: time limits are taken for terminations"
        assert not still.any(), f"final_value makes no difference to the targets {where}"

    @law("environments apart", "reduce over steps (axis 0), never over environments; the loss standardises")
    def environments_apart(self) -> None:
        """One environment's estimates don't depend on another's steps."""
        (rollout, last_value), (other, _) = scrambled(self.rollout, 4), scrambled(self.rollout, 5)
        order = np.roll(np.arange(last_value.size), 1)
        new = [jax.tree.map(lambda x: np.asarray(x)[:, order], rollout.trajectories)]
        new += jax.tree.map(lambda x: np.asarray(x)[order], [rollout.last_done, rollout.last_obs])
        permuted = eqx.tree_at(lambda r: [r.trajectories, r.last_done, r.last_obs], rollout, new)
        want, got = self.compiled(rollout, last_value), self.compiled(permuted, np.asarray(last_value)[order])
        close(tuple(got), tuple(np.asarray(x)[:, order] for x in want), "with environments in another order, the estimate")
        mixed = jax.tree.map(lambda a, b: np.concatenate([a[:, :1], b[:, 1:]], axis=1), rollout.trajectories, other.trajectories)
        got = self.compiled(eqx.tree_at(lambda r: r.trajectories, rollout, mixed), last_value)
        first = lambda estimate: tuple(np.asarray(x)[:, 0] for x in estimate)  # noqa: E731
        close(first(got), first(want), "with other steps in the other environments, the first one's estimate")

    @law("finite gradients", "divisions, square roots and logarithms of 0, also behind a `where`")
    def gradient(self) -> str:
        rollout, last_value = self.given[0]
        total = lambda of: sum(jnp.sum(x**2) for x in of[0](of[1], last_value))  # noqa: E731
        return finite(gradient=quick_jit(eqx.filter_grad(total))((self.advantage, rollout)))


def scrambled(rollout: TrajectoryWithLastObs, seed: int) -> tuple[TrajectoryWithLastObs, jax.Array]:
    """The rollout with random rewards, values and ends, and a random last value. Ends are frequent, of every kind in turn, and in
    the first environment there are none."""
    rng = np.random.default_rng(seed)
    shape, dtype = rollout.trajectories.reward.shape, rollout.trajectories.reward.dtype
    done = rng.random(shape) < 0.25
    done[rng.integers(0, shape[0], shape[1]), np.arange(shape[1])] = True
    done[:, 0] = False
    kind = (np.cumsum(done, axis=0) + np.arange(shape[1])) % 3
    terminated, truncated = done & (kind != 0), done & (kind != 1)
    reward, value, final_value = rng.normal(size=(3, *shape)).astype(dtype)
    new = dict(reward=reward, value=value, terminated=terminated, truncated=truncated, final_value=final_value * truncated)
    where = lambda r: [*(getattr(r.trajectories, name) for name in new), r.last_done]  # noqa: E731
    rollout = eqx.tree_at(where, rollout, [jnp.asarray(x) for x in (*new.values(), done[-1])])
    return rollout, jnp.asarray(rng.normal(size=shape[1]), dtype)


def double_sum(rollout: TrajectoryWithLastObs, last_value: Any, gamma: float, gae_lambda: float) -> tuple[Any, Any]:
    """Advantages and targets in float64: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16, term by term."""
    t = rollout.trajectories
    reward, value, final_value, last = (np.asarray(x, np.float64) for x in (t.reward, t.value, t.final_value, last_value))
    terminated, truncated = np.asarray(t.terminated), np.asarray(t.truncated)
    following = np.where(truncated, final_value, np.concatenate([value[1:], last[None]]))
    delta = reward + gamma * np.where(terminated, 0.0, following) - value
    advantages = np.zeros_like(delta)
    for start in range(len(delta)):
        going = np.ones(delta.shape[1])
        for step in range(start, len(delta)):
            advantages[start] += going * (gamma * gae_lambda) ** (step - start) * delta[step]
            going = going * ~(terminated | truncated)[step]
    return advantages, advantages + value
