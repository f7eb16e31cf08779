r"""The explicit gradient of a stretch of time: linearise, scan backwards, accumulate.

With `lambda_t = dL/ds_t`, `J_t = ds_t/ds_{t-1}`, `g_t` the direct dependence of the loss on s_t
and `d+` a derivative at fixed s_{t-1},

    lambda_{t-1} = J_t^T lambda_t + g_{t-1}         t = T..1            (the reverse scan)
    dL/dW        = sum_t (d+ s_t / dW)^T lambda_t                       (the accumulation)

Only the first line is sequential, and it is linear in lambda: what J_t is made of depends on the
states alone, which the forward pass has kept. So the linearisation is computed for all steps at
once before the scan, and the accumulation is one product per weight matrix after it.
Backpropagation through time is due to Werbos (1990), "Backpropagation through time: what it does
and how to do it", Proceedings of the IEEE 78(10).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.core import trees
from jax_bptt.core.sequence import Controls, select
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree


class Linearization(NamedTuple):
    """A step's derivative along a stretch of K states.

    Attributes:
      residuals: pytree with leading axis K, what `transpose` needs of each step.
      transpose: `(residual, d_state) -> (d_state_prev, emitted)`, one step of the reverse scan and
        what `accumulate` wants to know of it.
      accumulate: `(emitted) -> (d_weights, d_drives)`, batched over the stretch.
    """

    residuals: PyTree
    transpose: Callable[..., tuple[PyTree, PyTree]]
    accumulate: Callable[..., tuple[PyTree, PyTree]]


def over_time(cell: Cell, fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun(weights, *args)` of `cell` for arguments with a leading time axis.

    A product with the weights becomes one product over all the rows of T x B, and so does its
    transpose: the gradient of the weights contracts time and batch in one go.
    """
    if cell.any_batch:
        return fun

    def mapped(weights, *args):
        return jax.vmap(lambda args: fun(weights, *args))(args)

    return mapped


