import ast
import contextlib
import dataclasses
import enum
import errno
import functools
import hashlib
import io
import json
import os
import re
import tracemalloc
import warnings
import zlib
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_bytes
from safetensors.numpy import load_file, save_file

import eqxrl.training._files as files
from eqxrl.training import (
    CheckpointDamaged,
    CheckpointMismatch,
    load,
    read_manifest,
    read_metadata,
    save,
)


class Policy(eqx.Module):
    net: eqx.nn.MLP
    log_std: jax.Array | None
    scale: float
    horizon: int = eqx.field(static=True)


class OtherPolicy(eqx.Module):
    net: eqx.nn.MLP
    log_std: jax.Array | None
    scale: float
    horizon: int = eqx.field(static=True)


class EmptyA(eqx.Module):
    pass


class EmptyB(eqx.Module):
    pass


def policy(width=8, depth=1, activation=jax.nn.tanh, log_std=True, scale=0.5, horizon=16, seed=0, cls=Policy):
    net = eqx.nn.MLP(4, 2, width, depth, activation, key=jax.random.key(seed))
    return cls(net, jnp.zeros(2) if log_std else None, scale, horizon)


def state(seed=0, impl="threefry2x32", optimizer=optax.adam(1e-3), **kwargs):
    agent = policy(seed=seed, **kwargs)
    params = eqx.filter(agent, eqx.is_array)
    return {"agent": agent, "opt_state": optimizer.init(params), "rng": jax.random.key(seed + 7, impl=impl)}


def as_bytes(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()


def assert_same(loaded, tree):
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        if eqx.is_array_like(b) and hasattr(b, "dtype"):
            assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
            assert (a.dtype, a.shape, as_bytes(a)) == (b.dtype, b.shape, as_bytes(b))
            assert not getattr(a, "weak_type", False)
        else:
            assert a is b


# Round trips


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    tree = state(seed=3)
    path = save(tmp_path / "state.eqx", tree)
    assert path == tmp_path / "state.eqx"
    assert_same(load(path, tree), tree)
    other_values = load(path, state(seed=4))
    assert all(as_bytes(a) == as_bytes(b) for a, b in zip(*map(arrays_of, (other_values, tree)), strict=True))


def arrays_of(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def test_like_may_be_abstract(tmp_path):
    tree = state(seed=3)
    path = save(tmp_path / "state.eqx", tree)
    like = eqx.filter_eval_shape(state, seed=0)
    assert any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(like))
    assert_same(eqx.filter(load(path, like), eqx.is_array), eqx.filter(tree, eqx.is_array))


FLOATS = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-42, -1e-45, 1 / 3], np.float32)
NAN_PAYLOADS = np.array([0x7FC0DEAD, 0xFFC00001, 0x7F800001, 0x80000001], np.uint32).view(np.float32)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    "array",
    [
        FLOATS,
        NAN_PAYLOADS,
        np.array(2.5, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((3, 0), bool),
        np.array([True, False, True]),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(3, dtype=np.uint8),
        FLOATS.astype(np.float16),
        FLOATS.astype(ml_dtypes.bfloat16),
        np.array(1.5, ml_dtypes.bfloat16),
        FLOATS.astype(ml_dtypes.float8_e4m3fn),
        FLOATS.astype(ml_dtypes.float8_e5m2).reshape(2, 4),
        np.arange(-4, 4).astype(ml_dtypes.int4),
        np.array([1 + 2j, complex(np.nan, -0.0)], np.complex64),
    ],
    ids=lambda x: f"{x.dtype.name}{list(x.shape)}",
)
def test_arrays_come_back_bit_for_bit(tmp_path, array, convert):
    tree = [convert(array)]
    assert_same(load(save(tmp_path / "x.eqx", tree), tree), tree)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_numpy_keeps_64_bits_where_jax_would_not(tmp_path, dtype):
    tree = {"x": np.array([2**40 + 1, 3]).astype(dtype)}
    path = save(tmp_path / "x.eqx", tree)
    loaded = load(path, tree)
    assert_same(loaded, tree)
    loaded["x"][0] = 1  # writable, as it was
    with pytest.raises(CheckpointMismatch, match=r"\['x'\]: JAX would make .* of " + dtype + "; set .*jax_enable_x64"):
        load(path, {"x": jax.ShapeDtypeStruct((2,), dtype)})


