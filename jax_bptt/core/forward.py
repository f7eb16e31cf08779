"""The forward pass over a stretch of time, every state kept.

    s_t = step(s_{t-1}, x_t)        t = 1..K

What does not depend on the state is computed ahead of the scan for all K steps at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, Inputs, PyTree


class Stretch(NamedTuple):
    """K steps as they were taken.

    Attributes:
      prevs: what entered each step, s_{t-1} or the start of a sequence, [K, *batch, ...].
      drives: [K, *batch, ...].
      states: what the steps made of it, s_1..s_K. Where a state was held, it is the held one.
    """

    prevs: PyTree
    drives: PyTree
    states: PyTree


def over_time(cell: Cell, fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun(weights, *args)` of `cell` for arguments with a leading time axis.

    A product with the weights becomes one product over time and batch, and so does its transpose:
    the gradient of the weights contracts time and batch in one go.
    """
    if cell.any_batch:
        return fun

    def mapped(weights, *args):
        return jax.vmap(lambda args: fun(weights, *args))(args)

    return mapped


def forward_scan(cell: Cell, inputs: Inputs, keep: bool = False) -> tuple[PyTree, PyTree, PyTree]:
    """Run the cell over `inputs`.

    Args:
      cell: the cell.
      inputs: of K steps, K >= 0.
      keep: whether to return the feedbacks of a gated step.

    Returns:
      (s_K, s_1..s_K stacked, feedbacks stacked or None).
    """
    weights, state, xs, start, controls = inputs
    drives = over_time(cell, cell.project)(weights, xs)
    if isinstance(cell.step, DiagonalStep):
        drives = over_time(cell, cell.step.coefficients)(weights, drives)

    def step(state, inputs):
        drive, control = inputs
        prev, feedback = control.enter(start, state), None
        if isinstance(cell.step, DiagonalStep):
            a, b = drive
            new = jax.tree.map(lambda a, s, b: a * s + b, a, prev, b)
        elif isinstance(cell.step, GatedStep):
            feedback = cell.step.mix(weights, prev)
            new = cell.step.pointwise(weights, prev, drive, feedback)
        else:
            new = cell.step(weights, prev, drive)
        state = control.hold(new, prev)
        return state, (state, feedback if keep else None)

    last_state, (states, feedbacks) = lax.scan(step, state, (drives, controls))
    return last_state, states, feedbacks


def entering(start: PyTree, state: PyTree, states: PyTree, controls: Controls) -> PyTree:
    """Return what entered each of K steps: s_0..s_{K-1}, or the start of a sequence at a reset.

    Args:
      start: the state that a reset goes back to.
      state: s_0.
      states: s_1..s_K.
      controls: of these K steps.
    """
    prevs = jax.tree.map(
        lambda s, ss: jnp.concatenate([s[None], ss[:-1]])[: ss.shape[0]], state, states
    )
    return controls.enter(start, prevs)
