"""Gated recurrent unit with the reset gate after the recurrent product."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


class GRUParams(NamedTuple):
    """Parameters of a GRU with the reset after the product.

    Attributes:
      w_x: input to gates r, z, n, [I, 3, H].
      w_s: state to gates r, z, n, [H, 3, H].
      b: bias, [3, H].
      b_n: bias of the candidate's recurrent part, inside the reset, [H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    b_n: Array
    w_y: Array | None = None


@as_value
def gru(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the gated recurrent unit, reset after the product; gate order r, z, n.

        r, z = sigmoid(x_t W_x + s_{t-1} W_s + b)                   reset and update gate
        n    = tanh(x_t W_x + b + r (s_{t-1} W_s + b_n))            candidate
        s_t  = (1 - z) n + z s_{t-1}
        y_t  = s_t W_y, or s_t without a readout

    The variant of cuDNN and PyTorch, whose product depends on the state alone. For the original
    placement of the reset see `gru_reset_before`.

    State: s [*batch, H]. Parameters: `w_x` [I, 3, H], `w_s` [H, 3, H], `b` [3, H], `b_n` [H],
    `w_y` [H, O]. Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero biases,
    Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one.

    References:
      K. Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder for
      statistical machine translation", EMNLP; J. Chung et al. (2014), "Empirical evaluation of
      gated recurrent neural networks on sequence modeling".

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("gru", input_size, hidden_size, output_size, dtype)

    def init(key):
        p = parts.init_params(key, input_size, 3, hidden_size, output_size, dtype)
        return GRUParams(p.w_x, p.w_s, p.b, jnp.zeros_like(p.b[0]), p.w_y)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=GatedStep(_mix, _pointwise, _pointwise_fwd, _pointwise_bwd),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("r", "z", "n"),
    )


def _mix(weights, state):
    zeros = jnp.zeros_like(weights.b_n)
    bias = jnp.stack([zeros, zeros, weights.b_n])
    return parts.add_bias(parts.product(state, weights.w_s), bias)


def _gates(drive, feedback):
    gates = parts.sigmoid(drive[..., :2, :] + feedback[..., :2, :])
    r, z = gates[..., :1, :], gates[..., 1, :]
    # The candidate's equation on all three gates, of which one is kept: with the slice inside, XLA
    # of jax 0.10 does not vectorise a step, and with jax 0.12 it makes no difference.
    n = jnp.tanh(drive + r * feedback)[..., 2, :]
    return r[..., 0, :], z, n


def _pointwise(weights, state, drive, feedback):
    _, z, n = _gates(drive, feedback)
    return n + z * (state - n)


# With a the arguments of the three gates, u the feedback and ds = dL/ds_t, every derivative is a
# factor times ds, and the factors depend on the states alone:
#
#     da_n = ds (1-z)(1-n^2)        da_r = da_n u_n r(1-r)        da_z = ds (s_{t-1} - n) z(1-z)
#     d drive = [da_r, da_z, da_n]          d feedback = [da_r, da_z, da_n r]
#     ds_{t-1} = ds z                       (without the path through the product)


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    r, z, n = _gates(drive, feedback)
    to_n = (1 - z) * (1 - n * n)
    to_r = to_n * feedback[..., 2, :] * r * (1 - r)
    to_z = (state - n) * z * (1 - z)
    return jnp.stack([to_r, to_z, to_n], axis=-2), r, z


def _pointwise_bwd(residuals, d_state):
    to_drive, r, z = residuals
    d_drive = d_state[..., None, :] * to_drive
    d_candidate = d_drive[..., 2:, :] * r[..., None, :]
    return d_state * z, d_drive, jnp.concatenate([d_drive[..., :2, :], d_candidate], axis=-2)
