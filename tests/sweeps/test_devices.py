"""Several seeds on several devices: each time in a process of its own, since CPU cores become devices once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parents[1]
BEGIN = """
import tempfile, warnings
import eqxrl; eqxrl.set_cpu_flags({devices})
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from helpers import same, tiny
from eqxrl.training import Callback, Trainer, _programs
warnings.simplefilter("error")
assert jax.device_count() == {devices}
SIZES = dict(num_envs=3, num_steps=8, num_seeds_per_eval=2, total_timesteps=24 * 4, eval_freq=24 * 2)
algo = tiny(**SIZES, num_minibatches=2, normalize_observations=True, normalize_rewards=True)
keys = jax.random.split(jax.random.key(2), 4)
first = lambda tree: next(x for x in jax.tree.leaves(tree) if eqx.is_array(x))
part = lambda tree, which: jax.tree.map(lambda x: x[which] if eqx.is_array(x) else x, tree)
"""


QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Programs are compiled in a third of the time."""


def run(script, devices=2, flags=QUICK, **environment):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, **cache, **environment}
    command = [sys.executable, "-c", BEGIN.format(devices=devices) + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_share_is_what_one_device_computes():
    """But for rounding; what was handed in stays usable; seeds can be stopped; a member that is taken out is on one device."""
    run("""
result = Trainer().fit(algo, keys)
assert first(result).sharding.spec == jax.P("seeds") and len(first(result).devices()) == 2
with jax.default_device(jax.devices()[1]):
    half = Trainer().fit(algo, keys[2:])
assert len(first(half).devices()) == 1
same(part(result, slice(2, 4)), half, rtol=1e-4, atol=1e-5)
same(Trainer().fit(algo, train_state=_programs.init(algo, _programs.check_axes(algo, None, keys), keys)), result)
whole = eqx.filter_vmap(algo.train)(keys)
same(result, whole, rtol=1e-4, atol=1e-5)

class Stop(Callback):
    def on_validation_epoch_end(self, trainer, *_):
        if trainer.epoch == 1:
            trainer.request_stop("enough", members=np.array([True, False, False, True]))
            self.then = part(trainer.state, jnp.arange(4))
trainer = Trainer([stop := Stop()])
state, _ = trainer.fit(algo, keys)
same(part(state, jnp.array([1, 2])), part(result[0], jnp.array([1, 2])))
same(part(state, jnp.array([0, 3])), part(stop.then, jnp.array([0, 3])))
made, one = trainer.member(2)
assert {len(x.devices()) for x in jax.tree.leaves((made, one)) if eqx.is_array(x)} == {1}
same(one, part(state, 2))
""")


def test_one_compile_no_second_copy_and_no_word_between_devices():
    """Other seeds, and other floats, compile nothing; buffers are reused; the devices don't talk to each other."""
    run("""
import dataclasses
from jax._src import test_util
state, _ = Trainer().fit(algo, keys)
with test_util.count_jit_and_pmap_lowerings() as lowered:
    other = dataclasses.replace(algo, hp=dataclasses.replace(algo.hp, gamma=jnp.float32(0.9), learning_rate=jnp.float32(1e-3)))
    Trainer().fit(other, jax.random.split(jax.random.key(3), 4))
    assert lowered() == 0, lowered()
axes = _programs.check_axes(algo, None, keys)
spread, keys = _programs.spread(axes, algo, keys)
state = _programs.init(spread, axes, keys)
kept = (spread, axes, jnp.int32(2))
text = _programs.iterate.lower(kept, state).compile().compiled.as_text()
assert "while" in text
for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
    assert word not in text, word
def pointers(tree):
    numbers = [x for x in jax.tree.leaves(tree) if eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return {shard.data.unsafe_buffer_pointer() for x in numbers for shard in x.addressable_shards}
before, there = [x for x in jax.tree.leaves(state) if eqx.is_array(x)], pointers(state)
after, _ = _programs.iterate(kept, state)
assert all(x.is_deleted() for x in before)
assert len(there & pointers(after)) > 0.9 * len(there)
""")


def test_a_run_goes_on_on_another_number_of_devices():
    """And says that last digits may differ; there and back."""
    run("""
class Halt(Callback):
    def on_validation_epoch_end(self, trainer, *_):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

whole = Trainer().fit(algo, keys)
one = jax.default_device(jax.devices()[0])
def cut(folder):
    try:
        Trainer([Halt()], folder=folder).fit(algo, keys)
    except KeyboardInterrupt:
        return folder
def go_on(folder):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = Trainer(folder=folder).fit(algo, resume=True)
    return result, [str(x.message) for x in said]
with tempfile.TemporaryDirectory() as folder:
    cut(folder)
    result, said = go_on(folder)
    same(result, whole)
    assert not said
with tempfile.TemporaryDirectory() as folder:
    cut(folder)
    with one:
        result, said = go_on(folder)
    assert len(said) == 1 and "num_devices: recorded 2, now 1" in said[0]
    same(result, whole, rtol=1e-4, atol=1e-5)
with tempfile.TemporaryDirectory() as folder:
    with one:
        cut(folder)
    result, said = go_on(folder)
    assert len(said) == 1 and "num_devices: recorded 1, now 2" in said[0]
    assert len(first(result).devices()) == 2
    same(result, whole, rtol=1e-4, atol=1e-5)
""")


def test_a_sweep_on_two_devices_is_that_on_one():
    """Five agents: one is trained twice, and doesn't show."""
    run("""
from eqxrl import sweep
space = {"learning_rate": [1e-4, 1e-3, 1e-2, 2e-2, 5e-2], "advantage.gae_lambda": [0.9]}
warnings.filterwarnings("ignore", message="the best point gets no run folder")
two = sweep(algo, space)
assert all(len(chunk.rows) == 5 and chunk.algo.hp.learning_rate.shape == (6,) for chunk in two._chunks)
with jax.default_device(jax.devices()[0]):
    one = sweep(algo, space)
np.testing.assert_allclose(two.returns, one.returns, rtol=1e-5)
same(two.load(3)[1], one.load(3)[1], rtol=1e-4, atol=1e-5)
""")


def test_how_many_devices_there_are():
    """As many as the process may run on; what the environment says counts; and seeds are spread over as many as divide their number."""
    count = "import eqxrl, jax; eqxrl.set_cpu_flags(); print(jax.device_count())"

    def devices(**environment):
        environment = {**os.environ, "XLA_FLAGS": "", **environment}
        return int(subprocess.run([sys.executable, "-c", count], env=environment, capture_output=True, text=True, check=True).stdout)

    assert devices() == len(os.sched_getaffinity(0))
    assert devices(JAX_NUM_CPU_DEVICES="3") == 3 == devices(XLA_FLAGS="--xla_force_host_platform_device_count=3")
    found = run("print([_programs.num_devices(n) for n in (None, 1, 2, 3, 4, 5, 6, 7, 8, 12)])", devices=4)
    assert found.split("\n")[0] == "[1, 1, 2, 3, 4, 1, 3, 1, 4, 4]"
    with pytest.raises(AssertionError, match="num_devices must be at least 1, got 0"):
        run("", devices=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_does_not_hang():
    """Networks are initialised by QR, on both devices at once."""
    for _ in range(20):
        run("Trainer().fit(algo, jax.random.split(jax.random.key(0), 8))")
