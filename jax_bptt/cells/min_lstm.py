"""The minimal long short-term memory: normalised gates that see the input alone."""

from typing import Any

import jax

from jax_bptt.cells import parts
from jax_bptt.cells.min_gru import diagonal_cell
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value


@as_value
def min_lstm(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the minimal long short-term memory; gate order i, f, n.

        i, f = sigmoid(x_t W_x + b)                         input and forget gate
        n    = x_t W_x + b                                  candidate
        s_t  = f / (f + i) s_{t-1} + i / (f + i) n
        y_t  = s_t W_y, or s_t without a readout

    An LSTM without the output gate, whose gates and candidate no longer see the state, and whose
    gates are scaled to add up to one. What is left is linear in the state, unit by unit. The
    candidate has no non-linearity: this is the paper's plain form, not the one in logarithms,
    which needs a positive state. The quotients stay exact where both gates are closed.

    State: s [*batch, H]. Parameters: `MinParams`, `w_x` [I, 3, H], `b` [3, H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x, zero b, Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `DiagonalStep`, which `associative` can run in parallel over time.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one.

    References:
      L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi (2024), "Were RNNs all we
      needed?", arXiv:2410.01201, section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.min_lstm(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("min_lstm", input_size, hidden_size, output_size, dtype)
    sizes = input_size, hidden_size, output_size
    return diagonal_cell(sizes, ("i", "f", "n"), _coefficients, dtype)


def _coefficients(weights, drive):
    to_i, to_f, n = (drive[..., k, :] for k in range(3))
    # f / (f + i) = sigmoid(log f - log i), which has no 0 / 0 where both gates underflow.
    log_ratio = jax.nn.log_sigmoid(to_f) - jax.nn.log_sigmoid(to_i)
    return jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio) * n
