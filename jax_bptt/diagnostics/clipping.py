"""The parts of a gradient that `clipped` clips on its way back through time."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms import clipped as method
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core.checks import require, shown
from jax_bptt.core.reverse import reverse_scan, surroundings
from jax_bptt.core.types import Algorithm, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of


class Clipping(NamedTuple):
    """Adjoints before they are clipped, and what is left of them.

    Attributes:
      norms: [T, *batch], |lambda_t|, after all later steps were clipped.
      left: [T, *batch], |clip(lambda_t)| / |lambda_t|: 1 where nothing is clipped, and where a step
        is not taken.
      share: [], of the steps of all sequences at which something is clipped.
    """

    norms: Array
    left: Array
    share: Array


def clipping(
    run: Trajectory,
    algorithm: Algorithm,
    d_ys: PyTree | None = None,
    d_last_state: PyTree | None = None,
) -> Clipping:
    """Return where a gradient by `clipped` is clipped, and how much.

    Args:
      run: of `trajectory`.
      algorithm: `jax_bptt.clipped(...)`.
      d_ys: dL/dy_t, like `run.ys`, with None at leaves without a gradient; None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state; None for zero.

    Returns:
      A `Clipping`.

    Raises:
      TypeError: the algorithm is not `clipped`, or the structure of a cotangent does not fit.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=1, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([2.0]))
      >>> run = jb.diagnostics.trajectory(cell, params, jnp.zeros((4, 1)))
      >>> last = jnp.ones(1)
      >>> found = jb.diagnostics.clipping(run, jb.clipped(norm=3.0), d_last_state=last)
      >>> found.norms.tolist(), found.left.tolist()
      ([6.0, 4.0, 2.0, 1.0], [0.5, 0.75, 1.0, 1.0])
    """
    name = "clipping"
    call = getattr(algorithm, "made_by", None)
    require(
        call is not None and call.constructor is method.clipped,
        f"{name}: algorithm must be jb.clipped(...), got {shown(algorithm)}",
        TypeError,
    )
    given = cotangents_of(name, run, d_ys, d_last_state)
    return compiled_once(_clipping, algorithm)(run, given)


def _clipping(algorithm: Any, run: Trajectory, given: tuple[PyTree, PyTree]) -> Clipping:
    limit = method.limit_of(**algorithm.made_by.named())
    d_ys, d_last_state = given
    inputs, rank = run.inputs, method.rank_of("clipping", run.runs, run.inputs)
    linear, g, _ = surroundings(run.runs, inputs, run.states, d_ys)
    linear = method.clipped_pull(linear, limit, rank)
    lambdas = reverse_scan(linear, d_last_state, g, inputs.controls)[1]
    norms = method.norms(lambdas, rank + 1)
    after = method.norms(limit.of(lambdas, rank + 1), rank + 1)
    clips = after < norms
    if inputs.controls.advance is not None:
        clips = clips & inputs.controls.advance
    left = jnp.where(clips, after / norms, jnp.ones_like(norms))
    return Clipping(norms, left, jnp.mean(clips))
