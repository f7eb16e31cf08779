"""Update-gate recurrent network: one gate between the old state and the new."""

from typing import Any

import jax.numpy as jnp

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


@as_value
def ugrnn(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the update-gate recurrent network; gate order g, n.

        g    = sigmoid(x_t W_x + s_{t-1} W_s + b)                   update gate
        n    = tanh(x_t W_x + s_{t-1} W_s + b)                      candidate
        s_t  = g s_{t-1} + (1 - g) n
        y_t  = s_t W_y, or s_t without a readout

    A simple recurrent network and a gate that says how much of the state stays.

    State: s [*batch, H]. Parameters: `w_x` [I, 2, H], `w_s` [H, 2, H], `b` [2, H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero b except at the update
    gate; Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      forget_bias: initial bias of the update gate, part of the parameters from then on; the
        larger, the longer a state stays.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, or the forget bias no real number.

    References:
      J. Collins, J. Sohl-Dickstein and D. Sussillo (2017), "Capacity and trainability in recurrent
      neural networks", ICLR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.ugrnn(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("ugrnn", input_size, hidden_size, output_size, dtype)
    parts.check_forget_bias("ugrnn", forget_bias)

    def init(key):
        params = parts.init_params(key, input_size, 2, hidden_size, output_size, dtype)
        return params._replace(b=params.b.at[0].set(float(forget_bias)))

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=GatedStep(_mix, _pointwise, _pointwise_fwd, _pointwise_bwd),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("g", "n"),
    )


def _mix(weights, state):
    return parts.product(state, weights.w_s)


def _gates(drive, feedback):
    return parts.activations(drive + feedback, candidate=1)


def _pointwise(weights, state, drive, feedback):
    g, n = _gates(drive, feedback)
    return n + g * (state - n)


# With a = drive + feedback and ds = dL/ds_t,
#
#     da_g = ds (s_{t-1} - n) g(1-g)        da_n = ds (1-g)(1-n^2)        ds_{t-1} = ds g


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    g, n = _gates(drive, feedback)
    return jnp.stack([(state - n) * g * (1 - g), (1 - g) * (1 - n * n)], axis=-2), g


def _pointwise_bwd(residuals, d_state):
    to_gates, g = residuals
    d_gates = d_state[..., None, :] * to_gates
    return d_state * g, d_gates, d_gates
