"""Every state of a run, beside the outputs."""

from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import Cell
from jax_bptt.core.values import as_value


@as_value
def with_states(cell: Cell) -> Cell:
    """Return `cell` with its state among its outputs.

        y_t' = (y_t, s_t)

    Both stacked over time, [T, *batch, ...], and differentiable. It takes parameters of `cell` as
    they are, and any algorithm and option of `unroll`. Beyond `lengths` both are zero.

    Args:
      cell: any cell.

    Returns:
      A `Cell` with the parameters, step and state of `cell`.

    Raises:
      TypeError: `cell` is no cell.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=5)
      >>> params = cell.init(jax.random.key(0))
      >>> _, (ys, states) = jb.unroll(jb.with_states(cell), params, jnp.ones((7, 2, 3)))
      >>> ys.shape, states.h.shape, states.c.shape
      ((7, 2, 5), (7, 2, 5), (7, 2, 5))
    """
    require(
        isinstance(cell, Cell), f"with_states: cell must be a Cell, got {kind_of(cell)}", TypeError
    )
    return cell._replace(readout=lambda weights, s: (cell.readout(weights, s), s))
