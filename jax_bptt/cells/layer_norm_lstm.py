"""Long short-term memory with layer normalisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.cells import parts
from jax_bptt.cells.lstm import F_GATE, LSTMState, zero_state
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value

EPSILON = 1e-5
"""Added to every variance, so that the zero state in which a sequence starts has a norm."""


class LayerNormLSTMParams(NamedTuple):
    """Parameters of a layer-normalised LSTM.

    Attributes:
      w_x: input to gates i, f, g, o, [I, 4, H].
      w_s: state to gates i, f, g, o, [H, 4, H].
      b: bias, [4, H].
      gain_x: of the normalised input part, [4, H].
      gain_s: of the normalised recurrent part, [4, H].
      gain_c: of the normalised cell state, [H].
      b_c: bias of the normalised cell state, [H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    gain_x: Array
    gain_s: Array
    gain_c: Array
    b_c: Array
    w_y: Array | None = None


@as_value
def layer_norm_lstm(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the layer-normalised long short-term memory; gate order i, f, g, o.

        norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5)               over gates and units
        a       = gain_x norm(x_t W_x) + gain_s norm(h_{t-1} W_s) + b
        i, f, o = sigmoid(a)                                        input, forget and output gate
        g       = tanh(a)                                           candidate
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(gain_c norm(c_t) + b_c)
        y_t     = h_t W_y, or h_t without a readout

    As published, a norm is taken over all 4 H sums of a product together, and the cell state passes
    through time as it is. The two biases of the paper's norms and the bias of the sum are one, b.
    A norm crosses units, so this is a plain step; that of the input is part of `project` and runs
    batched over time. Statistics are in at least single precision.

    State: `LSTMState(h, c)`, [*batch, H] each. Parameters: `LayerNormLSTMParams`, `w_x` [I, 4, H],
    `w_s` [H, 4, H], `b`, `gain_x`, `gain_s` [4, H], `gain_c`, `b_c` [H], `w_y` [H, O].
    Initialisation: per gate Glorot-uniform w_x and orthogonal w_s, gains of one, zero biases except
    at the forget gate; Glorot-uniform w_y.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      forget_bias: initial bias of the forget gate, part of the parameters from then on.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the dtype is no floating one, or the forget bias no real number.

    References:
      J. L. Ba, J. R. Kiros and G. E. Hinton (2016), "Layer normalization", arXiv:1607.06450,
      supplementary equations for the LSTM.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.layer_norm_lstm(input_size=3, hidden_size=5)
      >>> last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
      >>> last_state.c.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """
    parts.check_sizes("layer_norm_lstm", input_size, hidden_size, output_size, dtype)
    parts.check_forget_bias("layer_norm_lstm", forget_bias)

    def init(key):
        p = parts.init_params(key, input_size, 4, hidden_size, output_size, dtype)
        b = p.b.at[F_GATE].set(float(forget_bias))
        gain_x, gain_s = jnp.ones_like(b), jnp.ones_like(b)
        gain_c, b_c = jnp.ones_like(b[0]), jnp.zeros_like(b[0])
        return LayerNormLSTMParams(p.w_x, p.w_s, b, gain_x, gain_s, gain_c, b_c, p.w_y)

    return Cell(
        init=init,
        initial_state=zero_state((hidden_size,), (hidden_size,)),
        step=_step,
        project=project_normalised,
        readout=lambda weights, state: parts.output(weights, state.h),
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("i", "f", "g", "o"),
    )


def normalise(a: Array, axes: tuple[int, ...]) -> Array:
    """Return `a` less its mean over `axes`, in units of its standard deviation."""
    centred = a - a.mean(axes, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(axes, keepdims=True) + EPSILON)


def scaled_norm(a: Array, gain: Array) -> Array:
    """Return gain norm(a), with the norm over the axes of the gain: all but the batch."""
    return normalise(a, tuple(range(-gain.ndim, 0))) * parts.spread(gain, a)


def project_normalised(weights: Any, x: Array) -> Array:
    """Return the drive gain_x norm(x W_x) + b of all gates, [*batch, G, H]."""
    return parts.add_bias(scaled_norm(parts.product(x, weights.w_x), weights.gain_x), weights.b)


def _step(weights, state, drive):
    a = drive + scaled_norm(parts.product(state.h, weights.w_s), weights.gain_s)
    i, f, g, o = (a[..., k, :] for k in range(4))
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    shown = parts.add_bias(scaled_norm(c, weights.gain_c), weights.b_c)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(shown), c)
