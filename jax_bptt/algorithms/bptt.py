"""The exact gradient, block by block of time: the algorithm that the library exists for."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from jax_bptt.core import blocks, devices, reverse, trees
from jax_bptt.core.checks import batch_shape, is_integer, require, shown
from jax_bptt.core.forward import Stretch, entering, forward_scan, over_time
from jax_bptt.core.linearize import gated_residuals
from jax_bptt.core.types import Algorithm, Cell, GatedStep, Gradient, Inputs, PyTree
from jax_bptt.core.values import as_value

ROWS = 512, 2048
"""Least and most rows of time x batch in a block: fewer, and its products run below full speed."""

DRIVE_BYTES = 2**20
"""Bytes of a block's drive: a few arrays of that size share a core's cache."""

KEEP = 256
"""Units of a state from which products are so large that keeping what they made is faster."""


class Saved(NamedTuple):
    """Residuals of the forward pass, for the reverse pass.

    Attributes:
      inputs: of the run.
      states: s_1..s_T.
      residuals: of the gated steps, as leaves; None to compute them again.
    """

    inputs: Inputs
    states: PyTree
    residuals: list[Array] | None


@as_value
def bptt(*, block_length: int | None = None, recompute: bool | None = None) -> Algorithm:
    """Return exact backpropagation through time, computed block by block.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1
        dL/dW        = sum_t (d+ s_t / dW)^T lambda_t

    The forward pass scans over blocks of K steps and keeps the states alone. The reverse pass
    takes the blocks last to first; in each it recomputes the drives and the unit-wise Jacobians
    (batched products, since every state is known), scans lambda backwards, and adds the block's
    part of every weight gradient in one product per matrix.

    Blocks serve the memory hierarchy: with K x B of 512 rows or more a product runs at full
    speed while the block's temporaries stay in the cache. The result does not depend on K beyond
    rounding.

    Time is O(T B H (I + H)), memory one state per step: [T, B, H] for a simple recurrent network
    or a GRU, twice that for an LSTM, beyond inputs and outputs. Exact.

    With `recompute=False` the forward pass keeps the unit-wise Jacobians as well. That spares a
    quarter of all products, and takes as many arrays [T, B, H] more as the cell has coefficients: 6
    for an LSTM, 5 for a GRU, none where they are functions of the states, as for `elman`.

    Args:
      block_length: K, in steps; any positive number, T need not be a multiple of it. By default T
        where the drive of all steps takes no more than 1 MiB, and T of unknown size; else such that
        that of a block does, in 512 to 2048 rows of time x batch, and that little of T is left
        over.
      recompute: whether the reverse pass computes the unit-wise Jacobians of a block, and the
        products they need, again; False to keep them from the forward pass. By default True below
        H = 256.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: `block_length` is not a positive integer.
      TypeError: `recompute` is neither a bool nor None.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> _, ys = jb.unroll(cell, params, xs, algorithm=jb.bptt(block_length=4))
      >>> ys.shape
      (10, 2, 4)
    """
    require(
        block_length is None or (is_integer(block_length) and block_length > 0),
        f"bptt: block_length must be a positive number of steps or None, got {shown(block_length)}",
    )
    require(
        recompute is None or isinstance(recompute, bool),
        f"bptt: recompute must be True, False or None, got {shown(recompute)}",
        TypeError,
    )

    def length(cell: Cell, inputs: Inputs) -> int:
        return block_length or block_length_of(cell, inputs.weights, inputs.xs)

    def run(cell, inputs):
        return _forward(cell, inputs, length(cell, inputs), keep=False)[0]

    def forward(cell, inputs):
        keep = keeps(inputs.state) if recompute is None else not recompute
        return _forward(cell, inputs, length(cell, inputs), keep)

    def backward(cell, saved, d_last_state, d_ys):
        block_length = length(cell, saved.inputs)
        return in_blocks(reverse.gradient, cell, saved, d_last_state, d_ys, block_length)

    def explain(cell, inputs):
        keep = keeps(inputs.state) if recompute is None else not recompute
        steps, kept = jax.tree.leaves(inputs.xs)[0].shape[0], "keeps" if keep else "makes"
        again = "" if keep else " again"
        return (
            f"bptt() takes T = {steps} in blocks of {length(cell, inputs)} steps, and is exact\n"
            f"of the steps it {kept} what their Jacobians need{again}"
        )

    return Algorithm(run, forward, backward, explain=explain)


def _forward(
    cell: Cell, inputs: Inputs, length: int, keep: bool
) -> tuple[tuple[PyTree, PyTree], Saved]:
    weights, state, xs, start, controls = inputs

    def block(state, steps):
        _, (xs, controls) = steps
        return run_block(cell, Inputs(weights, state, xs, start, controls), keep)

    last_state, (states, residuals) = blocks.scan_blocks(
        block, state, (None, (xs, controls)), length
    )
    ys = over_time(cell, cell.readout)(weights, states)
    return (last_state, ys), Saved(inputs, states, residuals)


def run_block(
    cell: Cell, inputs: Inputs, keep: bool
) -> tuple[PyTree, tuple[PyTree, list[Array] | None]]:
    """Return (s_K, (s_1..s_K, residuals)) of K steps; residuals None for none, as in `Saved`."""
    weights, state, xs, start, controls = inputs
    last_state, states, feedbacks = forward_scan(cell, inputs, keep)
    if not keep or not isinstance(cell.step, GatedStep):
        return last_state, (states, None)
    prevs = entering(start, state, states, controls)
    drives = over_time(cell, cell.project)(weights, xs)
    stretch = Stretch(prevs, drives, states)
    residuals = gated_residuals(cell.step, weights, stretch, feedbacks)
    return last_state, (states, jax.tree.leaves(residuals))


def in_blocks(
    gradient: Callable[..., Gradient],
    cell: Cell,
    saved: Saved,
    lam: PyTree,
    d_ys: PyTree,
    length: int,
) -> Gradient:
    """Return the gradient of a run, block by block from the last.

    Args:
      gradient: `(inputs, surroundings, lam) -> Gradient` of a block, as `reverse.gradient`. Its
        `state` is the `lam` of the block before.
      cell: the cell.
      saved: by the forward pass.
      lam: what reaches s_T.
      d_ys: cotangents of y_1..y_T, or None for none.
      length: K, of a block.
    """
    (weights, state, xs, start, controls), states, residuals = saved

    def block(total, steps):
        first, (states, xs, controls, d_ys, residuals) = steps
        own = Inputs(weights, first, xs, start, controls)
        around = reverse.surroundings(cell, own, states, d_ys, residuals)
        return total.with_block(gradient(own, around, total.lam))

    steps = states, xs, controls, d_ys, residuals
    firsts = blocks.firsts(state, states, length)
    total, d_xs = blocks.scan_blocks(
        block, begin_total(saved, lam), (firsts, steps), length, reverse=True
    )
    return total.gradient(weights, d_xs)


class Total(NamedTuple):
    """The sums that the reverse pass carries from block to block.

    Attributes:
      lam: what reaches the state before the latest block.
      d_start: what has reached the start, None without resets.
      d_weights: the weights' gradient so far, in the dtype of its accumulators.
    """

    lam: PyTree
    d_start: PyTree
    d_weights: PyTree

    def with_block(self, part: Gradient) -> tuple["Total", PyTree]:
        """Return the total with the gradient of one more block, and that of its inputs."""
        d_weights = trees.accumulate(self.d_weights, part.weights)
        return Total(part.state, trees.add(self.d_start, part.start), d_weights), part.xs

    def gradient(self, weights: PyTree, d_xs: PyTree) -> Gradient:
        """Return the gradient of the run."""
        return Gradient(trees.cast_gradient(self.d_weights, weights), self.lam, d_xs, self.d_start)


def begin_total(saved: Any, lam: PyTree) -> Total:
    """Return the total before the last block; `saved` by the forward pass, its `inputs` within."""
    weights, _, _, start, _ = saved.inputs
    zeros = trees.zero_gradient(start), trees.zero_gradient(weights)
    return Total(lam, *devices.vary_alike(zeros, saved))


def keeps(state: PyTree) -> bool:
    """Return whether by default what the products of a step made is kept, as they are large."""
    sizes = [s.shape[-1] for s in jax.tree.leaves(state) if s.ndim > 0]
    return any(is_integer(size) and size >= KEEP for size in sizes)  # else a symbolic batch


def block_length_of(cell: Cell, weights: PyTree, xs: PyTree) -> int:
    """Return the block length where the user names none, for inputs `xs` [T, *batch, ...]."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    rows = math.prod(batch_shape(cell, xs))
    if not (is_integer(steps) and is_integer(rows)):
        return steps  # a symbolic size
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    drive = jax.tree.leaves(jax.eval_shape(cell.project, weights, x))
    return automatic_block_length(steps, rows, sum(a.size * a.dtype.itemsize for a in drive))


def automatic_block_length(steps: int, rows: int, step_bytes: int) -> int:
    """Return the block length for T = `steps`.

    Within a factor of two of what `DRIVE_BYTES` and `ROWS` ask for, the `even_length`.

    Args:
      steps: T.
      rows: B, of all batch axes.
      step_bytes: of the drive of one step, all of the batch.
    """
    if steps * step_bytes <= DRIVE_BYTES:
        return max(steps, 1)
    least, most = (max(1, bound // max(rows, 1)) for bound in ROWS)
    target = min(max(DRIVE_BYTES // max(step_bytes, 1), least), most)
    if steps <= target:
        return steps
    return even_length(steps, target, -(-target // 2), 2 * target)


def even_length(steps: int, target: int, least: int, most: int) -> int:
    """Return the length from `least` to `most` that leaves the fewest of T = `steps` over.

    Of several the nearest to `target`. What is left over is one more block to compile.
    """
    return min(range(least, most + 1), key=lambda k: (steps % k, abs(k - target)))
