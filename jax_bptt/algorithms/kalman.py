"""A Kalman smoother in parallel over time, for the trust region of `newton`.

S. Sarkka and A. F. Garcia-Fernandez (2021), "Temporal parallelization of Bayesian smoothers", IEEE
Transactions on Automatic Control 66(1).
"""

import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.jacobians import apply, recurrence, times


def smoothed(a: Array, b: Array, first: Array, observed: Array, variance: float) -> Array:
    """Return the states that are most probable given noisy observations of all of them.

        z_t = A_t z_{t-1} + b_t + w_t        w_t of covariance 1, z_0 known
        y_t = z_t + v_t                      v_t of covariance `variance`

    They minimise sum_t |z_t - A_t z_{t-1} - b_t|^2 + |z_t - y_t|^2 / variance.

    Args:
      a: A_1..A_K, [K, ..., D, D].
      b: b_1..b_K, [K, ..., D].
      first: z_0, [..., D].
      observed: y_1..y_K, [K, ..., D].
      variance: of the observations, in squared units of the state.

    Returns:
      z_1..z_K, [K, ..., D].
    """
    gain = 1 / (1 + variance)
    one = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    # z_0 is known: the first step has a mean and nothing that is carried into it.
    b = b.at[0].add(apply(a[0], first))
    a = a.at[0].set(0)
    transposed = jnp.swapaxes(a, -1, -2)
    surprise = observed - b
    elements = (
        (1 - gain) * a,
        b + gain * surprise,
        (1 - gain) * one,
        gain * apply(transposed, surprise),
        gain * times(transposed, a),
    )
    _, means, covariances, _, _ = lax.associative_scan(_join, elements)

    # z_t = E_t z_{t+1} + m_t - E_t (A_{t+1} m_t + b_{t+1}), from z_K = m_K.
    means_before, covariances, ahead = means[:-1], covariances[:-1], a[1:]
    spread = times(ahead, covariances)  # A C, C symmetric
    predicted = times(spread, jnp.swapaxes(ahead, -1, -2)) + one[1:]
    back = jnp.swapaxes(_solve(predicted, spread), -1, -2)
    offsets = means_before - apply(back, apply(ahead, means_before) + b[1:])
    return recurrence(back, offsets, means[-1], reverse=True)


def _join(earlier: tuple, later: tuple) -> tuple:
    """Return the filtering element of two stretches in a row."""
    (a, b, c, eta, j), (a_next, b_next, c_next, eta_next, j_next) = earlier, later
    met = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape) + times(c, j_next)
    through = _solve(met, jnp.concatenate([a, c], -1))
    a_through, c_through = jnp.split(through, 2, -1)
    back = jnp.swapaxes(a_through, -1, -2)  # A^T (1 + J' C)^{-1}
    moved = b + apply(c, eta_next)
    b_through = _solve(met, moved[..., None])[..., 0]
    return (
        times(a_next, a_through),
        apply(a_next, b_through) + b_next,
        times(times(a_next, c_through), jnp.swapaxes(a_next, -1, -2)) + c_next,
        apply(back, eta_next - apply(j_next, b)) + eta,
        times(times(back, j_next), a) + j,
    )


def _solve(matrices: Array, right: Array) -> Array:
    """Return the solutions of systems [..., D, D]; a division where D is 1."""
    if matrices.shape[-1] == 1:
        return right / matrices
    return jnp.linalg.solve(matrices, right)
