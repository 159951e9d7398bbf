import copy
import dataclasses
import json
import os
import subprocess
import sys
import traceback

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same, tiny
from user_algorithm import HillClimber, own

from eqxrl import field
from eqxrl.envs import TimeLimit
from eqxrl.training import AbstractLogger, Callback, JSONLLogger, Trainer, get_error_from_metrics, hyperparameters, load_checkpoint
from eqxrl.training import _programs as programs

HOOKS = [name for name, x in vars(Callback).items() if callable(x) and not name.startswith("_")]


def recording(*hooks):
    """A callback that appends each call of `hooks` to its list `calls`: the hook's name and what it got after the state."""

    def hook(name):
        def f(self, trainer, algo, state, *args):
            self.calls.append((name, trainer.iteration, args))

        return f

    callback = type("Recording", (Callback,), {name: hook(name) for name in hooks})()
    callback.calls = []
    return callback


def names(callback):
    return [name for name, _, _ in callback.calls]


def train(algo, keys):
    return eqx.filter_vmap(algo.train)(keys) if keys.ndim else algo.train(keys)


def member(tree, i):
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)


@pytest.fixture(scope="module", params=["one", "three"])
def keys(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def expected(algo, keys):
    """Of a trainer, since its programs are there already; the first test compares it with `train`."""
    return Trainer().fit(algo, keys)


SLOW_FOR_SEVERAL = pytest.mark.parametrize("keys", ["one", pytest.param("three", marks=pytest.mark.slow)], indirect=True)
"""For tests that need programs of their own."""


def test_fit_is_train(algo, keys):
    state, metrics = Trainer().fit(algo, keys)
    wanted = train(algo, keys)
    same(state, wanted[0])
    same(metrics, wanted[1])
    assert metrics.cumulative_reward.shape == (*keys.shape, 5, 2)
    assert jax.tree.structure(state) == jax.tree.structure(wanted[0])


def test_one_key_in_an_axis_is_a_single_agent(algo, one):
    state, metrics = Trainer().fit(algo, one[None])
    first = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, (state, metrics))
    wanted = train(algo, one)
    same(first[0], wanted[0])
    same(first[1], wanted[1])
    assert metrics.cumulative_reward.shape == (1, 5, 2)


@pytest.mark.parametrize("keys", ["one", pytest.param("three", marks=pytest.mark.slow)], indirect=True)
def test_fit_is_train_for_any_algorithm(tenant, keys, tmp_path):
    wanted = train(tenant, keys)
    log = JSONLLogger(tmp_path / "m.jsonl")
    same(Trainer([], [log], tmp_path / "run").fit(tenant, keys), wanted)
    same(load_checkpoint(tmp_path / "run", tenant), wanted)
    same(Trainer([recording("on_train_batch_end")]).fit(tenant, keys), wanted)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [24 * i for i in (0, 2, 4, 6, 7)]
    names = {"train/num_episodes", "train/episode_return", "train/episode_length", "eval/return_mean", "eval/length_mean"}
    assert names < rows[-1].keys()


@SLOW_FOR_SEVERAL
def test_fit_with_every_hook_and_batches_is_train(algo, keys, expected):
    callback = recording(*HOOKS)
    state, metrics = Trainer([callback]).fit(algo, keys)
    same(state, expected[0])
    same(metrics, expected[1])


def test_fit_skips_the_initial_evaluation(algo, keys, expected):
    state, metrics = Trainer().fit(algo, keys, skip_initial_evaluation=True)
    same(state, expected[0])
    same(metrics, jax.tree.map(lambda x: x[..., 1:, :], expected[1]))


@SLOW_FOR_SEVERAL
def test_fit_goes_on_from_a_state_and_leaves_it_usable(algo, keys, expected):
    again = (
        algo.train
        if keys.ndim == 0
        else lambda train_state: eqx.filter_vmap(lambda ts: algo.train(train_state=ts))(train_state)
    )
    trainer = Trainer()
    state, metrics = trainer.fit(algo, train_state=expected[0])
    wanted = again(train_state=expected[0])  # fails if its buffers were taken
    same(state, wanted[0])
    same(metrics, wanted[1])
    assert trainer.env_steps == algo.env_steps(state) == 2 * 24 * 7


