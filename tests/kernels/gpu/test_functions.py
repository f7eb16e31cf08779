"""Transcendental functions of the GPU kernels, in single precision against double precision.

What is tested are the formulas; the hardware's 2^x and 1 / sqrt(x) add 2^-22.5 and 2^-22.9.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.kernels.form import normal_form
from jax_bptt.kernels.gpu import functions as gpu_functions
from tests.registry import slow_unless

EXACT = gpu_functions.functions(False)
EVERY = np.concatenate([np.linspace(-12, 12, 200_001), np.geomspace(1e-30, 10, 100_000)])
X = np.concatenate([EVERY, -EVERY]).astype(np.float32)
X = X[X != 0]


def relative_errors(name, wanted):
    with jax.enable_x64(False):
        found = np.asarray(jax.jit(EXACT[name])(jnp.asarray(X)), np.float64)
    return np.abs(found / wanted - 1)


def test_tanh():
    errors = relative_errors("tanh", np.tanh(X.astype(np.float64)))
    assert errors.max() <= 3e-7
    assert errors[np.abs(X) < gpu_functions.SMALL].max() <= 2e-7


def test_logistic_keeps_the_digits_of_a_closed_gate():
    errors = relative_errors("logistic", 1 / (1 + np.exp(-X.astype(np.float64))))
    # The exponent is rounded before the power is taken.
    assert np.all(errors <= 1.2e-7 * (3 + np.maximum(-X, 0)))


@pytest.mark.parametrize("name, low", [("tanh", -1), ("logistic", 0)])
def test_far_out(name, low):
    with jax.enable_x64(False):
        x = jnp.asarray([-jnp.inf, -200, 200, jnp.inf, jnp.nan], jnp.float32)
        np.testing.assert_array_equal(EXACT[name](x), [low, low, 1, 1, np.nan])


def test_tanh_is_odd():
    with jax.enable_x64(False):
        x = jnp.asarray(X)
        np.testing.assert_array_equal(EXACT["tanh"](-x), -EXACT["tanh"](x))


@pytest.mark.parametrize(
    "constructor, hardware",
    [
        slow_unless(False, jb.elman, True),
        slow_unless(False, jb.lstm, True),
        (jb.gru, True),
        (jb.slstm, False),
    ],
)
def test_the_hardware_computes_what_it_has_precisely(constructor, hardware):
    cell = constructor(input_size=2, hidden_size=32, dtype=jnp.float32)
    weights = cell.prepare(cell.init(jax.random.key(0)))
    state = cell.initial_state(weights, (1,))
    form = normal_form(cell, weights, state, jax.ShapeDtypeStruct((1, 1, 2), jnp.float32))
    assert not isinstance(form, str), form
    assert gpu_functions.by_hardware(form.step, False) == hardware
    assert gpu_functions.by_hardware(form.step, True)
    assert not gpu_functions.functions(True)