def test_64_bits_in_jax(tmp_path):
    with jax.enable_x64(True):
        tree = {"x": jnp.arange(3) + 2**40}
        assert_same(load(save(tmp_path / "x.eqx", tree), tree), tree)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[:, ::2],
        lambda a: a[::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a[1:, 1:],
        lambda a: np.broadcast_to(a[0], (3, 6)),
        lambda a: a.astype(">f4"),
        lambda a: a.T.astype(">f4"),
        lambda a: a.T.astype(">c16"),
        lambda a: a.astype(ml_dtypes.bfloat16).T,
        lambda a: a.astype(ml_dtypes.float8_e4m3fn).T[::-1],
    ],
    ids="transposed strided reversed fortran sliced broadcast big-endian both complex bfloat16 float8".split(),
)
def test_memory_layout_does_not_matter(tmp_path, view):
    array = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    loaded = load(save(tmp_path / "x.eqx", [array]), [array])[0]
    assert loaded.shape == array.shape
    np.testing.assert_array_equal(loaded.astype(np.complex64), array.astype(np.complex64))


def test_numpy_scalars(tmp_path):
    tree = (np.float32(0.1), np.float64(0.1), np.int64(2**40), np.bool_(True))
    loaded = load(save(tmp_path / "x.eqx", tree), tree)
    assert loaded == tree and [type(x) for x in loaded] == [type(x) for x in tree]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3)])
def test_typed_keys(tmp_path, impl, shape):
    keys = jax.random.key(0, impl=impl) if shape == () else jax.random.split(jax.random.key(0, impl=impl), shape)
    path = save(tmp_path / "x.eqx", {"k": keys})
    for like in (keys, jax.ShapeDtypeStruct(keys.shape, keys.dtype)):
        assert_same(load(path, {"k": like}), {"k": keys})
    other = jax.random.key(0, impl="rbg" if impl == "threefry2x32" else "threefry2x32")
    with pytest.raises(CheckpointMismatch, match=rf"\['k'\]: the file has key<{impl}>\[.*\]; expected key<"):
        load(path, {"k": jnp.broadcast_to(other, shape)})


def test_weak_types_become_strong(tmp_path):
    weak = jnp.asarray(1.0)
    assert weak.weak_type
    loaded = load(save(tmp_path / "x.eqx", [weak]), [weak])[0]
    assert not loaded.weak_type and loaded.dtype == jnp.float32


def test_one_array_nothing_and_no_arrays_at_all(tmp_path):
    assert_same(load(save(tmp_path / "a.eqx", jnp.ones(3)), jnp.zeros(3)), jnp.ones(3))
    for tree in (None, (), {"a": None}, {"f": jax.nn.relu, "n": 3}):
        assert load(save(tmp_path / "b.eqx", tree), tree) == tree


def test_odd_paths(tmp_path):
    tree = {"a.b[0]": jnp.ones(1), 'quote"\\': jnp.ones(2), "ключ": jnp.ones(3), "": jnp.ones(4), 0: jnp.ones(5)}
    tree = [{k: v} for k, v in tree.items()]
    assert_same(load(save(tmp_path / "x.eqx", tree), tree), tree)


def test_metadata(tmp_path):
    metadata = {"score": 1.5, "notes": ["é", "\ud800", None, True], "nested": {"nan": float("inf")}}
    path = save(tmp_path / "x.eqx", [jnp.ones(3)], metadata=metadata)
    assert read_metadata(path) == metadata
    assert np.isnan(read_metadata(save(path, [], metadata={"loss": float("nan")}))["loss"])
    assert read_metadata(save(path, [])) == {}
    with pytest.raises(TypeError, match="metadata must be JSON"):
        save(path, [], metadata={"x": np.float32(1)})
    assert read_metadata(path) == {}