def swept(algo, where, values):
    """The algorithm with these values, and its axes."""
    axes = eqx.tree_at(where, jax.tree.map(lambda _: None, algo), 0, is_leaf=lambda x: x is None)
    return eqx.tree_at(where, algo, values), axes


def small_gravity(algo, values):
    """Swept over a number of the environment, which isn't an array before."""
    params = algo.env_params.replace(gravity=values)
    return swept(eqx.tree_at(lambda a: a.env_params, algo, params), lambda a: a.env_params.gravity, values)


SWEEPS = {
    "an algorithm of one's own": lambda algo: swept(own(), lambda a: a.hp.noise, jnp.array([0.1, 0.5, 1.0])),
    "what a part is built from": lambda algo: swept(algo, lambda a: a.hp.gamma, jnp.array([0.9, 0.99, 0.5])),
    "a schedule": lambda algo: swept(algo, lambda a: a.hp.learning_rate, jnp.array([1e-4, 1e-3, 1e-2])),
    "the environment": lambda algo: small_gravity(algo, jnp.array([1.0, 9.8, 20.0])),
}


@pytest.mark.parametrize("what", [pytest.param(x, marks=[] if "own" in x else pytest.mark.slow) for x in SWEEPS])
def test_any_leaf_can_be_swept(algo, three, what, tmp_path):
    swept, axes = SWEEPS[what](algo)
    wanted = eqx.filter_vmap(lambda a, k: a.train(k), in_axes=(axes, 0))(swept, three)
    seen = []
    look = type("Look", (Callback,), {"on_fit_end": lambda self, trainer, *_: seen.append(trainer.member(1))})()
    same(Trainer([look], folder=tmp_path).fit(swept, three, axes=axes), wanted)
    same(load_checkpoint(tmp_path, swept, axes=axes), wanted)
    same(Trainer(folder=tmp_path).fit(swept, resume=True, axes=axes), wanted)
    [(second, state)] = seen
    same(second.eval_callback(state).cumulative_reward, wanted[1].cumulative_reward[1, -1])


def test_swept_values_and_the_environment_are_written_down(algo):
    rates = np.linspace(0, 1, 40, dtype=np.float32)
    algo = dataclasses.replace(algo, env=TimeLimit(algo.env, 5))
    algo, axes = swept(algo, lambda a: a.hp.ent_coef, jnp.asarray(rates))
    written = hyperparameters(algo, axes)
    assert written["env"] == "CartPole-v1" and written["env_params"]["max_steps_in_episode"] == 7
    assert written["environment"] == {"type": "TimeLimit", "max_steps": 5, "env": {"type": "Gymnax", "env": {"type": "CartPole"}}}
    written = written["hp"]
    assert np.float32(written["ent_coef"]).tolist() == rates.tolist() and written["gamma"] == 0.99


def test_axes_that_do_not_fit(algo, one, three):
    many, axes = swept(algo, lambda a: a.hp.learning_rate, jnp.array([1e-4, 1e-3, 1e-2]))
    for keys in (one, three):
        what = r"hp.learning_rate must be one number, got float32\[3\]; .*axes=eqx.tree_at\(lambda a: a.hp.learning_rate"
        with pytest.raises(ValueError, match=what):
            Trainer().fit(many, keys)
    with pytest.raises(ValueError, match=r"got one key; pass \[seeds\] of them"):
        Trainer().fit(many, one, axes=axes)
    with pytest.raises(ValueError, match=r"axes is 0 for hp.learning_rate = float32\[3\]; it must .* an axis of 2 seeds"):
        Trainer().fit(many, three[:2], axes=axes)
    with pytest.raises(ValueError, match="axes is 0 for env_params.gravity = float; "):
        Trainer().fit(algo, three, axes=eqx.tree_at(lambda a: a.env_params.gravity, axes, 0, is_leaf=lambda x: x is None))
    with pytest.raises(ValueError, match="axes must be a pytree like the algorithm, such as eqx.tree_at.* Static fields can't be swept"):
        Trainer().fit(algo, three, axes={"learning_rate": 0})


