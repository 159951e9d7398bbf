"""Laws that parts are held to, alone (`eqxrl.testing`) or assembled (`eqxrl.verify`). Each says what it saw, or raises
`AssertionError`; what it is given are results, as NumPy arrays, or functions to be called."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqxrl._structs import Trajectory, TrajectoryCollectionState, TrajectoryWithLastObs
from eqxrl._typing import describe
from eqxrl.advantages import GAE
from eqxrl.envs import is_discrete
from eqxrl.envs._spaces import bounds
from eqxrl.nn import NormalizedActorCritic
from eqxrl.verification._report import NotApplicable

TOLERANCE = 1e-4


def close(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> str:
    """Equal, leaf by leaf, up to rounding; says how far apart."""
    got_leaves, want_leaves = jax.tree.leaves_with_path(got), jax.tree.leaves(want)
    assert len(got_leaves) == len(want_leaves), f"{what}: {len(got_leaves)} arrays, {len(want_leaves)} expected"
    furthest = 0.0
    for (path, g), w in zip(got_leaves, want_leaves):
        g, w = _comparable(g), _comparable(w)
        name = f"{what}{jax.tree_util.keystr(path)}"
        assert g.shape == w.shape, f"{name} has the shape {list(g.shape)}, {list(w.shape)} expected"
        if g.size == 0:
            continue
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, np.abs(g - w) / (1 + np.abs(w)))
        error = np.where(np.isnan(error), np.inf, error)
        worst = np.unravel_index(np.argmax(error), error.shape)
        assert error[worst] <= tolerance, (
            f"{name} is {g[worst]:.6g} where {w[worst]:.6g} was expected, at {[int(i) for i in worst]}; "
            f"{np.mean(error > tolerance):.0%} of its {error.size} numbers differ"
        )
        furthest = max(furthest, float(error[worst]))
    return f"up to {furthest:.1g}"


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, leaf by leaf."""
    a, b = ([_comparable(x) for x in jax.tree.leaves(t)] for t in (a, b))
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


def _comparable(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x, np.float64)


def finite(**named: Any) -> str:
    """Not a NaN nor an infinity anywhere."""
    count = 0
    for name, tree in named.items():
        for path, x in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
            bad = ~np.isfinite(np.asarray(x))
            assert not bad.any(), f"{bad.sum()} of {bad.size} numbers in {name}{jax.tree_util.keystr(path)} aren't finite"
            count += bad.size
    return f"{count} numbers"


def same_arrays(before: Any, after: Any, what: str) -> None:
    """The same structure, shapes and dtypes, weak ones told apart, so that it can be carried through a loop."""

    def arrays(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        named = [(jax.tree_util.keystr(path), x) for path, x in leaves if hasattr(x, "shape")]
        return {path: ("weak " if getattr(x, "weak_type", False) else "") + describe(x) for path, x in named}

    old, new = arrays(before), arrays(after)
    for path in old | new:
        assert old.get(path) == new.get(path), (
            f"{what}{path} goes from {old.get(path, 'nothing')} to {new.get(path, 'nothing')}"
        )


def program_text(function: Callable[..., Any], *args: Any) -> str:
    """A function as JAX traces it, constants and all: two with the same text do the same."""
    arrays, static = eqx.partition(args, eqx.is_array)
    traced = jax.make_jaxpr(lambda arrays: eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array))(arrays)
    constants = [hash(_comparable(x).tobytes()) for x in traced.consts]
    return f"{re.sub(r' at 0x[0-9a-f]+', '', str(traced))} {constants}"


# Rollouts


def log_prob_reproducible(rollout: TrajectoryWithLastObs, log_prob: Any) -> str:
    """`log_prob`: of the stored actions and observations, computed anew by the policy that collected them."""
    return close(log_prob, rollout.trajectories.log_prob, "log_prob of the stored action")


def value_reproducible(rollout: TrajectoryWithLastObs, value: Any) -> str:
    """`value`: of the stored observations, computed anew by the policy that collected them."""
    return close(value, rollout.trajectories.value, "value of the stored observation")