def test_manifest(tmp_path):
    manifest = read_manifest(save(tmp_path / "x.eqx", state()))
    assert manifest["format"] == files.FORMAT == 2
    assert manifest["versions"]["jax"] == jax.__version__
    tree = manifest["tree"]
    assert tree["['agent']"] == "Policy"
    assert tree["['agent'].horizon"] == "16"
    assert tree["['agent'].scale"] == "0.5"
    assert tree["['agent'].net.layers[0].weight"] == "float32[8 4]"
    assert tree["['agent'].net.activation"] == "function tanh"
    assert tree["['agent'].net.width_size"] == "8"
    assert tree["['opt_state'][0].count"] == "int32[]"
    assert tree["['rng']"] == "key<threefry2x32>[]"


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    """No address, time or order of a hash may get in."""
    tree = state() | {"object": object(), "lambda": lambda x: x, "static": Static(functools.partial(jnp.sum, axis=0))}
    a = save(tmp_path / "a", tree, metadata={"a": 1}).read_bytes()
    assert a == save(tmp_path / "b", tree, metadata={"a": 1}).read_bytes()
    assert b"object object" in a and b"0x" not in a


def test_any_safetensors_reader_opens_the_file(tmp_path):
    """safetensors itself is the oracle: it refuses a header that isn't right to the byte."""
    odd = {"half": np.ones(3, np.float16), "brain": jnp.ones((2, 2), jnp.bfloat16), "bool": np.array([True, False, True])}
    odd |= {"empty": np.zeros((0, 3)), "scalar": np.int8(-3), "wide": np.arange(5, dtype=np.uint64), "last": np.array([7], np.uint8)}
    tree = state() | odd
    path = save(tmp_path / "x.eqx", tree, metadata={"a": 1})
    arrays = load_file(path)
    _, expected = files.describe_tree(tree)
    assert arrays.keys() == expected.keys()
    for name, x in expected.items():
        x = np.asarray(x)
        assert (arrays[name].dtype, arrays[name].shape, arrays[name].tobytes()) == (x.dtype, x.shape, x.tobytes()), name
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0 and int(metadata["payload_crc32"], 16) == zlib.crc32(data[start:])
    assert json.loads(metadata["eqxrl"]) == read_manifest(path)
    table = json.loads(data[8:start])
    sizes = {"F64": 8, "U64": 8, "F32": 4, "U32": 4, "I32": 4, "F16": 2, "BF16": 2}
    for name in arrays:
        assert table[name]["data_offsets"][0] % sizes.get(table[name]["dtype"], 1) == 0, "safetensors wants arrays aligned"
    with pytest.raises(SafetensorError):
        load_bytes(data[:-1])


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_no_second_copy_of_the_state_is_made(tmp_path, convert):
    """tracemalloc counts what NumPy allocates; JAX's arrays live elsewhere, and are looked at where they are."""
    size = 2**20
    tree = {str(i): convert(np.full(size // 4, i, np.float32)) for i in range(16)}
    path = save(tmp_path / "x.eqx", tree)  # imports
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    for act, limit in [(lambda: save(path, tree), 0.5 * size), (lambda: load(path, like), 16.5 * size)]:
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit
    tree = {k: convert(np.asarray(x).reshape(512, -1).T) if convert is np.asarray else x for k, x in tree.items()}
    tracemalloc.start()
    save(path, tree)  # not in C order: a copy, but of one array at a time
    assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    tracemalloc.stop()


# Mismatches


class Static(eqx.Module):
    value: object = eqx.field(static=True)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Config:
    n: int
    dtype: object = None


CONFIGS = (Config(1, np.zeros(3)), Config(1, np.ones(3)))


def mismatch(tmp_path, tree, like):
    with pytest.raises(CheckpointMismatch) as e:
        load(save(tmp_path / "x.eqx", tree), like)
    return str(e.value)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(width=9), ".net.layers[0].weight: the file has float32[8 4]; expected float32[9 4]"),
        (dict(width=9), ".net.width_size: the file has 8; expected 9"),
        (dict(depth=2), ".net.layers[2]: isn't in the file; expected Linear"),
        (dict(depth=0), ".net.layers[1].weight: the file has float32[2 8]; nothing is expected there"),
        (dict(activation=jax.nn.relu), ".net.activation: the file has function tanh; expected function relu"),
        (dict(log_std=False), ".log_std: the file has float32[2]; expected None"),
        (dict(scale=0.25), ".scale: the file has 0.5; expected 0.25"),
        (dict(horizon=17), ".horizon: the file has 16; expected 17"),
        (dict(cls=OtherPolicy), ".: the file has Policy; expected OtherPolicy"),
    ],
)
def test_each_difference_is_named(tmp_path, changes, expected):
    message = mismatch(tmp_path, policy(), policy(**changes))
    assert f"\n  {expected}\n" in message and str(tmp_path / "x.eqx") in message


