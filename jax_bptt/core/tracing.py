"""A cell's functions, traced once for a run: what they return, close over, and cannot do.

A step may close over values of the program around it, such as encoder outputs that it attends to.
A rule for a derivative must not see them but as arguments, so that they are made part of the
weights, and differentiated as those are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import Tracer, eval_jaxpr

from jax_bptt.core import jaxprs
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree


class Traced(NamedTuple):
    """Facts about a cell at the shapes of a run.

    Attributes:
      drive: description of one drive.
      new_state: description of what the step returns.
      closed: whether a function closes over traced values.
      effects: whether a function does something besides, such as `jax.debug.print`.
      reverse_only: whether a function has a `jax.custom_vjp`, and so no forward mode.
    """

    drive: PyTree
    new_state: PyTree
    closed: bool
    effects: bool
    reverse_only: bool


class Hoisted(NamedTuple):
    """Weights of a cell, and what its functions closed over, by function."""

    own: PyTree
    closed: dict[str, list[Any]]


def trace(cell: Cell, weights: PyTree, state: PyTree, xs: PyTree) -> Traced:
    """Trace the functions of `cell` for one time step of `xs` [T, *batch, ...]."""
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    project, drive = jax.make_jaxpr(cell.project, return_shape=True)(weights, x)
    step, new_state = jax.make_jaxpr(cell.step, return_shape=True)(weights, state, drive)
    readout = jax.make_jaxpr(cell.readout)(weights, state)
    every = project, step, readout
    return Traced(
        drive,
        new_state,
        closed=any(map(_closes_over_tracers, every)),
        effects=any(closed.jaxpr.effects for closed in every),
        reverse_only=any(jaxprs.contains(c.jaxpr, "custom_vjp_call") for c in every),
    )


def hoist(
    cell: Cell, weights: PyTree, state: PyTree, xs: PyTree, drive: PyTree
) -> tuple[Cell, Hoisted]:
    """Return `cell` with all that its functions close over as part of its weights.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      state: s_0.
      xs: [T, *batch, ...].
      drive: description of one drive.
    """
    closed: dict[str, list[Any]] = {}

    def convert(name: str, fun: Callable, *args: PyTree) -> Callable:
        jaxpr, shape = jax.make_jaxpr(fun, return_shape=True)(weights, *args)
        closed[name] = list(jaxpr.consts)

        def converted(weights, *args):
            leaves = jax.tree.leaves((weights.own, *args))
            results = eval_jaxpr(jaxpr.jaxpr, weights.closed[name], *leaves)
            return jax.tree.unflatten(jax.tree.structure(shape), results)

        return converted

    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    step = cell.step
    if isinstance(step, GatedStep):
        feedback = jax.eval_shape(step.mix, weights, state)
        mix = convert("mix", step.mix, state)
        # The pair is left to JAX, since it may close over the same values.
        pointwise = convert("pointwise", step.pointwise, state, drive, feedback)
        new_step: Any = GatedStep(mix, pointwise, heads=step.heads)
    elif isinstance(step, DiagonalStep):
        new_step = DiagonalStep(convert("coefficients", step.coefficients, drive))
    else:
        new_step = convert("step", step, state, drive)
    hoisted = cell._replace(
        step=new_step,
        project=convert("project", cell.project, x),
        readout=convert("readout", cell.readout, state),
        any_batch=False,
    )
    return hoisted, Hoisted(weights, closed)


def _closes_over_tracers(closed: Any) -> bool:
    return any(isinstance(c, Tracer) for c in closed.consts)
