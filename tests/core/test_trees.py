"""Trees with leaves that have no gradient."""

import jax.numpy as jnp
import numpy as np

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
