"""What the two kernels of `gpu_heads` share: who works where, what is fetched and launched."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.kernels import mosaic
from jax_bptt.kernels.form import HELD, RESET, Form
from jax_bptt.kernels.mosaic import ROWS, UNITS, plgpu

DEPTH = 4
"""Steps that are fetched ahead: at half a microsecond each, more than the latency of the memory."""


class Plan(NamedTuple):
    """What is known of a kernel before it runs.

    Attributes:
      dtype: of the operands.
      steps: T.
      rows: of the batch, whole blocks.
      heads: N.
      size: D.
    """

    dtype: Any
    steps: int
    rows: int
    heads: int
    size: int

    @property
    def threads(self) -> int:
        """Warpgroups of a block."""
        return self.size // UNITS

    @property
    def layouts(self) -> mosaic.Layouts:
        """Of what a warpgroup holds in registers."""
        return mosaic.layouts(mosaic.piece_dtype(self.dtype))


class Place(NamedTuple):
    """Where a warpgroup works.

    Attributes:
      plan: of the kernel.
      thread: the warpgroup's number in its block.
      head: of the block.
      block: which rows of the batch.
    """

    plan: Plan
    thread: Any
    head: Any
    block: Any

    @property
    def rows(self) -> Any:
        """Rows of the batch."""
        return pl.ds(self.block * ROWS, ROWS)

    @property
    def own(self) -> Any:
        """The warpgroup's units, counted within the head."""
        return pl.ds(self.thread * UNITS, UNITS)

    @property
    def units(self) -> Any:
        """The warpgroup's units, counted over all heads."""
        return pl.ds(self.head * self.plan.size + self.thread * UNITS, UNITS)

    def gate(self, g: int) -> Any:
        """The units of the head in gate g of [G H]."""
        return pl.ds((g * self.plan.heads + self.head) * self.plan.size, self.plan.size)

    def load(self, ref: Any) -> Array:
        """Read the warpgroup's tile of `ref`, [ROWS, D] in shared memory."""
        return mosaic.load(ref.at[:, self.own], self.plan.layouts.tile).astype(jnp.float32)

    def load_state(self, ref: Any) -> Array:
        """Read the warpgroup's tile of `ref`, [B, H] in global memory."""
        return mosaic.load(ref.at[self.rows, self.units], self.plan.layouts.tile)

    def per_unit(self, ref: Any) -> Array:
        """Read a weight of each unit from `ref` [H] and repeat it in every row."""
        layouts = self.plan.layouts
        return mosaic.spread(mosaic.load(ref.at[self.units], layouts.units), layouts.tile)

    def matrix(self, ref: Any) -> list[list[Array]]:
        """Read the warpgroup's columns of every gate of `ref` [N, G, pieces, D, D]."""
        _, gates, count, _, _ = ref.shape
        columns = [[ref.at[self.head, g, k, self.own] for k in range(count)] for g in range(gates)]
        layout = self.plan.layouts.matrix
        return [[mosaic.load_transposed(c, layout) for c in gate] for gate in columns]

    def expose(self, ref: Any, value: Array) -> None:
        """Write a tile in pieces to `ref` [pieces, ROWS, D], for all warpgroups to read."""
        for k, piece in enumerate(mosaic.pieces(value, self.plan.dtype)):
            mosaic.store(ref.at[k, :, self.own], piece)

    def operand(self, ref: Any) -> list[Array]:
        """Read what `expose` wrote, all the units of the head."""
        count = mosaic.piece_count(self.plan.dtype)
        return [mosaic.load(ref.at[k], self.plan.layouts.rows) for k in range(count)]

    def tile(self, x: Any) -> Array:
        """Return `x` in the layout of a tile; a constant may lie otherwise."""
        return plgpu.layout_cast(x, self.plan.layouts.tile)

    def bits(self) -> tuple[Array, Array]:
        """Return, for every row, the bits of RESET and HELD in the word of a block."""
        shift = 2 * mosaic.row_numbers(self.plan.layouts.tile)
        return self.tile(jnp.int32(RESET) << shift), self.tile(jnp.int32(HELD) << shift)


