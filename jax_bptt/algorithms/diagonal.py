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

import jax
import jax.numpy as jnp

from jax_bptt.core import adjoint, primal, trees
from jax_bptt.core.sequence import Controls, select
from jax_bptt.core.types import Algorithm, DiagonalStep, PyTree


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

    def forward(cell, weights, start, xs, controls, wants_residuals):
        drives = primal.over_time(cell, cell.project)(weights, xs)
        coefficients = _coefficients(cell, weights)
        a, b = coefficients(drives)
        a, b = _held(a, controls), controls.hold(b, None)
        if controls.reset is not None:
            # What enters the step is s_0, so that the whole of it is an offset.
            restarted = jax.tree.map(lambda a, s, b: a * s[None] + b, a, start, b)
            b = select(controls.reset, restarted, b)
        constant = _constant(coefficients, drives, controls)
        states, last_state = recurrence(start, _cut(a, controls), b, constant, False)
        ys = primal.over_time(cell, cell.readout)(weights, states)
        return (last_state, ys), (weights, start, xs, controls, states)

    def backward(cell, residuals, d_last_state, d_ys, wants_xs):
        weights, start, xs, controls, states = residuals
        drives, pull_project = trees.inexact_vjp(primal.over_time(cell, cell.project), weights, xs)
        prevs = primal.previous_states(start, start, states, controls)
        linearization = adjoint.linearize(cell, weights, prevs, states, drives)
        a = _held(linearization.residuals, controls)
        d_readout, d_states = adjoint.readout_gradient(cell, weights, states, d_ys)
        constant = _constant(_coefficients(cell, weights), drives, controls)
        lambdas, d_start = recurrence(d_last_state, _cut(a, controls), d_states, constant, True)
        if controls.reset is not None:
            restarts = select(controls.reset, jax.tree.map(jnp.multiply, a, lambdas))
            d_start = jax.tree.map(lambda d, r: d + r.sum(0), d_start, restarts)

        d_step, d_drives = linearization.accumulate(controls.hold(lambdas, None))
        d_project, d_xs = pull_project(d_drives)
        d_weights = trees.add(d_step, d_project)
        return d_weights if d_readout is None else trees.add(d_weights, d_readout), d_start, d_xs

    return Algorithm(forward, backward)


def _coefficients(cell, weights):
    step = cell.step
    assert isinstance(step, DiagonalStep)
    over_time = primal.over_time(cell, step.coefficients)
    return lambda drives: over_time(weights, drives)


def _held(a: PyTree, controls: Controls) -> PyTree:
    """Return the factors with one where the state is held."""
    return controls.hold(a, jax.tree.map(jnp.ones_like, a))


def _cut(a: PyTree, controls: Controls) -> PyTree:
    """Return the factors with zero where the state starts again."""
    return controls.restart(jax.tree.map(jnp.zeros_like, a), a)


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