def steps_follow(rollouts: Sequence[TrajectoryWithLastObs]) -> str:
    """What a step led to is what the next one starts from. The rollouts, one after the other, were collected `through_glass`."""
    value, reward, done, _, _ = _glass(rollouts)
    goes_on = ~done[:-1]
    assert goes_on.any(), "every episode lasts one step only"
    try:
        return close(reward[:-1][goes_on], value[1:][goes_on], "value of what a step led to")
    except AssertionError as error:
        raise AssertionError(
            f"the next step of an environment starts from another observation than the last one led to, or its reward isn't "
            f"that step's: {error}"
        ) from None


def final_values(rollouts: Sequence[TrajectoryWithLastObs]) -> str:
    """Where an episode was cut off, the critic's value of its last observation, and 0 elsewhere. Collected `through_glass`."""
    _, reward, _, needed, final_value = _glass(rollouts)
    assert not final_value[~needed].any(), (
        f"final_value isn't 0 at {np.count_nonzero(final_value[~needed])} steps that weren't cut off, or that terminated"
    )
    if not needed.any():
        raise NotApplicable(f"no episode was cut off in {len(reward)} steps of {reward.shape[1]} environments")
    apart = close(final_value[needed], reward[needed], "final_value")
    return f"{needed.sum()} episodes cut off, {apart}"


def _glass(rollouts: Sequence[TrajectoryWithLastObs]) -> tuple[np.ndarray, ...]:
    """Values, values of what each step led to, ends, cut-offs, final values, of all rollouts in a row: `[steps envs]`."""
    t = [r.trajectories for r in rollouts]
    fields = ("value", "done", "truncated", "terminated", "final_value")
    stacked = {name: np.concatenate([np.asarray(getattr(x, name)) for x in t]) for name in fields}
    reward = np.concatenate([np.asarray(x.reward, np.float64) / _scale(x) for x in t])
    assert not np.isnan(reward).any(), (
        "the environment was given actions outside its action space; pass them through eqxrl.envs.to_env_action"
    )
    needed = stacked["truncated"] & ~stacked["terminated"]
    return stacked["value"], reward, stacked["done"], needed, stacked["final_value"]


def _scale(t: Trajectory) -> float:
    """What a collector multiplies a rollout's rewards with, if that is all that it does to them."""
    goes_on = ~np.asarray(t.done)[:-1]
    following, reward = (np.asarray(x, np.float64)[goes_on] for x in (t.value[1:], t.reward[:-1]))
    scale = np.sum(following * reward) / max(np.sum(following**2), 1e-12)
    return scale if scale else 1.0


def rollouts_go_on(states: Sequence[TrajectoryCollectionState], rollouts: Sequence[TrajectoryWithLastObs]) -> str:
    """Each rollout opens where the one before it stopped. `states`: before the first, between and after the last."""
    for state, rollout in zip(states[1:], rollouts):
        last = {"obs": (rollout.last_obs, state.last_obs), "done": (rollout.last_done, state.last_done)}
        last["the last step's done"] = (rollout.last_done, rollout.trajectories.done[-1])
        for name, (a, b) in last.items():
            assert same(a, b), f"the rollout's last {name} isn't the state's, or not the last step's"
    for before, after in zip(rollouts[:-1], rollouts[1:]):
        opens = jax.tree.map(lambda x: x[0], after.trajectories.obs)
        assert same(opens, before.last_obs), "a rollout doesn't open with the last observation of the one before"
    counted = [int(state.global_step) for state in states]
    assert counted == list(range(len(states))), f"global_step goes {counted}; it counts rollouts"
    return f"{len(rollouts)} rollouts in a row"


