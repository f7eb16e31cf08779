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

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.loops import Loop
from jax_bptt.core.primal import Run, map_residuals, over_time, pair
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


def _as_it_is(pull: Callable) -> Callable:
    return pull


def linearize(
    cell: Cell,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    drives: PyTree,
    kept: list[Array] | None = None,
    products: Callable = _as_it_is,
    left: bool = False,
) -> Linearization:
    """Linearise the step about what entered it, `prevs`, with s_1..s_K `states`, under K drives.

    `kept` are the residuals as `forward` returned them; None to compute them again. `products` is
    given the function that computes a gated step's gradient of the weights, to compute it another
    way. `left` says whether weights are on the left in the products of a gated step.
    """
    if isinstance(cell.step, GatedStep):
        return _linearize_gated(
            cell, cell.step, weights, prevs, states, drives, kept, products, left
        )
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


def _linearize_gated(
    cell: Cell,
    step: GatedStep,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    drives: PyTree,
    kept: list[Array] | None,
    products: Callable,
    left: bool,
) -> Linearization:
    """A gated step: the unit-wise Jacobians are computed ahead of the scan, for all steps."""
    bwd = pair(step)[1]
    feedbacks, pull_mix = trees.inexact_vjp(lambda w: over_time(cell, step.mix)(w, prevs), weights)
    args = prevs, drives, feedbacks, states
    if kept is None:
        residuals = map_residuals(step, weights, *args)
    else:
        shapes = jax.eval_shape(functools.partial(map_residuals, step), weights, *args)
        residuals = jax.tree.unflatten(jax.tree.structure(shapes), kept)
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), args[:3])
    pull_state = _pull_state(step, weights, first[0], left)
    in_pointwise = any(jax.tree.leaves(jaxprs.used_leaves(step.pointwise, weights, *first)[0]))
    # Emitted where they arise: to make them again from the lambdas costs a pass over memory (an
    # LSTM's gradient is 4 % faster at H = 128 and 256). A cell that reads drive + feedback has one
    # array for both, which is emitted once.
    d_states = trees.partition(states)[0]
    alike = jaxprs.same_arrays(jax.vmap(lambda *args: bwd(*args)[1:]), residuals, d_states)

    def transpose(residual, d_state):
        prev, residual = residual
        d_prev, d_drive, d_feedback = bwd(residual, d_state)
        d_prev = trees.add(d_prev, pull_state(prev, d_feedback))
        return d_prev, (d_state if in_pointwise else None, None if alike else d_drive, d_feedback)

    def accumulate(emitted):
        d_states, d_drives, d_feedbacks = emitted
        (d_weights,) = products(pull_mix)(d_feedbacks)
        if in_pointwise:
            _, pull = trees.inexact_vjp(
                lambda w: over_time(cell, step.pointwise)(w, prevs, drives, feedbacks), weights
            )
            d_weights = trees.add(d_weights, pull(d_states)[0])
        return d_weights, d_feedbacks if alike else d_drives

    # `prev` travels with the residuals to give the transpose of `mix` a shape; none of it is read.
    return Linearization((prevs, residuals), transpose, accumulate)


def _pull_state(
    step: GatedStep, weights: PyTree, state: PyTree, left: bool
) -> Callable[..., PyTree]:
    """Return `(state, d_feedback) -> d_state`, the transpose of `mix`, as is best in a loop.

    It is a product with transposed weights, of which XLA on a CPU makes the most in three ways:

    - a single row: the weights as they lie. For a transposed matrix it reads element by element
      (H = 128: 3 against 70 us a step);
    - fewer than 256 units: a transposed copy of the weights, made ahead of the loop;
    - from there on (`left`): the weights on the left, as they lie. On the right they are laid out
      anew in every step (an LSTM's product of 64 rows at H = 1024: 2.1 ms, with a transposed copy
      3.0 to 3.9; 16 rows at H = 384: 0.10 against 0.14 ms; two cores, jax 0.10.2 and 0.12).
    """
    rows = max(math.prod(s.shape[:-1]) for s in jax.tree.leaves(state))
    given = (lambda: weights) if rows == 1 or left else trees.transposed_layout(weights)

    def pull_state(state, d_feedback):
        _, pull = trees.inexact_vjp(lambda s: step.mix(given(), s), state)
        return pull(d_feedback)[0]

    return jaxprs.exchange_operands(pull_state) if rows > 1 and left else pull_state


def resets_after(controls: Controls) -> Array | None:
    """Return, for each of all T steps, where a reset follows it; None without resets."""
    if controls.reset is None:
        return None
    return jnp.concatenate([controls.reset[1:], jnp.zeros_like(controls.reset[:1])])