def scan_states(
    cell: Cell, weights: PyTree, start: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[PyTree, PyTree]:
    """Run the cell over `xs` [K, *batch, ...]; return s_K and s_1..s_K stacked.

    The input products of all K steps are one product ahead of the scan, and so are the
    coefficients of a `DiagonalStep`.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      start: the state that a reset goes back to.
      state: s_0 of this stretch.
      xs: x_1..x_K.
      controls: when the state moves, of these K steps.
    """
    step, drives = cell.step, over_time(cell, cell.project)(weights, xs)
    if isinstance(step, DiagonalStep):
        drives = over_time(cell, step.coefficients)(weights, drives)

    def advance(state, inputs):
        drive, controls = inputs
        old = controls.restart(start, state)
        if isinstance(step, DiagonalStep):
            new = jax.tree.map(lambda a, s, b: a * s + b, drive[0], old, drive[1])
        else:
            new = step(weights, old, drive)
        state = controls.hold(new, old)
        return state, state

    return lax.scan(advance, state, (drives, controls))


def scan_residuals(
    cell: Cell, weights: PyTree, start: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[PyTree, tuple[PyTree, list[Array] | None]]:
    """Run the cell as `scan_states`; return s_K and, of each step, its state and residuals.

    The residuals are leaves in the order of those that `linearize` would compute, or None where it
    needs no product for them, so that nothing is saved by keeping them.
    """
    step = cell.step
    if not isinstance(step, GatedStep) or not _needs_products(cell, step, weights, state, xs):
        last_state, states = scan_states(cell, weights, start, state, xs, controls)
        return last_state, (states, None)
    drives = over_time(cell, cell.project)(weights, xs)

    def advance(state, inputs):
        drive, controls = inputs
        old = controls.restart(start, state)
        feedback = step.mix(weights, old)
        state = controls.hold(step.pointwise(weights, old, drive, feedback), old)
        return state, (state, feedback)

    last_state, (states, feedbacks) = lax.scan(advance, state, (drives, controls))
    prevs = previous_states(start, state, states, controls)
    residuals = _map_residuals(step, weights, prevs, drives, feedbacks, states)
    return last_state, (states, jax.tree.leaves(residuals))


def _needs_products(
    cell: Cell, step: GatedStep, weights: PyTree, state: PyTree, xs: PyTree
) -> bool:
    """Return whether the residuals of `step` depend on a drive or a feedback."""
    drive = _drive(cell, weights, xs)
    feedback = jax.eval_shape(step.mix, weights, state)
    used = trees.used_leaves(_pair(step)[0], weights, state, drive, feedback, state)
    return any(jax.tree.leaves(used[2:4]))


def drive_bytes(cell: Cell, weights: PyTree, xs: PyTree) -> int:
    """Return the size in bytes of the drive of one step, all of the batch."""
    leaves = jax.tree.leaves(_drive(cell, weights, xs))
    return sum(a.size * a.dtype.itemsize for a in leaves)


def _drive(cell: Cell, weights: PyTree, xs: PyTree) -> PyTree:
    """Return the shapes of the drive of one step of `xs` [T, *batch, ...]."""
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    return jax.eval_shape(cell.project, weights, x)


def previous_states(start: PyTree, state: PyTree, states: PyTree, controls: Controls) -> PyTree:
    """Return what entered each of K steps: s_0..s_{K-1}, or the start of the sequence at a reset.

    Args:
      start: the state that a reset goes back to.
      state: s_0 of this stretch.
      states: s_1..s_K.
      controls: of these K steps.
    """
    prevs = jax.tree.map(
        lambda s, ss: jnp.concatenate([s[None], ss[:-1]])[: len(ss)], state, states
    )
    return controls.restart(start, prevs)


def linearize(
    cell: Cell,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    drives: PyTree,
    kept: list[Array] | None = None,
) -> Linearization:
    """Linearise the step about what entered it, `prevs`, with s_1..s_K `states`, under K drives.

    `kept` are the residuals as `scan_residuals` returned them; None to compute them again.
    """
    if isinstance(cell.step, GatedStep):
        return _linearize_gated(cell, cell.step, weights, prevs, states, drives, kept)
    if isinstance(cell.step, DiagonalStep):
        return _linearize_diagonal(cell, cell.step, weights, prevs, drives)
    return _linearize_plain(cell, weights, prevs, drives)


def _linearize_diagonal(
    cell: Cell, step: DiagonalStep, weights: PyTree, prevs: PyTree, drives: PyTree
) -> Linearization:
    """s_t = a_t s_{t-1} + b_t: the coefficients are the Jacobian, the lambdas are emitted."""
    (a, _), pull = trees.inexact_vjp(over_time(cell, step.coefficients), weights, drives)

    def transpose(a, d_state):
        return jax.tree.map(jnp.multiply, a, d_state), d_state

    def accumulate(d_states):
        return pull((jax.tree.map(jnp.multiply, d_states, prevs), d_states))

    return Linearization(a, transpose, accumulate)


def _linearize_plain(cell: Cell, weights: PyTree, prevs: PyTree, drives: PyTree) -> Linearization:
    """Any step: its vector-Jacobian product is taken inside the reverse scan, lambda is emitted."""

    def transpose(residual, d_state):
        prev, drive = residual
        _, pull = trees.inexact_vjp(lambda s: cell.step(weights, s, drive), prev)
        return pull(d_state)[0], d_state

    def accumulate(d_states):
        def run(weights, drives):
            return over_time(cell, cell.step)(weights, prevs, drives)

        _, pull = trees.inexact_vjp(run, weights, drives)
        return pull(d_states)

    return Linearization((prevs, drives), transpose, accumulate)


def _pair(step: GatedStep) -> tuple[Callable, Callable]:
    """Return the pointwise pair of `step`, its own or the automatic one."""
    if step.pointwise_fwd is None or step.pointwise_bwd is None:
        return _automatic_pair(step.pointwise)
    return step.pointwise_fwd, step.pointwise_bwd


def _map_residuals(step: GatedStep, weights: PyTree, *args: PyTree) -> PyTree:
    """Return `pointwise_fwd` of K steps: what entered them, drives, feedbacks, s_1..s_K.

    Always mapped: the residuals of `jax.vjp` are those of one step, whatever the cell takes.
    """
    return jax.vmap(lambda args: _pair(step)[0](weights, *args))(args)


def _linearize_gated(
    cell: Cell,
    step: GatedStep,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    drives: PyTree,
    kept: list[Array] | None,
) -> Linearization:
    """A gated step: the unit-wise Jacobians are computed ahead of the scan, for all steps."""
    bwd = _pair(step)[1]
    feedbacks, pull_mix = trees.inexact_vjp(lambda w: over_time(cell, step.mix)(w, prevs), weights)
    args = prevs, drives, feedbacks, states
    if kept is None:
        residuals = _map_residuals(step, weights, *args)
    else:
        shapes = jax.eval_shape(functools.partial(_map_residuals, step), weights, *args)
        residuals = jax.tree.unflatten(jax.tree.structure(shapes), kept)
    # A single row times a matrix is no product of matrices: XLA reads the matrix along its rows
    # as it lies, and a transposed one element by element (B = 1, H = 128: 3 against 70 us a step).
    rows = max(math.prod(s.shape[1:-1]) for s in jax.tree.leaves(states))
    transposed = trees.transposed_layout(weights) if rows > 1 else lambda: weights

    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), args[:3])
    in_pointwise = any(jax.tree.leaves(trees.used_leaves(step.pointwise, weights, *first)[0]))
    # Emitted where they arise: to make them again from the lambdas costs a pass over memory (an
    # LSTM's gradient is 4 % faster at H = 128 and 256). A cell that reads drive + feedback has one
    # array for both, which is emitted once.
    d_states = trees.partition(states)[0]
    alike = trees.same_arrays(jax.vmap(lambda *args: bwd(*args)[1:]), residuals, d_states)

    def transpose(residual, d_state):
        prev, residual = residual
        d_prev, d_drive, d_feedback = bwd(residual, d_state)
        _, pull = trees.inexact_vjp(lambda s: step.mix(transposed(), s), prev)
        d_prev = trees.add(d_prev, pull(d_feedback)[0])
        return d_prev, (d_state if in_pointwise else None, None if alike else d_drive, d_feedback)

    def accumulate(emitted):
        d_states, d_drives, d_feedbacks = emitted
        (d_weights,) = pull_mix(d_feedbacks)
        if in_pointwise:
            _, pull = trees.inexact_vjp(
                lambda w: over_time(cell, step.pointwise)(w, prevs, drives, feedbacks), weights
            )
            d_weights = trees.add(d_weights, pull(d_states)[0])
        return d_weights, d_feedbacks if alike else d_drives

    # `prev` travels with the residuals to give the transpose of `mix` a shape; none of it is read.
    return Linearization((prevs, residuals), transpose, accumulate)


