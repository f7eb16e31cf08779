"""The two passes of exact backpropagation through time, block by block."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core import adjoint, primal, side_by_side, trees
from jax_bptt.core.loops import Before, Loop, scan
from jax_bptt.core.sequence import Controls, select
from jax_bptt.core.types import Cell, PyTree


class Plan(NamedTuple):
    """How a run is cut, the same for both passes.

    Attributes:
      length: of a block, in steps, at least 1. A remainder of T makes one shorter block.
      keep: whether the forward pass keeps the residuals of the steps.
      parts: sizes of the parts of the first batch axis, each with a loop of its own.
      together: whether these loops run side by side, rather than one after the other.
      transposed: whether the products of weight gradients are of transposed copies.
      left: whether weights are on the left in the products of the reverse loop of a gated step.
    """

    length: int
    keep: bool
    parts: tuple[int, ...]
    together: bool
    transposed: bool
    left: bool


def forward(
    cell: Cell, plan: Plan, weights: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """Run the cell; return ((last_state, ys), residuals of `backward`)."""
    parts = _parts(plan)
    among = _states_among_outputs(cell, weights, state, parts)

    def block(part, start, scan, state, inputs):
        run = primal.forward(cell, weights, start, state, *part(inputs, 1), keep=plan.keep)
        last_state, (states, kept) = run.finish(scan(run.loop))
        given_out, others = _divide(states, among)
        return last_state, (given_out, (others, kept))

    starts = [part(state, 0) for part in parts]
    loops = [
        Loop(functools.partial(block, part, start), start, (xs, controls))
        for part, start in zip(parts, starts, strict=True)
    ]
    last_states, given_out, own = _scan_blocks(loops, plan)

    def read(part, others):
        states = part(given_out, 1)
        ys = primal.over_time(cell, cell.readout)(weights, trees.combine(states, others))
        return ys, states

    pieces = [read(part, others) for part, (others, _) in zip(parts, own, strict=True)]
    states = zip(jax.tree.leaves(pieces[0][1]), jax.tree.leaves(given_out), strict=True)
    wholes = {id(piece): whole for piece, whole in states}
    ys = jax.tree.map(
        lambda y, *others: wholes[id(y)] if id(y) in wholes else _join([y, *others], 1),
        *[ys for ys, _ in pieces],
    )
    return (_join(last_states, 0), ys), (weights, state, xs, controls, given_out, own)


def _states_among_outputs(
    cell: Cell, weights: PyTree, state: PyTree, parts: Sequence[Callable]
) -> PyTree:
    """Return which leaves of the state are outputs as they are.

    With the batch in parts they are kept as outputs, of the whole batch, rather than twice.
    """
    if len(parts) == 1:
        return jax.tree.map(lambda s: False, state)
    found = []

    def look(state):
        outputs = jax.tree.leaves(cell.readout(weights, state))
        found.append(jax.tree.map(lambda s: any(y is s for y in outputs), state))
        return outputs

    jax.eval_shape(look, state)
    return found[0]


def _divide(states: PyTree, among: PyTree) -> tuple[PyTree, PyTree]:
    """Return the states that are given out and the others, each with None in the other's places."""
    given_out = jax.tree.map(lambda s, yes: s if yes else None, states, among)
    others = jax.tree.map(lambda s, yes: None if yes else s, states, among)
    return given_out, others


def backward(
    cell: Cell,
    plan: Plan,
    residuals: PyTree,
    d_last_state: PyTree,
    d_ys: PyTree,
    wants_xs: bool,
) -> tuple[PyTree, PyTree, PyTree]:
    """Return (d_weights, d_state, d_xs) by the explicit reverse pass, the last block first."""
    weights, state, xs, controls, given_out, own = residuals
    parts = _parts(plan)
    among = _states_among_outputs(cell, weights, state, parts)

    def block(part, start, scan, carry, inputs):
        d_state, d_start, d_weights = carry
        (given, others), ((own, kept), shared) = inputs
        first = trees.combine(part(given, 0), others)
        given, xs, controls, after, d_ys = part(shared, 1)
        states = trees.combine(given, own)
        prevs = primal.previous_states(start, first, states, controls)
        run = adjoint.reverse(
            cell,
            weights,
            prevs,
            states,
            xs,
            controls,
            after,
            d_state,
            d_ys,
            kept,
            transposed=plan.transposed,
            left=plan.left,
            wants_xs=wants_xs,
        )
        d_state, d_part, d_xs, d_part_start = run.finish(scan(run.loop))
        d_weights = trees.accumulate(d_weights, d_part)
        return (d_state, trees.add(d_start, d_part_start), d_weights), (d_xs, None)

    def pick(inputs):
        (own, _), (given, *_) = inputs
        return given, own

    def loop(part, apart):
        start = part(state, 0)
        d_start = None if controls.reset is None else trees.zero_gradient(start)
        zeros = d_start, trees.zero_gradient(weights)
        carry = part(d_last_state, 0), *trees.vary_alike(zeros, residuals)
        before = Before((_divide(state, among)[0], _divide(start, among)[1]), pick)
        step = functools.partial(block, part, start)
        return Loop(step, carry, (apart, shared), reverse=True, before=before)

    shared = given_out, xs, controls, adjoint.resets_after(controls), d_ys
    carries, d_xs, _ = _scan_blocks(list(map(loop, parts, own)), plan)
    d_states, d_starts, d_parts = zip(*carries, strict=True)
    d_state, d_weights = _join(d_states, 0), functools.reduce(trees.add, d_parts)
    if controls.reset is not None:
        # What a reset of the first step goes back to is in `d_starts` already.
        d_state = trees.add(select(~controls.reset[0], d_state), _join(d_starts, 0))
    return trees.cast_gradient(d_weights, weights), d_state, d_xs


def _parts(plan: Plan) -> list[Callable[..., PyTree]]:
    """Return functions `(tree, axis)` that cut a part of the batch out of every leaf."""
    if len(plan.parts) == 1:
        return [lambda tree, axis: tree]

    def cut(start, end, tree, axis):
        return jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=axis), tree)

    ends = [0, *itertools.accumulate(plan.parts)]
    return [functools.partial(cut, *pair) for pair in itertools.pairwise(ends)]


def _join(parts: Sequence[PyTree], axis: int) -> PyTree:
    """Put what belongs to the parts of the batch together."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)


def _scan_blocks(loops: list[Loop], plan: Plan) -> tuple[list[PyTree], PyTree, list[PyTree]]:
    """Run the loops over blocks of the parts of the batch, as the plan says.

    Their steps take one argument more, the first, which runs a loop over steps, and emit
    (together, apart), of which the former is put together again.

    Returns:
      The last carry of each part, the outputs of all parts together, and those of each apart.
    """
    loops = [loop._replace(block=plan.length) for loop in loops]
    if plan.together:
        return side_by_side.scans(loops, axis=1)
    ends = [scan(loop._replace(step=functools.partial(loop.step, scan))) for loop in loops]
    carries, outputs = zip(*ends, strict=True)
    together, apart = zip(*outputs, strict=True)
    return list(carries), _join(together, 1), list(apart)
