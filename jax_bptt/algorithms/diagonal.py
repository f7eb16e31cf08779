"""Backpropagation through time of a diagonal linear cell, whatever runs its recurrence.

    s_t          = a_t s_{t-1} + b_t                        t = 1..T
    lambda_{t-1} = a_t lambda_t + g_{t-1}                   t = T..1
    da_t, db_t   = lambda_t s_{t-1}, lambda_t

Coefficients, outputs and the gradients of the weights are batched over time; what is left are the
first two lines, with resets and held states folded into the coefficients. The products da_t are
not among them: the pull-back of the coefficients reads its cotangents once, and the compiler makes
them there of lambda and the states, which spares an array of the size of the states.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.core import trees
from jax_bptt.core.forward import Stretch, entering, over_time
from jax_bptt.core.linearize import linearize
from jax_bptt.core.reverse import readout_gradient
from jax_bptt.core.sequence import Controls, select
from jax_bptt.core.types import Algorithm, DiagonalStep, Gradient, Inputs, PyTree


class Saved(NamedTuple):
    """Residuals for the reverse pass: the inputs of the run and s_1..s_T."""

    inputs: Inputs
    states: PyTree


def diagonal_algorithm(recurrence: Callable[..., tuple[PyTree, PyTree]]) -> Algorithm:
    """Return the algorithm for cells with a `DiagonalStep` whose states may be differentiated.

    Args:
      recurrence: `(first, a, b, constant, reverse) -> (values, last)`, on pytrees like the state;
        v_1..v_T and what c is at last, with c = first at first, of

            v_t = a_t c + b_t,  c <- v_t          t = 1..T
            v_t = c + b_t,      c <- a_t v_t      t = T..1, in reverse

        A leaf of b is None in reverse where it is zero. `constant` says of each leaf of a whether
        it is known to be the same at all steps.
    """

    def forward(cell, inputs):
        weights, state, xs, start, controls = inputs
        drives = over_time(cell, cell.project)(weights, xs)
        coefficients = _coefficients(cell, weights)
        a, b = coefficients(drives)
        a, b = _held(a, controls), controls.taken(b)
        if controls.reset is not None:
            # What enters the step is the start, so that the whole of it is an offset.
            restarted = jax.tree.map(lambda a, s, b: a * s[None] + b, a, start, b)
            b = select(controls.reset, restarted, b)
        constant = _constant(coefficients, drives, controls)
        states, last_state = recurrence(state, _cut(a, controls), b, constant, False)
        ys = over_time(cell, cell.readout)(weights, states)
        return (last_state, ys), Saved(inputs, states)

    def backward(cell, saved, d_last_state, d_ys):
        (weights, state, xs, start, controls), states = saved
        drives, pull_project = trees.inexact_vjp(over_time(cell, cell.project), weights, xs)
        prevs = entering(start, state, states, controls)
        linear = linearize(cell, weights, Stretch(prevs, drives, states))
        a = _held(linear.residuals, controls)
        d_readout, g = readout_gradient(cell, weights, states, d_ys)
        constant = _constant(_coefficients(cell, weights), drives, controls)
        lambdas, d_state = recurrence(d_last_state, _cut(a, controls), g, constant, True)
        d_start = None
        if controls.reset is not None:
            restarts = select(controls.reset, jax.tree.map(jnp.multiply, a, lambdas))
            d_start = jax.tree.map(lambda d: d.sum(0), restarts)

        d_step, d_drives = linear.accumulate(controls.taken(lambdas), ())
        d_project, d_xs = pull_project(d_drives)
        d_weights = trees.add(trees.add(d_step, d_project), d_readout)
        return Gradient(d_weights, d_state, d_xs, d_start)

    return Algorithm(lambda cell, inputs: forward(cell, inputs)[0], forward, backward)


def _coefficients(cell, weights):
    step = cell.step
    assert isinstance(step, DiagonalStep)
    coefficients = over_time(cell, step.coefficients)
    return lambda drives: coefficients(weights, drives)


def _held(a: PyTree, controls: Controls) -> PyTree:
    """Return the factors with one where the state is held."""
    return controls.hold(a, jax.tree.map(jnp.ones_like, a))


def _cut(a: PyTree, controls: Controls) -> PyTree:
    """Return the factors with zero where the state starts again."""
    return a if controls.reset is None else select(~controls.reset, a)


def _constant(coefficients: Callable, drives: PyTree, controls: Controls) -> PyTree:
    """Return which leaves of the factors do not depend on the drives. Never names a wrong one."""
    jaxpr, (a, _) = jax.make_jaxpr(coefficients, return_shape=True)(drives)
    leaves, structure = jax.tree.flatten(a)
    if any(c is not None for c in controls):
        return jax.tree.unflatten(structure, [False] * len(leaves))
    moved = set(map(id, jaxpr.jaxpr.invars))
    for eqn in jaxpr.jaxpr.eqns:
        if not moved.isdisjoint(map(id, eqn.invars)):
            moved.update(map(id, eqn.outvars))
    factors = jaxpr.jaxpr.outvars[: len(leaves)]
    return jax.tree.unflatten(structure, [id(v) not in moved for v in factors])
