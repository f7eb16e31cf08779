"""Independently recurrent network: every unit remembers itself alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.checks import prng_key
from jax_bptt.core.types import Cell, DiagonalStep
from jax_bptt.core.values import as_value


class IndRNNParams(NamedTuple):
    """Parameters of an independently recurrent network.

    Attributes:
      w_x: input to state, [I, 1, H].
      w_s: each unit's state to its own next state, [H].
      b: bias, [1, H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    w_y: Array | None = None


@as_value
def indrnn(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    dtype: Any = None,
) -> Cell:
    """Return the independently recurrent network.

        s_t = phi(x_t W_x + w_s s_{t-1} + b)        y_t = s_t W_y, or s_t without a readout

    The recurrence is diagonal: w_s is a number for each unit, and ds_T/ds_0 = prod_t phi'_t w_s.
    Units meet in the next layer's W_x, so it is meant to be stacked.

    State: s [*batch, H]. Parameters: `IndRNNParams` of `w_x` [I, 1, H], `w_s` [H], `b` [1, H],
    `w_y` [H, O]. Initialisation: Glorot-uniform w_x and w_y, zero b, w_s uniform on [0, 1], within
    the bound gamma^(1/T) of the paper for any T, so that no gradient explodes.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      activation: phi, any differentiable function that acts element by element, such as `jnp.tanh`;
        None for none, which leaves a recurrence linear in the state.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`, or with a `DiagonalStep` where it is linear.

    Raises:
      ValueError: a size is not a positive integer.
      TypeError: the activation is no function, or the dtype no floating one.

    References:
      S. Li, W. Li, C. Cook, C. Zhu and Y. Gao (2018), "Independently recurrent neural network
      (IndRNN): building a longer and deeper RNN", CVPR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=3, hidden_size=5)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 5)
    """
    parts.check_sizes("indrnn", input_size, hidden_size, output_size, dtype)
    if activation is None:
        step = DiagonalStep(_coefficients)
    else:
        parts.check_function("indrnn", "activation", activation, "jax.nn.relu")
        # Units that see none but themselves: heads of one unit each.
        step = parts.activated_step(_mix, activation)._replace(heads=hidden_size)

    def init(key):
        prng_key("cell.init", key)
        key_x, key_s, key_y = jax.random.split(key, 3)
        glorot, uniform = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.uniform(1.0)
        w_x = parts.draw(glorot, key_x, (input_size, hidden_size), dtype)[:, None]
        w_s = parts.draw(uniform, key_s, (hidden_size,), dtype)
        w_y = None
        if output_size is not None:
            w_y = parts.draw(glorot, key_y, (hidden_size, output_size), dtype)
        return IndRNNParams(w_x, w_s, jnp.zeros_like(w_x[0]), w_y)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=step,
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        any_batch=True,
        gates=("a",),
    )


def _mix(weights, state):
    return (state * parts.spread(weights.w_s, state))[..., None, :]


def _coefficients(weights, drive):
    b = drive[..., 0, :]
    return parts.spread_over(weights.w_s, b), b
