"""The simple recurrent network: with a readout, the lecture's model."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value


@as_value
def elman(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    activation: Callable[[Array], Array] = jnp.tanh,
    dtype: Any = None,
) -> Cell:
    """Return the simple recurrent network of Elman.

        s_t = phi(x_t W_x + s_{t-1} W_s + b)        y_t = s_t W_y, or s_t without a readout

    State: s [*batch, H]. Parameters: `w_x` [I, 1, H], `w_s` [H, 1, H], `b` [1, H], `w_y` [H, O].
    Initialisation: Glorot-uniform w_x and w_y, orthogonal w_s, zero b.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      activation: phi, any differentiable function that acts element by element.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the activation is no function, or the dtype no floating one.

    References:
      J. L. Elman (1990), "Finding structure in time", Cognitive Science 14(2).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=5, output_size=2, activation=jax.nn.relu)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 3)))[1].shape
      (7, 2)
    """
    parts.check_sizes("elman", input_size, hidden_size, output_size, dtype)
    parts.check_function("elman", "activation", activation, "jnp.tanh")

    def init(key):
        return parts.init_params(key, input_size, 1, hidden_size, output_size, dtype)

    def mix(weights, state):
        return parts.product(state, weights.w_s)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=parts.activated_step(mix, activation),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("a",),
    )
