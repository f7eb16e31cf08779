"""The two passes of exact backpropagation through time, block by block."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core import adjoint, primal, side_by_side, trees
from jax_bptt.core.loops import Loop, scan
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
    """

    length: int
    keep: bool
    parts: tuple[int, ...]
    together: bool
    transposed: bool


def forward(
    cell: Cell, plan: Plan, weights: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """Run the cell; return ((last_state, ys), residuals of `backward`)."""

    def block(part, start, scan, state, inputs):
        _, inputs = inputs
        run = primal.forward(cell, weights, start, state, *part(inputs, 1), keep=plan.keep)
        return run.finish(scan(run.loop))

    parts = _parts(plan)
    starts = [part(state, 0) for part in parts]
    blocks = [functools.partial(block, *args) for args in zip(parts, starts, strict=True)]
    ends = _scan_blocks(blocks, starts, [(None, (xs, controls))] * len(parts), plan)
    states = [states for _, (states, _) in ends]
    ys = _join([primal.over_time(cell, cell.readout)(weights, s) for s in states], 1)
    last_state = _join([last_state for last_state, _ in ends], 0)
    return (last_state, ys), (weights, state, xs, controls, [outputs for _, outputs in ends])


def backward(
    cell: Cell,
    plan: Plan,
    residuals: PyTree,
    d_last_state: PyTree,
    d_ys: PyTree,
    wants_xs: bool,
) -> tuple[PyTree, PyTree, PyTree]:
    """Return (d_weights, d_state, d_xs) by the explicit reverse pass, the last block first."""
    weights, state, xs, controls, outputs = residuals

    def firsts(start, outputs):
        return jax.tree.map(
            lambda s, ss: jnp.concatenate([s[None], ss[plan.length - 1 : -1 : plan.length]]),
            start,
            outputs[0],
        )

    def block(part, start, scan, carry, inputs):
        (d_state, d_start, d_weights), (first, (own, shared)) = carry, inputs
        (states, kept), (xs, controls, after, d_ys) = own, part(shared, 1)
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
            wants_xs=wants_xs,
        )
        d_state, d_part, d_xs, d_part_start = run.finish(scan(run.loop))
        d_weights = trees.accumulate(d_weights, d_part)
        return (d_state, trees.add(d_start, d_part_start), d_weights), d_xs

    parts = _parts(plan)
    starts = [part(state, 0) for part in parts]
    blocks = [functools.partial(block, *args) for args in zip(parts, starts, strict=True)]

    def carry(part, start):
        d_start = None if controls.reset is None else trees.zero_gradient(start)
        zeros = d_start, trees.zero_gradient(weights)
        return part(d_last_state, 0), *trees.vary_alike(zeros, residuals)

    shared = xs, controls, adjoint.resets_after(controls), d_ys
    inputs = [
        (firsts(start, own), (own, shared)) for start, own in zip(starts, outputs, strict=True)
    ]
    ends = _scan_blocks(blocks, list(map(carry, parts, starts)), inputs, plan, reverse=True)
    d_states, d_starts, d_parts = zip(*[carry for carry, _ in ends], strict=True)
    d_state, d_weights = _join(d_states, 0), functools.reduce(trees.add, d_parts)
    if controls.reset is not None:
        # What a reset of the first step goes back to is in `d_starts` already.
        d_state = trees.add(select(~controls.reset[0], d_state), _join(d_starts, 0))
    return trees.cast_gradient(d_weights, weights), d_state, _join([d_xs for _, d_xs in ends], 1)


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


def _scan_blocks(
    blocks: list[Callable],
    carries: list[PyTree],
    inputs: list[tuple[PyTree, PyTree]],
    plan: Plan,
    reverse: bool = False,
) -> list[tuple[PyTree, PyTree]]:
    """Scan over the blocks of time, each part of the batch by itself.

    Args:
      blocks: of each part, `(scan, carry, (per_block, per_step)) -> (carry, outputs)`, where `scan`
        runs a loop over steps, and `per_step` and outputs lead with an axis of the block's length.
      carries: of each part, what passes from block to block.
      inputs: of each part, (per_block, per_step): pytrees with leading axes of ceil(T / length) and
        of T.
      plan: the length of a block, and how the loops are run.
      reverse: whether to go from the last block to the first.

    Returns:
      Of each part, the final carry and the outputs of all steps, in time order whatever the
      direction.
    """
    steps, length = jax.tree.leaves(inputs[0][1])[0].shape[0], plan.length
    count, rest = divmod(steps, length)

    def pieces(given, of_block, of_step):
        per_block, per_step = given
        return jax.tree.map(of_block, per_block), jax.tree.map(of_step, per_step)

    def alone(loop):
        return scan(loop._replace(step=functools.partial(loop.step, scan)))

    def whole(carries):
        def cut(a):
            return a[: count * length].reshape(count, length, *a.shape[1:])

        loops = [
            Loop(block, carry, pieces(given, lambda a: a[:count], cut), reverse)
            for block, carry, given in zip(blocks, carries, inputs, strict=True)
        ]
        ends = side_by_side.scans(loops) if plan.together else list(map(alone, loops))
        return [
            (carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs))
            for carry, outputs in ends
        ]

    def remainder(carries):
        return [
            block(scan, carry, pieces(given, lambda a: a[count], lambda a: a[count * length :]))
            for block, carry, given in zip(blocks, carries, inputs, strict=True)
        ]

    if steps <= length:
        return [
            block(scan, carry, pieces(given, lambda a: a[0], lambda a: a))
            for block, carry, given in zip(blocks, carries, inputs, strict=True)
        ]
    if rest == 0:
        return whole(carries)
    stages = (remainder, whole) if reverse else (whole, remainder)
    outputs = []
    for stage in stages:
        ends = stage(carries)
        carries = [carry for carry, _ in ends]
        outputs.append([out for _, out in ends])
    heads, tails = outputs[::-1] if reverse else outputs
    joined = [
        jax.tree.map(lambda h, t: jnp.concatenate([h, t]), head, tail)
        for head, tail in zip(heads, tails, strict=True)
    ]
    return list(zip(carries, joined, strict=True))
