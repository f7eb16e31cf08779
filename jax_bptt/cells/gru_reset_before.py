"""Gated recurrent unit with the reset gate before the recurrent product."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value


@as_value
def gru_reset_before(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the gated recurrent unit as first published, reset before the product.

        r, z = sigmoid(x_t W_x + s_{t-1} W_s + b)                   reset and update gate
        n    = tanh(x_t W_x + (r s_{t-1}) W_s + b)                  candidate
        s_t  = (1 - z) n + z s_{t-1}
        y_t  = s_t W_y, or s_t without a readout

    Gate order r, z, n. The two products of a step follow one another, so this is a plain step:
    exact everywhere, without the faster reverse pass of `gru`.

    State: s [*batch, H]. Parameters: `w_x` [I, 3, H], `w_s` [H, 3, H], `b` [3, H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero b, Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one.

    References:
      K. Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder for
      statistical machine translation", EMNLP (there with the roles of z and 1 - z exchanged in
      version 1 of the preprint).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru_reset_before(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("gru_reset_before", input_size, hidden_size, output_size, dtype)

    def init(key):
        return parts.init_params(key, input_size, 3, hidden_size, output_size, dtype)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=_step,
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("r", "z", "n"),
    )


def _step(weights, state, drive):
    to_gates, to_candidate = weights.w_s[:, :2], weights.w_s[:, 2]
    reset_update = jax.nn.sigmoid(drive[..., :2, :] + parts.product(state, to_gates))
    r, z = reset_update[..., 0, :], reset_update[..., 1, :]
    n = jnp.tanh(drive[..., 2, :] + parts.product(r * state, to_candidate))
    return n + z * (state - n)
