"""A step's derivative along known states: one value, read by everything that needs J_t.

All states are known after the forward pass and J_t = ds_t/ds_{t-1} depends on nothing else, so that
K steps are linearised at once. There is one way to do so for each kind of step: plain, gated,
diagonal.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.forward import Stretch, over_time
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree


class Linearization(NamedTuple):
    """The derivative of K steps.

    Attributes:
      residuals: pytree with leading axis K, what `pull` reads of each step.
      pull: `(residual, d_state) -> (d_prev, emitted)`, J_t^T lambda_t: one step of the reverse
        scan, and what `accumulate` wants to know of it.
      accumulate: `(lambdas, emitted) -> (d_weights, d_drives)`, (d+ s_t / dW)^T lambda_t summed
        over the K steps, from lambda_1..lambda_K and what `pull` emitted, both stacked.
    """

    residuals: PyTree
    pull: Callable[..., tuple[PyTree, PyTree]]
    accumulate: Callable[..., tuple[PyTree, PyTree]]

    def push(self, residual: PyTree, d_prev: PyTree) -> PyTree:
        """Return J_t v of one step, in forward mode, as the transpose of `pull`.

        Args:
          residual: an entry of `residuals`.
          d_prev: v, like the state, None at leaves that cannot be differentiated.
        """

        def pull(d_state):
            return self.pull(residual, d_state)[0]

        (d_state,) = jax.linear_transpose(pull, d_prev)(d_prev)
        return d_state


def linearize(
    cell: Cell, weights: PyTree, stretch: Stretch, residuals: list[Array] | None = None
) -> Linearization:
    """Linearise K steps about the states they were taken from.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      stretch: the K steps.
      residuals: of a gated step, the leaves of `gated_residuals`; None to compute them again.
    """
    if isinstance(cell.step, GatedStep):
        return _gated(cell, cell.step, weights, stretch, residuals)
    if isinstance(cell.step, DiagonalStep):
        return _diagonal(cell, cell.step, weights, stretch)
    return _plain(cell, weights, stretch)


def _plain(cell: Cell, weights: PyTree, stretch: Stretch) -> Linearization:
    """Linearise any step: its vector-Jacobian product is taken inside the reverse scan."""

    def pull(residual, d_state):
        prev, drive = residual
        _, pull = trees.inexact_vjp(lambda s: cell.step(weights, s, drive), prev)
        return pull(d_state)[0], ()

    def accumulate(lambdas, _):
        def run(weights, drives):
            return over_time(cell, cell.step)(weights, stretch.prevs, drives)

        return trees.inexact_vjp(run, weights, stretch.drives)[1](lambdas)

    return Linearization((stretch.prevs, stretch.drives), pull, accumulate)


def _diagonal(cell: Cell, step: DiagonalStep, weights: PyTree, stretch: Stretch) -> Linearization:
    """Linearise s_t = a_t s_{t-1} + b_t: the coefficients are the Jacobian."""
    coefficients = over_time(cell, step.coefficients)
    (a, _), pull_coefficients = trees.inexact_vjp(coefficients, weights, stretch.drives)

    def pull(a, d_state):
        return jax.tree.map(jnp.multiply, a, d_state), ()

    def accumulate(lambdas, _):
        return pull_coefficients((jax.tree.map(jnp.multiply, lambdas, stretch.prevs), lambdas))

    return Linearization(a, pull, accumulate)


def _gated(
    cell: Cell,
    step: GatedStep,
    weights: PyTree,
    stretch: Stretch,
    residuals: list[Array] | None,
) -> Linearization:
    """Linearise a gated step: the unit-wise Jacobians are computed ahead of the reverse scan.

    d_prev = (d+ pointwise)^T lambda_t + mix^T d_feedback_t
    """
    prevs, drives, _ = stretch
    bwd = pointwise_pair(step)[1]
    feedbacks, pull_mix = trees.inexact_vjp(lambda w: over_time(cell, step.mix)(w, prevs), weights)
    kept = residuals
    if kept is None:
        residuals = gated_residuals(step, weights, stretch, feedbacks)
    else:
        # Leaves alone are kept: the structure of what `jax.vjp` saves differs from trace to trace.
        like = jax.eval_shape(
            lambda *args: gated_residuals(step, *args), weights, stretch, feedbacks
        )
        residuals = jax.tree.unflatten(jax.tree.structure(like), kept)
    transposed = _transposed_mix(step, weights, prevs)
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (prevs, drives, feedbacks)
    )
    reads_weights = any(jax.tree.leaves(jaxprs.used_leaves(step.pointwise, weights, *one)[0]))

    def pull(residual, d_state):
        prev, residual = residual
        d_prev, d_drive, d_feedback = bwd(residual, d_state)
        d_prev = trees.add(d_prev, transposed(prev, d_feedback))
        # A pre-activation drive + feedback has one cotangent for both: it is stacked once.
        return d_prev, (d_feedback,) if _same(d_drive, d_feedback) else (d_feedback, d_drive)

    def accumulate(lambdas, emitted):
        d_feedbacks, d_drives = emitted[0], emitted[-1]
        (d_weights,) = pull_mix(d_feedbacks)
        if reads_weights:
            _, pull = trees.inexact_vjp(
                lambda w: over_time(cell, step.pointwise)(w, prevs, drives, feedbacks), weights
            )
            d_weights = trees.add(d_weights, pull(lambdas)[0])
        return d_weights, d_drives

    # `prev` travels with the residuals to give the transpose of `mix` a shape; none of it is read.
    return Linearization((prevs, residuals), pull, accumulate)


def pointwise_pair(step: GatedStep) -> tuple[Callable, Callable]:
    """Return `pointwise_fwd` and `pointwise_bwd` of a step, its own or `jax.vjp`'s."""
    if step.pointwise_fwd is not None and step.pointwise_bwd is not None:
        return step.pointwise_fwd, step.pointwise_bwd

    def fwd(weights, state, drive, feedback, new_state):
        pointwise = lambda *args: step.pointwise(weights, *args)  # noqa: E731
        return trees.inexact_vjp(pointwise, state, drive, feedback)[1]

    def bwd(pull, d_state):
        return pull(d_state)

    return fwd, bwd


