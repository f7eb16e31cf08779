"""The largest Lyapunov exponent of a network on data: does what it starts from die out or grow?"""

import jax
from jax import Array

from jax_bptt.algorithms.exponents import estimate
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core.checks import is_integer, require
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, PyTree


def largest_exponent(cell: Cell, params: PyTree, xs: PyTree, state: PyTree | None = None) -> Array:
    """Return the largest Lyapunov exponent of `cell` along the states it takes on `xs`.

        v_t = J_t v_{t-1} / |J_t v_{t-1}|        exponent = mean over t of log |J_t v_{t-1}|

    A perturbation of the state grows or shrinks by exp(exponent) a step in the long run, and so
    does the gradient backwards through time. Below zero, the network forgets, a truncated gradient
    misses little, and `newton` takes few iterations; above zero gradients explode and it takes
    about T.

    It is an estimate on T steps of data, of which the first tenth only turns v into the direction
    that grows most. A cell whose functions do not take any batch (`any_batch`) has one exponent for
    the whole batch.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I], T at least 1.
      state: s_0; by default `cell.initial_state(params, batch_shape)`.

    Returns:
      [*batch], per step, to the base e; -inf where the state forgets all in a step.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or there is no step.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=2, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.5, 0.9]))
      >>> exponent = jb.largest_exponent(cell, params, jnp.ones((200, 1)))
      >>> round(float(jnp.exp(exponent)), 3)
      0.9
    """
    name = "largest_exponent"
    given = checked(name, cell, (params, xs, state), Options())
    steps = jax.tree.leaves(given.xs)[0].shape[0]
    require(
        not is_integer(steps) or steps > 0,
        f"{name}: xs must have at least one step, got T = {steps}",
    )
    return compiled_once(_estimate, cell)(given)


def _estimate(cell: Cell, given: Arguments) -> Array:
    run = begin("largest_exponent", cell, given, reverse=False)
    return estimate(run.cell, run.inputs)
