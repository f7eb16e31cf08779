"""Parts shared by GPU kernels: tiles in registers and in shared memory, split products, the ring.

A tile is ROWS rows of the batch by UNITS units: what the four warps of a warpgroup hold of an
accumulator of the tensor cores' `mma.sync`, eight units a warp. States, drives and feedbacks all
lie in registers in that one layout, so that the arithmetic within a unit never leaves a thread; in
shared memory a tile is swizzled for it. Written against the Mosaic GPU backend of Pallas, which is
not stable; `available` tells whether this JAX has what is used here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.core import devices

try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:
    plgpu: Any = None

ROWS = 16
UNITS = 32
NEEDED = "mma", "async_store_smem", "InterpretGPUParams"


def available() -> str | None:
    """Return what this JAX lacks for the kernels of Pallas Mosaic GPU, None if nothing."""
    if plgpu is None:
        return "jax.experimental.pallas.mosaic_gpu cannot be imported; install jax >= 0.11.1"
    missing = [name for name in NEEDED if not hasattr(plgpu, name)]
    if missing:
        return f"jax.experimental.pallas.mosaic_gpu has no {missing[0]}; install jax >= 0.11.1"
    return None


class Layouts(NamedTuple):
    """How the values of a tile lie in the registers of a warpgroup.

    Attributes:
      tile: [ROWS, UNITS], the accumulator.
      rows: [ROWS, D], the left operand of a product, the same in every warp.
      matrix: [D, UNITS], the right operand.
    """

    tile: Any
    rows: Any
    matrix: Any

    @property
    def units(self) -> Any:
        """Layout of [UNITS], one value for all rows of a tile."""
        return self.tile.reduce(0)


def layouts(dtype: Any) -> Layouts:
    """Return the layouts of a product whose operands are of `dtype`, 16 bit wide."""
    of = plgpu.Layout
    return Layouts(*(kind(dtype, m_warps=1) for kind in (of.MMA_ACC, of.MMA_LHS, of.MMA_RHS)))


def load(ref: Any, layout: Any) -> Array:
    """Read `ref`, in global or shared memory, into registers."""
    return plgpu.load(ref, layout=layout, optimized=False)


def load_transposed(ref: Any, layout: Any) -> Array:
    """Read the transpose of a matrix in global memory into registers."""
    if hasattr(ref, "transpose"):
        return load(ref.transpose((1, 0)), layout)
    return load(plgpu.transpose_ref(ref, (1, 0)), layout)


def store(ref: Any, value: Array) -> None:
    """Write registers to `ref`, in global or shared memory."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def spread(values: Array, layout: Any) -> Array:
    """Return values of [UNITS] as a tile, the same in every row."""
    return plgpu.layout_cast(lax.broadcast_in_dim(values, (ROWS, UNITS), (1,)), layout)


def row_numbers(layout: Any) -> Array:
    """Return a tile of int32 that holds the number of each row."""
    return plgpu.broadcasted_iota(jnp.int32, (ROWS, UNITS), 0, layout=layout)


def shared_tiles(shape: Sequence[int], dtype: Any, columns: int = UNITS) -> Any:
    """Describe tiles in shared memory, [*, ROWS, a multiple of UNITS].

    Swizzled in lines of so many columns, so that neither a warp that reads or writes a tile nor the
    left operand of a product meets a bank twice. The former takes lines of 8 columns in float32,
    where a warp writes 32 bytes of each row.
    """
    width = columns * jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(width)
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def piece_dtype(dtype: Any) -> Any:
    """Return the dtype that the tensor cores multiply for operands of `dtype`."""
    return jnp.dtype(jnp.bfloat16) if jnp.dtype(dtype) == jnp.float32 else jnp.dtype(dtype)


def piece_count(dtype: Any) -> int:
    """Return of how many pieces an operand of `dtype` consists."""
    return 3 if jnp.dtype(dtype) == jnp.float32 else 1


def pieces(x: Array, dtype: Any) -> tuple[Array, ...]:
    """Return 16-bit arrays whose sum is `x` to the precision of `dtype`, the largest first.

    Three times the 8 significant bits of bfloat16 are the 24 of float32, and its range is the same.
    """
    if piece_count(dtype) == 1:
        return (x.astype(dtype),)
    found = []
    for _ in range(piece_count(dtype)):
        piece = x.astype(jnp.bfloat16)
        x = x - piece.astype(jnp.float32)
        found.append(piece)
    return tuple(found)


def multiply(interpret: Any) -> Callable[[Array, Array, Array], Array]:
    """Return the tensor cores' `acc + rows @ matrix`, or what the interpreter knows in its place.

    The interpreter has no rule for `mma`; operands are rounded already, sums are float32 in both.
    """
    return plgpu.mma if interpret is None else _emulated


def _emulated(acc: Array, rows: Array, matrix: Array) -> Array:
    exact = functools.partial(jnp.dot, precision=lax.Precision.HIGHEST)
    return acc + exact(rows.astype(jnp.float32), matrix.astype(jnp.float32))


def add_product(
    acc: Array, rows: Sequence[Array], matrix: Sequence[Array], multiply: Callable[..., Array]
) -> Array:
    """Return acc + rows @ matrix for operands in pieces, the smallest terms first.

    Of n pieces each, the products beyond the precision of the n-th piece are left out: for float32
    six of nine remain.
    """
    count = len(rows)
    for order in reversed(range(count)):
        for k in range(order + 1):
            acc = multiply(acc, rows[k], matrix[order - k])
    return acc


def sync(barrier: Any) -> None:
    """Wait until all warpgroups of the block are here; what they wrote before can be read."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


class Ring(NamedTuple):
    """Tiles of consecutive steps in shared memory, fetched ahead of their use.

    Attributes:
      slots: a reference for each array, [depth, ...]; the step numbered k lies in slot k % depth.
      ready: a barrier for each slot, with one arrival for each array.
      depth: how many steps are held.
    """

    slots: tuple[Any, ...]
    ready: Any
    depth: int

    def fetch(self, step: Any, sources: Sequence[Any], thread: Any, threads: int) -> None:
        """Start to copy the tiles of a step from global memory, the arrays dealt to warpgroups.

        Whatever the slot held must have been read by all warpgroups, and they must have met since.
        """
        slot = step % self.depth
        for k, (source, target) in enumerate(zip(sources, self.slots, strict=True)):

            @pl.when(thread == k % threads)
            def _(source=source, target=target):
                plgpu.copy_gmem_to_smem(source, target.at[slot], self.ready.at[slot])

    def wait(self, step: Any) -> list[Any]:
        """Return references to the tiles of a step once they have arrived."""
        if not self.slots:
            return []
        slot = step % self.depth
        plgpu.barrier_wait(self.ready.at[slot])
        return [ref.at[slot] for ref in self.slots]


def kernel(body: Callable[..., None], **options: Any) -> Callable[..., Any]:
    """Return the kernel of `body`, as `plgpu.kernel` does, a function of one pytree.

    Inside `jax.shard_map` its results vary over the mesh as what they are made of does, which
    Pallas does not say.
    """
    run = plgpu.kernel(body, **options)
    return lambda inputs: devices.vary_alike(run(inputs), inputs)


def compiler_params(approximate: bool) -> Any:
    """Return how the kernels are compiled.

    Barriers are the kernels' own: Pallas would put two around every access of shared memory. With
    `approximate`, transcendental functions are the hardware's, of about 11 significant bits.
    """
    return plgpu.CompilerParams(
        approx_math=approximate,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
        unsafe_no_auto_barriers=True,
    )