def plan_of(form: Form, like: Array) -> Plan:
    """Return the plan for `form` and arrays like `like` [T, B, ...]."""
    steps, batch = like.shape[:2]
    heads, size = form.matrix.shape[:2]
    return Plan(form.matrix.dtype, steps, -(-batch // ROWS) * ROWS, heads, size)


def place_of(plan: Plan) -> Place:
    """Return where the warpgroup that asks works."""
    return Place(plan, *(lax.axis_index(name) for name in ("thread", "head", "block")))


def launch(
    body: Callable[..., None],
    plan: Plan,
    dtypes: Sequence[Any],
    *,
    fetched: Sequence[Any],
    words: bool,
    exposed: tuple[int, ...],
    approximate: bool,
    interpret: Any,
    lasting: int = 0,
) -> Callable[..., Any]:
    """Return the kernel of `body`: a block of threads for each head and each ROWS of the batch.

    Outputs are [T, B, H] of `dtypes`, then `lasting` ones of float32 [B, H]. Of each array
    `fetched` the ring holds a tile for every step in flight, and of the words of flags a line.
    """
    row = plan.rows, plan.heads * plan.size
    outputs = [jax.ShapeDtypeStruct((plan.steps, *row), dtype) for dtype in dtypes]
    outputs += [jax.ShapeDtypeStruct(row, jnp.float32)] * lasting
    slots = [mosaic.shared_tiles((DEPTH, ROWS, plan.size), dtype) for dtype in fetched]
    slots += [plgpu.SMEM((DEPTH, 32), jnp.int32)] * words
    return plgpu.kernel(
        body,
        out_type=tuple(outputs),
        scratch_types=[
            slots,
            mosaic.shared_tiles(exposed, mosaic.piece_dtype(plan.dtype)),
            plgpu.Barrier(num_arrivals=len(slots), num_barriers=DEPTH),
            plgpu.Barrier(num_arrivals=plan.threads),
        ],
        grid=(plan.heads, plan.rows // ROWS),
        grid_names=("head", "block"),
        num_threads=plan.threads,
        thread_name="thread",
        compiler_params=mosaic.compiler_params(approximate),
        interpret=interpret,
    )


def fill(ring: mosaic.Ring, sources: Callable, plan: Plan, place: Place) -> None:
    """Ask for the first steps."""
    for step in range(min(DEPTH, plan.steps)):
        ring.fetch(step, sources(step), place.thread, plan.threads)


def refill(ring: mosaic.Ring, step: Any, sources: Callable, plan: Plan, place: Place) -> None:
    """Ask for the step that takes the slot of `step`, which all have read."""

    @pl.when(step + DEPTH < plan.steps)
    def _():
        ring.fetch(step + DEPTH, sources(step + DEPTH), place.thread, plan.threads)


def store_tiles(refs: Sequence[Any], t: Any, values: Sequence[Array], place: Place) -> None:
    """Write tiles to global memory, step t of each of `refs` [T, B, H]."""
    for ref, value in zip(refs, values, strict=True):
        mosaic.store(ref.at[t, place.rows, place.units], place.tile(value).astype(ref.dtype))


def decode(ref: Any, bits: tuple[Array, Array]) -> list[Array]:
    """Return which rows of a tile are reset and which are held, from the word at `ref`."""
    word = ref[0]
    return [(word & bit) != 0 for bit in bits]


def where_read(read: Sequence[bool], tiles: Sequence[Array]) -> list[Array | None]:
    """Return the tiles in the places of the state's leaves that are read."""
    remaining = iter(tiles)
    return [next(remaining) if r else None for r in read]


def matrix_pieces(matrix: Array, dtype: Any) -> Array:
    """Return [N, G, out, in] in pieces, [N, G, pieces, out, in]."""
    return jnp.stack(mosaic.pieces(matrix, dtype), axis=2)


def padded(array: Array, axis: int, plan: Plan) -> Array:
    """Return `array` with zeros up to whole blocks of the batch."""
    missing = plan.rows - array.shape[axis]
    if not missing:
        return array
    return jnp.pad(array, [(0, missing if k == axis else 0) for k in range(array.ndim)])


def flag_words(flags: Array, plan: Plan) -> Array:
    """Return the flags of ROWS rows as one int32, 32 times over: the least that can be copied."""
    flags = padded(flags.astype(jnp.int32), 1, plan).reshape(plan.steps, -1, ROWS)
    shifts = 2 * jnp.arange(ROWS, dtype=jnp.int32)
    words = jnp.sum(flags << shifts[None, None], axis=-1, dtype=jnp.int32)
    return jnp.broadcast_to(words[..., None], (*words.shape, 32))
