"""The two passes of exact backpropagation through time, block by block."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core import adjoint, primal, side_by_side, trees
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Cell, PyTree


class Plan(NamedTuple):
    """How a run is cut, the same for both passes.

    Attributes:
      length: of a block, in steps, at least 1. A remainder of T makes one shorter block.
      keep: whether the forward pass keeps the residuals of the steps.
      parts: sizes of the parts of the first batch axis, each with a loop of its own.
      together: whether the loops of a block run side by side, rather than one after the other.
    """

    length: int
    keep: bool
    parts: tuple[int, ...]
    together: bool


def forward(
    cell: Cell, plan: Plan, weights: PyTree, state: PyTree, xs: PyTree, controls: Controls
) -> tuple[PyTree, PyTree]:
    """Run the cell; return ((last_state, ys), residuals of `backward`)."""

    def block(carry, _, inputs):
        parts = zip(_cut(plan.parts, (state, carry), 0), _cut(plan.parts, inputs, 1), strict=True)
        runs = [
            primal.forward(cell, weights, *states, *inputs, keep=plan.keep)
            for states, inputs in parts
        ]

        def finish(ends):
            done = [run.finish(end) for run, end in zip(runs, ends, strict=True)]
            last_state = _join([last_state for last_state, _ in done], 0)
            states = _join([states for _, (states, _) in done], 1)
            return last_state, (states, [kept for _, (_, kept) in done])

        return [run.loop for run in runs], finish

    last_state, (states, kept) = _scan_blocks(block, state, None, (xs, controls), plan)
    ys = primal.over_time(cell, cell.readout)(weights, states)
    return (last_state, ys), (weights, state, xs, controls, states, kept)


def backward(
    cell: Cell, plan: Plan, residuals: PyTree, d_last_state: PyTree, d_ys: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """Return (d_weights, d_state, d_xs) by the explicit reverse pass, the last block first."""
    weights, state, xs, controls, states, kept = residuals
    firsts = jax.tree.map(
        lambda s, ss: jnp.concatenate([s[None], ss[plan.length - 1 : -1 : plan.length]]),
        state,
        states,
    )

    def block(carry, first, inputs):
        (d_state, d_start, d_weights), (kept, inputs) = carry, inputs
        edges = _cut(plan.parts, (state, first, d_state), 0)
        insides = _cut(plan.parts, inputs, 1)

        def run(edge, inside, kept):
            (start, first, d_state), (states, xs, controls, d_ys) = edge, inside
            prevs = primal.previous_states(start, first, states, controls)
            return adjoint.reverse(cell, weights, prevs, states, xs, controls, d_state, d_ys, kept)

        runs = list(map(run, edges, insides, kept))

        def finish(ends):
            done = [run.finish(end) for run, end in zip(runs, ends, strict=True)]
            d_states, d_parts, d_xs, d_starts = zip(*done, strict=True)
            total = d_weights
            for d_part in d_parts:
                total = trees.accumulate(total, d_part)
            d_total_start = trees.add(d_start, _join(d_starts, 0))
            return (_join(d_states, 0), d_total_start, total), _join(d_xs, 1)

        return [run.loop for run in runs], finish

    zeros = trees.zero_gradient(weights), trees.zero_gradient(state)
    d_weights, d_start = trees.vary_alike(zeros, residuals)
    carry = d_last_state, None if controls.reset is None else d_start, d_weights
    inputs = kept, (states, xs, controls, d_ys)
    (d_state, d_start, d_weights), d_xs = _scan_blocks(
        block, carry, firsts, inputs, plan, reverse=True
    )
    if d_start is not None:
        d_state = trees.add(d_state, d_start)
    return trees.cast_gradient(d_weights, weights), d_state, d_xs


def _cut(sizes: tuple[int, ...], tree: PyTree, axis: int) -> list[PyTree]:
    """Cut every leaf of `tree` into parts of the given sizes along an axis."""
    if len(sizes) == 1:
        return [tree]
    ends = [0, *itertools.accumulate(sizes)]

    def part(start, end):
        return jax.tree.map(lambda a: lax.slice_in_dim(a, start, end, axis=axis), tree)

    return list(itertools.starmap(part, itertools.pairwise(ends)))


def _join(parts: Sequence[PyTree], axis: int) -> PyTree:
    """Undo `_cut`."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)


def _scan_blocks(
    block: Callable,
    carry: PyTree,
    per_block: PyTree,
    per_step: PyTree,
    plan: Plan,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Scan over blocks.

    Args:
      block: `(carry, per_block, per_step) -> (loops, finish)`, of one block: loops that do not
        depend on each other, and a function of their ends that returns (carry, outputs). The
        leading axis of `per_step` and outputs is the block's length.
      carry: what passes from block to block.
      per_block: pytree with a leading axis of ceil(T / length).
      per_step: pytree with a leading axis of T.
      plan: the length of a block, and how its loops are run. A single block and the remainder of T
        run theirs one after the other.
      reverse: whether to go from the last block to the first.

    Returns:
      The final carry and the outputs of all steps, in time order whatever the direction.
    """
    steps, length = jax.tree.leaves(per_step)[0].shape[0], plan.length
    blocks, rest = divmod(steps, length)

    def run(carry, inputs):
        loops, finish = block(carry, *inputs)
        return finish([side_by_side.scan(loop) for loop in loops])

    def run_together(carry, inputs):
        carry, memory = carry
        loops, finish = block(carry, *inputs)
        ends, memory = side_by_side.scans(loops, memory)
        carry, outputs = finish(ends)
        return (carry, memory), outputs

    def first_loops(carry, inputs):
        return block(carry, *jax.tree.map(lambda a: a[0], inputs))[0]

    if steps <= length:
        return run(carry, (jax.tree.map(lambda a: a[0], per_block), per_step))

    def whole(carry):
        def cut(a):
            return a[: blocks * length].reshape(blocks, length, *a.shape[1:])

        inputs = jax.tree.map(lambda a: a[:blocks], per_block), jax.tree.map(cut, per_step)
        if plan.together:
            carry = carry, side_by_side.memory(first_loops, carry, inputs)
            (carry, _), outputs = lax.scan(run_together, carry, inputs, reverse=reverse)
        else:
            carry, outputs = lax.scan(run, carry, inputs, reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)

    def remainder(carry):
        last = jax.tree.map(lambda a: a[blocks], per_block)
        return run(carry, (last, jax.tree.map(lambda a: a[blocks * length :], per_step)))

    if rest == 0:
        return whole(carry)
    if reverse:
        carry, tail = remainder(carry)
        carry, head = whole(carry)
    else:
        carry, head = whole(carry)
        carry, tail = remainder(carry)
    return carry, jax.tree.map(lambda h, t: jnp.concatenate([h, t]), head, tail)