def gated_residuals(
    step: GatedStep, weights: PyTree, stretch: Stretch, feedbacks: PyTree
) -> PyTree:
    """Return `pointwise_fwd` of K steps, mapped: `jax.vjp`'s residuals are those of one step."""
    fwd = pointwise_pair(step)[0]
    args = stretch.prevs, stretch.drives, feedbacks, stretch.states
    return jax.vmap(lambda args: fwd(weights, *args))(args)


def _transposed_mix(step: GatedStep, weights: PyTree, prevs: PyTree) -> Callable[..., PyTree]:
    """Return `(state, d_feedback) -> d_state`, the transpose of `mix`, for use in a loop.

    A product with the transpose of W_s reads a transposed copy of it as it lies. Made here, ahead
    of the loop, it is made once: XLA on a CPU would copy the matrix in every step, which takes
    longer than the product. The barrier keeps it from undoing the layout.
    """
    laid_out = lax.optimization_barrier(
        jax.tree.map(lambda w: jnp.moveaxis(w, 0, -1) if w.ndim > 1 else w, weights)
    )

    def pull(state, d_feedback):
        given = jax.tree.map(lambda w: jnp.moveaxis(w, -1, 0) if w.ndim > 1 else w, laid_out)
        return trees.inexact_vjp(lambda s: step.mix(given, s), state)[1](d_feedback)[0]

    return pull


def _same(one: PyTree, other: PyTree) -> bool:
    """Return whether two trees hold the very same arrays."""
    leaves, structure = jax.tree.flatten(one)
    others, other_structure = jax.tree.flatten(other)
    return structure == other_structure and all(map(lambda a, b: a is b, leaves, others))