def episodes_are_counted(
    states: Sequence[TrajectoryCollectionState], rollouts: Sequence[TrajectoryWithLastObs], paid_one: bool = False
) -> str:
    """How many episodes ended, and how long they were. `paid_one`: each step's reward is 1, so that returns are lengths."""
    running = np.asarray(states[0].episode_length).copy()
    total = 0
    for state, rollout in zip(states[1:], rollouts):
        ended, lengths = 0, 0
        for done in np.asarray(rollout.trajectories.done):
            running += 1
            ended, lengths = ended + done.sum(), lengths + running[done].sum()
            running[done] = 0
        got = rollout.episodes
        close((got.count, got.total_length), (float(ended), float(lengths)), "the rollout's episodes (count, length)")
        close(state.episode_length, running, "the state's episode_length")
        if paid_one:
            close(got.total_return, float(lengths), "the return of the episodes, in the environment's own units,")
        total += int(ended)
    return f"{total} episodes"


def actions_unclipped(rollouts: Sequence[TrajectoryWithLastObs], action_space: Any) -> str:
    """`action_space`: the one that the environment was given, too narrow for actions as they were drawn."""
    if is_discrete(action_space):
        raise NotApplicable("the actions are discrete")
    low, high = (np.asarray(x) for x in bounds(action_space))
    action = np.concatenate([np.asarray(r.trajectories.action) for r in rollouts])
    clipped = np.all((action >= low) & (action <= high), axis=tuple(range(2, action.ndim)))
    assert clipped.mean() < 0.5, (
        f"{clipped.mean():.0%} of the stored actions lie in an action space with hardly any extent: they were stored clipped"
    )
    return f"{1 - clipped.mean():.0%} of the stored actions outside a narrow space"


# Advantages


def scrambled(rollout: TrajectoryWithLastObs, seed: int) -> tuple[TrajectoryWithLastObs, jax.Array]:
    """The rollout with random rewards, values and ends, and a random last value. Ends are frequent, of every kind in turn, and in
    the first environment there are none."""
    rng = np.random.default_rng(seed)
    shape = rollout.trajectories.reward.shape
    done = rng.random(shape) < 0.25
    done[rng.integers(0, shape[0], shape[1]), np.arange(shape[1])] = True
    done[:, 0] = False
    kind = (np.cumsum(done, axis=0) + np.arange(shape[1])) % 3
    terminated, truncated = done & (kind != 0), done & (kind != 1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), rollout.trajectories.reward.dtype)  # noqa: E731
    new = (draw(*shape), draw(*shape), jnp.asarray(terminated), jnp.asarray(truncated), draw(*shape))
    where = lambda r: [getattr(r.trajectories, f) for f in ("reward", "value", "terminated", "truncated", "final_value")]  # noqa: E731
    rollout = eqx.tree_at(where, rollout, [*new[:4], jnp.where(new[3], new[4], 0.0)])
    return eqx.tree_at(lambda r: r.last_done, rollout, rollout.trajectories.done[-1]), draw(shape[1])


def generalised_advantages(advantage: Any, estimate: Callable[..., Any], rollout: TrajectoryWithLastObs) -> str:
    """Against the double sum that defines them, in float64, for an estimator that says it is GAE: by its class, or by having
    `gamma` and `gae_lambda`."""
    if not (isinstance(advantage, GAE) or (hasattr(advantage, "gamma") and hasattr(advantage, "gae_lambda"))):
        raise NotApplicable(f"{type(advantage).__name__} doesn't claim to be GAE: it has no gamma and gae_lambda")
    gamma, gae_lambda = float(advantage.gamma), float(advantage.gae_lambda)
    rollout, last_value = scrambled(rollout, 0)
    want = double_sum(rollout, last_value, gamma, gae_lambda)
    return close(estimate(rollout, last_value), want, "(advantages, targets)")


def double_sum(rollout: TrajectoryWithLastObs, last_value: Any, gamma: float, gae_lambda: float) -> tuple[Any, Any]:
    """Advantages and targets: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16, term by term."""
    t = rollout.trajectories
    reward, value, final_value = (np.asarray(x, np.float64) for x in (t.reward, t.value, t.final_value))
    terminated, truncated = np.asarray(t.terminated), np.asarray(t.truncated)
    following = np.concatenate([value[1:], np.asarray(last_value, np.float64)[None]])
    following = np.where(terminated, 0.0, np.where(truncated, final_value, following))
    delta = reward + gamma * following - value
    advantages = np.zeros_like(delta)
    for start in range(len(delta)):
        going = np.ones(delta.shape[1])
        for t in range(start, len(delta)):
            advantages[start] += going * (gamma * gae_lambda) ** (t - start) * delta[t]
            going = going * ~(terminated | truncated)[t]
    return advantages, advantages + value


