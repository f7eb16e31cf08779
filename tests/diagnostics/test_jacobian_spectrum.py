"""Singular values of a span against NumPy's SVD of the product of its Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check
from tests.registry import CELLS, STEPS, problem, slow_unless

spectrum = jb.diagnostics.jacobian_spectrum


def naive(run, first, last):
    """Return the singular values of the product, [*batch, N * D], the largest first."""
    product = np.eye(run.space.shape[-1])
    for jacobian in np.asarray(run.jacobians(first, last)):
        product = jacobian @ product
    product = np.broadcast_to(product, (*run.space.shape, run.space.shape[-1]))
    values = np.linalg.svd(product, compute_uv=False)
    return -np.sort(-values.reshape(*values.shape[:-2], -1), axis=-1)


@pytest.mark.parametrize("name", [slow_unless(name == "elman", name) for name in CELLS])
def test_every_cell_against_numpy(name):
    p = problem(name)
    run = jb.diagnostics.trajectory(CELLS[name].cell, p.params, p.xs, p.state)
    for first, last in ((0, STEPS), (2, 3), (4, 4)):
        want = naive(run, first, last)
        found = spectrum(run, first, last)
        assert (found.first, found.last) == (first, last)
        atol = 1e-12 * want.max()
        np.testing.assert_allclose(found.values, want, rtol=1e-12, atol=atol)
        largest = spectrum(run, first, last, count=2).values
        # By random directions where the state is large: near, and never more.
        np.testing.assert_allclose(largest, want[..., :2], rtol=0.01, atol=atol)
        assert (largest <= want[..., :2] * (1 + 1e-12) + atol).all()


@pytest.mark.slow
def test_random_directions_find_the_largest():
    """Of 40 values that fall by a factor each, with 15 directions."""
    factors = jnp.asarray(0.7 ** np.arange(40))
    cell = jb.indrnn(1, 40, activation=None, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))._replace(w_s=factors)
    run = jb.diagnostics.trajectory(cell, params, jnp.zeros((2, 3, 1)))
    found = spectrum(run, count=5, key=jax.random.key(1)).values
    np.testing.assert_allclose(found, np.tile(factors[:5] ** 2, (3, 1)), rtol=1e-12)
    dense = jb.elman(1, 40, activation=lambda a: a, dtype=jnp.float64)
    params = dense.init(jax.random.key(0))
    params = params._replace(w_s=params.w_s * factors[None, None])
    run = jb.diagnostics.trajectory(dense, params, jnp.zeros((2, 1)))
    np.testing.assert_allclose(spectrum(run, count=5).values, naive(run, 0, 2)[:5], rtol=1e-9)


def test_a_span_too_long_for_its_values():
    """0.5^2000 is no float64; its logarithm is known."""
    cell = jb.indrnn(1, 2, activation=None, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.5, -0.5]))
    run = jb.diagnostics.trajectory(cell, params, jnp.zeros((2000, 1)))
    found = spectrum(run)
    np.testing.assert_allclose(found.log_values, 2000 * np.log(0.5), rtol=1e-12)
    assert (found.values == 0).all()


def test_messages():
    cell = jb.elman(2, 3)
    run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((5, 2)))
    check(lambda: spectrum(run, 3, 2), ValueError, "jacobian_spectrum: first and last", "T=5")
    check(lambda: spectrum(run, count=4), ValueError, "jacobian_spectrum: count", "1 to 3", "4")