def _automatic_pair(pointwise: Callable) -> tuple[Callable, Callable]:
    """Derive the pair of `GatedStep` from `pointwise` alone; the residuals are `jax.vjp`'s."""

    def fwd(weights, state, drive, feedback, new_state):
        return trees.inexact_vjp(lambda *args: pointwise(weights, *args), state, drive, feedback)[1]

    def bwd(pull, d_state):
        return pull(d_state)

    return fwd, bwd


def reverse_scan(
    linearization: Linearization, d_state: PyTree, d_states: PyTree, controls: Controls
) -> tuple[PyTree, PyTree, PyTree, PyTree | None]:
    """Scan lambda_{t-1} = J_t^T lambda_t + g_{t-1} from the last step of a stretch to its first.

    Where the state was held, lambda passes by the step; where it was reset, lambda goes to the
    start of the sequence and no further back.

    Args:
      linearization: of the K steps.
      d_state: what reaches s_K from beyond the stretch.
      d_states: g_1..g_K with leading axis K, None at leaves no output reads.
      controls: of these K steps.

    Returns:
      (d_state, lambdas, emitted, d_start): what reaches s_0 of the stretch; lambda_1..lambda_K
      stacked, zero where the state was held; what the steps emitted, stacked; what reaches the
      start by resets, or None without any.
    """

    def retreat(carry, inputs):
        d_state, d_start = carry
        residual, g, controls = inputs
        d_state = trees.add(d_state, g)
        if controls.advance is None:
            through = d_state
            d_prev, emitted = linearization.transpose(residual, through)
        else:
            through = select(controls.advance, d_state)
            past = select(~controls.advance, d_state)
            d_prev, emitted = linearization.transpose(residual, through)
            d_prev = trees.add(d_prev, past)
        if controls.reset is not None:
            d_start = trees.add(d_start, select(controls.reset, d_prev))
            d_prev = select(~controls.reset, d_prev)
        return (d_prev, d_start), (through, emitted)

    d_start = None
    if controls.reset is not None:
        d_start = trees.vary_alike(jax.tree.map(jnp.zeros_like, d_state), (d_state, controls))
    inputs = linearization.residuals, d_states, controls
    carry = d_state, d_start
    (d_state, d_start), (lambdas, emitted) = lax.scan(retreat, carry, inputs, reverse=True)
    return d_state, lambdas, emitted, d_start


