"""Narrow types: what is carried, what is rounded, and how far the gradients are off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.jaxprs import equations
from tests.reference import is_inexact, pair
from tests.registry import (
    CELLS,
    assert_close,
    each_cell_in_less_time,
    expected,
    problem,
    slow_unless,
)

EPS = {dtype: float(jnp.finfo(dtype).eps) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)}
OWN = ["elman_readout", "lstm_readout", "gru_readout", "gru_reset_before", "embedding"]
OWN += ["lstm_peephole", "mgu", "ugrnn", "indrnn", "slstm", "ctrnn"]
LIBRARY = {name: CELLS[name].cell for name in OWN}
each_own = pytest.mark.parametrize(
    "name", [slow_unless(name == "lstm_readout", name) for name in OWN]
)


def _cast(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if is_inexact(a) else a, tree)


def _gradients(cell, params, xs, cotangents):
    """Return ((last_state, ys), (d_params, d_state)) from the initial state."""

    def loss(params, state):
        outputs = jb.unroll(cell, params, xs, state)
        return pair(jnp, cotangents, outputs), outputs

    batch_shape = jax.tree.leaves(xs)[0].shape[1:2]
    state = cell.initial_state(params, batch_shape)
    gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, state)
    return outputs, gradients


def _assert_dtypes(tree, dtype):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}


@each_own
@pytest.mark.parametrize("dtype", [slow_unless(False, jnp.float32), jnp.bfloat16])
def test_carries_in_at_least_single_precision(name, dtype):
    """Params keep their type, and so do their gradients; states and outputs are float32."""
    p = problem(name, (2,), 4)
    cell = LIBRARY[name]
    grad = jax.jit(functools.partial(_gradients, cell))
    rounded = _cast(p.params, dtype)
    got = grad(rounded, _cast(p.xs, jnp.float32), _cast(p.cotangents, jnp.float32))
    _assert_dtypes(got[0], jnp.float32)
    _assert_dtypes(got[1][0], dtype)
    _assert_dtypes(got[1][1], jnp.float32)
    want = grad(_cast(rounded, jnp.float64), _cast(p.xs, jnp.float64), p.cotangents)
    # Four steps, a few roundings each; the largest entry of a leaf sets the scale.
    assert_close(got, want, 8 * EPS[dtype])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, slow_unless(False, jnp.float16)])
@pytest.mark.parametrize("name", [slow_unless(False, "lstm_readout"), "gru_readout"])
def test_mixed_precision(name, dtype):
    """Products in half precision: parameters, their gradients and carries stay float32."""
    p = problem(name, (2,), 4)
    params, xs, cotangents = _cast((p.params, p.xs, p.cotangents), jnp.float32)
    plain, mixed = LIBRARY[name], jb.mixed_precision(LIBRARY[name], dtype=dtype)
    got = jax.jit(functools.partial(_gradients, mixed))(params, xs, cotangents)
    want = jax.jit(functools.partial(_gradients, plain))(params, xs, cotangents)
    _assert_dtypes(got, jnp.float32)
    assert_close(got, want, 8 * EPS[dtype])
    off = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, want)
    assert all(error > 0 for error in jax.tree.leaves(off)), "nothing was rounded"


def test_mixed_precision_multiplies_in_the_narrow_type():
    """Every product of the run and its gradient reads weights or states in bfloat16."""
    p = problem("lstm_readout", (2,), 4)
    cell = jb.mixed_precision(LIBRARY["lstm_readout"])
    arguments = _cast((p.params, p.xs, p.cotangents), jnp.float32)
    jaxpr = jax.make_jaxpr(functools.partial(_gradients, cell))(*arguments)
    products = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    forward = [eqn for eqn in products if eqn.outvars[0].aval.dtype == jnp.float32]
    assert len(forward) >= 3
    for eqn in products:
        assert jnp.dtype(jnp.bfloat16) in {v.aval.dtype for v in eqn.invars}
    for eqn in forward:
        assert eqn.params["preferred_element_type"] == jnp.float32


@pytest.mark.slow
@each_own
def test_a_thousand_steps_in_single_precision(name):
    p = problem(name, (2,), 1000)
    # Cotangents on all outputs: a thousand terms to sum, lags from none to all.
    grad = jax.jit(functools.partial(_gradients, LIBRARY[name]))
    # The same numbers in both, the inputs' own rounding aside.
    rounded = _cast((p.params, p.xs, p.cotangents), jnp.float32)
    single, double = grad(*rounded), grad(*_cast(rounded, jnp.float64))
    _assert_dtypes(single, jnp.float32)
    _assert_dtypes(double, jnp.float64)
    assert_close(single, double, 1e-5)


@each_cell_in_less_time
def test_nothing_narrows_under_x64(name):
    """A float32 intermediate in a float64 run would show as an error of 1e-8, or as a dtype."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(expected(name)) if is_inexact(leaf)}
    assert dtypes <= {np.dtype(np.float64), np.dtype(np.complex128)}
    p = problem(name)
    jaxpr = str(jax.make_jaxpr(functools.partial(jb.unroll, CELLS[name].cell))(*p[:3]))
    assert "f32[" not in jaxpr
