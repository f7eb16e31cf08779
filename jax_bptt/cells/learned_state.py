"""A start that is learned with the weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.core import trees
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.core.values import as_value


class LearnedStateParams(NamedTuple):
    """Parameters of a cell with a learned start.

    Attributes:
      cell: those of the inner cell.
      start: s_0 without a batch, None at leaves that are neither floating nor complex.
    """

    cell: PyTree
    start: PyTree


@as_value
def learned_state(cell: Cell) -> Cell:
    """Return `cell` with its initial state among the parameters.

        s_0 = start, the same for every sequence of the batch

    The start counts only where no state is passed to `unroll`; its gradient is then the sum of
    dL/ds_0 over the batch. With `resets` a sequence returns to it. Integer leaves of the state
    start as the cell's own do.

    Params: `LearnedStateParams(cell, start)`. Initialisation: the cell's own for both.

    Args:
      cell: any cell.

    Returns:
      A `Cell` with the step of `cell`.

    Raises:
      TypeError: `cell` is no cell.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.learned_state(jb.lstm(input_size=3, hidden_size=5))
      >>> params = cell.init(jax.random.key(0))
      >>> params.start.h.shape, cell.initial_state(params, (2,)).h.shape
      ((5,), (2, 5))
    """
    require(
        isinstance(cell, Cell),
        f"learned_state: cell must be a Cell, got {kind_of(cell)}",
        TypeError,
    )

    def init(key):
        params = cell.init(key)
        return LearnedStateParams(params, trees.partition(cell.initial_state(params, ()))[0])

    def initial_state(params, batch_shape):
        _, rest = trees.partition(cell.initial_state(params.cell, batch_shape))
        # A copy even without a batch, so that parameters and state can both be donated.
        start = jax.tree.map(
            lambda s: jnp.broadcast_to(s, (*batch_shape, *s.shape)).copy(), params.start
        )
        return trees.combine(start, rest)

    return cell._replace(
        init=init,
        initial_state=initial_state,
        prepare=lambda params: cell.prepare(params.cell),
    )
