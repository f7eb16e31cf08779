"""Truncated backpropagation through time: a gradient that reaches back so many steps and no more.

R. J. Williams and J. Peng (1990), "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories", Neural Computation 2(4): BPTT(h; h'), every h' steps the last h of
them. Windows of fixed length are h = h', sliding ones h' = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.algorithms.bptt import bptt
from jax_bptt.algorithms.exponents import exponent_in_words
from jax_bptt.algorithms.sliding import sliding_window
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, Cell, Inputs
from jax_bptt.core.values import as_value


@as_value
def truncated(window: int, *, sliding: bool = False) -> Algorithm:
    """Return backpropagation through time that stops after a number of steps.

        lambda_{t-1} = gamma_t J_t^T lambda_t + g_{t-1}         gamma_t = 0 where a window begins

    Outputs are those of any other algorithm. The gradient is that of the function in which the
    state is detached, as by `jax.lax.stop_gradient`, after every `window` steps: exact for it in
    both modes, and biased for the loss. A state that is passed in gets the gradient of the first
    window. Time and memory are those of `bptt()`.

    With `sliding` the loss of each step reaches back exactly `window` steps, its own included,
    where with windows of fixed length a step has one to `window`:

        lambda^a_{t-1} = J_t^T lambda^{a+1}_t + g_{t-1}         a = 0..h - 1

    with lambda^a what the loss of the next h - a steps sends to s_t, and lambda^1 in the weights'
    gradient. The reverse scan carries h adjoints and takes about h times as long; memory grows by
    these alone.

    Steps that are taken count: neither padding nor a step that `mask` leaves out does.

    Args:
      window: h, in steps, at least 1. From T on the gradient is exact.
      sliding: whether each step's loss reaches back `window` steps.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: `window` is not a positive integer.
      TypeError: `sliding` is not a bool.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 3))
      >>> last = lambda xs: jb.unroll(cell, params, xs, algorithm=jb.truncated(4))[1][-1].sum()
      >>> int(jnp.sum(jnp.any(jax.grad(last)(xs) != 0, axis=-1)))  # windows of 4, 4 and 2 steps
      2
    """
    require(
        is_integer(window) and window > 0,
        f"truncated: window must be a positive number of steps, got {shown(window)}",
    )
    require(
        isinstance(sliding, bool),
        f"truncated: sliding must be True or False, got {shown(sliding)}",
        TypeError,
    )
    reach = f"exactly {window}" if sliding else f"1 to {window}"

    def explain(cell: Cell, inputs: Inputs) -> str:
        return (
            f"truncated() lets the loss of a step reach back {reach} steps, and is biased by what "
            f"crosses more:\nadaptive_truncation bounds it\n{exponent_in_words(cell, inputs)}"
        )

    algorithm = (
        sliding_window(window) if sliding else detached(lambda _, inputs: _begins(inputs, window))
    )
    return algorithm._replace(explain=explain)


def detached(factors: Callable[[Cell, Inputs], jax.Array]) -> Algorithm:
    """Return exact BPTT with a factor on what crosses each step.

    Args:
      factors: `(cell, inputs) -> gamma`, [T] or [T, *batch].
    """

    def controls(cell: Cell, inputs: Inputs) -> Controls:
        return inputs.controls._replace(gamma=factors(cell, inputs))

    return bptt()._replace(controls=controls)


def _begins(inputs: Inputs, window: int) -> jax.Array:
    """Return 0 where a window of so many steps begins after another, and 1 elsewhere."""
    steps, advance = jax.tree.leaves(inputs.xs)[0].shape[0], inputs.controls.advance
    taken = jnp.ones(steps, bool) if advance is None else advance
    moves = taken.astype(jnp.int32)
    before = jnp.cumsum(moves, axis=0) - moves
    return jnp.where(taken & (before > 0) & (before % window == 0), 0.0, 1.0)
