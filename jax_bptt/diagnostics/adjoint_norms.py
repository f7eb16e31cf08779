"""The size of the gradient that travels back through time."""

from jax import Array

from jax_bptt.algorithms.clipped import norms, rank_of
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import reverse, sequence
from jax_bptt.core.types import PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of


def adjoint_norms(
    run: Trajectory, d_ys: PyTree | None = None, d_last_state: PyTree | None = None
) -> Array:
    """Return |dL/ds_t| of every step and sequence: how much gradient is still on its way.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1

    The norm is Euclidean, over all units of the state. Time and memory are those of one gradient,
    with every adjoint kept.

    Args:
      run: a `trajectory`.
      d_ys: dL/dy_t, like the outputs of `unroll`, None at leaves without a gradient; None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state; None for zero.

    Returns:
      [T, *batch], in units of the loss per unit of the state; zero beyond the lengths.

    Raises:
      TypeError: a structure or dtype does not fit.
      ValueError: a shape does not fit, or a leaf of the state has no batch axes, as one that all
        sequences share.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=5)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> run = jb.diagnostics.trajectory(cell, params, xs)
      >>> found = jb.diagnostics.adjoint_norms(run, d_last_state=jnp.ones((2, 5)))
      >>> found.shape, bool(found[0, 0] < found[-1, 0])
      ((7, 2), True)
    """
    name = "adjoint_norms"
    rank = rank_of(name, run.runs, run.inputs)
    given = cotangents_of(name, run, d_ys, d_last_state)
    return compiled_once(_norms, rank)(run, given)


def _norms(rank: int, run: Trajectory, given: tuple[PyTree, PyTree]) -> Array:
    inputs, (d_ys, d_last_state) = run.inputs, given
    linear, g, _ = reverse.surroundings(run.runs, inputs, run.states, d_ys)
    _, lambdas, _ = reverse.reverse_scan(linear, d_last_state, g, inputs.controls)
    lambdas = sequence.restore(lambdas, run.valid, reverse=False)
    return norms(lambdas, 1 + rank)
