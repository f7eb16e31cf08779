"""Long short-term memory with a recurrent projection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.cells.checks import positive_size
from jax_bptt.cells.lstm import F_GATE, LSTMState, lstm, zero_state
from jax_bptt.core.checks import prng_key
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


class ProjectedLSTMParams(NamedTuple):
    """Parameters of an LSTM with a projection to P units.

    Attributes:
      w_x: input to gates i, f, g, o, [I, 4, H].
      w_s: projected state to gates i, f, g, o, [P, 4, H].
      b: bias, [4, H].
      w_p: projection, [H, P].
      w_y: projected state to output, [P, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    w_p: Array
    w_y: Array | None = None


@as_value
def lstm_projected(
    input_size: int,
    hidden_size: int,
    *,
    projection_size: int,
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the long short-term memory with a recurrent projection; gate order i, f, g, o.

        i, f, o = sigmoid(x_t W_x + h_{t-1} W_s + b)        input, forget and output gate
        g       = tanh(x_t W_x + h_{t-1} W_s + b)           candidate
        c_t     = f c_{t-1} + i g
        h_t     = (o tanh(c_t)) W_p
        y_t     = h_t W_y, or h_t without a readout

    The projection makes the recurrent product smaller for the same number of cells, and keeps the
    gates' view of the past narrow. As in `torch.nn.LSTM(proj_size=P)`; the paper's peepholes and
    its second, non-recurrent projection are left out. The two products of a step follow one
    another, so this is a plain step.

    State: `LSTMState(h, c)`, h [*batch, P] and c [*batch, H]. Parameters: `ProjectedLSTMParams`,
    `w_x` [I, 4, H], `w_s` [P, 4, H], `b` [4, H], `w_p` [H, P], `w_y` [P, O]. Initialisation: per
    gate Glorot-uniform w_x and w_s with orthonormal rows (columns, if P > H), zero b except at the
    forget gate, Glorot-uniform w_p and w_y.

    Args:
      input_size: I.
      hidden_size: H, the number of cells.
      projection_size: P, the size of what recurs and of the output.
      output_size: O; None for no readout.
      forget_bias: initial bias of the forget gate, part of the parameters from then on.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, or the forget bias no real number.

    References:
      H. Sak, A. Senior and F. Beaufays (2014), "Long short-term memory recurrent neural network
      architectures for large scale acoustic modeling", Interspeech.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm_projected(input_size=3, hidden_size=5, projection_size=2)
      >>> last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 4, 3)))
      >>> last_state.h.shape, last_state.c.shape, ys.shape
      ((4, 2), (4, 5), (7, 4, 2))
    """
    parts.check_sizes("lstm_projected", input_size, hidden_size, output_size, dtype)
    positive_size("lstm_projected", projection_size=projection_size)
    parts.check_forget_bias("lstm_projected", forget_bias)
    gated = lstm(input_size=input_size, hidden_size=hidden_size).step
    assert isinstance(gated, GatedStep)
    pointwise = gated.pointwise

    def init(key):
        prng_key("cell.init", key)
        key_x, key_s, key_p, key_y = jax.random.split(key, 4)
        glorot = jax.nn.initializers.glorot_uniform()
        orthogonal = jax.nn.initializers.orthogonal()
        b = jnp.zeros((4, hidden_size), parts.parameter_dtype(dtype))
        return ProjectedLSTMParams(
            w_x=parts.draw_gates(glorot, key_x, 4, (input_size, hidden_size), dtype),
            w_s=parts.draw_gates(orthogonal, key_s, 4, (projection_size, hidden_size), dtype),
            b=b.at[F_GATE].set(float(forget_bias)),
            w_p=parts.draw(glorot, key_p, (hidden_size, projection_size), dtype),
            w_y=None
            if output_size is None
            else parts.draw(glorot, key_y, (projection_size, output_size), dtype),
        )

    def step(weights, state, drive):
        # An LSTM's arithmetic within units reads c, drive and feedback, but not h.
        new = pointwise(weights, state, drive, parts.product(state.h, weights.w_s))
        return LSTMState(parts.product(new.h, weights.w_p), new.c)

    return Cell(
        init=init,
        initial_state=zero_state((projection_size,), (hidden_size,)),
        step=step,
        project=parts.project,
        readout=lambda weights, state: parts.output(weights, state.h),
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("i", "f", "g", "o"),
    )