def readout_gradient(
    cell: Cell, weights: PyTree, states: PyTree, d_ys: PyTree | None
) -> tuple[PyTree, PyTree]:
    """Pull the outputs' cotangents back to the weights and the states, batched over time.

    Returns None for a state leaf that no output reads, so that no scan has to carry its zeros.
    """
    if d_ys is None:
        return None, jax.tree.map(lambda s: None, states)
    used = trees.used_leaves(over_time(cell, cell.readout), weights, states)
    _, pull = trees.inexact_vjp(over_time(cell, cell.readout), weights, states)
    return jax.tree.map(
        lambda d, read: d if read else None, pull(d_ys), used, is_leaf=lambda x: x is None
    )


def reverse_stretch(
    cell: Cell,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    xs: PyTree,
    controls: Controls,
    d_state: PyTree,
    d_ys: PyTree | None,
    kept: list[Array] | None = None,
) -> tuple[PyTree, PyTree, PyTree, PyTree | None]:
    """Run the explicit reverse pass over a stretch of K steps.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      prevs: what entered each step, from `previous_states`.
      states: s_1..s_K.
      xs: x_1..x_K.
      controls: of these K steps.
      d_state: what reaches s_K from beyond the stretch.
      d_ys: cotangents of y_1..y_K, or None for none.
      kept: residuals from `scan_residuals`, or None to compute them again.

    Returns:
      (d_state, d_weights, d_xs, d_start): what reaches s_0 of the stretch, the gradients of this
      stretch's part, and what reaches the start of the sequence by resets, None without any.
    """
    drives, pull_project = trees.inexact_vjp(over_time(cell, cell.project), weights, xs)
    linearization = linearize(cell, weights, prevs, states, drives, kept)
    d_readout, d_states = readout_gradient(cell, weights, states, d_ys)
    d_state, _, emitted, d_start = reverse_scan(linearization, d_state, d_states, controls)
    d_step, d_drives = linearization.accumulate(emitted)
    d_project, d_xs = pull_project(d_drives)
    d_weights = trees.add(d_step, d_project)
    if d_readout is not None:
        d_weights = trees.add(d_weights, d_readout)
    return d_state, d_weights, d_xs, d_start


def contribution_terms(
    cell: Cell, weights: PyTree, prevs: PyTree, xs: PyTree, lambdas: PyTree
) -> PyTree:
    """Return the terms (d+ s_t / dW)^T lambda_t one by one, a leading axis of K on each weight."""

    def term(prev: Any, x: Any, d_state: Any) -> PyTree:
        _, pull = trees.inexact_vjp(lambda w: cell.step(w, prev, cell.project(w, x)), weights)
        return pull(d_state)[0]

    return jax.vmap(term)(prevs, xs, lambdas)
