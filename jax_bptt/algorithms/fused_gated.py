"""A gated cell with all steps of a sequence in one kernel, forward and reverse."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core import trees
from jax_bptt.core.checks import batch_shape
from jax_bptt.core.forward import entering, over_time
from jax_bptt.core.reverse import readout_gradient
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, GatedStep, Gradient, Inputs, PyTree
from jax_bptt.kernels.form import HELD, RESET, Form, split_gates, stack_gates
from jax_bptt.kernels.kernel import BackwardInputs, ForwardInputs, GatedKernel, Settings


class Saved(NamedTuple):
    """Residuals for the reverse pass: inputs of the run, s_1..s_T, tiles the kernel has kept."""

    inputs: Inputs
    states: PyTree
    tiles: tuple[Array, ...]


def fused_gated(kernel: GatedKernel, form: Form, settings: Settings) -> Algorithm:
    """Return backpropagation through time with all steps in `kernel`, forward and reverse.

    Args:
      kernel: one that supports `form`.
      form: the normal form of the cell to be run.
      settings: how to run it.
    """

    def forward(cell, inputs, save=True):
        weights, state, xs, _, controls = inputs
        drives = over_time(cell, cell.project)(weights, xs)
        batch = batch_shape(cell, xs)
        (steps,) = jax.tree.leaves(xs)[0].shape[:1]
        gates = stack_gates(drives, 1 + len(batch))
        rows = math.prod(batch)
        given = ForwardInputs(
            _flat(state, rows),
            gates.reshape(steps, rows, *gates.shape[-2:]),
            _flags(controls, steps, rows),
        )
        found, tiles = kernel.forward(form, given, settings, save)
        leaves, structure = jax.tree.flatten(state)
        shaped = [s.reshape(steps, *like.shape) for s, like in zip(found, leaves, strict=True)]
        states = jax.tree.unflatten(structure, shaped)
        ys = over_time(cell, cell.readout)(weights, states)
        last_state = jax.tree.map(lambda s: s[-1], states)
        return (last_state, ys), Saved(inputs, states, tiles)

    def run(cell, inputs):
        return forward(cell, inputs, save=False)[0]

    def backward(cell, saved, d_last_state, d_ys):
        (weights, state, xs, start, controls), states, tiles = saved
        step = cell.step
        assert isinstance(step, GatedStep)
        batch = batch_shape(cell, xs)
        (steps,), rows = jax.tree.leaves(xs)[0].shape[:1], math.prod(batch)
        d_readout, g = readout_gradient(cell, weights, states, d_ys)
        structure = jax.tree.structure(state)
        d_states = jax.tree.leaves(g, is_leaf=lambda d: d is None)
        given = BackwardInputs(
            _flat(state, rows),
            _flat(states, steps, rows),
            tiles,
            _flags(controls, steps, rows),
            _flat(d_last_state, rows),
            tuple(d if d is None else d.reshape(steps, rows, -1) for d in d_states),
        )
        first, begun, emitted, lambdas = kernel.backward(form, given, settings)
        d_state, d_start = _shaped(first, structure, batch), None
        if start is not None:
            assert begun is not None, "a state to go back to, and no flags"
            d_start = _shaped(begun, structure, batch)

        drives, pull_project = trees.inexact_vjp(over_time(cell, cell.project), weights, xs)
        prevs = entering(start, state, states, controls)
        feedbacks, pull_mix = trees.inexact_vjp(
            lambda w: over_time(cell, step.mix)(w, prevs), weights
        )

        def cotangent(numbers, like):
            gates = _chosen(emitted, numbers)
            shaped = gates.reshape(steps, *batch, *gates.shape[2:])
            return split_gates(shaped, like, 1 + len(batch))

        (d_weights,) = pull_mix(cotangent(form.step.d_feedback, feedbacks))
        if lambdas is not None:
            _, pull = trees.inexact_vjp(
                lambda w: over_time(cell, step.pointwise)(w, prevs, drives, feedbacks), weights
            )
            d_weights = trees.add(d_weights, pull(_shaped(lambdas, structure, (steps, *batch)))[0])
        d_project, d_xs = pull_project(cotangent(form.step.d_drive, drives))
        d_weights = trees.add(trees.add(d_weights, d_project), d_readout)
        return Gradient(trees.cast_gradient(d_weights, weights), d_state, d_xs, d_start)

    return Algorithm(run, forward, backward)


def _flags(controls: Controls, steps: int, rows: int) -> Array | None:
    """Return the controls as the kernels take them, int32 [T, B], or None without any."""
    if controls.advance is None and controls.reset is None:
        return None
    flags = jnp.zeros((steps, rows), jnp.int32)
    if controls.reset is not None:
        flags = flags | jnp.where(controls.reset.reshape(steps, rows), RESET, 0)
    if controls.advance is not None:
        flags = flags | jnp.where(controls.advance.reshape(steps, rows), 0, HELD)
    return flags.astype(jnp.int32)


def _chosen(emitted: Array, numbers: tuple[int | None, ...]) -> Array:
    """Return tiles of [T, B, E, H] by their numbers, [T, B, len(numbers), H]; None is zero."""
    first = numbers[0]
    if first is not None and numbers == tuple(range(first, first + len(numbers))):
        # Such as all of them, where nothing is copied.
        return emitted[:, :, first : first + len(numbers)]
    zero = jnp.zeros((*emitted.shape[:2], emitted.shape[3]), emitted.dtype)
    return jnp.stack([zero if k is None else emitted[:, :, k] for k in numbers], axis=2)


def _flat(state: PyTree, *leading: int) -> tuple[Array, ...]:
    """Return the leaves [*leading, H] of a state, whose batch may have any number of axes."""
    return tuple(s.reshape(*leading, s.shape[-1]) for s in jax.tree.leaves(state))


def _shaped(leaves: tuple[Array, ...], structure: Any, leading: tuple[int, ...]) -> PyTree:
    return jax.tree.unflatten(structure, [a.reshape(*leading, a.shape[-1]) for a in leaves])
