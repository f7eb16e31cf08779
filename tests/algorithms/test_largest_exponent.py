"""The largest Lyapunov exponent, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb


def linear(matrix):
    """Return the cell s_t = s_{t-1} W + x_t, and its parameters."""
    size = len(matrix)
    cell = jb.elman(size, size, activation=lambda a: a, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    return cell, params._replace(w_s=jnp.asarray(matrix, jnp.float64)[:, None])


def test_a_linear_network_has_the_modulus_of_its_eigenvalue():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(4, 4))
    matrix = basis @ np.diag([1.2, -0.9, 0.5, 0.1]) @ np.linalg.inv(basis)
    cell, params = linear(matrix)
    xs = jnp.zeros((400, 2, 4))
    found = jb.largest_exponent(cell, params, xs)
    assert found.shape == (2,)
    np.testing.assert_allclose(found, np.log(1.2), rtol=1e-6)


def test_a_rotation_has_none_and_a_network_that_forgets_minus_infinity():
    cell, params = linear(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    xs = jnp.zeros((50, 3))
    np.testing.assert_allclose(jb.largest_exponent(cell, params, xs), 0, atol=1e-14)
    assert jb.largest_exponent(cell, jax.tree.map(jnp.zeros_like, params), xs) == -np.inf


def test_the_forget_bias_of_an_lstm_without_weights():
    """The exponent of c is log sigmoid(b); h forgets all."""
    cell = jb.lstm(2, 3, forget_bias=0.7, dtype=jnp.float64)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params = params._replace(b=params.b.at[1].set(0.7))
    found = jb.largest_exponent(cell, params, jnp.ones((60, 2)))
    np.testing.assert_allclose(found, jax.nn.log_sigmoid(0.7), rtol=1e-12)


def test_messages():
    cell = jb.elman(2, 3)
    params = cell.init(jax.random.key(0))
    with pytest.raises(ValueError, match="largest_exponent: xs must have at least one step"):
        jb.largest_exponent(cell, params, jnp.ones((0, 2)))
