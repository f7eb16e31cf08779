"""How Newton's method found the states of a run."""

from typing import Any, NamedTuple

from jax import Array

from jax_bptt.algorithms import newton as method
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core.checks import require, shown
from jax_bptt.core.forward import over_time
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Algorithm, Cell, PyTree


class Solution(NamedTuple):
    """A run by Newton's method.

    Attributes:
      last_state: s_T.
      ys: [T, *batch, ...].
      iterations: int32, of the block of time that took the most.
      residual: largest difference |s_t - f(s_{t-1})| relative to the largest |s_t|, of the block
        that was left with the most.
      converged: bool, False where a block was run by the plain scan; values are right either way.
    """

    last_state: PyTree
    ys: PyTree
    iterations: Array
    residual: Array
    converged: Array


def newton_solution(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
) -> Solution:
    """Run `cell` over `xs` by Newton's method, and say how many iterations that took.

    Args:
      cell: a `Cell` without integers in its state.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      state: s_0; by default `cell.initial_state(params, batch_shape)`.
      algorithm: `newton` with options; by default without any.

    Returns:
      A `Solution`.

    Raises:
      TypeError: an argument is of the wrong kind, or the algorithm is not `newton`.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.min_gru(input_size=3, hidden_size=4)  # affine in its state
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((100, 2, 3))
      >>> found = jb.newton_solution(cell, params, xs)
      >>> int(found.iterations), bool(found.converged)
      (1, True)
    """
    name = "newton_solution"
    algorithm = method.newton() if algorithm is None else algorithm
    call = getattr(algorithm, "made_by", None)
    require(
        call is not None and call.constructor is method.newton,
        f"{name}: algorithm must be jb.newton(...), got {shown(algorithm)}",
        TypeError,
    )
    given = checked(name, cell, (params, xs, state), Options())
    return compiled_once(_solution, cell, algorithm)(given)


def _solution(cell: Cell, algorithm: Any, given: Arguments) -> Solution:
    run = begin("newton_solution", cell, given, reverse=False)
    settings = method.Settings(**algorithm.made_by.named())
    states, *found = method.solve(run.cell, run.inputs, settings)
    ys = over_time(run.cell, run.cell.readout)(run.inputs.weights, states)
    return Solution(method.last(run.inputs.state, states), ys, *found)
