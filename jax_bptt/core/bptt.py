"""The exact gradient, blocked over time: the algorithm that the library exists for."""

import itertools
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core import adjoint, primal, side_by_side, trees
from jax_bptt.core.checks import batch_shape, is_integer, require
from jax_bptt.core.types import Algorithm, Cell, GatedStep, PyTree

ROWS = 512, 2048
"""Least and most rows of time x batch in a block: fewer, and its products run below full speed."""

DRIVE_BYTES = 2 * 2**20
"""Bytes of a block's drive, of which there are a few such arrays at a time: they share a cache of
2 MiB a core. An LSTM of H = 64 is 19 % faster with blocks of 2048 rows than of 512, and one of
H = 256 13 % slower (two cores, jax 0.10.2)."""

LARGE = 512
"""With so many multiplications for an element of a feedback, a CPU keeps what they made."""


def bptt(
    *,
    block_length: int | None = None,
    recompute: bool | None = None,
    split_batch: bool | None = None,
) -> Algorithm:
    """Return exact backpropagation through time, computed block by block.

    The forward pass scans over blocks of K steps and keeps the states alone. The reverse pass
    takes the blocks last to first; in each it recomputes the drives and the unit-wise Jacobians
    (batched products, since every state is known), scans lambda backwards, and adds the block's
    part of every weight gradient in one product per matrix.

    Blocks serve the memory hierarchy: with K x B of 512 rows or more a product runs at full
    speed while the block's temporaries stay in the cache. The result does not depend on K beyond
    rounding.

    Time is O(T B H (I + H)), memory one state per step: [T, B, H] for a simple recurrent network
    or a GRU, twice that for an LSTM, beyond inputs and outputs. Exact.

    With `recompute=False` the forward pass keeps the coefficients of the reverse scan as well. That
    spares a quarter of all products, and takes as many arrays [T, B, H] more as the cell has
    coefficients: 6 for an LSTM, 5 for a GRU, none where they are functions of the states, as for
    `elman`: an LSTM has 8 arrays then, of 14 that the plain scan has. On a CPU that pays where
    products are large, and is the default there from H = 512 on: an LSTM of H = 1024, B = 64 took
    0.84 of the time, one of H = 512 and B = 128, 32 or 16 took 0.87, 0.91 and 1.05, one of H = 384,
    256 and 128 took 0.99, 1.02 and 1.05, a GRU of H = 512 0.92, 1.01 and 0.91 (two cores, jax
    0.10.2).

    Args:
      block_length: K, in steps; any positive number, T need not be a multiple of it. By default
        such that the drive of a block takes about 2 MiB, in 512 to 2048 rows of time x batch, or
        in 512 rows with several devices; adjusted to divide T if it can.
      recompute: whether the reverse pass computes the unit-wise Jacobians of a block, and the
        products they need, again; False to keep them from the forward pass. By default True but
        for a CPU and recurrent products of H >= 512.

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
        f"bptt: block_length must be a positive number of steps or None, got {block_length!r}",
    )
    require(
        recompute is None or isinstance(recompute, bool),
        f"bptt: recompute must be True, False or None, got {recompute!r}",
        TypeError,
    )

    def forward(cell, together, weights, state, xs, controls):
        keep = _keeps(cell, weights, state) if recompute is None else not recompute
        sizes = _sizes(cell, weights, state, xs)

        def block(carry, _, inputs):
            halves = zip(*(_cut(sizes, t, a) for t, a in ((state, 0), (carry, 0), (inputs, 1))))
            runs = [primal.forward(cell, weights, s, c, *i, keep=keep) for s, c, i in halves]

            def finish(ends):
                done = [run.finish(end) for run, end in zip(runs, ends, strict=True)]
                last_state = _join([last_state for last_state, _ in done], 0)
                states = _join([states for _, (states, _) in done], 1)
                return last_state, (states, [kept for _, (_, kept) in done])

            return [run.loop for run in runs], finish

        last_state, (states, kept) = _scan_blocks(
            block, state, None, (xs, controls), _length(cell, weights, xs), together
        )
        ys = primal.over_time(cell, cell.readout)(weights, states)
        return (last_state, ys), (weights, state, xs, controls, states, kept)

    def backward(cell, together, residuals, d_last_state, d_ys):
        weights, state, xs, controls, states, kept = residuals
        length, sizes = _length(cell, weights, xs), _sizes(cell, weights, state, xs)
        firsts = jax.tree.map(
            lambda s, ss: jnp.concatenate([s[None], ss[length - 1 : -1 : length]]), state, states
        )

        def block(carry, first, inputs):
            (d_state, d_start, d_weights), (kept, inputs) = carry, inputs
            batch_first, time_first = (state, first, d_state), inputs
            runs = []
            for (start, first, d_state), (states, xs, controls, d_ys), kept in zip(
                _cut(sizes, batch_first, 0), _cut(sizes, time_first, 1), kept, strict=True
            ):
                prevs = primal.previous_states(start, first, states, controls)
                runs.append(
                    adjoint.reverse(cell, weights, prevs, states, xs, controls, d_state, d_ys, kept)
                )

            def finish(ends):
                done = [run.finish(end) for run, end in zip(runs, ends, strict=True)]
                d_states, d_parts, d_xs, d_starts = zip(*done, strict=True)
                total = d_weights
                for part in d_parts:
                    total = trees.accumulate(total, part)
                d_reset = trees.add(d_start, _join(d_starts, 0))
                return (_join(d_states, 0), d_reset, total), _join(d_xs, 1)

            return [run.loop for run in runs], finish

        zeros = trees.zero_gradient(weights), trees.zero_gradient(state)
        d_weights, d_start = trees.vary_alike(zeros, residuals)
        carry = d_last_state, None if controls.reset is None else d_start, d_weights
        inputs = kept, (states, xs, controls, d_ys)
        (d_state, d_start, d_weights), d_xs = _scan_blocks(
            block, carry, firsts, inputs, length, together, reverse=True
        )
        if d_start is not None:
            d_state = trees.add(d_state, d_start)
        return trees.cast_gradient(d_weights, weights), d_state, d_xs

    def _sizes(cell, weights, state, xs):
        batch = batch_shape(cell, xs)
        hindrance = _hindrance(cell, state, batch)
        require(
            not split_batch or hindrance is None,
            f"bptt: split_batch=True, but {hindrance}. Leave split_batch at None.",
        )
        wanted = _splits(cell, weights, state) if split_batch is None else split_batch
        if not wanted or hindrance is not None:
            return None
        return batch[0] // 2, batch[0] - batch[0] // 2

    def _length(cell, weights, xs):
        steps = jax.tree.leaves(xs)[0].shape[0]
        wanted = block_length
        if wanted is None:
            batch = math.prod(batch_shape(cell, xs))
            size = primal.drive_bytes(cell, weights, xs)
            wanted = automatic_block_length(steps, batch, size, jax.local_device_count())
        return max(1, min(wanted, steps))

    return Algorithm(side_by_side.differentiable(forward), side_by_side.differentiable(backward))


def automatic_block_length(steps: int, batch: int, step_bytes: int, devices: int = 1) -> int:
    """Return the block length for T = `steps` when the user names none.

    Among the lengths within a factor of two of what `DRIVE_BYTES` and `ROWS` ask for, the nearest
    that divides T, since a remainder is a second, shorter block to compile.

    Args:
      steps: T.
      batch: B.
      step_bytes: of the drive of one step, all of the batch.
      devices: of the host. Several have a core each at the most, whose own cache is smaller, and
        no threads to wake: they take the least rows (two devices, one core each, an LSTM of
        H = 128: 124 ms with 512 rows a device, 153 ms with 2048).
    """
    least, most = (max(1, rows // max(batch, 1)) for rows in ROWS)
    most = most if devices == 1 else least
    target = min(max(DRIVE_BYTES // max(step_bytes, 1), least), most)
    if steps <= target:
        return max(steps, 1)
    near = [k for k in range(-(-target // 2), 2 * target + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(k - target)) if near else target


def _keeps(cell: Cell, weights: PyTree, state: PyTree) -> bool:
    """Return whether keeping what a block needs takes less time than to compute it again."""
    step = cell.step
    if not isinstance(step, GatedStep) or jax.default_backend() != "cpu":
        return False
    return trees.multiplications(step.mix, weights, state) >= LARGE


def _hindrance(cell: Cell, state: PyTree, batch: tuple[int, ...]) -> str | None:
    """Return why the batch cannot be split in halves, or None."""
    if not cell.any_batch:
        return "the cell's functions do not take any batch shape (any_batch is False)"
    if not batch or batch[0] < 2:
        return f"there is no first batch axis of two sequences or more to split, in shape {batch}"
    shapes = [s.shape for s in jax.tree.leaves(state)]
    if any(shape[: len(batch)] != batch for shape in shapes):
        return f"the state has leaves that do not lead with the batch shape {batch}: {shapes}"
    if any(trees.varying(s) for s in jax.tree.leaves(state)):
        return "inside jax.shard_map the devices have a core each already"
    return None


def _splits(cell: Cell, weights: PyTree, state: PyTree) -> bool:
    """Return whether two halves of the batch side by side take less time than the whole of it."""
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1 or _cores() < 2:
        return False
    return isinstance(cell.step, GatedStep)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cut(sizes: tuple[int, ...] | None, tree: PyTree, axis: int) -> list[PyTree]:
    """Cut every leaf of `tree` into parts of the given sizes along an axis; None for one part."""
    if sizes is None:
        return [tree]
    ends = list(itertools.accumulate(sizes))
    return [
        jax.tree.map(lambda a: lax.slice_in_dim(a, end - size, end, axis=axis), tree)
        for size, end in zip(sizes, ends, strict=True)
    ]


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
    length: int,
    together: bool,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Scan over blocks of `length` steps.

    Args:
      block: `(carry, per_block, per_step) -> (loops, finish)`, of one block: loops that do not
        depend on each other, and a function of their ends that returns (carry, outputs). The
        leading axis of `per_step` and outputs is the block's length.
      carry: what passes from block to block.
      per_block: pytree with a leading axis of ceil(T / length).
      per_step: pytree with a leading axis of T.
      length: in steps, at least 1. A remainder of T makes one shorter block at the end.
      together: whether loops of a block may run side by side.
      reverse: whether to go from the last block to the first.

    Returns:
      The final carry and the outputs of all steps, in time order whatever the direction.
    """
    steps = jax.tree.leaves(per_step)[0].shape[0]
    blocks, rest = divmod(steps, length)

    def run(carry, per_block, per_step):
        loops, finish = block(carry, per_block, per_step)
        return finish([side_by_side.scan(loop) for loop in loops])

    def advance(carry, inputs):
        carry, tickets = carry
        loops, finish = block(carry, *inputs)
        if together and len(loops) > 1:
            ends, tickets = side_by_side.scans(loops, tickets)
        else:
            ends = [side_by_side.scan(loop) for loop in loops]
        carry, outputs = finish(ends)
        return (carry, tickets), outputs

    if steps <= length:
        return run(carry, jax.tree.map(lambda a: a[0], per_block), per_step)

    def whole(carry):
        def cut(a):
            return a[: blocks * length].reshape(blocks, length, *a.shape[1:])

        inputs = jax.tree.map(lambda a: a[:blocks], per_block), jax.tree.map(cut, per_step)
        carry = carry, side_by_side.tickets()
        (carry, _), outputs = lax.scan(advance, carry, inputs, reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)

    def remainder(carry):
        last = jax.tree.map(lambda a: a[blocks], per_block)
        return run(carry, last, jax.tree.map(lambda a: a[blocks * length :], per_step))

    if rest == 0:
        return whole(carry)
    if reverse:
        carry, tail = remainder(carry)
        carry, head = whole(carry)
    else:
        carry, head = whole(carry)
        carry, tail = remainder(carry)
    return carry, jax.tree.map(lambda h, t: jnp.concatenate([h, t]), head, tail)
