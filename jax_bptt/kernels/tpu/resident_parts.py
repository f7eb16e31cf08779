"""Parts shared by the two kernels of `resident`: blocks, their share of VMEM, products."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_bptt.core import devices
from jax_bptt.kernels.form import HELD, RESET, Form

LANES = 128
"""Units side by side in a vector register, and rows and columns of a matrix unit."""

FORWARD_CHUNK, REVERSE_CHUNK = 256, 128
"""Units between which the kernels alternate: while some are multiplied, others are calculated.

Of the multiples of `LANES` those that compile to the fewest cycles at H = 512 and 1024.
"""

ROWS = 256
"""Rows of the batch in a block, at most: more gain nothing once the matrix units are full."""

FEW = 16
"""Rows of a tile of the narrowest dtype: blocks are multiples of it, unless one holds all rows."""

STEPS = 64
"""Steps in a block, at most."""

BLOCK = 32 << 20
"""Bytes of the blocks of one grid step: enough that moving them takes longer than starting to."""

CAPACITY = 128 << 20
"""VMEM of a TPU v5e or v6e, in bytes."""

RESERVE = 16 << 20
"""Bytes of VMEM left to the compiler, for what does not fit into registers."""


ZERO = np.int32(0)
"""An index of a block, 32 bit wide whatever JAX's default is."""


