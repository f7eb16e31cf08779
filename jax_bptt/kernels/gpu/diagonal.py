"""A diagonal linear recurrence on a GPU: all steps in one launch, forward or reverse.

Every unit of every sequence is a lane of its own, and a thread takes one lane through all T steps,
with its state in a register. Factors and offsets reach it through shared memory, in blocks of steps
of which DEPTH are in flight; a warp stores 128 bytes in a row and waits for nothing. Each array is
read once and the result written once: 12 bytes a lane and step where factors change over time, 8
where they do not, twice that for complex numbers. Compiled for an H200 a step is 10 instructions of
a warp, 6 with fixed factors, 28 and 17 for complex numbers, with 32 to 56 registers, none of them
spilled; threads meet once for 8 to 32 steps.

How wide a layer has to be for the memory to be what it waits for is an estimate from figures of the
H200 (132 multiprocessors, 4.3 TB/s of its nominal 4.8 taken to be attainable): nothing was timed.
A block of LANES threads has 48 KB in flight, which at a latency of 0.8 us is 60 GB/s read, 90 with
what is written, so that 50 blocks suffice: a batch times units of 6000. With less, time is that of
the sequence, some 17 ns a step whatever the width. Cutting time into stretches that run side by
side would take two more launches, some 10 us, and 20 bytes a lane and step in place of 12: it would
gain nothing before several thousand steps of fewer than 3000 lanes, and is left to `associative`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.kernels import linear
from jax_bptt.kernels.gpu import mosaic
from jax_bptt.kernels.gpu.mosaic import plgpu
from jax_bptt.kernels.kernel import DiagonalKernel

LANES = 128
"""Units that a block of threads takes: one a thread of a warpgroup."""
DEPTH = 4
"""Blocks of steps in flight."""
SLOT = 16384
"""Bytes of one of them, over all arrays: two blocks of threads fit into a multiprocessor."""


def unsupported(state: Array) -> str | None:
    """Return why the kernel cannot carry `state`, None if it can."""
    if reason := mosaic.available():
        return reason
    if state.dtype not in (jnp.float32, jnp.complex64):
        return f"the GPU kernel carries float32 or complex64, not {state.dtype}"
    return None


def interpreter() -> Any:
    """Return the parameters by which the kernel runs on a CPU."""
    return mosaic.plgpu.InterpretGPUParams()


def release() -> None:
    """Let the next copy overwrite what all threads of the block have read of shared memory."""
    plgpu.commit_smem()


def scan(
    first: Array,
    factors: Array,
    offsets: Array | None,
    *,
    reverse: bool = False,
    interpret: Any = None,
) -> tuple[Array, Array]:
    """Run the recurrence of `kernels.linear`; arguments and results are those of `Scan`."""
    steps, constant = linear.length(factors, offsets)
    width = math.prod(first.shape)
    padded = -(-width // LANES) * LANES
    kept = [] if offsets is None else [offsets]
    fixed, fetched = ([factors], kept) if constant else ([], [factors, *kept])

    def lanes(array):
        flat = array.reshape(-1, width)
        return [jnp.pad(p, ((0, 0), (0, padded - width))) for p in linear.planes(flat)]

    inputs = tuple([p for a in arrays for p in lanes(a)] for arrays in ([first], fixed, fetched))
    count = len(inputs[0])
    block = SLOT // (4 * LANES * len(inputs[2]))
    whole, rest = divmod(steps, block)
    leading = 1 if rest else 0

    def body(inputs, *refs):
        first_refs, fixed_refs, fetched_refs = inputs
        *out_refs, slots, ready = refs
        own = pl.ds(lax.axis_index("block") * LANES, LANES)
        layout = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
        whole_ring = mosaic.Ring(tuple(slots), ready, DEPTH)
        rest_ring = whole_ring._replace(slots=tuple(s.at[:, pl.ds(0, rest)] for s in slots))

        def tile(ref, row):
            return mosaic.load(ref.at[row], layout)

        def sources(start, size):
            return [ref.at[pl.ds(start, size), own] for ref in fetched_refs]

        def start_of(position):
            """Return the first of the steps of the whole block that is run at this position."""
            k = position - leading
            return (whole - 1 - k) * block if reverse else rest + k * block

        def run(refs, position, start, size, carried):
            made = []
            rows = range(size)
            for row in reversed(rows) if reverse else rows:
                tiles = [*always, *(tile(ref, row) for ref in refs)]
                factor, offset = tuple(tiles[:count]), tuple(tiles[count:]) or None
                values, carried = linear.advance(factor, carried, offset, reverse)
                made.append((start + row, values))
            release()
            refill(position + DEPTH)
            # Last, so that no fence waits for it.
            for t, values in made:
                for ref, value in zip(out_refs[:count], values, strict=True):
                    mosaic.store(ref.at[t, own], value)
            return carried

        def advance(position, carried):
            refs = whole_ring.wait(position)
            return run(refs, position, start_of(position), block, carried)

        def refill(position):
            @pl.when(position < leading + whole)
            def _():
                whole_ring.fetch(position, sources(start_of(position), block), 0, 1)

        # The remainder comes first, so that all that is fetched within the loop is of one size.
        first_start = whole * block if reverse else 0
        if rest:
            rest_ring.fetch(0, sources(first_start, rest), 0, 1)
        for position in range(leading, DEPTH):
            refill(position)
        always = [tile(ref.at[:, own], 0) for ref in fixed_refs]
        carried = tuple(tile(ref.at[:, own], 0) for ref in first_refs)
        if rest:
            carried = run(rest_ring.wait(0), 0, first_start, rest, carried)
        bounds = jnp.int32(leading), jnp.int32(leading + whole)
        carried = lax.fori_loop(*bounds, advance, carried)
        for ref, value in zip(out_refs[count:], carried, strict=True):
            mosaic.store(ref.at[own], value)

    made = mosaic.kernel(
        body,
        out_type=tuple(
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((steps, padded), (padded,))
            for _ in range(count)
        ),
        scratch_types=[
            [plgpu.SMEM((DEPTH, block, LANES), jnp.float32) for _ in inputs[2]],
            plgpu.Barrier(num_arrivals=len(inputs[2]), num_barriers=DEPTH),
        ],
        grid=(padded // LANES,),
        grid_names=("block",),
        compiler_params=mosaic.compiler_params(False),
        interpret=interpret,
    )(inputs)
    values = linear.join([v[:, :width] for v in made[:count]])
    last = linear.join([v[:width] for v in made[count:]])
    return values.reshape(steps, *first.shape), last.reshape(first.shape)


KERNEL = DiagonalKernel("gpu_diagonal", unsupported, interpreter, scan)
