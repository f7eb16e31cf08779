"""Minimal gated unit: a gated recurrent unit with a single gate."""

from typing import Any

import jax.numpy as jnp

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


@as_value
def mgu(
    input_size: int, hidden_size: int, *, output_size: int | None = None, dtype: Any = None
) -> Cell:
    """Return the minimal gated unit, gated after the product; gate order f, n.

        f    = sigmoid(x_t W_x + s_{t-1} W_s + b)                   forget gate
        n    = tanh(x_t W_x + b + f (s_{t-1} W_s))                  candidate
        s_t  = (1 - f) s_{t-1} + f n
        y_t  = s_t W_y, or s_t without a readout

    One gate resets and updates. The paper gates the state before the candidate's product,
    (f s_{t-1}) W_s; here the gate comes after it, as the reset does in `gru`, so that the product
    depends on the state alone. Where f is the same for all units the two are one.

    State: s [*batch, H]. Parameters: `w_x` [I, 2, H], `w_s` [H, 2, H], `b` [2, H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero b, Glorot-uniform w_y.

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
      G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou (2016), "Minimal gated unit for recurrent
      neural networks", International Journal of Automation and Computing 13(3).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.mgu(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("mgu", input_size, hidden_size, output_size, dtype)

    def init(key):
        return parts.init_params(key, input_size, 2, hidden_size, output_size, dtype)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=GatedStep(_mix, _pointwise, _pointwise_fwd, _pointwise_bwd),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("f", "n"),
    )


def _mix(weights, state):
    return parts.product(state, weights.w_s)


def _gates(drive, feedback):
    f = parts.sigmoid(drive[..., 0, :] + feedback[..., 0, :])
    return f, jnp.tanh(drive[..., 1, :] + f * feedback[..., 1, :])


def _pointwise(weights, state, drive, feedback):
    f, n = _gates(drive, feedback)
    return state + f * (n - state)


# With a the arguments of the two gates, u the feedback and ds = dL/ds_t,
#
#     da_n = ds f (1-n^2)           da_f = (ds (n - s_{t-1}) + da_n u_n) f(1-f)
#     d drive = [da_f, da_n]        d feedback = [da_f, da_n f]        ds_{t-1} = ds (1 - f)


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    f, n = _gates(drive, feedback)
    to_n = f * (1 - n * n)
    to_f = (n - state + to_n * feedback[..., 1, :]) * f * (1 - f)
    return jnp.stack([to_f, to_n], axis=-2), jnp.stack([to_f, to_n * f], axis=-2), 1 - f


def _pointwise_bwd(residuals, d_state):
    to_drive, to_feedback, to_prev = residuals
    d_gates = d_state[..., None, :]
    return d_state * to_prev, d_gates * to_drive, d_gates * to_feedback
