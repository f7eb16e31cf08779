"""Trees with leaves that have no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core import trees

TREE = {"w": np.ones(2), "k": np.arange(2), "b": np.ones(2, np.complex128), "f": np.ones(1, bool)}


def test_partition_and_combine():
    inexact, rest = trees.partition(TREE)
    assert [k for k in TREE if inexact[k] is not None] == ["w", "b"]
    assert [k for k in TREE if rest[k] is not None] == ["k", "f"]
    assert trees.combine(inexact, rest) == TREE


def test_inexact_vjp():
    out, pull = trees.inexact_vjp(
        lambda t, x: {"y": t["w"] * x, "n": t["k"] + 1}, TREE, 3.0 * TREE["w"]
    )
    assert out["n"].tolist() == [1, 2]
    d_tree, d_x = pull({"y": jnp.array([1.0, 2.0]), "n": None})
    assert d_tree["k"] is None and d_tree["f"] is None
    np.testing.assert_array_equal(d_tree["w"], [3.0, 6.0])
    np.testing.assert_array_equal(d_x, [1.0, 2.0])


def test_add_takes_none_for_zero():
    got = trees.add((1.0, None, 2.0, None), (1.0, 3.0, None, None))
    assert got == (2.0, 3.0, 2.0, None)


def test_accumulators_are_at_least_single():
    narrow = {"a": jnp.ones(1, jnp.bfloat16), "b": jnp.ones(1), "n": jnp.arange(1)}
    zeros = trees.zero_gradient(narrow)
    assert zeros["a"].dtype == jnp.float32 and zeros["b"].dtype == jnp.float64
    assert zeros["n"] is None
    cast = trees.cast_gradient(zeros, narrow)
    assert cast["a"].dtype == jnp.bfloat16 and cast["n"] is None


def test_used_leaves():
    def fun(w, s):
        return w["a"] * s[1]

    w, s = {"a": jnp.ones(1), "b": jnp.ones(1)}, (jnp.ones(1), jnp.ones(1))
    assert trees.used_leaves(fun, w, s) == ({"a": True, "b": False}, (False, True))
    assert trees.used_leaves(lambda w: w, 1.0) == (True,)
    inner = jax.jit(lambda w: w["b"])
    assert trees.used_leaves(inner, w)[0]["b"]


def test_multiplications_for_an_element():
    x, w = np.ones((3, 5)), np.ones((5, 7))
    assert trees.multiplications(lambda w, x: x @ w + 1.0, w, x) == 5
    assert trees.multiplications(lambda w, x: (x @ w, x), w, x) == 5 * 7 / (5 + 7)
    assert trees.multiplications(lambda w, x: 2.0 * x, w, x) == 0


def test_exchanged_operands_give_the_same_products():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4, 6)), rng.normal(size=(2, 7, 3))

    def products(args):
        a, b, c = args
        return jnp.tensordot(a, b, 1), jnp.tensordot(a, b[:3, :, 0], ((1,), (0,))), c @ a

    wanted = products((a, b, c))
    got = trees.exchange_operands(products)((a, b, c))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-14, atol=1e-14)
    jaxpr = jax.make_jaxpr(trees.exchange_operands(products))((a, b, c)).jaxpr
    shapes = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert shapes == [(5, 4, 6), (3, 4), (2, 7, 3)], "batched products stay as they are"


@pytest.mark.parametrize("constructor", [jb.lstm, jb.gru, jb.elman])
def test_weights_on_the_left_give_the_same_gradient(constructor, monkeypatch):
    cell = constructor(input_size=2, hidden_size=5)
    params = cell.init(jax.random.key(0))
    xs = np.random.default_rng(0).normal(size=(6, 3, 2))

    def gradient():
        return jax.grad(lambda p: jnp.sum(jb.unroll(cell, p, xs)[1] ** 2))(params)

    right = gradient()
    monkeypatch.setattr("jax_bptt.core.adjoint.LEFT", 5)
    for x, y in zip(*map(jax.tree.leaves, (gradient(), right)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
