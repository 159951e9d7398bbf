"""The vocabulary: fields, keys, seams, and the switches that turn checks on and off."""

import dataclasses
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Bool, Float, Int, PyTree

from eqxrl import ShapeError, field, typed
from eqxrl._typing import (
    Scalar,
    Schedule,
    as_key,
    as_number,
    as_scalar,
    as_schedule,
    at_step,
    check_positive,
    describe,
    leading,
    strong,
    validate,
    within,
)


class Fields(eqx.Module):
    required: int = field()
    number: int = field(default=3)
    flag: bool = field(default=True)
    rate: Float[Array, ""] = field(default=0.25)
    name: str = field(default="a")
    items: list = field(default_factory=lambda: [1, 2])
    leaf: Int[Array, ""] = field(default=3, static=False, converter=lambda x: jnp.asarray(x, jnp.int32))
    frozen: float = field(default=0.5, static=True)
    doubled: Float[Array, ""] = field(default=1.0, converter=lambda x: as_scalar(2 * x))
    kept: int = field(default=0, metadata={"unit": "m"}, repr=False, compare=False, kw_only=True)


def test_ints_and_bools_are_static_and_the_rest_are_leaves():
    static = {f.name for f in dataclasses.fields(Fields) if f.metadata.get("static")}
    assert static == {"number", "flag", "frozen", "kept"}
    leaves = jax.tree.leaves(Fields(7))
    assert [x for x in leaves if not eqx.is_array(x)] == [7, "a", 1, 2]
    assert [float(x) for x in leaves if eqx.is_array(x)] == [0.25, 3.0, 2.0]


def test_a_float_becomes_a_strong_float32_whatever_it_is_given_as():
    for rate in (0.25, np.float64(0.25), np.array(0.25), jnp.array(0.25), jnp.array(0.25, jnp.bfloat16).astype(jnp.float32)):
        x = Fields(1, rate=rate).rate
        assert isinstance(x, Array) and x.dtype == jnp.float32 and x.shape == () and not x.weak_type
    assert Fields(1, rate=1).rate.dtype == jnp.float32
    assert Fields(1, frozen=2.5).frozen == 2.5 and isinstance(Fields(1).frozen, float)


def test_the_signature_is_that_of_dataclasses_field():
    fields = {f.name: f for f in dataclasses.fields(Fields)}
    assert fields["kept"].metadata["unit"] == "m" and fields["kept"].kw_only and not fields["kept"].repr
    assert not fields["kept"].compare and fields["number"].repr and not fields["number"].kw_only
    assert Fields(1).items is not Fields(1).items
    with pytest.raises(TypeError):
        Fields()


def test_another_value_of_a_leaf_compiles_nothing_anew():
    traces = []

    @eqx.filter_jit
    def use(fields):
        traces.append(1)
        return fields.rate * fields.number

    assert use(Fields(1, rate=0.5, items=[], name="")) == 1.5
    use(Fields(1, rate=0.75, items=[], name=""))
    assert len(traces) == 1
    use(Fields(1, number=4, items=[], name=""))
    assert len(traces) == 2


def test_as_scalar():
    assert as_scalar(3).dtype == jnp.float32
    assert as_scalar(jnp.array([1.0, 2.0])).shape == (2,)
    with jax.enable_x64(True):
        assert as_scalar(0.5).dtype == jnp.float32
        assert as_scalar(jnp.array(0.5, jnp.float64)).dtype == jnp.float64


def test_schedules():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    assert as_schedule(schedule) is schedule
    assert as_schedule(0.5).dtype == jnp.float32
    for updates, expected in ((0, 1.0), (3, 0.25), (9, 0.0)):
        value = at_step(schedule, jnp.int32(updates))
        assert value == expected and value.dtype == jnp.float32 and not value.weak_type
    assert at_step(as_schedule(0.5), jnp.int32(3)) == 0.5
    assert as_number(as_scalar(0.5)) == 0.5
    with pytest.raises(TypeError, match="is a schedule; take its value first"):
        as_number(schedule)


def test_as_key():
    key = jax.random.key(3)
    assert as_key(key) is key
    assert as_key(jax.random.PRNGKey(3)) == key
    assert jnp.all(as_key(jax.random.split(jax.random.PRNGKey(3))) == jax.random.split(key))
    for bad in (jnp.uint32(3), jnp.zeros(3, jnp.uint32)):
        with pytest.raises(ValueError, match=r"rng must be a JAX key or a seed, got uint32\[3?\]; pass jax\.random\.key\(seed\)"):
            as_key(bad)
    for bad in (3.0, None, "3", jnp.int32(3), jax.random.normal(key, (2,))):
        with pytest.raises(TypeError, match="rng"):
            as_key(bad)


def test_a_seed_is_a_key():
    for seed in (0, 3, 2**31 - 1):
        assert as_key(seed) == jax.random.key(seed)


