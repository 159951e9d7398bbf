from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import TrajectoryWithLastObs
from eqxrl._typing import validate
from eqxrl.advantages import AbstractAdvantage
from eqxrl.algorithms._on_policy import Estimate
from eqxrl.verification._laws import TOLERANCE, AbstractLaws, NotApplicable, close, finite, law, quick_jit


class AdvantageLaws(AbstractLaws):
    """Of an advantage estimator. **Arguments:** `rollout`: one that it can work on; its rewards, values and ends are replaced."""
    def __init__(self, advantage: AbstractAdvantage, rollout: TrajectoryWithLastObs):
        self.part: Any = advantage
        self.call, self.rollout = lambda *args: advantage(*args), rollout

    def members(self) -> list[Any]:
        return [scrambled(self.rollout, seed) for seed in range(2)]

    @law("shapes", "what is returned: advantages and targets, [steps envs]", gate=True)
    def shapes(self) -> None:
        steps, envs = self.rollout.trajectories.reward.shape
        estimate = Estimate.of(self.part, self.results[0])
        validate(self.part, estimate, batch="steps envs", steps=steps, envs=envs)

    @law("GAE", "the recursion: discounts, and which value follows a step")
    def gae(self) -> str:
        """If it has both numbers: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16, from each step to the next."""
        gamma, gae_lambda = (getattr(self.part, name, None) for name in ("gamma", "gae_lambda"))
        if gamma is None or gae_lambda is None:
            raise NotApplicable(f"{type(self.part).__name__} doesn't claim to be GAE: it has no gamma and gae_lambda")
        (rollout, last), advantages = self.given[0], np.asarray(self.results[0][0], np.float64)
        t, value = rollout.trajectories, np.asarray(rollout.trajectories.value, np.float64)
        following = np.where(t.truncated, t.final_value, np.concatenate([value[1:], last[None]]))
        delta = t.reward + float(gamma) * np.where(t.terminated, 0.0, following) - value
        later = np.where(t.done, 0.0, np.concatenate([advantages[1:], 0 * advantages[:1]]))
        want = delta + float(gamma) * float(gae_lambda) * later
        return close(self.results[0], (want, want + value), "(advantages, targets)")

    @law("cut at episode ends", "cut at `done` of the same step, whether it terminated or was truncated")
    def ends_are_cut(self) -> str:
        (rollout, last_value), (other, other_last) = scrambled(self.rollout, 1), scrambled(self.rollout, 2)
        t, done = rollout.trajectories, np.asarray(rollout.trajectories.done)
        ends = np.array([np.flatnonzero(column)[0] if column.any() else len(done) for column in done.T])
        after, ended = np.arange(len(done))[:, None] > ends, ends < len(done)  # [steps envs], [envs]
        swap = lambda a, b: np.where(after.reshape(*after.shape, *[1] * (a.ndim - 2)), b, a)  # noqa: E731
        changed = eqx.tree_at(lambda r: r.trajectories, rollout, jax.tree.map(swap, t, other.trajectories))
        before, then = self.compiled(rollout, last_value), self.compiled(changed, np.where(ended, other_last, last_value))
        for name, a, b in zip(("advantages", "targets"), before, then):
            for step, env in np.argwhere(~np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) & ~after & ended)[-1:]:
                kind = " and ".join(k for k in ("terminated", "truncated") if np.asarray(getattr(t, k))[ends[env], env])
                where = f"at step {step} of environment {env}, whose episode {kind} at step {ends[env]}"
                raise AssertionError(f"{name} up to the end of an episode depend on what comes after it: {where}")
        # At a termination nothing follows, whatever stands in final_value.
        bare = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, np.where(t.terminated, np.float32(1e3), t.final_value))
        close(self.compiled(bare, last_value), before, "with another final_value where the MDP ended, the estimate")
        return f"{ended.sum()} episodes, every kind of end"

    @law("a cut-off is bootstrapped", "advantages.next_values takes final_value where truncated")
    def cut_off_is_bootstrapped(self) -> None:
        if float(getattr(self.part, "gamma", 1.0)) == 0:
            raise NotApplicable("gamma is 0, so that nothing is bootstrapped")
        rollout, last_value = scrambled(self.rollout, 3)
        cut = np.asarray(rollout.trajectories.truncated & ~rollout.trajectories.terminated)
        more = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, replace_fn=lambda x: np.asarray(x) + cut)
        still = np.isclose(self.compiled(rollout, last_value)[1], self.compiled(more, last_value)[1], atol=1e-6)[cut]
        where = f"at {still.sum()} of {still.size} steps where an episode was cut off: time limits are taken for terminations"
        assert not still.any(), f"final_value makes no difference to the targets {where}"

    @law("environments apart", "reduce over steps (axis 0), never over environments; the loss standardises")
    def environments_apart(self) -> None:
        (rollout, last_value), (other, other_last) = scrambled(self.rollout, 4), scrambled(self.rollout, 5)
        mix = lambda a, b, axis: jnp.where(jnp.arange(a.shape[axis]).reshape(-1, *[1] * (a.ndim - axis - 1)) == 0, a, b)  # noqa: E731
        mixed = jax.tree.map(lambda a, b: mix(a, b, 1), rollout.trajectories, other.trajectories)
        mixed = eqx.tree_at(lambda r: r.trajectories, rollout, mixed)
        got, want = self.compiled(mixed, mix(last_value, other_last, 0)), self.compiled(rollout, last_value)
        first = lambda estimate: tuple(np.asarray(x)[:, 0] for x in estimate)  # noqa: E731
        close(first(got), first(want), "with other steps in the other environments, the first one's estimate")

    def finite(self) -> str:
        rollout, last_value = self.given[0]
        total = lambda of: sum(jnp.sum(x**2) for x in of[0](of[1], last_value))  # noqa: E731
        return finite(result=self.results, gradient=quick_jit(eqx.filter_grad(total))((self.part, rollout)))


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
