"""What is read out of jaxprs, and functions rewritten by them."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core import jaxprs


def test_used_leaves():
    def fun(w, s):
        return w["a"] * s[1]

    w, s = {"a": jnp.ones(1), "b": jnp.ones(1)}, (jnp.ones(1), jnp.ones(1))
    assert jaxprs.used_leaves(fun, w, s) == ({"a": True, "b": False}, (False, True))
    assert jaxprs.used_leaves(lambda w: w, 1.0) == (True,)
    inner = jax.jit(lambda w: w["b"])
    assert jaxprs.used_leaves(inner, w)[0]["b"]


def test_multiplications_for_an_element():
    x, w = np.ones((3, 5)), np.ones((5, 7))
    assert jaxprs.multiplications(lambda w, x: x @ w + 1.0, w, x) == 5
    assert jaxprs.multiplications(lambda w, x: (x @ w, x), w, x) == 5 * 7 / (5 + 7)
    assert jaxprs.multiplications(lambda w, x: 2.0 * x, w, x) == 0


def test_exchanged_operands_give_the_same_products():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4, 6)), rng.normal(size=(2, 7, 3))

    def products(args):
        a, b, c = args
        return jnp.tensordot(a, b, 1), jnp.tensordot(a, b[:3, :, 0], ((1,), (0,))), c @ a

    wanted = products((a, b, c))
    got = jaxprs.exchange_operands(products)((a, b, c))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-14, atol=1e-14)
    jaxpr = jax.make_jaxpr(jaxprs.exchange_operands(products))((a, b, c)).jaxpr
    shapes = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert shapes == [(5, 4, 6), (3, 4), (2, 7, 3)], "batched products stay as they are"
