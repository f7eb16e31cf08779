"""The exact gradient, blocked over time: the algorithm that the library exists for."""

import functools
import math
import os

import jax

from jax_bptt.core import blocks, jaxprs, primal, side_by_side, trees
from jax_bptt.core.checks import batch_shape, is_integer, require
from jax_bptt.core.types import Algorithm, Cell, GatedStep, PyTree

ROWS = 512, 2048
"""Least and most rows of time x batch in a block: fewer, and its products run below full speed."""

DRIVE_BYTES = 2 * 2**20
"""Bytes of a block's drive, of which there are a few such arrays at a time: they share a cache of
2 MiB a core. An LSTM of H = 64 is 19 % faster with blocks of 2048 rows than of 512, and one of
H = 256 13 % slower (two cores, jax 0.10.2). Halves of a batch, whose temporaries all have memory of
their own, take half of it: as fast or up to 8 % faster, and up to a third less of that memory."""

KEEP = 320
"""Multiplications of recurrent products for an element of their result, H for most cells, from
which a CPU keeps what they made."""

KEEP_ON_DEVICES = 256
"""The same with several devices on the host, a core each: at H = 256, B = 32 over two a GRU takes
0.79, 0.82 and 0.92, an LSTM 0.84, 0.85 and 0.89 of the time (T = 128, the same with jax 0.12, and
T = 768), at H = 128, T = 1024 1.08 and 1.07 (Zen 4)."""

TRANSPOSE = 512
"""Multiplications for an element as above, whatever the devices, below which halves make the
products of weight gradients of transposed copies."""

LEFT = 256
"""The same, from which a CPU takes the weights on the left in the products of the reverse loop, at
H = 512 for 0.96 to 0.99 of the time. Not in the forward loop: there the left takes 1.12 to 1.25 of
the time of a forward pass at H = 256, B = 32 (two cores of a Zen 4, jax 0.10.2) and up to 1.16 at
H = 1024 (of a Zen 3). Nor with several devices on the host: on the right takes 0.90 to 0.94 of the
time of a gradient there at H = 256, 0.95 to 0.97 at H = 1024 (Zen 4)."""

WHOLE = 768
"""The same, from which the batch stays whole: each half would read the weights, which fill the
cache. At H = 768, B = 64 halves take 1.10 (LSTM) and 0.98 (GRU) of the time, at H = 1024 an LSTM
takes 1.19."""

LARGE = 3 * 2**25
"""Multiplications of the recurrent products of a step, all of the batch, from which two cores share
a step well and the batch stays whole: at H = 512, B = 128 a GRU takes 1.00 and 0.96 of the time of
halves, an LSTM 0.98 and 0.93, and their forward passes 0.97 and 0.89; forward passes at B = 32 take
1.07 and 1.03 (two cores of a Zen 4, jax 0.10.2 and 0.12, the forward passes 0.10.2)."""

SMALL = 2**14
"""The same, up to which a loop is too short to be worth a second one: with so many an LSTM of
H = 32, B = 4 takes 1.04 of the time, a simple network of H = 64, B = 4 0.88 to 0.97, and a GRU of
H = 32, B = 8 with half as many again 0.9 (two cores, jax 0.10.2 and 0.12)."""

SHORT = 2**23
"""The same of all steps, about a millisecond's, below which two loops would be compiled for little:
a simple network of H = 64, B = 16 takes 0.85 of the time at T = 64 and 128, 0.80 at 256, 0.7 at
512."""

