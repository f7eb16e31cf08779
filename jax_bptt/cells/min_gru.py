"""The minimal gated recurrent unit: gates that see the input alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.checks import prng_key
from jax_bptt.core.types import Cell, DiagonalStep
from jax_bptt.core.values import as_value


class MinParams(NamedTuple):
    """Parameters of `min_gru` (G = 2) and `min_lstm` (G = 3): no weights touch the state.

    Attributes:
      w_x: input to gates and candidate, [I, G, H].
      b: bias, [G, H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    b: Array
    w_y: Array | None = None


@as_value
def min_gru(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the minimal gated recurrent unit; gate order z, n.

        z   = sigmoid(x_t W_x + b)                          update gate
        n   = x_t W_x + b                                   candidate
        s_t = (1 - z) s_{t-1} + z n
        y_t = s_t W_y, or s_t without a readout

    A GRU without the reset gate, whose gate and candidate no longer see the state. What is left is
    linear in the state, unit by unit. As in the paper, and other than in `gru`, z is the weight of
    the candidate. The candidate has no non-linearity: this is the paper's plain form, not the one
    in logarithms, which needs a positive state.

    State: s [*batch, H]. Parameters: `MinParams`, `w_x` [I, 2, H], `b` [2, H], `w_y` [H, O].
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
      needed?", arXiv:2410.01201, section 3.1.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.min_gru(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("min_gru", input_size, hidden_size, output_size, dtype)
    sizes = input_size, hidden_size, output_size
    return diagonal_cell(sizes, ("z", "n"), _coefficients, dtype)


def diagonal_cell(
    sizes: tuple[int, int, int | None], gates: tuple[str, ...], coefficients: Any, dtype: Any
) -> Cell:
    """Return the cell with `MinParams` of `sizes` I, H, O, these gates and these coefficients."""
    input_size, hidden_size, output_size = sizes

    def init(key):
        prng_key("cell.init", key)
        key_x, key_y = jax.random.split(key)
        glorot = jax.nn.initializers.glorot_uniform()
        w_x = parts.draw_gates(glorot, key_x, len(gates), (input_size, hidden_size), dtype)
        b = jnp.zeros((len(gates), hidden_size), w_x.dtype)
        if output_size is None:
            return MinParams(w_x, b)
        return MinParams(w_x, b, parts.draw(glorot, key_y, (hidden_size, output_size), dtype))

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=DiagonalStep(coefficients),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=gates,
    )


def _coefficients(weights, drive):
    z, n = jax.nn.sigmoid(drive[..., 0, :]), drive[..., 1, :]
    return 1 - z, z * n
