"""The exact gradient, blocked over time: the algorithm that the library exists for."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core import adjoint, trees
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


def bptt(*, block_length: int | None = None, recompute: bool | None = None) -> Algorithm:
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

    def forward(cell, weights, state, xs, controls):
        keep = _keeps(cell, weights, state) if recompute is None else not recompute

        def run(carry, _, inputs):
            if keep:
                return adjoint.scan_residuals(cell, weights, state, carry, *inputs)
            last_state, states = adjoint.scan_states(cell, weights, state, carry, *inputs)
            return last_state, (states, None)

        inputs = xs, controls
        last_state, (states, kept) = _scan_blocks(
            run, state, None, inputs, _length(cell, weights, xs)
        )
        ys = adjoint.over_time(cell, cell.readout)(weights, states)
        return (last_state, ys), (weights, state, xs, controls, states, kept)

    def backward(cell, residuals, d_last_state, d_ys):
        weights, state, xs, controls, states, kept = residuals
        length = _length(cell, weights, xs)
        firsts = jax.tree.map(
            lambda s, ss: jnp.concatenate([s[None], ss[length - 1 : -1 : length]]), state, states
        )

        def run(carry, first, inputs):
            d_state, d_start, d_weights = carry
            states, kept, xs, controls, d_ys = inputs
            prevs = adjoint.previous_states(state, first, states, controls)
            d_state, d_block, d_xs, d_reset = adjoint.reverse_stretch(
                cell, weights, prevs, states, xs, controls, d_state, d_ys, kept
            )
            d_start = trees.add(d_start, d_reset)
            return (d_state, d_start, trees.accumulate(d_weights, d_block)), d_xs

        zeros = trees.zero_gradient(weights), trees.zero_gradient(state)
        d_weights, d_start = trees.vary_alike(zeros, residuals)
        carry = d_last_state, None if controls.reset is None else d_start, d_weights
        (d_state, d_start, d_weights), d_xs = _scan_blocks(
            run, carry, firsts, (states, kept, xs, controls, d_ys), length, reverse=True
        )
        if d_start is not None:
            d_state = trees.add(d_state, d_start)
        return trees.cast_gradient(d_weights, weights), d_state, d_xs

    def _length(cell, weights, xs):
        steps = jax.tree.leaves(xs)[0].shape[0]
        wanted = block_length
        if wanted is None:
            batch = math.prod(batch_shape(cell, xs))
            size = adjoint.drive_bytes(cell, weights, xs)
            wanted = automatic_block_length(steps, batch, size, jax.local_device_count())
        return max(1, min(wanted, steps))

    return Algorithm(forward, backward)


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


def _scan_blocks(
    run: Callable, carry: PyTree, per_block: PyTree, per_step: PyTree, length: int, reverse=False
) -> tuple[PyTree, PyTree]:
    """Scan `run(carry, per_block, per_step) -> (carry, outputs)` over blocks of `length` steps.

    Args:
      run: takes one block; the leading axis of its `per_step` and outputs is the block's length.
      carry: what passes from block to block.
      per_block: pytree with a leading axis of ceil(T / length).
      per_step: pytree with a leading axis of T.
      length: in steps, at least 1. A remainder of T makes one shorter block at the end.
      reverse: whether to go from the last block to the first.

    Returns:
      The final carry and the outputs of all steps, in time order whatever the direction.
    """
    steps = jax.tree.leaves(per_step)[0].shape[0]
    blocks, rest = divmod(steps, length)
    if steps <= length:
        return run(carry, jax.tree.map(lambda a: a[0], per_block), per_step)

    def whole(carry):
        def cut(a):
            return a[: blocks * length].reshape(blocks, length, *a.shape[1:])

        inputs = jax.tree.map(lambda a: a[:blocks], per_block), jax.tree.map(cut, per_step)
        carry, outputs = lax.scan(lambda c, i: run(c, *i), carry, inputs, reverse=reverse)
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
