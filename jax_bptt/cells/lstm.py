"""Long short-term memory with a forget gate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value

_, F_GATE, G_GATE, _ = range(4)  # i, f, g, o


class LSTMState(NamedTuple):
    """State of an LSTM: the hidden state h and the cell state c, [*batch, H] each."""

    h: Array
    c: Array


@as_value
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the long short-term memory with forget gate; gate order i, f, g, o.

        i, f, o = sigmoid(x_t W_x + h_{t-1} W_s + b)        input, forget and output gate
        g       = tanh(x_t W_x + h_{t-1} W_s + b)           candidate
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(c_t)
        y_t     = h_t W_y, or h_t without a readout

    State: `LSTMState(h, c)`, [*batch, H] each. Parameters: `w_x` [I, 4, H], `w_s` [H, 4, H],
    `b` [4, H], `w_y` [H, O]. Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero
    b except at the forget gate; Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      forget_bias: initial bias of the forget gate, part of the parameters from then on. One, as
        Jozefowicz, Zaremba and Sutskever (2015) recommend, starts with a long memory.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, or the forget bias no real number.

    References:
      S. Hochreiter and J. Schmidhuber (1997), "Long short-term memory", Neural Computation 9(8).
      F. A. Gers, J. Schmidhuber and F. Cummins (2000), "Learning to forget: continual prediction
      with LSTM", Neural Computation 12(10).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=5)
      >>> last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
      >>> last_state.c.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """
    parts.check_sizes("lstm", input_size, hidden_size, output_size, dtype)
    parts.check_forget_bias("lstm", forget_bias)

    def init(key):
        params = parts.init_params(key, input_size, 4, hidden_size, output_size, dtype)
        return params._replace(b=params.b.at[F_GATE].set(float(forget_bias)))

    return Cell(
        init=init,
        initial_state=zero_state((hidden_size,), (hidden_size,)),
        step=GatedStep(_mix, _pointwise, _pointwise_fwd, pointwise_bwd),
        project=parts.project,
        readout=lambda weights, state: parts.output(weights, state.h),
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("i", "f", "g", "o"),
    )


def zero_state(h_shape: tuple[int, ...], c_shape: tuple[int, ...]) -> Callable[..., LSTMState]:
    """Return the `initial_state` of a cell with an `LSTMState` of these shapes, without a batch."""

    def initial_state(params, batch_shape):
        # Two arrays, each with a buffer of its own, so that the state can be donated.
        h, c = (parts.zeros(params, batch_shape, *shape) for shape in (h_shape, c_shape))
        return LSTMState(h, c)

    return initial_state


def _mix(weights, state):
    return parts.product(state.h, weights.w_s)


def _gates(drive, feedback):
    return parts.activations(drive + feedback, candidate=G_GATE)


def _pointwise(weights, state, drive, feedback):
    i, f, g, o = _gates(drive, feedback)
    c = f * state.c + i * g
    return LSTMState(o * jnp.tanh(c), c)


# With a = drive + feedback, and d for the derivative of the loss with respect to what follows,
#
#     dc_total = dc + dh o (1 - tanh(c)^2)
#     da       = [dc_total g i(1-i), dc_total c_{t-1} f(1-f), dc_total i(1-g^2), dh tanh(c) o(1-o)]
#     dc_{t-1} = dc_total f
#
# All factors of dh and dc_total depend on the states alone: six arrays of [*batch, H], computed
# for many steps at once, leave the reverse scan with multiplications only.


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    i, f, g, o = _gates(drive, feedback)
    tanh_c = jnp.tanh(new_state.c)
    to_gates = jnp.stack(
        [g * i * (1 - i), state.c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], axis=-2
    )
    return to_gates, f, o * (1 - tanh_c * tanh_c)


def pointwise_bwd(residuals, d_state):
    """Pull d_state back through residuals (to_gates, to_prev, to_c), the factors above."""
    to_gates, to_prev, to_c = residuals
    d_c = d_state.c + d_state.h * to_c
    d_gates = jnp.stack([d_c, d_c, d_c, d_state.h], axis=-2) * to_gates
    return LSTMState(jnp.zeros_like(d_c), d_c * to_prev), d_gates, d_gates
