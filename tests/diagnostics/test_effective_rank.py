"""The dimensions of states, against NumPy and where they are known."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb

effective_rank = jb.diagnostics.effective_rank


def test_against_the_eigenvalues_of_the_covariance():
    """With a mask and lengths: a state that is held counts once."""
    cell = jb.lstm(3, 4, dtype=jnp.float64)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, 2, 3))
    taken = np.random.default_rng(0).uniform(size=(50, 2)) < 0.7
    lengths = np.array([50, 31])
    run = jb.diagnostics.trajectory(cell, params, xs, mask=taken, lengths=lengths)
    found = effective_rank(run)
    taken &= np.arange(50)[:, None] < lengths
    rows = np.concatenate([run.states.h, run.states.c], -1)[taken]
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    np.testing.assert_allclose(found.variances, values, rtol=1e-10)
    np.testing.assert_allclose(found.participation, values.sum() ** 2 / (values**2).sum())
    shares = np.sqrt(values) / np.sqrt(values).sum()
    np.testing.assert_allclose(found.rank, np.exp(-(shares * np.log(shares)).sum()), rtol=1e-10)


def test_as_many_dimensions_as_directions_that_vary():
    cell = jb.indrnn(5, 5, activation=None, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    params = params._replace(w_x=jnp.eye(5)[:, None], w_s=jnp.zeros(5))
    corners = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])
    for dimensions in (1, 3, 5):
        xs = corners.at[:, dimensions:].set(0)
        found = effective_rank(jb.diagnostics.trajectory(cell, params, xs))
        np.testing.assert_allclose((found.rank, found.participation), dimensions, rtol=1e-12)
