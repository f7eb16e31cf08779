"""One time step of a cell, for streaming, acting and decoding."""

import jax

from jax_bptt.algorithms import argument_checks
from jax_bptt.algorithms.tree_checks import as_arrays
from jax_bptt.algorithms.unroll import unroll
from jax_bptt.core.types import Cell, PyTree


def step(cell: Cell, params: PyTree, state: PyTree | None, x: PyTree) -> tuple[PyTree, PyTree]:
    """Take one time step of a cell.

        s_t = step(s_{t-1}, x_t)        y_t = readout(s_t)

    Steps taken one by one are `unroll` over the same inputs, values and gradients.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      state: s_{t-1}, or None for `cell.initial_state(params, batch_shape)`.
      x: one input, [*batch, I].

    Returns:
      (state, y): s_t, and y_t [*batch, ...].

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit. The message is that of `unroll` over xs = x[None].

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=5)
      >>> params, state = cell.init(jax.random.key(0)), None
      >>> for x in jnp.ones((7, 2, 3)):
      ...     state, y = jb.step(cell, params, state, x)
      >>> y.shape
      (2, 5)
    """
    argument_checks.a_cell("step", cell)
    xs = jax.tree.map(lambda a: a[None], as_arrays("step", "x", x))
    state, ys = unroll(cell, params, xs, state)
    return state, jax.tree.map(lambda y: y[0], ys)
