"""Parts that several cells share: parameters, products, activations, initialisers, the readout."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_bptt.cells.checks import floating_dtype, positive_size
from jax_bptt.core.checks import prng_key, require, shown
from jax_bptt.core.trees import accumulator_dtype
from jax_bptt.core.types import GatedStep


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
    """Contract the last axis of x [*batch, N] with the first of w [N, ...]: [*batch, ...].

    The operands are in the dtype of the weights, the sums in at least single precision.
    """
    # On arrays as they lie: XLA can split a batch over devices while it is an axis of its own, and
    # time and batch made into rows are no faster.
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    dtype = accumulator_dtype(w.dtype)
    return lax.dot_general(x.astype(w.dtype), w, contract, preferred_element_type=dtype)


def affine(x: Array, w: Array, b: Array) -> Array:
    """Return x w + b: x [*batch, I], w [I, G, H], b [G, H] -> [*batch, G, H]."""
    return add_bias(product(x, w), b)


def add_bias(z: Array, b: Array) -> Array:
    """Return z + b, for z [*batch, G, H] and b [G, H]."""
    return z + spread(b, z)


def spread(w: Array, like: Array) -> Array:
    """Return a weight [..., H] as [1, ..., 1, ..., H], to meet `like` [*batch, ..., H] by unit.

    The dtype is that of `like`. The axes of one are left to the operation in which the two meet:
    on a mesh of explicit axes, a copy of the weight for every sequence has no part in the split of
    the batch over devices, and its gradient would be gathered from all of them to be added up.
    """
    return lax.expand_dims(w.astype(like.dtype), range(like.ndim - w.ndim))


def spread_over(w: Array, like: Array) -> Array:
    """Return a weight [..., H] for every sequence: in the shape, dtype and sharding of `like`."""
    return spread(w, like) * jnp.ones_like(like)


def activations(a: Array, *, candidate: int) -> list[Array]:
    """Return tanh of the gate numbered `candidate` and sigmoid of the others, of a [*batch, G, H].

    One tanh over all of them, sigmoid(a) = (1 + tanh(a / 2)) / 2. The barrier keeps XLA from
    computing it again in each of the fusions that read a gate, which for an LSTM cost twice the
    product on a CPU; what follows it is cheap enough to be computed there.
    """
    gates = a.shape[-2]
    is_candidate = np.expand_dims(np.arange(gates) == candidate, (*range(a.ndim - 2), a.ndim - 1))
    scale = jnp.asarray(np.where(is_candidate, 1.0, 0.5), a.dtype)
    bounded = lax.optimization_barrier(jnp.tanh(a * scale))
    each = [bounded[..., k, :] for k in range(gates)]
    return [t if k == candidate else 0.5 * t + 0.5 for k, t in enumerate(each)]


def sigmoid(a: Array) -> Array:
    """Return 1 / (1 + exp(-a)) through tanh, the cheaper of the two on a CPU."""
    return 0.5 * jnp.tanh(0.5 * a) + 0.5


def activated_step(mix: Callable[..., Array], activation: Callable[[Array], Array]) -> GatedStep:
    """Return the step s_t = phi(drive + mix(weights, s_{t-1})) of a single gate, [*batch, 1, H].

    The derivative of tanh and of relu follows from the new state, so that the reverse pass does
    neither the input nor the recurrent product a second time: for a simple recurrent network a
    quarter of all its arithmetic. That of any other activation is left to JAX.
    """

    def pointwise(weights, state, drive, feedback):
        return activation((drive + feedback)[..., 0, :])

    if activation is jnp.tanh:
        return GatedStep(mix, pointwise, _tanh_slope, _times_slope)
    if activation is jax.nn.relu:
        return GatedStep(mix, pointwise, _is_on, _where_on)
    return GatedStep(mix, pointwise)


def _tanh_slope(weights, state, drive, feedback, new_state):
    return 1 - new_state * new_state


def _is_on(weights, state, drive, feedback, new_state):
    return new_state > 0


def _where_on(on, d_state):
    # Chosen, not multiplied: zero times an infinite cotangent is NaN.
    d_a = jnp.where(on, d_state, jnp.zeros_like(d_state))[..., None, :]
    return jnp.zeros_like(d_state), d_a, d_a


def _times_slope(slope, d_state):
    d_a = (d_state * slope)[..., None, :]
    return jnp.zeros_like(d_state), d_a, d_a


def project(weights: Any, x: Array) -> Array:
    """Return the drive x W_x + b of all gates, [*batch, G, H]."""
    return affine(x, weights.w_x, weights.b)


def output(weights: Any, hidden: Array) -> Array:
    """Return the output of a hidden state [*batch, H]: hidden W_y, or itself without a W_y."""
    return hidden if weights.w_y is None else product(hidden, weights.w_y)


def zeros(params: Any, batch_shape: tuple[int, ...], *shape: int) -> Array:
    """Return zeros [*batch, *shape] for a state, in at least single precision."""
    return jnp.zeros((*batch_shape, *shape), accumulator_dtype(params.b.dtype))


def zero_hidden(hidden_size: int) -> Callable[..., Array]:
    """Return the `initial_state` of a cell whose state is a single array, [*batch, H]."""
    return lambda params, batch_shape: zeros(params, batch_shape, hidden_size)


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


def check_forget_bias(constructor: str, forget_bias: Any) -> None:
    """Raise unless the initial bias is a real number."""
    require(
        isinstance(forget_bias, numbers.Real)
        and not isinstance(forget_bias, bool)
        and math.isfinite(forget_bias),
        f"{constructor}: forget_bias must be a real number such as 1.0, got {shown(forget_bias)}",
        TypeError,
    )


def check_function(constructor: str, name: str, function: Any, example: str) -> None:
    """Raise unless the argument called `name` is a function of JAX arrays, such as `example`."""
    require(
        callable(function),
        f"{constructor}: {name} must be a function such as {example}, got {shown(function)}",
        TypeError,
    )
    named = getattr(function, "__name__", "")
    package = "numpy" if isinstance(function, np.ufunc) else getattr(function, "__module__", None)
    require(
        package not in ("numpy", "math"),
        f"{constructor}: {name} must be a function of JAX arrays, got {package}.{named}, which "
        f"fails on what is traced. Take {f'jnp.{named}' if hasattr(jnp, named) else example}.",
        TypeError,
    )


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
    prng_key("cell.init", key)
    key_x, key_s, key_y = jax.random.split(key, 3)
    glorot = jax.nn.initializers.glorot_uniform()
    orthogonal = jax.nn.initializers.orthogonal()
    return Params(
        w_x=draw_gates(glorot, key_x, gates, (input_size, hidden_size), dtype),
        w_s=draw_gates(orthogonal, key_s, gates, (hidden_size, hidden_size), dtype),
        b=jnp.zeros((gates, hidden_size), parameter_dtype(dtype)),
        w_y=None if output_size is None else draw(glorot, key_y, (hidden_size, output_size), dtype),
    )


def parameter_dtype(dtype: Any) -> Any:
    """Return the dtype of a cell's parameters; None stands for JAX's default float."""
    return jnp.zeros(0).dtype if dtype is None else jnp.dtype(dtype)


def draw(initializer: Callable, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draw a parameter in at least single precision (QR exists in no other), then cast it."""
    dtype = parameter_dtype(dtype)
    return initializer(key, shape, accumulator_dtype(dtype)).astype(dtype)


def draw_gates(
    initializer: Callable, key: Array, gates: int, shape: tuple[int, ...], dtype: Any
) -> Array:
    """Draw a matrix [..., H] of the given shape for each of G gates: [..., G, H]."""
    keys = jax.random.split(key, gates)
    return jnp.stack([draw(initializer, k, shape, dtype) for k in keys], axis=-2)
