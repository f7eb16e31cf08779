r"""Backpropagation through time.

With lambda_t = dL/ds_t, J_t = ds_t/ds_{t-1}, g_t the direct dependence of the loss on s_t and d+ a
derivative at fixed s_{t-1},

    lambda_{t-1} = J_t^T lambda_t + g_{t-1}         t = K..1            (the reverse scan)
    dL/dW        = sum_t (d+ s_t / dW)^T lambda_t                       (the accumulation)

Only the first line is sequential; the second is one product per weight matrix, over all steps.

P. J. Werbos (1990), "Backpropagation through time: what it does and how to do it", Proceedings of
the IEEE 78(10).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.forward import Stretch, entering, over_time
from jax_bptt.core.linearize import Linearization, linearize
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Cell, Gradient, Inputs, PyTree


def reverse_scan(
    linear: Linearization, lam: PyTree, g: PyTree, controls: Controls
) -> tuple[tuple[PyTree, PyTree], PyTree, PyTree]:
    """lambda_{t-1} = J_t^T lambda_t + g_{t-1}, from t = K to 1.

    Args:
      linear: of the K steps.
      lam: what reaches s_K from beyond the stretch.
      g: g_1..g_K stacked, None at leaves no output reads.
      controls: of these K steps.

    Returns:
      ((d_state, d_start), lambdas, emitted): what reaches s_0 of the stretch and, by resets, the
      start (None without any); lambda_1..lambda_K; what `linear.pull` emitted. The last two are
      stacked.
    """

    def step(lam, inputs):
        residual, g, control = inputs
        lam = trees.add(lam, g)  # lambda_t
        d_prev, d_start, emitted = cross(linear, residual, control, lam)
        return d_prev, (lam, emitted, d_start)

    d_state, (lambdas, emitted, d_starts) = lax.scan(
        step, lam, (linear.residuals, g, controls), reverse=True
    )
    return (d_state, jax.tree.map(lambda d: d.sum(0), d_starts)), lambdas, emitted


def cross(
    linear: Linearization, residual: PyTree, control: Controls, lam: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """Take lambda_t back through step t: (to s_{t-1}, to the start, what `pull` emitted)."""
    through, emitted = linear.pull(residual, control.taken(lam))
    d_prev, d_start = control.leave(trees.add(through, control.held(lam)))
    return d_prev, d_start, emitted


class Surroundings(NamedTuple):
    """All of the gradient of K steps but the recursion, which an algorithm may run in its own way.

    Attributes:
      linear: the linearised steps.
      g: g_1..g_K stacked, None at leaves no output reads.
      accumulate: `(lambdas, emitted) -> (d_weights, d_xs)`, of what `reverse_scan` returns.
    """

    linear: Linearization
    g: PyTree
    accumulate: Callable[..., tuple[PyTree, PyTree]]


def surroundings(
    cell: Cell, inputs: Inputs, states: PyTree, d_ys: PyTree, residuals: list[Array] | None = None
) -> Surroundings:
    """Linearise K steps with states s_1..s_K, `residuals` as in `linearize`, and find g_1..g_K."""
    weights, state, xs, start, controls = inputs
    prevs = entering(start, state, states, controls)
    drives, pull_project = trees.inexact_vjp(over_time(cell, cell.project), weights, xs)
    linear = linearize(cell, weights, Stretch(prevs, drives, states), residuals)
    d_readout, g = readout_gradient(cell, weights, states, d_ys)

    def accumulate(lambdas, emitted):
        d_step, d_drives = linear.accumulate(controls.taken(lambdas), emitted)
        d_project, d_xs = pull_project(d_drives)
        return trees.add(trees.add(d_step, d_project), d_readout), d_xs

    return Surroundings(linear, g, accumulate)


def gradient(inputs: Inputs, around: Surroundings, lam: PyTree) -> Gradient:
    """Return the gradient of K steps for `lam`, what reaches s_K from beyond."""
    linear, g, accumulate = around
    (d_state, d_start), lambdas, emitted = reverse_scan(linear, lam, g, inputs.controls)
    d_weights, d_xs = accumulate(lambdas, emitted)
    return Gradient(d_weights, d_state, d_xs, d_start)


def readout_gradient(
    cell: Cell, weights: PyTree, states: PyTree, d_ys: PyTree
) -> tuple[PyTree, PyTree]:
    """Pull the outputs' cotangents back to the weights and the states, batched over time.

    Returns None for a state leaf that no output reads, so that no scan has to carry its zeros.
    """
    nothing = jax.tree.map(lambda w: None, weights), jax.tree.map(lambda s: None, states)
    if d_ys is None:
        return nothing
    readout = over_time(cell, cell.readout)
    used = jaxprs.used_leaves(readout, weights, states)
    found = trees.inexact_vjp(readout, weights, states)[1](d_ys)
    return jax.tree.map(lambda d, read: d if read else None, found, used, is_leaf=trees.is_none)