@pytest.mark.parametrize(
    "stored, wanted, lines",
    [
        (1, True, ["1", "True"]),
        (1, 1.0, ["1", "1.0"]),
        (0.0, -0.0, ["0.0", "-0.0"]),
        ("1", 1, ["'1'", "1"]),
        (None, 0, ["None", "0"]),
        (b"a", "a", ["b'a'", "'a'"]),
        (Color.RED, Color.BLUE, ["Color.RED", "Color.BLUE"]),
        (jnp.float32, jnp.bfloat16, ["class float32", "class bfloat16"]),
        (np.float32, np.float64, ["class float32", "class float64"]),
        (np.dtype("float32"), np.dtype("int8"), ["dtype float32", "dtype int8"]),
        (functools.partial(max, 1), functools.partial(max, 2), ["partial(function max, tuple(1)", "max, tuple(2)"]),
        (Config(1), Config(2), ["Config(n=1, dtype=None)", "Config(n=2, dtype=None)"]),
        (Config(1, jnp.tanh), Config(1, len), ["Config(n=1, dtype=function tanh)", "dtype=function len)"]),
        (object(), Color, ["object object", "class Color"]),
    ],
    ids=lambda x: None,
)
def test_static_things_are_compared_as_leaves_and_as_fields(tmp_path, stored, wanted, lines):
    for make in (lambda x: [x], Static):
        assert load(save(tmp_path / "x.eqx", make(stored)), make(stored)) == make(stored)
        message = mismatch(tmp_path, make(stored), make(wanted))
        assert re.search(rf"the file has {re.escape(lines[0])}.*; expected .*{re.escape(lines[1])}", message)


