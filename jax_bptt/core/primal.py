"""The forward pass of a stretch of time, and what of it the reverse pass wants."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.loops import Loop, scan
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree


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


class Run(NamedTuple):
    """A stretch of time that is still to be run.

    Attributes:
      loop: what is sequential.
      finish: takes what `scan` returns of the loop and returns the result.
    """

    loop: Loop
    finish: Callable[..., PyTree]


def forward(
    cell: Cell,
    weights: PyTree,
    start: PyTree,
    state: PyTree,
    xs: PyTree,
    controls: Controls,
    keep: bool = False,
) -> Run:
    """Return the run of the cell over `xs` [K, *batch, ...].

    Its result is (s_K, (states, kept)): s_1..s_K stacked, and None or, with `keep`, the residuals
    of each step: leaves in the order of those that `linearize` would compute, but None where it
    needs no product for them, so that nothing is saved by keeping them.

    The input products of all K steps are one product ahead of the loop, and so are the
    coefficients of a `DiagonalStep`.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      start: the state that a reset goes back to.
      state: s_0 of this stretch.
      xs: x_1..x_K.
      controls: when the state moves, of these K steps.
      keep: whether to keep the residuals of a gated step.
    """
    step, drives = cell.step, over_time(cell, cell.project)(weights, xs)
    if isinstance(step, DiagonalStep):
        drives = over_time(cell, step.coefficients)(weights, drives)
    gated = step if isinstance(step, GatedStep) else None
    keep = keep and gated is not None and _needs_products(cell, gated, weights, state, xs)

    def advance(state, inputs):
        drive, controls = inputs
        old, feedback = controls.restart(start, state), None
        if isinstance(step, DiagonalStep):
            new = jax.tree.map(lambda a, s, b: a * s + b, drive[0], old, drive[1])
        elif gated is not None:
            feedback = gated.mix(weights, old)
            new = gated.pointwise(weights, old, drive, feedback)
        else:
            new = step(weights, old, drive)
        state = controls.hold(new, old)
        return state, (state, feedback if keep else None)

    def finish(end):
        last_state, (states, feedbacks) = end
        if not keep or gated is None:
            return last_state, (states, None)
        prevs = previous_states(start, state, states, controls)
        residuals = map_residuals(gated, weights, prevs, drives, feedbacks, states)
        return last_state, (states, jax.tree.leaves(residuals))

    return Run(Loop(advance, state, (drives, controls)), finish)


def scan_states(
    cell: Cell, weights: PyTree, start: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[PyTree, PyTree]:
    """Run the cell as `forward` says; return s_K and s_1..s_K stacked."""
    run = forward(cell, weights, start, state, xs, controls)
    last_state, (states, _) = run.finish(scan(run.loop))
    return last_state, states


def _needs_products(
    cell: Cell, step: GatedStep, weights: PyTree, state: PyTree, xs: PyTree
) -> bool:
    """Return whether the residuals of `step` depend on a drive or a feedback."""
    drive = _drive(cell, weights, xs)
    feedback = jax.eval_shape(step.mix, weights, state)
    used = jaxprs.used_leaves(pair(step)[0], weights, state, drive, feedback, state)
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


def pair(step: GatedStep) -> tuple[Callable, Callable]:
    """Return the pointwise pair of `step`, its own or the automatic one."""
    if step.pointwise_fwd is None or step.pointwise_bwd is None:
        return _automatic_pair(step.pointwise)
    return step.pointwise_fwd, step.pointwise_bwd


def map_residuals(step: GatedStep, weights: PyTree, *args: PyTree) -> PyTree:
    """Return `pointwise_fwd` of K steps: what entered them, drives, feedbacks, s_1..s_K.

    Always mapped: the residuals of `jax.vjp` are those of one step, whatever the cell takes.
    """
    return jax.vmap(lambda args: pair(step)[0](weights, *args))(args)


def _automatic_pair(pointwise: Callable) -> tuple[Callable, Callable]:
    """Derive the pair of `GatedStep` from `pointwise` alone; the residuals are `jax.vjp`'s."""

    def fwd(weights, state, drive, feedback, new_state):
        return trees.inexact_vjp(lambda *args: pointwise(weights, *args), state, drive, feedback)[1]

    def bwd(pull, d_state):
        return pull(d_state)

    return fwd, bwd