def reverse_run(
    linearization: Linearization,
    d_state: PyTree,
    d_states: PyTree,
    controls: Controls,
    reset_after: Array | None = None,
    lambdas: bool = False,
) -> Run:
    """Return the run lambda_{t-1} = J_t^T lambda_t + g_{t-1}, from a stretch's last step back.

    Where the state was held, lambda passes by the step; where it was reset, lambda goes to the
    start of the sequence and no further back. A step heeds the reset that follows it, as it adds g,
    rather than its own, which would be one more pass over its result.

    Args:
      linearization: of the K steps.
      d_state: what reaches s_K from beyond the stretch.
      d_states: g_1..g_K with leading axis K, None at leaves no output reads.
      controls: of these K steps.
      reset_after: from `resets_after`, of these K steps; None without resets.
      lambdas: whether to return them too.

    Returns:
      A run whose result is (d_state, d_start, lambdas, emitted): what reaches s_0 of the stretch,
      and the start where step 1 is reset; what reaches the start by resets, or None without any;
      lambda_1..lambda_K stacked, zero where the state was held, or None; what the steps emitted,
      stacked.
    """
    reset, stays = controls.reset, None if reset_after is None else ~reset_after

    def retreat(d_state, inputs):
        residual, g, advance, stays = inputs
        if stays is not None:
            d_state = select(stays, d_state)
        d_state = jax.tree.map(
            lambda d, g: d if d is None or g is None else lax.optimization_barrier(d + g),
            d_state,
            g,
            is_leaf=lambda d: d is None,
        )
        if advance is None:
            through = d_state
            d_prev, emitted = linearization.transpose(residual, through)
        else:
            through = select(advance, d_state)
            past = select(~advance, d_state)
            d_prev, emitted = linearization.transpose(residual, through)
            d_prev = trees.add(d_prev, past)
        d_prevs = None if stays is None else d_prev
        return d_prev, (through if lambdas else None, d_prevs, emitted)

    def finish(end):
        d_state, (throughs, d_prevs, emitted) = end
        if reset is None:
            return d_state, None, throughs, emitted
        d_start = jax.tree.map(lambda d: d.sum(0), select(reset, d_prevs))
        return d_state, d_start, throughs, emitted

    inputs = linearization.residuals, d_states, controls.advance, stays
    return Run(Loop(retreat, d_state, inputs, reverse=True), finish)


def readout_gradient(
    cell: Cell, weights: PyTree, states: PyTree, d_ys: PyTree | None
) -> tuple[PyTree, PyTree]:
    """Pull the outputs' cotangents back to the weights and the states, batched over time.

    Returns None for a state leaf that no output reads, so that no scan has to carry its zeros.
    """
    if d_ys is None:
        return None, jax.tree.map(lambda s: None, states)
    used = jaxprs.used_leaves(over_time(cell, cell.readout), weights, states)
    _, pull = trees.inexact_vjp(over_time(cell, cell.readout), weights, states)
    return jax.tree.map(
        lambda d, read: d if read else None, pull(d_ys), used, is_leaf=lambda x: x is None
    )


def reverse(
    cell: Cell,
    weights: PyTree,
    prevs: PyTree,
    states: PyTree,
    xs: PyTree,
    controls: Controls,
    reset_after: Array | None,
    d_state: PyTree,
    d_ys: PyTree | None,
    kept: list[Array] | None = None,
    transposed: bool = False,
    left: bool = False,
    wants_xs: bool = True,
) -> Run:
    """Return the explicit reverse pass over a stretch of K steps.

    Its result is (d_state, d_weights, d_xs, d_start): what reaches s_0 of the stretch, and the
    start where step 1 is reset; the gradients of this stretch's part; and what reaches the start of
    the sequence by resets, None without any.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      prevs: what entered each step, from `previous_states`.
      states: s_1..s_K.
      xs: x_1..x_K.
      controls: of these K steps.
      reset_after: from `resets_after`, of these K steps.
      d_state: what reaches s_K from beyond the stretch.
      d_ys: cotangents of y_1..y_K, or None for none.
      kept: residuals from `forward`, or None to compute them again.
      transposed: whether the products of weight gradients are of transposed copies.
      left: whether weights are on the left in the products of a gated step.
      wants_xs: whether to return d_xs, rather than None at its leaves.
    """
    products = jaxprs.transpose_rows if transposed else _as_it_is
    project, nothing = over_time(cell, cell.project), jax.tree.map(lambda x: None, xs)
    if wants_xs:
        drives, pull_project = trees.inexact_vjp(project, weights, xs)
    else:
        drives, pull_project = trees.inexact_vjp(lambda w, _: project(w, xs), weights, nothing)
    linearization = linearize(cell, weights, prevs, states, drives, kept, products, left)
    d_readout, d_states = readout_gradient(cell, weights, states, d_ys)

    run = reverse_run(linearization, d_state, d_states, controls, reset_after)

    def finish(end):
        d_state, d_start, _, emitted = run.finish(end)
        d_step, d_drives = linearization.accumulate(emitted)
        d_project, d_xs = products(pull_project)(d_drives)
        d_weights = trees.add(d_step, d_project)
        if d_readout is not None:
            d_weights = trees.add(d_weights, d_readout)
        return d_state, d_weights, d_xs, d_start

    return Run(run.loop, finish)


def contribution_terms(
    cell: Cell, weights: PyTree, prevs: PyTree, xs: PyTree, lambdas: PyTree
) -> PyTree:
    """Return the terms (d+ s_t / dW)^T lambda_t one by one, a leading axis of K on each weight."""

    def term(prev: Any, x: Any, d_state: Any) -> PyTree:
        _, pull = trees.inexact_vjp(lambda w: cell.step(w, prev, cell.project(w, x)), weights)
        return pull(d_state)[0]

    return jax.vmap(term)(prevs, xs, lambdas)