@pytest.mark.parametrize(
    "stored, wanted",
    [((1, 2), (1, 3)), ([1], (1,)), ({"a": 1}, {"a": 2}), ({1, 2}, {1, 3}), (np.arange(3), np.arange(1, 4)), CONFIGS],
    ids=lambda x: None,
)
def test_static_containers_and_arrays_are_compared(tmp_path, stored, wanted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equinox warns of static arrays
        stored, wanted = Static(stored), Static(wanted)
    path = save(tmp_path / "x.eqx", stored)
    assert load(path, stored) is not None
    assert "\n  .value: the file has " in mismatch(tmp_path, stored, wanted)


@pytest.mark.parametrize(
    "stored, wanted, line",
    [
        (jnp.ones(3), jnp.ones(4), "float32[3]; expected float32[4]"),
        (jnp.ones(3), jnp.ones((3, 1)), "float32[3]; expected float32[3 1]"),
        (jnp.ones(3), jnp.ones(3, int), "float32[3]; expected int32[3]"),
        (jnp.ones(3, jnp.float16), jnp.ones(3, jnp.bfloat16), "float16[3]; expected bfloat16[3]"),
        (jnp.ones(()), 1.0, "float32[]; expected 1.0"),
        (jnp.ones(2, jnp.uint32), jax.random.key(0), "uint32[2]; expected key<threefry2x32>[]"),
        (jnp.ones(0), jnp.ones((0, 5)), "float32[0]; expected float32[0 5]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, stored, wanted, line):
    assert f"\n  ['x']: the file has {line}\n" in mismatch(tmp_path, {"x": stored}, {"x": wanted})


@pytest.mark.parametrize("stored, wanted", [((), []), ({}, ()), ((), None), ([1], (1,)), (EmptyA(), EmptyB())], ids=str)
def test_containers_that_do_not_fit(tmp_path, stored, wanted):
    assert "\n  [0]: the file has " in mismatch(tmp_path, [stored], [wanted])


def test_renamed_and_reordered_fields_are_not_swapped(tmp_path):
    """`tree_deserialise_leaves` goes by position, and takes the one for the other."""
    a, b = jnp.zeros(2), jnp.ones(2)
    assert load(save(tmp_path / "x.eqx", {"a": a, "b": b}), {"b": a, "a": a})["b"][0] == 1
    message = mismatch(tmp_path, {"a": a, "b": b}, {"a": a, "c": b})
    assert "['b']: the file has float32[2]; nothing is expected there" in message
    assert "['c']: isn't in the file; expected float32[2]" in message


def test_another_optimizer(tmp_path):
    message = mismatch(tmp_path, state(), state(optimizer=optax.sgd(1e-3, momentum=0.9)))
    assert "['opt_state'][0]: the file has ScaleByAdamState; expected TraceState" in message


def test_a_long_list_is_cut_and_counted(tmp_path):
    message = mismatch(tmp_path, [jnp.ones(3)] * 33, [jnp.ones(4)] * 33)
    assert "in 33 places" in message and message.count("float32[4]") == 20 and "... and 13 more" in message


def test_the_message_says_what_to_do_and_what_wrote_the_file(tmp_path):
    message = mismatch(tmp_path, [1], [2])
    assert "in 1 place:" in message and "Build `like` as" in message and f"jax {jax.__version__}" in message


def test_custom_nodes_and_their_static_data(tmp_path):
    @jax.tree_util.register_pytree_node_class
    class Node:
        def __init__(self, x, static):
            self.x, self.static = x, static

        def tree_flatten(self):
            return (self.x,), self.static

        @classmethod
        def tree_unflatten(cls, static, children):
            return cls(*children, static)

    loaded = load(save(tmp_path / "x.eqx", Node(jnp.ones(2), 3)), Node(jnp.zeros(2), 3))
    assert loaded.x[0] == 1 and loaded.static == 3
    assert "Node(3); expected" in mismatch(tmp_path, Node(jnp.ones(2), 3), Node(jnp.ones(2), 4))
    partial = jax.tree_util.Partial(jnp.tanh, jnp.ones(2))
    assert "Partial(function tanh)" in mismatch(tmp_path, partial, jax.tree_util.Partial(jnp.sin, jnp.ones(2)))


@pytest.mark.parametrize(
    "leaf",
    [np.array([object()]), np.array(["a"]), np.zeros(2, [("a", "f4")]), jax.ShapeDtypeStruct((2,), jnp.float32)],
    ids=["object", "string", "struct", "abstract"],
)
def test_what_cannot_be_saved_is_refused_by_path(tmp_path, leaf):
    with pytest.raises(TypeError, match=r"\['x'\] is "):
        save(tmp_path / "x.eqx", {"x": leaf})
    assert list(tmp_path.iterdir()) == []


def test_saving_inside_jit_is_refused(tmp_path):
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda x: (save(tmp_path / "x.eqx", [x]), x)[1])(1.0)
    assert list(tmp_path.iterdir()) == []


# Damage

SMALL = {"x": jnp.arange(40, dtype=jnp.float32), "k": 3}


@pytest.fixture
def small(tmp_path):
    path = save(tmp_path / "small.eqx", SMALL, metadata={"a": 1})
    return path, path.read_bytes()


@contextlib.contextmanager
def flipped(path, good, bit):
    """The file with one bit changed, in place: writing it anew fifteen thousand times takes long."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(bit // 8)
        file.write(bytes([good[bit // 8] ^ 1 << bit % 8]))
        yield
        file.seek(bit // 8)
        file.write(good[bit // 8 : bit // 8 + 1])


def test_every_flipped_bit_is_found(small):
    path, good = small
    rng = np.random.default_rng(0)
    in_the_payload = range(8 * (8 + int.from_bytes(good[:8], "little")), 8 * len(good))
    for bit in {*rng.choice(8 * len(good), 2000, replace=False), *in_the_payload}:
        with flipped(path, good, bit), pytest.raises(CheckpointDamaged, match="is damaged"):
            load(path, SMALL)
    assert path.read_bytes() == good
    load(path, SMALL)


def test_every_bit_of_the_header_is_verified_without_reading_the_arrays(small):
    """All of them, one after the other."""
    path, good = small
    start = 8 + int.from_bytes(good[:8], "little")
    for bit in range(8 * start):
        with flipped(path, good, bit), pytest.raises(CheckpointDamaged):
            read_metadata(path)
    path.write_bytes(good[:-1] + b"x")
    assert read_metadata(path) == {"a": 1}  # documented


def test_every_truncation_is_found(small):
    path, good = small
    for length in [0, 1, 7, 8, 9, len(good) - 1, *np.random.default_rng(0).choice(len(good), 100, replace=False)]:
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointDamaged, match=r"\(size\)"):
            load(path, SMALL)
        with pytest.raises(CheckpointDamaged, match=r"\(size\)"):
            read_metadata(path)


@pytest.mark.parametrize("swap", [(0, 4), (4, 80), (-8, -4)])
def test_swapped_numbers_are_found(small, swap):
    path, good = small
    start, data = 8 + int.from_bytes(good[:8], "little"), bytearray(good)
    a, b = (start + x if x >= 0 else len(good) + x for x in swap)
    data[a : a + 4], data[b : b + 4] = data[b : b + 4], data[a : a + 4]
    assert data != good
    path.write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=r"\(payload checksum\)"):
        load(path, SMALL)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100])
def test_bytes_too_many_are_found(small, extra):
    path, good = small
    path.write_bytes(good + extra)
    with pytest.raises(CheckpointDamaged, match=rf"\(size\): it has {len(good + extra)} bytes, and had {len(good)}"):
        load(path, SMALL)


def test_the_failed_check_is_named(small):
    path, good = small
    for at, check in [(9, "header"), (files._DIGEST.start, "header checksum"), (-1, "payload checksum"), (6, "size")]:
        data = bytearray(good)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointDamaged, match=rf"small.eqx is damaged \({check}\): "):
            load(path, SMALL)


def test_other_files_and_no_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointDamaged, match="doesn't begin as a file of eqxrl does"):
        load(tmp_path / "a", SMALL)
    save_file({"x": np.zeros(100)}, tmp_path / "b")
    with pytest.raises(CheckpointDamaged, match="doesn't begin as a file of eqxrl does"):
        load(tmp_path / "b", SMALL)
    with pytest.raises(FileNotFoundError, match="there is no such checkpoint: .*missing.eqx"):
        load(tmp_path / "missing.eqx", SMALL)
    with pytest.raises(FileNotFoundError, match="this is a folder; pass a file, or use"):
        load(tmp_path, SMALL)
    save(tmp_path / "c", SMALL)
    with monkeypatch.context() as m:
        m.setattr(os, "fstat", fails(errno.EIO))
        with pytest.raises(CheckpointDamaged, match=r"\(disk\)"):
            load(tmp_path / "c", SMALL)
        m.setattr(os, "fstat", fails(errno.EACCES))
        with pytest.raises(PermissionError):
            load(tmp_path / "c", SMALL)


# Files made by an enemy, who can compute digests


def forge(good, *, header=lambda x: x, manifest=lambda x: x, payload=lambda x: x):
    """A file with changed contents and right digests."""
    start = 8 + int.from_bytes(good[:8], "little")
    table = json.loads(good[8:start])
    data = payload(good[start:])
    table["__metadata__"]["eqxrl"] = manifest(table["__metadata__"]["eqxrl"])
    table["__metadata__"]["payload_crc32"] = f"{zlib.crc32(data):08x}"
    text = header(json.dumps(table, separators=(",", ":"))).encode()
    head = bytearray(len(text).to_bytes(8, "little") + text)
    head[files._DIGEST] = hashlib.sha256(head[: files._DIGEST.start] + head[files._DIGEST.stop :]).hexdigest().encode()
    return bytes(head) + data


HALF = '"shape":[20],"data_offsets":[0,80]'


def test_the_forge_works(small):
    path, good = small
    path.write_bytes(forge(good))
    assert_same(load(path, SMALL), SMALL)


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(manifest=lambda t: t[:-1]), "manifest"),
        (dict(manifest=lambda t: "[" * 100_000), "manifest"),
        (dict(manifest=lambda t: "9" * 100_000), "manifest"),
        (dict(manifest=lambda t: "[]"), "manifest"),
        (dict(manifest=lambda t: "{}"), "manifest"),
        (dict(manifest=lambda t: t.replace('"tree": {', '"tree": {"y": 3, ')), "manifest"),
        (dict(manifest=lambda t: t.replace('"format": 2', '"format": "x"')), "manifest"),
        (dict(manifest=lambda t: t.replace('"format": 2', '"format": Infinity')), "manifest"),
        (dict(manifest=lambda t: t.replace('"tree": {', '"forest": {')), "manifest"),
        (dict(manifest=lambda t: t.replace('"versions": {', '"versions": 3, "z": {')), "manifest"),
        (dict(manifest=lambda t: t.replace('"metadata": {', '"metadata": 3, "z": {')), "manifest"),
        (dict(manifest=lambda t: t.replace('"metadata": {', '"data": {')), "manifest"),
        (dict(header=lambda t: t[:-1]), "manifest"),
        (dict(header=lambda t: t.replace("[0,160]", "[0,99999999999999]")), "size"),
        (dict(header=lambda t: t.replace("[0,160]", "[-160,0]")), "payload"),
        (dict(header=lambda t: t.replace("[0,160]", "[0,160,0]")), "payload"),
        (dict(header=lambda t: t.replace("[0,160]", "[0,160.0]")), "manifest"),
        (dict(header=lambda t: t.replace("[0,160]", "[]")), "manifest"),
        (dict(header=lambda t: t.replace('"data_offsets"', '"offsets"')), "manifest"),
        (dict(header=lambda t: t.replace('"F32"', '"I32"')), "payload"),
        (dict(header=lambda t: t.replace(',"eqxrl":', ',"else":')), "manifest"),
        (dict(header=lambda t: t.replace('"shape":[40]', '"shape":[1099511627776]')), "payload"),
        (dict(header=lambda t: t.replace('"shape":[40]', '"shape":[9223372036854775807,9223372036854775807]')), "payload"),
        (dict(header=lambda t: t.replace("\"['x']\"", '"y"')), "payload"),
        (dict(header=lambda t: t.replace('"shape":[40],"data_offsets":[0,160]', HALF), payload=lambda d: d[:80]), "payload"),
        (dict(payload=lambda d: d[:-4]), "size"),
        (dict(payload=lambda d: d + b"abcd"), "size"),
    ],
)
def test_a_forged_file_is_refused_and_makes_it_allocate_little(small, changes, why):
    path, good = small
    forged = forge(good, **changes)
    assert forged != good
    path.write_bytes(forged)
    load_safely(path, rf"\({why}\)", limit=60 * len(forged) + 100_000)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 10**6, 100, 0])
def test_a_huge_header_length_is_refused_before_anything_is_allocated(small, length):
    path, good = small
    path.write_bytes(length.to_bytes(8, "little") + good[8:])
    load_safely(path, r"\(size\)", limit=100_000)


def load_safely(path, match, limit):
    with pytest.raises(CheckpointDamaged):
        load(path, SMALL)  # imports and caches
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointDamaged, match=match):
            load(path, SMALL)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_files_words_cannot_drive_the_terminal(small):
    path, good = small
    path.write_bytes(forge(good, manifest=lambda t: t.replace("float32[40]", "\\u001b[31m" + "a" * 10_000)))
    with pytest.raises(CheckpointMismatch) as e:
        load(path, SMALL)
    assert "\x1b" not in str(e.value) and "\\x1b[31maaa" in str(e.value) and len(str(e.value)) < 2000


def test_a_newer_format_asks_for_a_newer_eqxrl(small):
    path, good = small

    def newer(text):
        manifest = json.loads(text)
        return json.dumps({"format": 3, "versions": manifest["versions"] | {"eqxrl": "9.8.7"}, "future": []})

    path.write_bytes(forge(good, manifest=newer))
    for read in (lambda p: load(p, SMALL), read_metadata):
        with pytest.raises(CheckpointMismatch, match="in format 3, written by eqxrl 9.8.7; .* pip install --upgrade eqxrl"):
            read(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointDamaged):
        load(path, SMALL)


def test_no_code_is_ever_run_from_a_file():
    harmless = {"collections.abc", "contextlib", "dataclasses", "enum", "errno", "functools", "hashlib", "importlib.metadata"}
    harmless |= {"json", "zlib", "math", "os", "pathlib", "platform", "re", "secrets", "typing", "warnings", "concurrent.futures"}
    harmless |= {"jax", "jax.numpy", "jaxtyping", "numpy", "eqxrl.training._files", "eqxrl.training._describe"}
    for name in ("_files.py", "_describe.py", "_checkpoints.py"):
        text = (Path(files.__file__).parent / name).read_text()
        nodes = list(ast.walk(ast.parse(text)))
        imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imports |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert imports <= harmless
        assert not set(re.findall(r"\w+", text)) & {"pickle", "eval", "exec", "import_module", "__import__", "__builtins__"}


# Writing


def fails(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def full_disk(monkeypatch, room):
    """`open` for writing gives files on a disk with room for so many bytes."""

    class File(io.FileIO):
        def write(self, data):
            nonlocal room
            data = memoryview(data)
            written = super().write(data[:room])
            room -= written
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written

    real = open

    def fake(path, mode="r", *args, **kwargs):
        return File(path, mode) if "x" in mode else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(files, "open", fake, raising=False)


@pytest.mark.parametrize("room", [0, 100, 1500, 5000])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, room):
    path = save(tmp_path / "x.eqx", SMALL)
    old = path.read_bytes()
    with monkeypatch.context() as m:
        full_disk(m, room)
        with pytest.raises(OSError, match=rf"No space left.*couldn't write a checkpoint of \d+ bytes.*{path}") as e:
            save(path, {"x": jnp.ones(1000)})
    assert e.value.errno == errno.ENOSPC
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, function, code):
    path = save(tmp_path / "x.eqx", SMALL)
    old = path.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(os, function, fails(code))
        with pytest.raises(PermissionError if code == errno.EACCES else OSError, match="couldn't write") as e:
            save(path, {"x": jnp.ones(1000)})
    assert e.value.errno == code and e.value.filename == str(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "x.eqx", SMALL)
    old = path.read_bytes()

    def interrupt(fd):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(path, [])
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="couldn't write"):
        save(tmp_path / "file" / "x.eqx", SMALL)
    with pytest.raises(IsADirectoryError, match="couldn't write"):
        save(tmp_path, SMALL)
    assert save(tmp_path / "new" / "folders" / "x.eqx", SMALL).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


@pytest.mark.parametrize("can", ["not at all", "not on this disk"])
def test_room_that_can_not_be_reserved(tmp_path, monkeypatch, can):
    if can == "not at all":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)  # as on macOS
    else:
        monkeypatch.setattr(os, "posix_fallocate", fails(errno.EOPNOTSUPP), raising=False)
    assert_same(load(save(tmp_path / "x.eqx", SMALL), SMALL), SMALL)


def test_everything_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (events.append(name), real(*args))[1])
    save(tmp_path / "x.eqx", SMALL)
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder
