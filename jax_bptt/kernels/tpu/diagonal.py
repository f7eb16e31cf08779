"""A diagonal linear recurrence on a TPU: all steps in one launch, forward or reverse.

A program keeps a block of rows and units of the state in vector registers and goes through time,
while the blocks of steps before and behind the one in work travel between vector memory and main
memory. Each array is read once and the result written once, 12 bytes a unit and step where factors
change over time, 8 where they do not, twice that for complex numbers. Compiled for a v5e a step
of four vector registers takes 13 bundles of instructions, 21 for complex numbers, in which time its
memory (819 GB/s at 1.5 GHz) moves a seventh of what is needed: bandwidth decides, from about 1000
units times rows.

Rows lie along sublanes and units along lanes, as they do in memory, so that nothing is moved first;
fewer than 8 rows or 128 units leave vector registers, and memory, partly empty. Blocks that reach
beyond an array's rows or units compute something there that is not stored; steps beyond T are not
taken, since in reverse they would come first.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.core import devices
from jax_bptt.kernels import linear
from jax_bptt.kernels.kernel import DiagonalKernel

try:
    from jax.experimental.pallas import tpu as pltpu
except ImportError:
    pltpu: Any = None

SUBLANES, LANES = 8, 128
"""Rows and units of a vector register."""
UNITS = 4 * LANES
"""Units that a program takes at the most."""
BYTES = 512 * 1024
"""Bytes of a block of steps of one array, each held twice: 8 MB for complex numbers, of 16 MB."""

SEMANTICS = "parallel", "parallel", "arbitrary"
"""Rows and units may be shared out among cores; steps come in their order."""


def unsupported(state: Array) -> str | None:
    """Return why the kernel cannot carry `state`, None if it can."""
    if pltpu is None or not hasattr(pltpu, "CompilerParams"):
        return "jax.experimental.pallas.tpu has no CompilerParams; install a newer jax"
    if state.dtype not in (jnp.float32, jnp.complex64):
        return f"the TPU kernel carries float32 or complex64, not {state.dtype}"
    return None


def interpreter() -> Any:
    """Return the parameters by which the kernel runs on a CPU."""
    return pltpu.InterpretParams()


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
    units = first.shape[-1] if first.ndim else 1
    rows = math.prod(first.shape) // units
    height, width = min(rows, SUBLANES), min(units, UNITS)
    tile = math.ceil(height / SUBLANES) * SUBLANES * math.ceil(width / LANES) * LANES
    block = min(steps, max(1, BYTES // (4 * tile)))
    blocks = pl.cdiv(steps, block)
    kept = [] if offsets is None else [offsets]
    fixed, fetched = ([factors], kept) if constant else ([], [factors, *kept])

    def flat(array):
        return linear.planes(array.reshape(-1, rows, units))

    inputs = tuple([p for a in arrays for p in flat(a)] for arrays in ([first], fixed, fetched))
    # Inside `jax.shard_map` a result varies over the mesh as all that it is made of.
    inputs = devices.vary_alike(inputs, inputs)
    result = functools.partial(
        jax.ShapeDtypeStruct,
        dtype=jnp.float32,
        manual_axis_type=jax.typeof(inputs[0][0]).manual_axis_type,
    )
    count = len(inputs[0])

    def body(first_refs, fixed_refs, fetched_refs, value_refs, last_refs, carried_refs):
        k = pl.program_id(2)

        @pl.when(k == 0)
        def _():
            for ref, source in zip(carried_refs, first_refs, strict=True):
                ref[...] = source[0]

        start = (blocks - 1 - k if reverse else k) * block
        here = jnp.minimum(steps - start, block)
        always = [ref[0] for ref in fixed_refs]

        def step(n, carried):
            row = here - 1 - n if reverse else n
            tiles = [*always, *(ref[row] for ref in fetched_refs)]
            factor, offset = tuple(tiles[:count]), tuple(tiles[count:]) or None
            values, carried = linear.advance(factor, carried, offset, reverse)
            for ref, value in zip(value_refs, values, strict=True):
                ref[row] = value
            return carried

        carried = tuple(ref[...] for ref in carried_refs)
        carried = lax.fori_loop(jnp.int32(0), here, step, carried)
        for refs in (carried_refs, last_refs):
            for ref, value in zip(refs, carried, strict=True):
                ref[...] = value

    def of_steps(i, j, k):
        return blocks - 1 - k if reverse else k, i, j

    once = pl.BlockSpec((1, height, width), lambda i, j, k: (0, i, j))
    each = pl.BlockSpec((block, height, width), of_steps)
    last = pl.BlockSpec((height, width), lambda i, j, k: (i, j))
    values, lasts = pl.pallas_call(
        body,
        grid=(pl.cdiv(rows, height), pl.cdiv(units, width), blocks),
        in_specs=[[spec] * len(a) for spec, a in zip((once, once, each), inputs, strict=True)],
        out_specs=[[each] * count, [last] * count],
        out_shape=[
            [result(shape) for _ in range(count)] for shape in ((steps, rows, units), (rows, units))
        ],
        scratch_shapes=[[pltpu.VMEM((height, width), jnp.float32)] * count],
        # Under `jax.vmap` the grid gains an axis, of which the interpreter finds none in here.
        compiler_params=None if interpret else pltpu.CompilerParams(dimension_semantics=SEMANTICS),
        interpret=False if interpret is None else interpret,
    )(*inputs)
    return linear.join(values).reshape(steps, *first.shape), linear.join(lasts).reshape(first.shape)


KERNEL = DiagonalKernel("tpu_diagonal", unsupported, interpreter, scan)