def test_a_static_field_can_not_be_swept(three):
    class Loose(HillClimber.HParams):
        patience: object = field(default=1)
        courage: object = field(default=1, static=False, converter=jnp.float32)

    with pytest.warns(UserWarning, match="static"):
        hp = Loose(patience=jnp.arange(3))
    algo = eqx.tree_at(lambda a: a.hp, own(), hp)
    what = r"hp.patience .*Static fields can't be swept, and field\(default=1\) is static because .* with static=False"
    with pytest.raises(ValueError, match=what):
        Trainer().fit(algo, three)


def test_one_compilation_whatever_the_chunks(algo, one):
    count = lambda: programs.iterate._cached._cache_size()  # noqa: E731
    Trainer().fit(algo, one)
    before = count()
    Trainer().fit(algo, one)
    state, _ = Trainer().fit(algo, jax.random.key(5))
    Trainer().fit(algo, train_state=state)
    assert count() == before


def test_it_takes_a_key_or_a_state(algo, one):
    with pytest.raises(ValueError, match="pass either rng, a key or a seed"):
        Trainer().fit(algo)
    with pytest.raises(ValueError, match=r"keys of shape \[2, 3\]"):
        Trainer().fit(algo, jax.random.split(one, (2, 3)))
    state, _ = Trainer().fit(algo, 1)
    same(state, Trainer().fit(algo, one)[0])
    same(Trainer().fit(algo, jax.random.key(7), train_state=state), Trainer().fit(algo, train_state=state))


def test_wrong_calls():
    """As a user is told, whose functions are not type-checked: here that check would come first."""
    cases = {
        "Trainer(EarlyStopping(3.0))": "Trainer(callbacks=...) takes a list, got EarlyStopping; pass callbacks=[...]",
        "Trainer([EarlyStopping])": "takes instances of Callback, got the class EarlyStopping; pass EarlyStopping(...)",
        "Trainer([JSONLLogger('x')])": "Trainer(callbacks=...) takes instances of Callback, got JSONLLogger",
        "Trainer(loggers=[EarlyStopping(3.0)])": "Trainer(loggers=...) takes instances of AbstractLogger, got EarlyStopping",
        "Trainer([print])": "takes instances of Callback, got builtin_function_or_method",
        "Trainer().fit(PPO, 0)": "fit takes an algorithm first, such as PPO.create('CartPole-v1'), got PPO",
        "Trainer().fit(0, 0)": "fit takes an algorithm first, such as PPO.create('CartPole-v1'), got int",
        "Trainer().fit(ppo, train_state=(0, 1))": "train_state must be a training state, the first of the two that fit returns, got tuple",
        "Trainer([Typo()])": "Typo.on_train_epoch_ended would never be called; did you mean on_train_epoch_end?",
    }
    script = f"""
from eqxrl import PPO
from eqxrl.training import Callback, EarlyStopping, JSONLLogger, Trainer
ppo = PPO.create("CartPole-v1")
class Typo(Callback):
    def on_train_epoch_ended(self, *_): ...
for expression in {list(cases)}:
    try:
        eval(expression)
    except TypeError as error:
        print(str(error).replace(chr(10), " "))
    else:
        print("nothing")
"""
    environment = {name: x for name, x in os.environ.items() if name not in ("EQXRL_TYPECHECK", "JAXTYPING_DISABLE")}
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True).stdout
    for (expression, expected), line in zip(cases.items(), output.splitlines(), strict=True):
        assert expected in line, expression


def test_the_order_of_the_hooks(algo, one):
    callback = recording(*HOOKS)
    assert len(HOOKS) == 12
    Trainer([callback]).fit(algo, one)
    validation = ["on_validation_epoch_start", "on_validation_epoch_end"]
    batch = ["on_train_batch_start", "on_train_batch_end"]
    epochs = [["on_train_epoch_start", *batch * n, "on_train_epoch_end", *validation] for n in (2, 2, 2, 1)]
    assert names(callback) == ["setup", "on_fit_start", *validation, "on_train_start", *sum(epochs, [])] + [
        "on_train_end",
        "on_fit_end",
        "teardown",
    ]