ROWS_OF_A_HALF = 2
"""A product of one row is faster by itself: an LSTM of H = 128 takes 1.0 to 1.5 of the time in
halves at B = 3, 0.79 at B = 4."""


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
    products are large, and is the default there from H = 320 on: an LSTM of H = 1024, B = 64 took
    0.84 of the time, one of H = 512 and B = 128 0.85, of H = 384 and 320 and B = 32 0.90, of
    H = 256 and B = 64 or 32 0.95 and 1.03, of H = 128 1.12, a GRU of H = 384 0.88 (two cores, jax
    0.10.2; within 0.03 with 0.12). With several devices on the host it is from H = 256 on, where it
    took 0.8 to 0.9.

    On a CPU with two cores or more, the halves of the batch run side by side, a core each, where
    H < 768 and the recurrent products of a step take less than 10^8 multiplications
    (`jax_bptt.core.side_by_side`): it is too small for two cores to share. At H, B = 128, 32 and
    256, 32 an LSTM took 0.71 and 0.76 of the time, a GRU 0.63 and 0.63, the simple network 0.81 and
    0.71 (two cores, jax 0.10.2). The first half writes into the whole of what both give out, the
    second has its part copied: half of [T, B, H] and of [T, B, I] more than with the batch whole.
    Compiling takes 6 to 8 times as long as for a plain scan, and 1.7 to 2.1 times with
    `split_batch=False`. Only cells with a `GatedStep` do so, with one device, two rows or more in
    each half, more than 2^14 multiplications in a step's recurrent products (B H^2 of a simple
    network), and 2^23 in those of all steps.

    Args:
      block_length: K, in steps; any positive number, T need not be a multiple of it. By default
        such that the drive of a block takes about 2 MiB, in 512 to 2048 rows of time x batch, half
        of that with the batch in halves, or 512 rows with several devices; adjusted so that the
        least of T is left over; and T where all of the drive takes no more than 2 MiB, which is up
        to 28 % faster and takes up to 21 arrays [T, B, H] then, 10 MiB or so, and for convolutions
        on a CPU: 4 times faster at T = 512 with images of 4 x 4, for as much memory as the plain
        scan takes.
      recompute: whether the reverse pass computes the unit-wise Jacobians of a block, and the
        products they need, again; False to keep them from the forward pass. By default True but
        for a CPU and recurrent products of H >= 320, or 256 with several devices.
      split_batch: whether the two halves of the first batch axis are run as two loops, side by side
        where XLA has a core for each; from two blocks on, and where it is differentiated twice not.
        By default where that is faster, as said above. True asks for a state whose leaves all lead
        with the batch shape, and sequences that do not depend on each other.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: `block_length` is not a positive integer; when it is used, the batch cannot be
        split and `split_batch` is True.
      TypeError: `recompute` or `split_batch` is neither a bool nor None.

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
    for name, value in (("recompute", recompute), ("split_batch", split_batch)):
        require(
            value is None or isinstance(value, bool),
            f"bptt: {name} must be True, False or None, got {value!r}",
            TypeError,
        )

    def plan(cell, weights, state, xs):
        steps, batch = jax.tree.leaves(xs)[0].shape[0], batch_shape(cell, xs)
        each, total = _recurrent_products(cell, weights, state)
        size = primal.drive_bytes(cell, weights, xs)
        devices = jax.local_device_count()
        hindrance = _hindrance(cell, state, xs, batch)
        require(
            not split_batch or hindrance is None,
            f"bptt: split_batch=True, but {hindrance}. Leave split_batch at None.",
        )
        split = split_batch
        if split is None:
            split = hindrance is None and _has_idle_core() and _pays(steps, batch, each, total)
        length = block_length
        if length is None and not split:
            fits = steps * size <= DRIVE_BYTES
            length = steps if fits or _convolves(cell, weights, state) else None
        if length is None:
            length = automatic_block_length(steps, math.prod(batch), size, devices, halves=split)
        split = split and length < steps
        least = KEEP if devices == 1 else KEEP_ON_DEVICES
        return blocks.Plan(
            length=max(1, min(length, steps)),
            keep=_is_cpu() and each >= least if recompute is None else not recompute,
            parts=(batch[0] // 2, batch[0] - batch[0] // 2) if split else (math.prod(batch[:1]),),
            together=split,
            transposed=split and each < TRANSPOSE,
            left=_is_cpu() and devices == 1 and each >= LEFT,
        )

    def run(fun, cell, plan, *args):
        if not plan.together:
            return fun(cell, plan, *args)

        def together(side_by_side, *args):
            return fun(cell, plan._replace(together=side_by_side), *args)

        return side_by_side.differentiable(together)(*args)

    def forward(cell, weights, state, xs, controls, wants_residuals):
        chosen = plan(cell, weights, state, xs)
        # Out of loops side by side XLA does not take what nobody reads.
        chosen = chosen._replace(keep=chosen.keep and wants_residuals)
        return run(blocks.forward, cell, chosen, weights, state, xs, controls)

    def backward(cell, residuals, d_last_state, d_ys, wants_xs):
        reverse = functools.partial(blocks.backward, wants_xs=wants_xs)
        return run(reverse, cell, plan(cell, *residuals[:3]), residuals, d_last_state, d_ys)

    return Algorithm(forward, backward)


def automatic_block_length(
    steps: int, batch: int, step_bytes: int, devices: int = 1, halves: bool = False
) -> int:
    """Return the block length for T = `steps` when the user names none.

    Among the lengths within a factor of two of what `DRIVE_BYTES` and `ROWS` ask for, the one that
    leaves the least of T over, and of those the nearest: what is left over is one more block to
    compile, which halves of the batch do not run side by side (T = 127, B = 32, H = 256: blocks of
    9, one step left over, take 0.80 (GRU) and 0.86 (LSTM) of the time of blocks of 8, seven left).

    Args:
      steps: T.
      batch: B.
      step_bytes: of the drive of one step, all of the batch.
      devices: of the host. Several have a core each at the most, whose own cache is smaller, and
        no threads to wake: they take the least rows (two devices, one core each, an LSTM of
        H = 128: 124 ms with 512 rows a device, 153 ms with 2048).
      halves: whether two loops run side by side, each a half of the batch: their blocks, of which
        all is kept apart, are half as long, and there are two at least.
    """
    least, most = (max(1, rows // max(batch, 1)) for rows in ROWS)
    most, drive = (max(most // 2, least), DRIVE_BYTES // 2) if halves else (most, DRIVE_BYTES)
    most = most if devices == 1 else least
    target = min(max(drive // max(step_bytes, 1), least), most)
    if halves:
        target = min(target, -(-steps // 2))
    if steps <= target:
        return max(steps, 1)
    near = range(-(-target // 2), 2 * target + 1)
    return min(near, key=lambda k: (steps % k, abs(k - target)))


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _recurrent_products(cell: Cell, weights: PyTree, state: PyTree) -> tuple[float, float]:
    """Return how many multiplications a step's products do for an element, and in all.

    Zero but for a gated step.
    """
    if not isinstance(cell.step, GatedStep):
        return 0, 0
    each = jaxprs.multiplications(cell.step.mix, weights, state)
    feedback = jax.tree.leaves(jax.eval_shape(cell.step.mix, weights, state))
    return each, each * sum(f.size for f in feedback)


def _convolves(cell: Cell, weights: PyTree, state: PyTree) -> bool:
    """Return whether a step's products are convolutions, on a CPU.

    For the gradient of a kernel XLA has a routine that it does not take within a loop, where one of
    512 images of 4 x 4 takes ten times as long, of 8192 thirty times (two cores, jax 0.10.2).
    """
    if not (_is_cpu() and isinstance(cell.step, GatedStep)):
        return False
    return "conv_general_dilated" in jaxprs.operations(cell.step.mix, weights, state)


def _pays(steps: int, batch: tuple[int, ...], each: float, total: float) -> bool:
    """Return whether halves of the batch are faster than the whole, on two cores."""
    rows = batch[0] // 2 * math.prod(batch[1:])
    small = each < WHOLE and total < LARGE
    return small and rows >= ROWS_OF_A_HALF and total > SMALL and steps * total >= SHORT


def _has_idle_core() -> bool:
    """Return whether a loop over steps too small for two cores leaves one without work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _is_cpu() and jax.local_device_count() == 1 and (cores or 1) > 1


def _hindrance(cell: Cell, state: PyTree, xs: PyTree, batch: tuple[int, ...]) -> str | None:
    """Return why the batch cannot be split in halves, or None."""
    if not cell.any_batch:
        return "the cell's functions do not take any batch shape (any_batch is False)"
    if not batch or batch[0] < 2:
        return f"the batch shape {batch} has no first axis of two sequences or more"
    shapes = [s.shape for s in jax.tree.leaves(state)]
    if any(shape[: len(batch)] != batch for shape in shapes):
        return f"not all leaves of the state lead with the batch shape {batch}: {shapes}"
    if any(map(trees.varying, jax.tree.leaves((state, xs)))):
        return "inside jax.shard_map each device has a part of the batch already"
    return None