def ends_are_cut(estimate: Callable[..., Any], rollout: TrajectoryWithLastObs) -> str:
    """What comes after the end of an episode changes nothing up to it."""
    rollout, last_value = scrambled(rollout, 1)
    other, other_last = scrambled(rollout, 2)
    t = rollout.trajectories
    done = np.asarray(t.done)
    ends = np.array([np.flatnonzero(column)[0] if column.any() else len(done) for column in done.T])
    after = np.arange(len(done))[:, None] > ends  # [steps envs]
    swap = lambda a, b: jnp.where(after.reshape(*after.shape, *[1] * (a.ndim - 2)), b, a)  # noqa: E731
    changed = eqx.tree_at(lambda r: r.trajectories, rollout, jax.tree.map(swap, t, other.trajectories))
    ended = ends < len(done)
    changed_last = jnp.where(ended, other_last, last_value)
    before, then = estimate(rollout, last_value), estimate(changed, changed_last)
    for name, a, b in zip(("advantages", "targets"), before, then):
        try:
            close(np.asarray(b)[~after], np.asarray(a)[~after], name)
        except AssertionError:
            leak = np.argwhere(~np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) & ~after)
            t_, env = leak[-1]
            kind = " and ".join(k for k in ("terminated", "truncated") if np.asarray(getattr(t, k))[ends[env], env])
            raise AssertionError(
                f"{name} up to the end of an episode depend on what comes after it: at step {t_} of environment {env}, whose "
                f"episode {kind} at step {ends[env]}"
            ) from None
    # At a termination nothing follows, whatever stands in final_value.
    bare = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, jnp.where(t.terminated, 1e3, t.final_value))
    close(estimate(bare, last_value), before, "with another final_value where the MDP ended, the estimate")
    return f"{ended.sum()} episodes, every kind of end"


def cut_off_is_bootstrapped(advantage: Any, estimate: Callable[..., Any], rollout: TrajectoryWithLastObs) -> str:
    """Where an episode was cut off, and hadn't terminated, the value of its final observation counts."""
    if hasattr(advantage, "gamma") and float(advantage.gamma) == 0:
        raise NotApplicable("gamma is 0, so that nothing is bootstrapped")
    rollout, last_value = scrambled(rollout, 3)
    t = rollout.trajectories
    cut = np.asarray(t.truncated & ~t.terminated)
    more = eqx.tree_at(lambda r: r.trajectories.final_value, rollout, jnp.where(cut, t.final_value + 1, t.final_value))
    (_, before), (_, then) = estimate(rollout, last_value), estimate(more, last_value)
    moved = ~np.isclose(before, then, atol=1e-6)[cut]
    assert moved.all(), (
        f"final_value makes no difference to the targets at {(~moved).sum()} of {moved.size} steps where an episode was cut off: "
        "time limits are taken for terminations"
    )
    return f"{cut.sum()} steps"


def environments_apart(estimate: Callable[..., Any], rollout: TrajectoryWithLastObs) -> str:
    """One environment's estimates don't depend on another's steps."""
    rollout, last_value = scrambled(rollout, 4)
    order = np.roll(np.arange(last_value.size), 1)
    permuted = jax.tree.map(lambda x: x[:, order], rollout.trajectories)
    last = jax.tree.map(lambda x: x[order], (rollout.last_done, rollout.last_obs, rollout.initial_carry))
    where = lambda r: [r.trajectories, r.last_done, r.last_obs]  # noqa: E731
    permuted = eqx.tree_at(where, rollout, [permuted, *last[:2]])
    want = [np.asarray(x)[:, order] for x in estimate(rollout, last_value)]
    close(tuple(estimate(permuted, last_value[order])), tuple(want), "with environments in another order, the estimate")
    other, _ = scrambled(rollout, 5)
    alone = jax.tree.map(lambda a, b: jnp.concatenate([a[:, :1], b[:, 1:]], axis=1), rollout.trajectories, other.trajectories)
    alone = eqx.tree_at(lambda r: r.trajectories, rollout, alone)
    first = [[np.asarray(x)[:, 0] for x in estimate(r, last_value)] for r in (alone, rollout)]
    close(first[0], first[1], "with other steps in the other environments, the first one's estimate")
    return f"{last_value.size} environments"


