"""Gated recurrent unit with layer normalisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.cells.layer_norm_lstm import scaled_norm
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value


class LayerNormGRUParams(NamedTuple):
    """Parameters of a layer-normalised GRU.

    Attributes:
      w_x: input to gates r, z, n, [I, 3, H].
      w_s: state to gates r, z, n, [H, 3, H].
      b: bias, [3, H].
      b_n: bias of the candidate's recurrent part, inside the reset, [H].
      gain_x: of the normalised input part, [3, H].
      gain_s: of the normalised recurrent part, [3, H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    b_n: Array
    gain_x: Array
    gain_s: Array
    w_y: Array | None = None


@as_value
def layer_norm_gru(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the layer-normalised gated recurrent unit; gate order r, z, n.

        norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5)       over r and z together, over n alone
        u_x     = gain_x norm(x_t W_x) + b
        u_s     = gain_s norm(s_{t-1} W_s)
        r, z    = sigmoid(u_x + u_s)                        reset and update gate
        n       = tanh(u_x + r (u_s + b_n))                 candidate
        s_t     = (1 - z) n + z s_{t-1}
        y_t     = s_t W_y, or s_t without a readout

    As published, one norm is taken over the 2 H sums of both gates and another over those of the
    candidate. The paper's z is 1 - z here, as in `gru`; the two biases of its norms for the gates
    are one, b. A norm crosses units, so this is a plain step; that of the input is part of
    `project` and runs batched over time. Statistics are in at least single precision.

    State: s [*batch, H]. Parameters: `LayerNormGRUParams`, `w_x` [I, 3, H], `w_s` [H, 3, H], `b`,
    `gain_x`, `gain_s` [3, H], `b_n` [H], `w_y` [H, O]. Initialisation: per gate Glorot-uniform w_x
    and orthogonal w_s, gains of one, zero biases, Glorot-uniform w_y.

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
      J. L. Ba, J. R. Kiros and G. E. Hinton (2016), "Layer normalization", arXiv:1607.06450,
      supplementary equations for the GRU.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.layer_norm_gru(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("layer_norm_gru", input_size, hidden_size, output_size, dtype)

    def init(key):
        p = parts.init_params(key, input_size, 3, hidden_size, output_size, dtype)
        b_n, gain_x, gain_s = jnp.zeros_like(p.b[0]), jnp.ones_like(p.b), jnp.ones_like(p.b)
        return LayerNormGRUParams(p.w_x, p.w_s, p.b, b_n, gain_x, gain_s, p.w_y)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=_step,
        project=_project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("r", "z", "n"),
    )


def _normalised(product, gain):
    """Return gain norm(product), [*batch, 3, H]: one norm for the gates, one for the candidate."""
    gates = scaled_norm(product[..., :2, :], gain[:2])
    candidate = scaled_norm(product[..., 2:, :], gain[2:])
    return jnp.concatenate([gates, candidate], axis=-2)


def _project(weights, x):
    return parts.add_bias(_normalised(parts.product(x, weights.w_x), weights.gain_x), weights.b)


def _step(weights, state, drive):
    u = _normalised(parts.product(state, weights.w_s), weights.gain_s)
    gates = jax.nn.sigmoid(drive[..., :2, :] + u[..., :2, :])
    r, z = gates[..., 0, :], gates[..., 1, :]
    n = jnp.tanh(drive[..., 2, :] + r * parts.add_bias(u[..., 2, :], weights.b_n))
    return n + z * (state - n)
