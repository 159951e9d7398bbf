"""`cond_any` and `cond_each` by transform: the values, and that a branch which nobody needs is left out of the run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from eqxrl._cond import cond_any, cond_each


def draw(pred, keys, scale, otherwise):
    """A true branch with typed keys among its operands and `scale` closed over."""
    return cond_any(pred, lambda keys: scale * jax.vmap(jr.uniform)(keys), (keys,), otherwise)


def inputs(*shape):
    keys = jr.split(jr.key(0), (*shape, 3))
    return keys, jnp.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape), jnp.full((*shape, 3), -1.0)


def uniform(keys):
    return np.array([jr.uniform(k) for k in keys.ravel()]).reshape(keys.shape)


def test_plain_and_jit():
    keys, scale, otherwise = inputs()
    for f in (draw, jax.jit(draw)):
        np.testing.assert_allclose(f(jnp.array([False, True, False]), keys, scale, otherwise), uniform(keys), rtol=1e-6)
        np.testing.assert_array_equal(f(jnp.zeros(3, bool), keys, scale, otherwise), -1)


def test_scan():
    keys, scale, otherwise = inputs()
    preds = jnp.array([[False] * 3, [False, False, True]])
    out = jax.lax.scan(lambda c, p: (c, draw(p, keys, scale, otherwise)), (), preds)[1]
    np.testing.assert_allclose(out, np.stack([otherwise, uniform(keys)]), rtol=1e-6)


def test_vmap_computes_for_all_members_as_soon_as_one_needs_it():
    keys, scale, otherwise = inputs(2)
    one = jnp.zeros((2, 3), bool).at[1, 0].set(True)
    np.testing.assert_allclose(jax.vmap(draw)(one, keys, scale, otherwise), scale[:, None] * uniform(keys), rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(draw)(jnp.zeros((2, 3), bool), keys, scale, otherwise), otherwise)


def test_vmap_of_vmap():
    keys, scale, otherwise = inputs(2, 4)
    one = jnp.zeros((2, 4, 3), bool).at[1, 3, 0].set(True)
    f = jax.jit(jax.vmap(jax.vmap(draw)))
    np.testing.assert_allclose(f(one, keys, scale, otherwise), scale[..., None] * uniform(keys), rtol=1e-6)
    np.testing.assert_array_equal(f(jnp.zeros_like(one), keys, scale, otherwise), otherwise)


@pytest.mark.parametrize("batched", ["pred", "keys", "scale", "otherwise"])
def test_vmap_over_one_argument(batched):
    keys, scale, otherwise = inputs(2)
    args = {"pred": jnp.array([[False] * 3, [True] * 3]), "keys": keys, "scale": scale, "otherwise": otherwise}
    args = {name: x if name == batched else x[1] for name, x in args.items()}
    out = jax.vmap(draw, in_axes=[0 if name == batched else None for name in args])(*args.values())
    want = np.asarray(args["scale"]).reshape(-1, 1) * np.atleast_2d(uniform(args["keys"]))
    np.testing.assert_allclose(out, np.broadcast_to(want, (2, 3)), rtol=1e-6)


def conds(jaxpr):
    """The shapes of the predicates of all conds, those of inner programs included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond":
            yield eqn.invars[0].aval.shape
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from conds(getattr(inner, "jaxpr", inner))


def native(pred, keys, scale, otherwise):
    return jax.lax.cond(jnp.any(pred), lambda: scale * jax.vmap(jr.uniform)(keys), lambda: otherwise)


def test_a_cond_is_left_under_vmap():
    two = (jnp.zeros((2, 4, 3), bool), *inputs(2, 4))
    one = jax.tree.map(lambda x: x[0], two)
    assert list(conds(jax.make_jaxpr(jax.vmap(draw))(*one).jaxpr)) == [()]
    assert list(conds(jax.make_jaxpr(jax.vmap(jax.vmap(draw)))(*two).jaxpr)) == [()]
    assert list(conds(jax.make_jaxpr(jax.vmap(native))(*one).jaxpr)) == []  # what it is for
    text = jax.jit(jax.vmap(jax.vmap(draw))).lower(*two).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text


@pytest.mark.parametrize("cond", [
    lambda pred, branch, x: cond_any(pred, branch, (x,), x),
    lambda pred, branch, x: cond_each(jnp.any(pred), branch, lambda x: x, x),
])
def test_the_branch_is_really_skipped(cond):
    ran = []

    def f(pred, x):
        def branch(x):
            return jax.pure_callback(lambda x: ran.append(1) or np.asarray(x), x, x, vmap_method="expand_dims")

        return cond(pred, branch, x)

    g = jax.jit(jax.vmap(f))
    g(jnp.zeros((4, 3), bool), jnp.ones((4, 3))).block_until_ready()
    assert not ran
    g(jnp.zeros((4, 3), bool).at[2, 2].set(True), jnp.ones((4, 3))).block_until_ready()
    assert ran


def test_each_gets_what_its_own_predicate_says():
    def f(pred, x, closed):
        return cond_each(pred, lambda x: x + closed, lambda x: -x, x)

    x, closed = jnp.arange(6.0).reshape(2, 3), jnp.full((2, 3), 10.0)
    for pred in (jnp.zeros((2, 3), bool), jnp.zeros((2, 3), bool).at[1, 0].set(True), jnp.ones((2, 3), bool)):
        want = np.where(pred, x + closed, -x)
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(f)))(pred, x, closed), want)
        np.testing.assert_array_equal([[f(*args) for args in zip(*rows)] for rows in zip(pred, x, closed)], want)


def test_operands_that_are_no_arrays():
    class Part(eqx.Module):
        x: jax.Array
        power: int
        fn: object

    part = Part(jnp.arange(3.0), 2, jnp.sin)
    part = eqx.tree_at(lambda p: p.x, part, jnp.stack([part.x, part.x]))
    out = eqx.filter_vmap(lambda p, part: cond_any(p, lambda q: q.fn(q.x) ** q.power, (part,), part.x))(jnp.ones(2, bool), part)
    np.testing.assert_allclose(out, np.sin(part.x) ** 2, rtol=1e-6)


def test_otherwise_must_fit():
    with pytest.raises(TypeError, match="differ in .*float32.*against.*int32"):
        cond_any(jnp.ones(2, bool), lambda x: {"a": x}, (jnp.ones(3),), {"a": jnp.ones(3, jnp.int32)})
    with pytest.raises(TypeError, match="same structure"):
        cond_any(jnp.ones(2, bool), lambda x: (x, x), (jnp.ones(3),), (jnp.ones(3),))