# Learners, seen through a spy


def each_sample_once(calls: Sequence[Sequence[dict[str, np.ndarray]]], num_samples: int) -> list[np.ndarray]:
    """Of every call of a learner, what its loss saw, minibatch by minibatch. **Returns:** the order of each epoch."""
    orders = []
    for heard in calls:
        seen = np.concatenate([np.atleast_1d(h["sample"]).ravel() for h in heard]) if heard else np.zeros(0)
        assert seen.size and seen.size % num_samples == 0, (
            f"{seen.size} samples were learned from in one iteration, which isn't a whole number of times the rollout's "
            f"{num_samples}: some are left out, or taken more often than others"
        )
        for epoch in seen.reshape(-1, num_samples):
            counts = np.bincount(epoch.astype(int), minlength=num_samples)
            assert (counts == 1).all(), (
                f"in one epoch {(counts == 0).sum()} of {num_samples} samples were left out, {(counts > 1).sum()} taken more than once"
            )
            orders.append(epoch.astype(int))
    return orders


def samples_whole(calls: Sequence[Sequence[dict[str, np.ndarray]]], estimates: Sequence[Any]) -> str:
    """A sample's log-prob, value, advantage and target stay together on their way into a minibatch. Advantages and targets may
    have been rescaled, but not reordered. `estimates`: the rollouts `[steps envs]` that the learner was given."""
    for heard, given in zip(calls, estimates):
        t = given.trajectories
        for h in heard:
            sample = h["sample"].astype(int)
            for name in ("log_prob", "value"):
                close(h[name], np.asarray(getattr(t, name)).reshape(-1)[sample], f"{name} of the samples in a minibatch")
            for name, whole in (("advantage", given.advantages), ("target", given.targets)):
                order = np.argsort(np.asarray(whole).reshape(-1)[sample], kind="stable", axis=None)
                steps = np.diff(h[name].reshape(-1)[order])
                spread = np.ptp(h[name]) if h[name].size else 0.0
                assert (steps >= -1e-5 * spread).all(), f"a sample's {name} in a minibatch is another sample's"
    return f"{sum(map(len, calls))} minibatches"


def orders_differ(orders: Sequence[np.ndarray], minibatch_size: int) -> str:
    """No two epochs, of one iteration or of two, go through the samples in the same order."""
    if minibatch_size >= orders[0].size:
        raise NotApplicable("each minibatch is the whole rollout")
    distinct = len({order.tobytes() for order in orders})
    assert distinct == len(orders), (
        f"{len(orders)} epochs went through the samples in {distinct} different orders only: the key of the permutation was "
        "used again, or not passed on"
    )
    return f"{distinct} epochs, as many orders"


def ratio_is_one(calls: Sequence[Sequence[dict[str, np.ndarray]]]) -> str:
    """At the first minibatch the policy is still the one that collected."""
    log_ratios = [heard[0]["new_log_prob"] - heard[0]["log_prob"] for heard in calls]
    worst = max(float(np.max(np.abs(x))) for x in log_ratios)
    kl = max(float(np.mean(np.expm1(x) - x)) for x in log_ratios)
    assert worst <= TOLERANCE * (1 + max(float(np.max(np.abs(heard[0]["log_prob"]))) for heard in calls)), (
        f"before the first update the ratio is already off 1 by up to {np.expm1(worst):.2g} (approx_kl {kl:.2g}): the policy "
        "that learns isn't the one that collected"
    )
    return f"|log ratio| up to {worst:.1g}, approx_kl up to {kl:.1g}"


