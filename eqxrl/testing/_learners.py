import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxrl._structs import LearnerMetrics
from eqxrl._typing import describe
from eqxrl.learners import AbstractLearner, LearnerState
from eqxrl.nn import trainable
from eqxrl.testing._probe import normalized, probe_agent, probe_estimate
from eqxrl.testing._transforms import transforms
from eqxrl.verification import _laws as laws
from eqxrl.verification._report import Law, NotApplicable, insist
from eqxrl.verification._spies import Recorder, moments_of, spy_on

ENVS = 6


def check_learner(learner: AbstractLearner) -> None:
    """Holds a learner to its contract: the same structure, shapes and dtypes of policy and state, so that it can be repeated;
    every sample exactly once per epoch and in another order each time, with its advantage and target; the ratio 1
    before the first update; the policy learned and its observation statistics untouched; updates counted; each key used
    once; nothing that isn't finite; pure, and the same under jit and vmap.

    **Raises:** `AssertionError` for all that is wrong, with what to look at.
    """
    insist(type(learner).__name__, learner_laws(learner))


def learner_laws(learner: AbstractLearner) -> list[Law]:
    agent = normalized(probe_agent("discrete"))
    steps = 4 * getattr(learner, "num_minibatches", 2)
    keys = list(jax.random.split(jax.random.key(5), 2))
    rollouts = [probe_estimate(agent, steps, ENVS, seed) for seed in range(2)]
    recorder = Recorder()

    @functools.cache
    def calls():
        """Two of them, one after the other with the first one's policy, and what the loss heard."""
        spied = spy_on(learner, recorder)
        call = eqx.filter_jit(lambda *args: (learner if spied is None else spied)(*args))  # pyright: ignore[reportCallIssue]
        state = learner.init(agent)
        results, heard = [], []
        for rollout, key in zip(rollouts, keys):
            results.append(call(agent, state, rollout, key))
            heard.append(recorder.collect())
            state = results[-1][1]
        return results, heard

    def heard():
        if not any(calls()[1]):
            raise NotApplicable("it has no AbstractLoss to look through")
        return calls()[1]

    def shapes() -> str:
        state = learner.init(agent)
        assert isinstance(state, LearnerState), f"init returned {describe(state)}; return a LearnerState"
        result = eqx.filter_eval_shape(learner, agent, state, rollouts[0], keys[0])
        assert isinstance(result, tuple) and len(result) == 3 and isinstance(result[2], LearnerMetrics), (
            f"it returned {describe(result)}; return (policy, LearnerState, LearnerMetrics)"
        )
        laws.same_arrays(agent, result[0], "the policy")
        laws.same_arrays(state, result[1], "the learner's state")
        laws.same_arrays(jnp.zeros((), jnp.float32), result[2].grad_norm, "grad_norm")
        return f"rollouts [steps={steps} envs={ENVS}]"

    def orders():
        return laws.each_sample_once(heard(), steps * ENVS)

    def learned() -> str:
        (after, state, _), _ = calls()[0]
        params = [eqx.filter(a, trainable(a)) for a in (agent, after)]
        still = [
            jax.tree_util.keystr(path)
            for (path, a), b in zip(jax.tree.leaves_with_path(params[0]), jax.tree.leaves(params[1]))
            if np.array_equal(a, b)
        ]
        assert len(still) < len(jax.tree.leaves(params[0])), "the policy is the same after learning"
        laws.close(moments_of(after), moments_of(agent), "the policy's observation statistics", tolerance=0.0)
        assert int(state.num_updates) > 0, "num_updates is still 0, and schedules with it"
        return f"{int(state.num_updates)} updates" + (f"; {', '.join(still)} stayed as it was" if still else "")

    def finite() -> str:
        results, _ = calls()
        assert not any(float(metrics.grad_norm) < 0 for *_, metrics in results), "grad_norm is negative"
        return laws.finite(**{f"call {i}": result for i, result in enumerate(results)})

    def keys_once() -> str:
        def twice(key):
            first, second = jax.random.split(key)
            policy, state, _ = learner(agent, learner.init(agent), rollouts[0], first)
            return eqx.filter(learner(policy, state, rollouts[1], second), eqx.is_array)

        return laws.keys_used_once(twice, keys[0])

    members = [(agent, learner.init(agent), rollout, key) for rollout, key in zip(rollouts, keys)]
    return [
        Law("policy, state and metrics", shapes, "what init and __call__ return; weak types come of Python numbers", gate=True),
        Law("finite", finite, "the loss, and the optimiser's epsilon"),
        Law("each sample once per epoch", lambda: f"{len(orders())} epochs", "how indices are drawn and cut into minibatches"),
        Law("samples whole", lambda: laws.samples_whole(heard(), rollouts), "flatten and shuffle all of a rollout in one way"),
        Law(
            "epochs in different orders",
            lambda: laws.orders_differ(orders(), heard()[0][0]["sample"].size),
            "split the key for every epoch",
        ),
        Law(
            "ratio 1 before the first update",
            lambda: laws.ratio_is_one(heard()),
            "what changes the policy before the first update",
        ),
        Law(
            "statistics frozen",
            lambda: laws.statistics_frozen(heard(), [np.asarray(moments_of(agent))] * 2),
            "filter with nn.trainable; the algorithm counts observations, after learning",
        ),
        Law("learned", learned, "which updated policy and state are returned"),
        Law("keys used once", keys_once, "split the key before each use"),
        *transforms(lambda *args: learner(*args), *members),
    ]