class Plan(NamedTuple):
    """A kernel as it is known before it runs.

    Attributes:
      dtype: of the operands.
      steps: T.
      batch: B.
      units: H.
      width: units of a group, the heads that one matrix multiplies; 1 where it is diagonal.
      block: steps of a block.
      rows: rows of the batch of a block.
      needed: bytes of VMEM.
    """

    dtype: Any
    steps: int
    batch: int
    units: int
    width: int
    block: int
    rows: int
    needed: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of rows, blocks of steps."""
        return -(-self.batch // self.rows), -(-self.steps // self.block)

    def groups(self, chunk: int) -> list["Group"]:
        """Return the groups, their units in chunks of that many."""
        width = chunk if self.width == 1 else self.width
        found = []
        for first in range(0, self.units, width):
            last = min(first + width, self.units)
            chunks = [slice(a, min(a + chunk, last)) for a in range(first, last, chunk)]
            found.append(Group(len(found), slice(first, last), chunks))
        return found


class Group(NamedTuple):
    """Units that one matrix multiplies.

    Attributes:
      number: of the group.
      units: which of all H.
      chunks: the same units in several parts.
    """

    number: int
    units: slice
    chunks: list[slice]

    def inner(self, chunk: slice) -> slice:
        """Return the units of a chunk counted within the group."""
        return slice(chunk.start - self.units.start, chunk.stop - self.units.start)


def group_width(heads: int, size: int) -> int:
    """Return how many units one matrix of a kernel multiplies.

    Heads are grouped up to the width of the matrix units, where a group costs no more than a head
    does; one unit a head is no product of matrices.
    """
    if size == 1:
        return 1
    for count in range(1, heads):
        if heads % count == 0 and count * size % LANES == 0:
            return count * size
    return heads * size


def padded_bytes(rows: int, columns: int, dtype: Any) -> int:
    """Return the bytes that [rows, columns] take in VMEM, in whole tiles."""
    size = jnp.dtype(dtype).itemsize
    high = 8 * 4 // size
    return -(-rows // high) * high * -(-columns // LANES) * LANES * size


def matrix_bytes(form: Form) -> int:
    """Return the bytes that the matrices of `form` take in VMEM."""
    heads, size, gates, _ = form.matrix.shape
    width = group_width(heads, size)
    if width == 1:
        return padded_bytes(gates, heads, jnp.float32)
    return heads * size // width * gates * padded_bytes(width, width, form.matrix.dtype)


def plan_of(form: Form, like: Array, tiles: Sequence[Any], lasting: int) -> Plan:
    """Return the plan of a kernel.

    Args:
      form: the normal form of the cell.
      like: an array [T, B, ...].
      tiles: dtypes of the tiles that go in or out at each step.
      lasting: how many float32 tiles stay in VMEM.
    """
    steps, batch = like.shape[:2]
    heads, size = form.matrix.shape[:2]

    def fits(rows, block):
        return needed_bytes(form, tiles, lasting, rows=rows, block=block) <= capacity()

    def whole(rows):
        return -(-rows // FEW) * FEW

    # Blocks as alike as can be.
    count = -(-batch // ROWS)
    rows = batch if count == 1 else whole(-(-batch // count))
    while rows > FEW and not fits(rows, 1):
        rows = whole(rows // 2)
    moving = moving_bytes(tiles, rows, heads * size)
    block = min(STEPS, steps, max(1, BLOCK // (2 * moving)))
    while block > 1 and not fits(rows, block):
        block -= 1
    needed = needed_bytes(form, tiles, lasting, rows=rows, block=block)
    width = group_width(heads, size)
    return Plan(form.matrix.dtype, steps, batch, heads * size, width, block, rows, needed)


def needed_bytes(form: Form, tiles: Sequence[Any], lasting: int, *, rows: int, block: int) -> int:
    """Return the bytes of VMEM that a kernel takes; the arguments are those of `plan_of`.

    Of what moves there are two, one that moves while the other is worked on.
    """
    units = form.matrix.shape[0] * form.matrix.shape[1]
    moving = moving_bytes(tiles, rows, units)
    staying = lasting * padded_bytes(rows, units, jnp.float32)
    return matrix_bytes(form) + 2 * block * moving + staying + RESERVE


def moving_bytes(tiles: Sequence[Any], rows: int, units: int) -> int:
    """Return the bytes in VMEM of what goes in or out at each step, flags included."""
    moving = sum(padded_bytes(rows, units, dtype) for dtype in tiles)
    return moving + padded_bytes(rows, 1, jnp.int32)


def available() -> str | None:
    """Return what this JAX lacks for the kernels of Pallas TPU, None if nothing."""
    lacks = [name for name in ("CompilerParams", "get_tpu_info") if not hasattr(pltpu, name)]
    if lacks:
        return f"jax.experimental.pallas.tpu has no {lacks[0]}; install jax >= 0.11"
    return None


def capacity() -> int:
    """Return the bytes of VMEM of the TPU at hand, or of a v5e where none is."""
    if jax.default_backend() != "tpu":
        return CAPACITY
    return pltpu.get_tpu_info().vmem_capacity_bytes


def grouped(form: Form, *, transposed: bool) -> Array:
    """Return the matrices of the groups, [groups, G, in, out], or the transposed ones.

    Of heads of one unit it is [G, H] float32.
    """
    heads, size, gates, _ = form.matrix.shape
    width = group_width(heads, size)
    if width == 1:
        return form.matrix[:, 0, :, 0].T.astype(jnp.float32)
    together = width // size
    blocks = form.matrix.reshape(heads // together, together, size, gates, size)
    blocks = jnp.transpose(blocks, (0, 3, 1, 2, 4))[:, :, :, :, None]
    own = jnp.eye(together, dtype=bool)[None, None, :, None, :, None]
    zero = jnp.zeros((), blocks.dtype)
    matrices = jnp.where(own, blocks, zero).reshape(-1, gates, width, width)
    return jnp.swapaxes(matrices, 2, 3) if transposed else matrices


def product(lhs: Array, rhs: Array, interpret: Any) -> Array:
    """Return lhs @ rhs in float32.

    The CPU has no product of bfloat16 with a float32 result, and operands are rounded already.
    """
    if interpret is not None:
        lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
    exact = lhs.dtype == jnp.float32
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    return jnp.dot(lhs, rhs, precision=precision, preferred_element_type=jnp.float32)


def decode(flags: Sequence[Any], t: Any) -> tuple[Array, Array] | tuple[None, None]:
    """Return which rows are reset and which are held at step t, [rows, 1] int32, if any."""
    if not flags:
        return None, None
    bits = flags[0][t]
    return bits & RESET, bits & HELD


def select(bits: Array | None, if_set: Any, otherwise: Array) -> Array:
    """Return a tile of `if_set` in the rows whose bits [rows, 1] are set, else of `otherwise`."""
    if bits is None:
        return otherwise
    return jnp.where(jnp.broadcast_to(bits, otherwise.shape) != 0, if_set, otherwise)


def spread_row(ref: Any, row: int, rows: int, units: slice) -> Array:
    """Return a row of `ref` [*, H] as a tile, the same in every row."""
    values = ref[row : row + 1, units]
    return jnp.broadcast_to(values, (rows, values.shape[1]))


def valid_steps(plan: Plan, block: Any) -> Any:
    """Return how many steps a block has; the last one may be short."""
    if plan.steps % plan.block == 0:
        return jnp.int32(plan.block)
    return jnp.minimum(plan.block, plan.steps - block * plan.block).astype(jnp.int32)


class Blocks(NamedTuple):
    """How arrays are divided, as time runs.

    Attributes:
      plan: of the kernel.
      order: which block of steps comes at a number of the grid.
    """

    plan: Plan
    order: Callable[[Any], Any]

    def whole(self, array: Array) -> Any:
        """Return the spec of an array held whole in VMEM, once, from the first step to the last."""
        zeros = (ZERO,) * array.ndim
        return pl.BlockSpec(array.shape, lambda b, t: zeros, pipeline_mode=pl.Buffered(1))

    def lasting(self) -> Any:
        """Return the spec of an array [B, H] that belongs to all steps."""
        return pl.BlockSpec((self.plan.rows, self.plan.units), lambda b, t: (b, ZERO))

    def steps(self, columns: int | None = None) -> Any:
        """Return the spec of an array [T, B, columns], H of them if not given."""
        block = self.plan.block, self.plan.rows, columns or self.plan.units
        return pl.BlockSpec(block, lambda b, t: (self.order(t), b, ZERO))

    def gates(self, count: int) -> Any:
        """Return the spec of an array [T, G, B, H]."""
        block = self.plan.block, count, self.plan.rows, self.plan.units
        return pl.BlockSpec(block, lambda b, t: (self.order(t), ZERO, b, ZERO))

    def single(self) -> Any:
        """Return the spec of an array [blocks of steps, B, H], one tile for a block."""
        block = 1, self.plan.rows, self.plan.units
        return pl.BlockSpec(block, lambda b, t: (self.order(t), b, ZERO))


class Divided(NamedTuple):
    """Arrays, or shapes, and how each is divided into blocks.

    Attributes:
      arrays: a tuple of trees.
      specs: the same trees of `pl.BlockSpec`.
    """

    arrays: tuple[Any, ...]
    specs: tuple[Any, ...]


def launch(
    body: Callable[..., None],
    plan: Plan,
    inputs: Divided,
    outputs: Divided,
    scratch: Iterable[Any],
    interpret: Any,
) -> Any:
    """Run `body` on all blocks; the arrays of `outputs` are pairs of a shape and a dtype."""
    # Inside `jax.shard_map` a kernel takes and makes what varies over the same axes of the mesh.
    arrays = devices.vary_alike(inputs.arrays, inputs.arrays)
    manual = jax.typeof(jax.tree.leaves(arrays)[0]).manual_axis_type

    def described(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=manual)

    return pl.pallas_call(
        body,
        out_shape=tuple(tuple(described(*each) for each in group) for group in outputs.arrays),
        grid=plan.grid,
        in_specs=inputs.specs,
        out_specs=outputs.specs,
        scratch_shapes=tuple(scratch),
        interpret=False if interpret is None else interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=plan.needed
        ),
    )(*arrays)


def tile_scratch(plan: Plan, dtype: Any = jnp.float32) -> Any:
    """Describe a tile [rows, H] in VMEM."""
    return pltpu.VMEM((plan.rows, plan.units), dtype)


def flags_column(flags: Array | None) -> tuple[Array, ...]:
    """Return flags [T, B] as a column for each step, [T, B, 1], if there are any."""
    return () if flags is None else (flags.astype(jnp.int32)[..., None],)
