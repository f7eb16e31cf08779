"""Convolutional long short-term memory, for sequences of images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.cells import parts
from jax_bptt.cells.lstm import F_GATE, lstm, zero_state
from jax_bptt.core.checks import is_integer, prng_key, require, shown
from jax_bptt.core.trees import accumulator_dtype
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


@as_value
def conv_lstm(
    input_size: int,
    hidden_size: int,
    *,
    image_shape: tuple[int, int],
    kernel_shape: tuple[int, int] = (3, 3),
    output_size: int | None = None,
    forget_bias: float = 1.0,
    dtype: Any = None,
) -> Cell:
    """Return the convolutional long short-term memory in two dimensions; gate order i, f, g, o.

        i, f, o = sigmoid(x_t * W_x + h_{t-1} * W_s + b)        input, forget and output gate
        g       = tanh(x_t * W_x + h_{t-1} * W_s + b)           candidate
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(c_t)
        y_t     = h_t W_y pixel by pixel, or h_t without a readout

    where * is a convolution in the sense of neural networks (the kernel is not flipped), padded
    with zeros to the size of the image; an even side of a kernel pads one more at the end. Without
    the paper's peepholes, which are a weight per pixel. Products are taken in at least single
    precision, of operands rounded to the dtype of the weights.

    State: `LSTMState(h, c)`, [*batch, height, width, H] each. Inputs: [*batch, height, width, I].
    Parameters, for a kernel of m x n: `Params`, `w_x` [m, n, I, 4, H], `w_s` [m, n, H, 4, H], `b`
    [4, H], `w_y` [H, O]. Initialisation: per gate Glorot-uniform w_x and w_s with orthonormal
    columns as a matrix [m n H, H], zero b except at the forget gate; Glorot-uniform w_y.

    Args:
      input_size: I, the number of input channels.
      hidden_size: H, the number of state channels.
      image_shape: height and width of an image.
      kernel_shape: height and width of a kernel.
      output_size: O, the number of output channels; None for no readout.
      forget_bias: initial bias of the forget gate, part of the parameters from then on.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`: the convolution is what mixes units, the rest is an LSTM's.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: a shape is no pair of positive integers, the dtype is no floating one, or the
        forget bias no real number.

    References:
      X. Shi, Z. Chen, H. Wang, D.-Y. Yeung, W. Wong and W. Woo (2015), "Convolutional LSTM network:
      a machine learning approach for precipitation nowcasting", NeurIPS.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.conv_lstm(input_size=1, hidden_size=3, image_shape=(6, 4))
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((5, 2, 6, 4, 1)))[1].shape
      (5, 2, 6, 4, 3)
    """
    parts.check_sizes("conv_lstm", input_size, hidden_size, output_size, dtype)
    image_shape = _pair("image_shape", image_shape)
    kernel_shape = _pair("kernel_shape", kernel_shape)
    parts.check_forget_bias("conv_lstm", forget_bias)
    gated = lstm(input_size=input_size, hidden_size=hidden_size).step
    assert isinstance(gated, GatedStep)

    def init(key):
        prng_key("cell.init", key)
        key_x, key_s, key_y = jax.random.split(key, 3)
        glorot = jax.nn.initializers.glorot_uniform()
        orthogonal = jax.nn.initializers.orthogonal()
        b = jnp.zeros((4, hidden_size), parts.parameter_dtype(dtype))
        to_gates = (*kernel_shape, input_size, hidden_size), (*kernel_shape, *2 * [hidden_size])
        return parts.Params(
            w_x=parts.draw_gates(glorot, key_x, 4, to_gates[0], dtype),
            w_s=parts.draw_gates(orthogonal, key_s, 4, to_gates[1], dtype),
            b=b.at[F_GATE].set(float(forget_bias)),
            w_y=None
            if output_size is None
            else parts.draw(glorot, key_y, (hidden_size, output_size), dtype),
        )

    maps = *image_shape, hidden_size
    return Cell(
        init=init,
        initial_state=zero_state(maps, maps),
        step=gated._replace(mix=lambda weights, state: _convolve(state.h, weights.w_s)),
        project=lambda weights, x: parts.add_bias(_convolve(x, weights.w_x), weights.b),
        readout=lambda weights, state: parts.output(weights, state.h),
        input_spec=jax.ShapeDtypeStruct((*image_shape, int(input_size)), jnp.float32),
        any_batch=True,
        gates=("i", "f", "g", "o"),
    )


def _convolve(images: Array, kernel: Array) -> Array:
    """Convolve images [*batch, height, width, N] with a kernel [m, n, N, G, H].

    Returns [*batch, height, width, G, H].
    """
    # The transpose of a convolution of half-precision operands with sums in single precision does
    # not exist in JAX (its operands would differ in dtype), so the rounded operands are widened.
    wide = accumulator_dtype(kernel.dtype)
    images = images.astype(kernel.dtype).astype(wide)
    filters = kernel.astype(wide).reshape(*kernel.shape[:3], math.prod(kernel.shape[3:]))
    batched = images if images.ndim > 3 else images[None]
    # A convolution has one batch axis, into which all others fold. Where the last of them is the
    # major one, and time is not, what is split over devices stays split.
    last_first = jnp.moveaxis(batched, -4, 0)
    rows = last_first.reshape(math.prod(last_first.shape[:-3]), *images.shape[-3:])
    z = lax.conv_general_dilated(
        rows, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    z = jnp.moveaxis(z.reshape(*last_first.shape[:-1], filters.shape[-1]), 0, -4)
    return z.reshape(*images.shape[:-1], *kernel.shape[3:])


def _pair(name: str, shape: Any) -> tuple[int, int]:
    require(
        isinstance(shape, tuple | list)
        and len(shape) == 2
        and all(is_integer(size) and size > 0 for size in shape),
        f"conv_lstm: {name} must be a pair of positive integers such as (3, 3), got {shown(shape)}",
        TypeError,
    )
    return int(shape[0]), int(shape[1])
