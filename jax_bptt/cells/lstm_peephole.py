"""Long short-term memory whose gates look at the cell state."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.cells.lstm import F_GATE, G_GATE, LSTMState, pointwise_bwd, zero_state
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


class LSTMPeepholeParams(NamedTuple):
    """Parameters of an LSTM with peepholes.

    Attributes:
      w_x: input to gates i, f, g, o, [I, 4, H].
      w_s: hidden state to gates i, f, g, o, [H, 4, H].
      w_c: peepholes, each unit's cell state to its own gates i, f, o, [3, H].
      b: bias, [4, H].
      w_y: hidden state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    w_c: Array
    b: Array
    w_y: Array | None = None


@as_value
def lstm_peephole(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the long short-term memory with peepholes; gate order i, f, g, o.

        i, f = sigmoid(x_t W_x + h_{t-1} W_s + w_c c_{t-1} + b)     input and forget gate
        g    = tanh(x_t W_x + h_{t-1} W_s + b)                      candidate
        c_t  = f c_{t-1} + i g
        o    = sigmoid(x_t W_x + h_{t-1} W_s + w_c c_t + b)         output gate
        h_t  = o tanh(c_t)
        y_t  = h_t W_y, or h_t without a readout

    The peepholes w_c are diagonal: each unit's gates see its own cell state, the output gate the
    new one.

    State: `LSTMState(h, c)`, [*batch, H] each. Parameters: `LSTMPeepholeParams` of `w_x` [I, 4, H],
    `w_s` [H, 4, H], `w_c` [3, H] in the order i, f, o, `b` [4, H], `w_y` [H, O]. Initialisation:
    per gate Glorot-uniform w_x and orthogonal w_s, zero w_c, zero b except at the forget gate;
    Glorot-uniform w_y. It starts as `lstm` does.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      forget_bias: initial bias of the forget gate, part of the parameters from then on.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, or the forget bias no real number.

    References:
      F. A. Gers and J. Schmidhuber (2000), "Recurrent nets that time and count", IJCNN.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm_peephole(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("lstm_peephole", input_size, hidden_size, output_size, dtype)
    parts.check_forget_bias("lstm_peephole", forget_bias)

    def init(key):
        p = parts.init_params(key, input_size, 4, hidden_size, output_size, dtype)
        b = p.b.at[F_GATE].set(float(forget_bias))
        return LSTMPeepholeParams(p.w_x, p.w_s, jnp.zeros_like(b[:3]), b, p.w_y)

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


def _mix(weights, state):
    return parts.product(state.h, weights.w_s)


def _input_gates(weights, c, a):
    """Return i, f and g of the step that follows the cell state c."""
    peepholes = jnp.concatenate([weights.w_c[:2], jnp.zeros_like(weights.w_c[:1])])
    a = a[..., :3, :]
    a = a + c[..., None, :] * parts.spread(peepholes, a)
    return parts.activations(a, candidate=G_GATE)


def _output_gate(weights, c, a):
    return parts.sigmoid(a[..., 3, :] + c * parts.spread(weights.w_c[2], c))


def _pointwise(weights, state, drive, feedback):
    a = drive + feedback
    i, f, g = _input_gates(weights, state.c, a)
    c = f * state.c + i * g
    return LSTMState(_output_gate(weights, c, a) * jnp.tanh(c), c)


# With a = drive + feedback, w_c = (p_i, p_f, p_o), and d for the derivative of the loss with
# respect to what follows,
#
#     da_o     = dh tanh(c) o(1-o)
#     dc_total = dc + dh o (1 - tanh(c)^2) + da_o p_o
#     da_i, da_f, da_g = dc_total g i(1-i), dc_total c_{t-1} f(1-f), dc_total i(1-g^2)
#     dc_{t-1} = dc_total f + da_i p_i + da_f p_f
#
# These are the factors of dh and dc_total of an LSTM without peepholes, with more terms in two of
# them; the reverse step is the same.


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    a = drive + feedback
    i, f, g = _input_gates(weights, state.c, a)
    o = _output_gate(weights, new_state.c, a)
    tanh_c = jnp.tanh(new_state.c)
    p_i, p_f, p_o = (parts.spread(weights.w_c[k], f) for k in range(3))
    to_i, to_f, to_o = g * i * (1 - i), state.c * f * (1 - f), tanh_c * o * (1 - o)
    to_gates = jnp.stack([to_i, to_f, i * (1 - g * g), to_o], axis=-2)
    return to_gates, f + to_i * p_i + to_f * p_f, o * (1 - tanh_c * tanh_c) + to_o * p_o
