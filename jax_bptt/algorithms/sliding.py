"""The gradient in which the loss of each step reaches back a fixed number of steps.

State and adjoint are split by how many steps may still be crossed. A tangent ds_t of age a has
crossed a steps since it entered, and one of age h crosses no other:

    ds_t^{a+1} = J_t ds_{t-1}^a                   a = 0..h - 1       s_0 enters at age 0,
    ds_t^1    += d+s_t                                               weights and inputs at age 1
    dy_t       = dy_t/ds_t sum_a ds_t^a

and lambda_t^a, the transpose, is the adjoint of ds_t^a:

    lambda_{t-1}^a = J_t^T lambda_t^{a+1} + g_{t-1}                  (g_{t-1} alone at age h)

A step that is not taken leaves ages as they are.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.dtypes import float0

from jax_bptt.algorithms.bptt import block_length_of, bptt, in_blocks
from jax_bptt.core import trees
from jax_bptt.core.checks import is_integer
from jax_bptt.core.derivative import with_constants
from jax_bptt.core.forward import entering, forward_scan, over_time
from jax_bptt.core.reverse import Surroundings
from jax_bptt.core.sequence import select
from jax_bptt.core.types import Algorithm, Cell, Gradient, Inputs, PyTree


def sliding_window(window: int) -> Algorithm:
    """Return the algorithm whose losses reach back `window` steps each."""
    exact = bptt()
    exact_backward = exact.backward
    assert exact_backward is not None

    def run(cell, inputs):
        if _covers(window, inputs):
            return exact.run(cell, inputs)
        values = jax.custom_jvp(lambda inputs: exact.run(cell, inputs))

        def jvp(primals, tangents):
            (inputs,), (given,) = primals, tangents
            outputs = values(inputs)
            given = jax.tree.map(lambda t: None if t.dtype == float0 else t, given)
            return outputs, with_constants(_push(cell, window, inputs, given), outputs)

        values.defjvp(jvp)
        return values(inputs)

    def backward(cell, saved, d_last_state, d_ys):
        if _covers(window, saved.inputs):
            return exact_backward(cell, saved, d_last_state, d_ys)
        aged = jax.tree.map(lambda d: jnp.repeat(d[None], window + 1, 0), d_last_state)
        length = block_length_of(cell, saved.inputs.weights, saved.inputs.xs)
        found = in_blocks(_pull, cell, saved, aged, d_ys, length)
        return found._replace(state=_of_age(found.state, 0))

    return Algorithm(run, exact.forward, backward)


def _covers(window: int, inputs: Inputs) -> bool:
    """Return whether a window reaches over all steps, so that no adjoint has an end."""
    steps = jax.tree.leaves(inputs.xs)[0].shape[0]
    return is_integer(steps) and window >= steps


def _pull(inputs: Inputs, around: Surroundings, aged: PyTree) -> Gradient:
    """Return the gradient of a block; `state` is lambda^a of the state before it, a leading."""
    linear, g, accumulate = around

    def step(aged, inputs):
        residual, g, control = inputs
        aged = trees.add(aged, jax.tree.map(lambda g: g[None], g))
        younger = jax.tree.map(lambda a: a[1:], aged)
        through, emitted = jax.vmap(lambda lam: linear.pull(residual, control.taken(lam)))(younger)
        entered = trees.add(_with_oldest(through, aged), jax.vmap(control.held)(aged))
        before, d_start = jax.vmap(control.leave)(entered)
        return before, (_of_age(aged, 1), _of_age(emitted, 0), _of_age(d_start, 0))

    before, (lambdas, emitted, d_starts) = lax.scan(
        step, aged, (linear.residuals, g, inputs.controls), reverse=True
    )
    d_weights, d_xs = accumulate(lambdas, emitted)
    return Gradient(d_weights, before, d_xs, jax.tree.map(lambda d: d.sum(0), d_starts))


def _push(cell: Cell, window: int, inputs: Inputs, tangents: Inputs) -> PyTree:
    """Return the tangents of the inexact outputs, the transpose of the reverse pass."""
    weights, state, xs, start, controls = inputs
    _, states, _ = forward_scan(cell, inputs)
    prevs = entering(start, state, states, controls)
    project, readout = over_time(cell, cell.project), over_time(cell, cell.readout)
    drives, d_drives = _inexact_jvp(project, (weights, xs), (tangents.weights, tangents.xs))

    def step(aged, inputs):
        prev, drive, d_drive, control = inputs
        if control.reset is not None:
            aged = jax.vmap(functools.partial(select, control.reset))(first, aged)
        younger = jax.tree.map(lambda a: a[:-1], aged)
        moved = jax.vmap(
            lambda d: _inexact_jvp(lambda s: cell.step(weights, s, drive), (prev,), (d,))[1]
        )(younger)
        _, own = _inexact_jvp(
            lambda weights, drive: cell.step(weights, prev, drive),
            (weights, drive),
            (tangents.weights, d_drive),
        )
        moved = jax.tree.map(lambda a, d: a.at[0].add(d), moved, own)
        new = jax.tree.map(lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a]), moved)
        aged = new if control.advance is None else jax.vmap(control.hold)(new, aged)
        return aged, jax.tree.map(lambda a: a.sum(0), aged)

    def at_age_0(d_state):
        return jax.tree.map(lambda d: jnp.pad(d[None], ((0, window), *[(0, 0)] * d.ndim)), d_state)

    first = at_age_0(tangents.start)
    aged, d_states = lax.scan(step, at_age_0(tangents.state), (prevs, drives, d_drives, controls))
    d_ys = _inexact_jvp(readout, (weights, states), (tangents.weights, d_states))[1]
    return jax.tree.map(lambda a: a.sum(0), aged), d_ys


def _inexact_jvp(fun: Callable[..., PyTree], primals: tuple, tangents: tuple) -> tuple:
    """Return `fun(*primals)` and its tangent, as `jax.jvp`, over the inexact leaves alone."""
    inexact, rest = trees.partition(primals)

    def on_inexact(inexact):
        return trees.partition(fun(*trees.combine(inexact, rest)))

    out, d_out, out_rest = jax.jvp(on_inexact, (inexact,), (tangents,), has_aux=True)
    return trees.combine(out, out_rest), d_out


def _of_age(aged: PyTree, age: int) -> PyTree:
    return jax.tree.map(lambda a: a[age], aged)


def _with_oldest(through: PyTree, aged: PyTree) -> PyTree:
    """Add the adjoint of the greatest age, through which no step is crossed."""
    return jax.tree.map(lambda t, a: jnp.concatenate([t, jnp.zeros_like(a[:1])]), through, aged)