def statistics_frozen(calls: Sequence[Sequence[dict[str, np.ndarray]]], collected_with: Sequence[np.ndarray]) -> str:
    """The running statistics that the learner's policy has, at every update, are those that the rollout was collected with."""
    for heard, moments in zip(calls, collected_with):
        for i, h in enumerate(heard):
            try:
                close(h["moments"], moments, "statistics", tolerance=1e-6)
            except AssertionError as error:
                raise AssertionError(
                    f"the observations' statistics have changed since the rollout was collected, at update {i}: "
                    f"{'they are being trained' if i else 'they were updated before learning'} ({error})"
                ) from None
    return f"{sum(map(len, calls))} updates"


def statistics_count_all(agent: Any, rollouts: Sequence[TrajectoryWithLastObs]) -> str:
    """Mean and variance are those of every observation of these rollouts, each counted once; in float64."""
    if not isinstance(agent, NormalizedActorCritic):
        raise NotApplicable(f"{type(agent).__name__} isn't a NormalizedActorCritic")
    total = 0
    for i, moments in enumerate(jax.tree.leaves(agent.statistics, is_leaf=lambda x: hasattr(x, "count"))):
        obs = [np.asarray(jax.tree.leaves(r.trajectories.obs)[i], np.float64) for r in rollouts]
        flat = np.concatenate([x.reshape(-1, *x.shape[2:]) for x in obs])
        total = len(flat)
        want = (flat.mean(0), flat.var(0), float(total))
        close((moments.mean, moments.var, moments.count), want, "(mean, variance, count) of the observations", 1e-3)
    return f"{total} observations"


# Optimisers


def global_norm_is_clipped(optimizer: optax.GradientTransformation, params: Any, max_norm: float) -> str:
    """Two updates, with a gradient of any norm and then a small one. However the optimiser scales: from `max_norm` on the
    first one's norm makes no difference any more, below it does."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)

    def direction() -> Any:
        raw = [rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
        norm = math.sqrt(sum((x**2).sum() for x in raw))
        return treedef.unflatten([jnp.asarray(x / norm) for x in raw])

    first, second = direction(), direction()

    @jax.jit
    def updates(norm: Any) -> Any:
        state = optimizer.init(params)
        one, state = optimizer.update(jax.tree.map(lambda g: g * norm, first), state, params)
        two, _ = optimizer.update(jax.tree.map(lambda g: g * (0.1 * max_norm), second), state, params)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves((one, two))])

    def apart(a: float, b: float) -> float:
        x, y = (np.asarray(updates(jnp.float32(max_norm * c)), np.float64) for c in (a, b))
        return float(np.linalg.norm(x - y) / np.linalg.norm(x))

    if apart(0.5, 0.9) < 1e-3:
        raise NotApplicable("the updates don't depend on the gradient's norm at all")
    for a, b in ((1.01, 1e3), (2.0, 50.0)):
        assert apart(a, b) < 1e-3, (
            f"with max_grad_norm {max_norm:g}, gradients of the same direction and of norm {a * max_norm:g} and {b * max_norm:g} "
            f"lead to updates that differ by {apart(a, b):.0%}: the global norm isn't clipped, or each number by itself is, or to "
            "another norm"
        )
    assert apart(0.9, 1.1) > 1e-4, f"gradients are clipped below the norm of {max_norm:g} already"
    return f"clipped at {max_norm:g}, and not below"


# Keys


def keys_used_once(program: Callable[..., Any], *args: Any) -> str:
    """No key is used twice, along any path of the program; nothing is run."""
    with jax.debug_key_reuse(True):
        try:
            jax.jit(program).trace(*args)
        except jax.errors.KeyReuseError as error:
            raise AssertionError(f"a key is used twice: {str(error).splitlines()[0]}{_where(error)}") from error
    return "each key used once"


def _where(error: BaseException) -> str:
    """The last line of somebody's own code on the way to the error; JAX keeps it in the error's causes."""
    place = ""
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            apart = ("/jax/", "/equinox/", "/jaxtyping/", "/eqxrl/verification/", "/eqxrl/testing/", "<")
            if not any(x in code.co_filename for x in apart):
                place = f", at {code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno} in {code.co_name}"
            traceback = traceback.tb_next
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return place
