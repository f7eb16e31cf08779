"""Long short-term memory with exponential gating: the scalar memory of xLSTM."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value

F_GATE = 1  # of i, f, z, o
LOG_ZERO = -1e30  # its exponential is zero, and differences of it with any gate are finite


class SLSTMParams(NamedTuple):
    """Parameters of an sLSTM, of a type of their own: those of an LSTM mean something else.

    Attributes:
      w_x: input to state, [I, 4, H].
      w_s: state to next state, [H, 4, H].
      b: bias, [4, H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    w_y: Array | None = None


class SLSTMState(NamedTuple):
    """State of an sLSTM, [*batch, H] each.

    Attributes:
      h: hidden state.
      c: cell state, of which c e^m is what the equations without a stabiliser have.
      n: normaliser, likewise n e^m.
      m: stabiliser, the largest log weight that any step's input has in c and n.
    """

    h: Array
    c: Array
    n: Array
    m: Array


@as_value
def slstm(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    log_forget_gate: Callable[[Array], Array] = jax.nn.log_sigmoid,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the sLSTM, an LSTM with exponential gates; gate order i, f, z, o.

        a_i, a_f, a_z, a_o = x_t W_x + h_{t-1} W_s + b
        m_t = max(log_f(a_f) + m_{t-1}, a_i)                        stabiliser
        i   = exp(a_i - m_t)                                        input gate
        f   = exp(log_f(a_f) + m_{t-1} - m_t)                       forget gate
        z   = tanh(a_z),  o = sigmoid(a_o)                          candidate and output gate
        c_t = f c_{t-1} + i z
        n_t = f n_{t-1} + i                                         normaliser
        h_t = o c_t / n_t
        y_t = h_t W_y, or h_t without a readout

    So h_t is o times a mean of all candidates, weighted by exponential input gates and all the
    forget gates since. The stabiliser cancels in h_t and is only there for the range of floating
    point: one of i and f is one in every step. It is differentiated like everything else, so that
    the gradient is that of the function computed, a loss on c, n or m themselves included.

    State: `SLSTMState(h, c, n, m)`, [*batch, H] each. It starts at h = c = n = 0 and a very
    negative m, so that the first step forgets it whatever its gates, and n_t >= 1 from then on. A
    state of your own with n = 0 needs such an m as well.

    Parameters: `SLSTMParams`, `w_x` [I, 4, H], `w_s` [H, 4, H], `b` [4, H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, zero b except at the forget
    gate; Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      log_forget_gate: log_f, the logarithm of the forget gate as a function of a_f that acts
        element by element: `jax.nn.log_sigmoid` for a sigmoid gate, `lambda a: a` for an
        exponential one, the paper's two.
      forget_bias: initial bias of the forget gate, part of the parameters from then on.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, the forget bias no real number, or the log of the
        forget gate no function.

    References:
      M. Beck et al. (2024), "xLSTM: extended long short-term memory", NeurIPS; there with
      several heads, here with one.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.slstm(input_size=3, hidden_size=5)
      >>> last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
      >>> last_state.n.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """
    parts.check_sizes("slstm", input_size, hidden_size, output_size, dtype)
    parts.check_function("slstm", "log_forget_gate", log_forget_gate, "jax.nn.log_sigmoid")
    parts.check_forget_bias("slstm", forget_bias)

    def init(key):
        params = parts.init_params(key, input_size, 4, hidden_size, output_size, dtype)
        return SLSTMParams(*params._replace(b=params.b.at[F_GATE].set(float(forget_bias))))

    def initial_state(params, batch_shape):
        h, c, n, m = (parts.zeros(params, batch_shape, hidden_size) for _ in range(4))
        return SLSTMState(h, c, n, m + LOG_ZERO)

    def pointwise(weights, state, drive, feedback):
        a = drive + feedback
        log_i, log_f = a[..., 0, :], log_forget_gate(a[..., F_GATE, :]) + state.m
        m = jnp.maximum(log_f, log_i)
        i, f = jnp.exp(log_i - m), jnp.exp(log_f - m)
        z, o = parts.activations(a[..., 2:, :], candidate=0)
        c, n = f * state.c + i * z, f * state.n + i
        return SLSTMState(o * c / n, c, n, m)

    return Cell(
        init=init,
        initial_state=initial_state,
        step=GatedStep(_mix, pointwise),
        project=parts.project,
        readout=lambda weights, state: parts.output(weights, state.h),
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("i", "f", "z", "o"),
    )


def _mix(weights, state):
    return parts.product(state.h, weights.w_s)
