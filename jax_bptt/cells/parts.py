"""What several cells share: parameters, products, initialisers, the readout."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.core.checks import floating_dtype, positive_size
from jax_bptt.core.trees import accumulator_dtype


class Params(NamedTuple):
    """Parameters of a cell with G gates, in the lecture's letters.

    Attributes:
      w_x: input to state, [I, G, H].
      w_s: state to next state, [H, G, H].
      b: bias, [G, H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    w_y: Array | None = None


def product(x: Array, w: Array) -> Array:
    """Contract the last axis of x [*batch, N] with the first of w [N, ...].

    The operands are in the dtype of the weights, the sums in at least single precision.
    """
    rows, matrix = x.astype(w.dtype).reshape(-1, x.shape[-1]), w.reshape(w.shape[0], -1)
    # Two-dimensional operands: the gradient of w then contracts a single axis, which XLA runs
    # without the transposed copies it makes for the general case (half the time on a CPU).
    contract = (((1,), (0,)), ((), ()))
    dtype = accumulator_dtype(w.dtype)
    z = lax.dot_general(rows, matrix, contract, preferred_element_type=dtype)
    return z.reshape(*x.shape[:-1], *w.shape[1:])


def affine(x: Array, w: Array, b: Array) -> Array:
    """Return x w + b: x [*batch, I], w [I, G, H], b [G, H] -> [*batch, G, H]."""
    return add_bias(product(x, w), b)


def add_bias(z: Array, b: Array) -> Array:
    """Return z + b, with b [G, H] broadcast over the batch of z [*batch, G, H]."""
    return z + jnp.broadcast_to(b.astype(z.dtype), z.shape)


def project(weights: Any, x: Array) -> Array:
    """Return the drive x W_x + b of all gates, [*batch, G, H]."""
    return affine(x, weights.w_x, weights.b)


def output(weights: Any, hidden: Array) -> Array:
    """Return the output of a hidden state [*batch, H]: hidden W_y, or itself without a W_y."""
    return hidden if weights.w_y is None else product(hidden, weights.w_y)


def zero_hidden(params: Any, batch_shape: tuple[int, ...]) -> Array:
    """Return a zero hidden state [*batch, H], in at least single precision."""
    w_s = params.w_s
    return jnp.zeros((*batch_shape, w_s.shape[0]), accumulator_dtype(w_s.dtype))


def features(size: int) -> jax.ShapeDtypeStruct:
    """Describe one floating-point input of `size` features, for `Cell.input_spec`."""
    return jax.ShapeDtypeStruct((int(size),), jnp.float32)


def check_sizes(
    constructor: str, input_size: int, hidden_size: int, output_size: int | None, dtype: Any
) -> None:
    """Raise unless the sizes are positive integers and the dtype a real floating one."""
    positive_size(constructor, input_size=input_size, hidden_size=hidden_size)
    if output_size is not None:
        positive_size(constructor, output_size=output_size)
    if dtype is not None:
        floating_dtype(constructor, dtype, "jnp.float32")


def init_params(
    key: Array,
    input_size: int,
    gates: int,
    hidden_size: int,
    output_size: int | None,
    dtype: Any,
) -> Params:
    """Draw parameters: per gate a Glorot-uniform W_x and an orthogonal W_s; b = 0; Glorot W_y.

    Glorot and Bengio (2010); Saxe, McClelland and Ganguli (2014) for the orthogonal matrix, whose
    singular values of one keep the gradient's norm through the linear part of the recurrence.

    Args:
      key: a PRNG key.
      input_size: I.
      gates: G.
      hidden_size: H.
      output_size: O, or None for no readout.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      `Params` of shapes [I, G, H], [H, G, H], [G, H] and, with a readout, [H, O].
    """
    dtype = jnp.zeros(0).dtype if dtype is None else jnp.dtype(dtype)
    draw = accumulator_dtype(dtype)  # QR exists in single and double precision alone
    key_x, key_s, key_y = jax.random.split(key, 3)
    glorot = jax.nn.initializers.glorot_uniform()
    orthogonal = jax.nn.initializers.orthogonal()

    def per_gate(initializer, key, rows):
        draws = [initializer(k, (rows, hidden_size), draw) for k in jax.random.split(key, gates)]
        return jnp.stack(draws, axis=1).astype(dtype)

    return Params(
        w_x=per_gate(glorot, key_x, input_size),
        w_s=per_gate(orthogonal, key_s, hidden_size),
        b=jnp.zeros((gates, hidden_size), dtype),
        w_y=None
        if output_size is None
        else glorot(key_y, (hidden_size, output_size), draw).astype(dtype),
    )