def test_strong():
    tree = {"weak": jnp.asarray(1.0), "int": jnp.asarray(2), "static": "x", "strong": jnp.zeros(2)}
    assert tree["weak"].weak_type
    result = strong(tree)
    assert not any(x.weak_type for x in jax.tree.leaves(result) if eqx.is_array(x))
    assert eqx.tree_equal(result, tree) and result["int"].dtype == jnp.int32


@pytest.mark.parametrize(
    "x, text",
    [
        (jnp.zeros((2, 3)), "float32[2 3]"),
        (np.zeros((), np.int64), "int64[]"),
        (jax.ShapeDtypeStruct((4,), jnp.bool_), "bool[4]"),
        ((jnp.zeros(2), {"a": jnp.zeros(3, jnp.int32)}), "(float32[2], int32[3])"),
        ({"a": jnp.zeros(2)}, "(float32[2])"),
        ((), "tuple"),
        (None, "NoneType"),
        (0.5, "float"),
        (Fields(1), "Fields"),
    ],
)
def test_describe(x, text):
    assert describe(x) == text


class Sizes(eqx.Module):
    n: int


def test_check_positive():
    check_positive(Sizes(1), "n")
    with pytest.raises(ValueError, match=r"Sizes\.n must be at least 1, got -2"):
        check_positive(Sizes(-2), "n")


@typed
class Numbers(eqx.Module):
    free: Scalar = field(default=0.5)
    share: Scalar = field(default=0.5, metadata=within(0.0, 1.0))
    part: Schedule = field(default=0.5, converter=as_schedule, metadata=within(0.0, 1.0, open_low=True))
    plain: Float[Array, "..."] = field(default_factory=lambda: jnp.ones(3))


@typed
class Strict(Numbers):
    """With a check of its own, which runs as well."""

    even: Scalar = field(default=2.0)

    def __check_init__(self):
        if self.even % 2:
            raise ValueError("odd")


@pytest.mark.parametrize("cls", [Numbers, Strict])
@pytest.mark.parametrize("name", ["free", "share", "part"])
def test_a_number_is_one_number(cls, name):
    for bad in (jnp.ones(3), np.ones((1, 1)), jnp.ones((2, 0))):
        with pytest.raises(ShapeError, match=rf"{cls.__name__}\.{name} must be one number, got float\d\d\[.*vmap over them"):
            cls(**{name: bad})
        with pytest.raises(ShapeError, match=name):
            dataclasses.replace(cls(), **{name: bad})
        with pytest.raises(ShapeError, match=name):
            jax.jit(lambda x: cls(**{name: x}))(jnp.asarray(bad))
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name} must be in .*, got nan"):
        cls(**{name: float("nan")})
    with pytest.raises(TypeError):
        cls(**{name: "0.5"})


def test_a_number_in_its_range():
    for value in (0.0, 0.25, 1.0):
        Numbers(share=value)
    for value in (-1e-6, 1.5, jnp.inf):
        with pytest.raises(ValueError, match=r"Numbers\.share must be in \[0\.0, 1\.0\], got"):
            Numbers(share=value)
    with pytest.raises(ValueError, match=r"Numbers\.part must be in \(0\.0, 1\.0\], got 0"):
        Numbers(part=0.0)
    Numbers(free=-jnp.inf)
    schedule = optax.linear_schedule(5.0, 0.0, 4)
    assert Numbers(part=schedule).part is schedule  # whose values nobody knows
    with pytest.raises(ValueError, match="odd"):
        Strict(even=3.0)
    jax.jit(lambda x: Numbers(share=x).share)(7.0)  # nor those of a traced one
    np.testing.assert_array_equal(jax.vmap(lambda x: Numbers(share=x).share)(jnp.array([0.5, 0.25])), [0.5, 0.25])
    eqx.filter_eval_shape(Numbers)


# Seams


@typed
class Inner(eqx.Module):
    x: Float[Array, "*batch act"]
    one: Float[Array, ""]


@typed
class Outer(eqx.Module):
    inner: Inner
    done: Bool[Array, " envs"]
    obs: PyTree = field(metadata=leading("*batch"))
    carry: PyTree = field(metadata=leading("envs"))
    text: str = field(default="any", static=True)


class Producer(eqx.Module):
    pass


GOOD = Outer(
    inner=Inner(x=jnp.zeros((5, 3, 2)), one=jnp.zeros(())),
    done=jnp.zeros(3, bool),
    obs=(jnp.zeros((5, 3, 4)), jnp.zeros((5, 3))),
    carry=(),
)


def check(struct, **sizes):
    return validate(Producer(), struct, batch="steps envs", **{**dict(steps=5, envs=3, act=2), **sizes})


def test_a_good_struct_comes_back():
    assert check(GOOD) is GOOD
    assert validate(Producer(), GOOD, batch="steps envs", steps=5, envs=3) is GOOD  # an axis that isn't given may be any