@SLOW_FOR_SEVERAL
def test_what_the_hooks_get(algo, keys):
    callback = recording("on_train_epoch_end", "on_train_batch_start", "on_train_batch_end", "on_validation_epoch_end")
    _, metrics = Trainer([callback]).fit(algo, keys)
    got = {name: [(i, args) for n, i, args in callback.calls if n == name] for name in set(names(callback))}
    for i, (batch, batch_idx) in [(i, args) for i, args in got["on_train_batch_start"]]:
        assert batch_idx == i % 2
        assert batch.trajectories.reward.shape == (*keys.shape, 8, 3)
        np.asarray(batch.last_obs)  # not given away with the state
    for (i, (outputs, batch, batch_idx)), (_, (same_batch, _)) in zip(
        got["on_train_batch_end"], got["on_train_batch_start"], strict=True
    ):
        assert batch_idx == (i - 1) % 2 and batch is same_batch
        assert outputs.means["entropy"].shape == outputs.episodes.count.shape == keys.shape
    for k, (_, (evaluation,)) in enumerate(got["on_validation_epoch_end"]):
        np.testing.assert_array_equal(evaluation.cumulative_reward, metrics.cumulative_reward[..., k, :])
    # An epoch's metrics are means over its iterations; its episodes are those of all of them.
    iterations = [args[0] for _, args in got["on_train_batch_end"]]
    for k, (_, (outputs,)) in enumerate(got["on_train_epoch_end"]):
        lot = iterations[2 * k : 2 * k + 2]
        assert outputs.means.keys() == lot[0].means.keys() and "policy_loss" in outputs.means
        for name, mean in outputs.means.items():
            np.testing.assert_allclose(mean, np.mean([x.means[name] for x in lot], 0), rtol=1e-6, atol=1e-7)
        for name, total in vars(outputs.episodes).items():
            np.testing.assert_allclose(total, np.sum([getattr(x.episodes, name) for x in lot], 0))


def test_an_epochs_metrics_are_those_of_iterations(algo, one):
    callback = recording("on_train_epoch_end")
    Trainer([callback]).fit(algo, one)
    state = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, programs.init(algo, False, one))
    for (_, _, (outputs,)), n in zip(callback.calls, algo.chunks, strict=True):
        state, metrics = programs.iterate((algo, False, jnp.int32(n)), state)
        assert jax.tree.structure(outputs) == jax.tree.structure(metrics)
        jax.tree.map(np.testing.assert_array_equal, outputs, metrics)


def test_a_hook_that_is_not_overridden_costs_nothing(algo, one, monkeypatch):
    fetched, chunks = [], []
    monkeypatch.setattr(jax, "device_get", lambda x, get=jax.device_get: fetched.append(x) or get(x))
    iterate = programs.iterate
    monkeypatch.setattr(programs, "iterate", lambda kept, state: chunks.append(int(kept[2])) or iterate(kept, state))

    def cost(*hooks):
        fetched.clear(), chunks.clear()
        Trainer([recording(*hooks)]).fit(algo, one)
        return len(fetched), chunks.copy()

    at_rest, whole = cost()
    assert whole == [2, 2, 2, 1]
    assert cost("on_train_epoch_start", "on_validation_epoch_start", "setup", "on_fit_end") == (at_rest, whole)
    assert cost("on_validation_epoch_end") == (at_rest + 5, whole)
    assert cost("on_train_epoch_end") == (at_rest + 4, whole)
    assert cost("on_train_batch_end") == (at_rest, [])


@SLOW_FOR_SEVERAL
def test_a_callback_stops_the_run_after_the_iterations_under_way_and_an_evaluation(algo, keys, expected):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, algo, state, outputs, batch, batch_idx):
            if trainer.iteration == 3:
                trainer.request_stop("enough")

    trainer = Trainer([Stop()])
    state, metrics = trainer.fit(algo, keys)
    assert (trainer.iteration, trainer.stop_reason) == (3, "enough")
    assert metrics.cumulative_reward.shape[-2] == 3  # before, after two iterations, after three
    same(metrics.cumulative_reward[..., :2, :], expected[1].cumulative_reward[..., :2, :])
    last = algo.eval_callback(state) if keys.ndim == 0 else eqx.filter_vmap(algo.eval_callback)(state)
    same(metrics.cumulative_reward[..., -1, :], last.cumulative_reward)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_validation_epoch_end"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_callback_stops_the_run_before_it_starts(algo, one, hook, skip):
    stop = type("Stop", (Callback,), {hook: lambda self, trainer, *_: trainer.request_stop("no")})()
    heard = recording("on_train_epoch_end")
    trainer = Trainer([stop, heard])
    _, metrics = trainer.fit(algo, one, skip_initial_evaluation=skip)
    assert trainer.iteration == (2 if hook == "on_validation_epoch_end" and skip else 0)
    assert metrics.cumulative_reward.shape == (1, 2)


@pytest.mark.parametrize("batches", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stopped_seed_is_frozen_and_the_others_go_on(algo, three, batches):
    class Freeze(Callback):
        def on_validation_epoch_end(self, trainer, algo, state, metrics):
            if trainer.iteration == 2:
                trainer.request_stop("seed 1", members=np.array([False, True, False]))
                self.then = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, state)

    freeze, heard = Freeze(), recording("on_train_epoch_end", *["on_train_batch_end"] * batches)
    trainer = Trainer([freeze, heard])
    state, metrics = trainer.fit(algo, three)
    whole, evaluations = Trainer().fit(algo, three)
    same(member(state, 1), member(freeze.then, 1))
    for i in (0, 2):
        same(member(state, i), member(whole, i))
        same(member(metrics, i), member(evaluations, i))
    same(metrics.cumulative_reward[1, 2:], jnp.repeat(metrics.cumulative_reward[1, 1][None], 3, 0))
    assert trainer.stopped.tolist() == [False, True, False] and trainer.stop_reason is None
    outputs = [args[0] for name, _, args in heard.calls if name == "on_train_epoch_end"]
    for leaf in (lambda x: x.means["entropy"], lambda x: x.episodes.count):
        assert [np.isnan(leaf(x)).tolist() for x in outputs] == [[False] * 3] + [[False, True, False]] * 3


def test_the_run_ends_when_all_seeds_are_stopped(algo, three):
    class Freeze(Callback):
        def on_validation_epoch_end(self, trainer, algo, state, metrics):
            trainer.request_stop("one by one", members=np.arange(3) < trainer.epoch)

    trainer = Trainer([Freeze()])
    _, metrics = trainer.fit(algo, three)
    assert (trainer.iteration, trainer.epoch, trainer.stop_reason) == (6, 3, "one by one")
    assert metrics.cumulative_reward.shape == (3, 4, 2)


def test_members_are_for_several_seeds(algo, one):
    stop = type("Stop", (Callback,), {"on_fit_start": lambda self, t, *_: t.request_stop("", members=np.array([True]))})()
    with pytest.raises(ValueError, match="members is for runs over several seeds"):
        Trainer([stop]).fit(algo, one)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_a_callback(algo, one, hook):
    class Wrong(Exception):
        pass

    def raises(self, *args):
        raise Wrong("of my own")

    wrong = type("Bad", (Callback,), {hook: raises})()
    before, after = recording("setup", "teardown"), recording("setup", "teardown")
    trainer = Trainer([before, wrong, after])
    with pytest.raises(Wrong, match="of my own") as caught:
        trainer.fit(algo, one)
    frames = traceback.extract_tb(caught.tb)
    assert frames[-1].name == "raises" and frames[-1].filename == __file__
    assert names(before) == ["setup", "teardown"]
    assert names(after) == ([] if hook == "setup" else ["setup", "teardown"])
    algo.eval_callback(trainer.state)  # is still there


def test_a_teardown_that_fails_after_a_failure_is_mentioned(algo, one):
    def raises(self, *args):
        raise RuntimeError("no")

    wrong = type("Bad", (Callback,), {"on_fit_start": raises, "teardown": raises})()
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="teardown failed as well"):
        Trainer([wrong]).fit(algo, one)


def test_the_state_is_a_view_on_the_run(algo, one):
    seen = []

    class Look(Callback):
        def on_validation_epoch_end(self, trainer, algo, state, metrics):
            assert state is trainer.state
            seen.append((trainer.iteration, trainer.epoch, trainer.env_steps, algo.env_steps(state), len(trainer.evaluations)))

    trainer = Trainer([Look()])
    trainer.fit(algo, one)
    assert seen == [(i, k, 24 * i, 24 * i, k + 1) for k, i in enumerate((0, 2, 4, 6, 7))]
    assert (trainer.num_iterations, trainer.num_epochs, trainer.num_seeds) == (7, 4, None)


def test_get_error_from_metrics(algo, keys, expected):
    name, error = get_error_from_metrics(expected[1])
    assert name == "mean_cumulative_reward"
    np.testing.assert_allclose(error, -np.mean(expected[1].cumulative_reward[..., -1, :]))
    nan = eqx.tree_at(lambda m: m.cumulative_reward, expected[1], expected[1].cumulative_reward * np.nan)
    assert get_error_from_metrics(nan)[1] == np.inf
    with pytest.raises(ValueError, match=r"must be \[evals episodes\]"):
        get_error_from_metrics(member(expected[1], 0) if keys.ndim == 0 else member(member(expected[1], 0), 0))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, 3])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_fit_is_train_elsewhere(seeds, env_id, normalize, one):
    sizes = dict(num_envs=5, num_steps=16, num_epochs=3, num_minibatches=5, total_timesteps=80 * 6, eval_freq=160)
    algo = tiny(env_id, max_steps=20, **sizes, normalize_observations=normalize, normalize_rewards=normalize)
    keys = one if seeds is None else jax.random.split(one, seeds)
    wanted = train(algo, keys)
    for callbacks in ([], [recording("on_train_batch_end")]):
        state, metrics = Trainer(callbacks).fit(algo, keys)
        same(state, wanted[0])
        same(metrics, wanted[1])


@pytest.mark.parametrize(
    "name, hook", [("on_train_epoch_ended", "on_train_epoch_end"), ("on_epoch_end", "on_"), ("set_up", "setup"), ("tear_down", "teardown")]
)
def test_a_misspelled_hook_is_an_error(name, hook):
    wrong = type("Wrong", (Callback,), {name: lambda self, *_: None})()
    with pytest.raises(TypeError, match=f"Wrong.{name} would never be called; did you mean {hook}"):
        Trainer([wrong])
    wrong = type("Wrong", (Callback,), {"on_rabbit": lambda self, *_: None})()
    with pytest.raises(TypeError, match="Wrong.on_rabbit would never be called; The hooks are setup, on_fit_start"):
        Trainer([wrong])
    Trainer([type("Fine", (Callback,), {"_on_helper": lambda self: None, "helper": lambda self: None, "online": 3})()])


class Greedy(AbstractLogger):
    """Takes the values for itself."""

    def __init__(self):
        self.rows = []

    def start(self, hyperparameters, resumed_at):
        self.hyperparameters = dict(hyperparameters)
        hyperparameters.clear()

    def log(self, env_steps, values):
        self.rows.append(copy.deepcopy(values))
        for x in values.values():
            if isinstance(x, list):
                x.clear()
        values.clear()

    def close(self): ...


def test_each_logger_has_its_own_values(algo, three):
    first, second = Greedy(), Greedy()
    Trainer([], [first, second]).fit(algo, three)
    assert [row.keys() for row in first.rows] == [row.keys() for row in second.rows] and len(second.rows) == 5
    assert all(row["eval/return_mean"] for row in second.rows)
    assert second.hyperparameters == hyperparameters(algo)


def test_the_example_of_a_callback_is_where_help_finds_it():
    assert "class StopAt(Callback)" in Callback.__doc__ and "on_train_epoch_start" in Callback.__doc__
