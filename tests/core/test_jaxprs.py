"""Facts read off jaxprs."""

import jax
import jax.numpy as jnp

from jax_bptt.core import jaxprs


def test_used_leaves():
    def fun(w, s):
        return w["a"] * s[1]

    w, s = {"a": jnp.ones(1), "b": jnp.ones(1)}, (jnp.ones(1), jnp.ones(1))
    assert jaxprs.used_leaves(fun, w, s) == ({"a": True, "b": False}, (False, True))
    assert jaxprs.used_leaves(lambda w: w, 1.0) == (True,)
    inner = jax.jit(lambda w: w["b"])
    assert jaxprs.used_leaves(inner, w)[0]["b"]