@pytest.mark.parametrize(
    "where, value, message",
    [
        (lambda s: s.done, jnp.zeros(5, bool), "Outer.done = bool[5], but bool[envs=3] was expected"),
        (lambda s: s.done, jnp.zeros(3), "Outer.done = float32[3], but bool[envs=3] was expected"),
        (lambda s: s.done, None, "Outer.done = NoneType, but bool[envs=3] was expected"),
        (lambda s: s.inner.x, jnp.zeros((3, 5, 2)), "Inner.x = float32[3 5 2], but float[steps=5 envs=3 act=2] was expected"),
        (lambda s: s.inner.x, jnp.zeros((5, 3, 4)), "Inner.x = float32[5 3 4], but float[steps=5 envs=3 act=2] was expected"),
        (lambda s: s.inner.one, jnp.zeros(5), "Inner.one = float32[5], but float[] was expected"),
        (lambda s: s.obs[1], jnp.zeros((3, 5)), "Outer.obs = (float32[5 3 4], float32[3 5]), but every leaf must start with"),
        (lambda s: s.obs[0], jnp.zeros(5), "Outer.obs = (float32[5], float32[5 3]), but every leaf must start with"),
    ],
)
def test_a_bad_one_is_described(where, value, message):
    bad = eqx.tree_at(where, GOOD, value, is_leaf=lambda x: x is None)
    with pytest.raises(ShapeError) as error:
        check(bad)
    assert f"Producer returned {message}" in str(error.value)


def test_another_class_is_described():
    assert validate(Producer(), GOOD, batch="steps envs", kind=Outer, steps=5, envs=3) is GOOD
    for bad, got in ((GOOD.inner, "Inner"), (jnp.zeros(3), r"float32\[3\]"), (None, "NoneType"), ((GOOD, GOOD), r"\(.*\)")):
        with pytest.raises(ShapeError, match=f"Producer returned {got}, but must return Outer"):
            validate(Producer(), bad, batch="steps envs", kind=Outer, steps=5, envs=3)


def test_leading_axes_other_than_the_batch():
    check(dataclasses.replace(GOOD, carry={"h": jnp.zeros((3, 8))}))
    bad = dataclasses.replace(GOOD, carry={"h": jnp.zeros((8, 3))})
    with pytest.raises(ShapeError, match=r"Outer\.carry = \(float32\[8 3\]\), but every leaf must start with \[envs=3\]"):
        check(bad)


def test_what_vmap_made_is_checked():
    """Which nothing else does: no constructor is called."""
    vmapped = jax.vmap(lambda _: GOOD)(jnp.zeros(2))
    with pytest.raises(ShapeError):
        check(vmapped)


def test_a_users_own_struct_is_not_taken_apart():
    """It is annotated for one environment, and holds many."""

    @typed
    class State(eqx.Module):
        position: Float[Array, ""]

    states = jax.vmap(State)(jnp.zeros(3))
    check(dataclasses.replace(GOOD, carry=states))
    bad = jax.vmap(State)(jnp.zeros(4))
    with pytest.raises(ShapeError, match=r"Outer\.carry = State, but every leaf must start with \[envs=3\]"):
        check(dataclasses.replace(GOOD, carry=bad))


# Switches


@pytest.mark.parametrize(
    "switches, structs, functions",
    [
        ({}, True, False),
        ({"EQXRL_TYPECHECK": "0"}, True, False),
        ({"EQXRL_TYPECHECK": "1"}, True, True),
        ({"JAXTYPING_DISABLE": "1"}, False, False),
    ],
    ids=["default", "off", "functions too", "disabled"],
)
def test_switches(switches, structs, functions):
    script = """
import types
import equinox as eqx, jax.numpy as jnp
from eqxrl import EvalMetrics
from eqxrl._typing import validate
from eqxrl.spaces import to_env_action

def outcome(f):
    try:
        f()
        return "accepted"
    except TypeError as error:
        return type(error).__name__

good = EvalMetrics(episode_length=jnp.zeros(3, jnp.int32), cumulative_reward=jnp.zeros(3))
bad = eqx.tree_at(lambda m: m.cumulative_reward, good, jnp.zeros(4))
print(outcome(lambda: EvalMetrics(episode_length=jnp.zeros(3, jnp.int32), cumulative_reward=jnp.zeros(4))))
print(outcome(lambda: validate("producer", bad, batch="")))
print(outcome(lambda: to_env_action(types.SimpleNamespace(n=2, shape=(), dtype=jnp.int32), jnp.array(True))))  # no number
"""
    environment = {name: x for name, x in os.environ.items() if name not in ("EQXRL_TYPECHECK", "JAXTYPING_DISABLE")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment | switches, check=True)
    struct, seam, function = run.stdout.split()
    assert (struct, seam) == (("TypeCheckError", "ShapeError") if structs else ("accepted", "accepted"))
    assert function == ("TypeCheckError" if functions else "accepted")
