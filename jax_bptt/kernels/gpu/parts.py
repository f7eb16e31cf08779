"""Who works where in a kernel of `gated`, what it fetches, stores and launches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.kernels.form import HELD, RESET, Form
from jax_bptt.kernels.gpu import mosaic
from jax_bptt.kernels.gpu.mosaic import ROWS, UNITS, plgpu
from jax_bptt.kernels.kernel import Settings


class Plan(NamedTuple):
    """A kernel as it is known before it runs.

    Attributes:
      dtype: of the operands.
      steps: T.
      rows: of the batch, whole blocks.
      parts: over how many blocks of threads the units are spread.
      size: units of each.
      depth: steps that are fetched ahead.
      clustered: whether the parts are one cluster, which runs at one time and can meet.
    """

    dtype: Any
    steps: int
    rows: int
    parts: int
    size: int
    depth: int
    clustered: bool = False

    @property
    def threads(self) -> int:
        """Warpgroups of a block."""
        return self.size // UNITS

    @property
    def layouts(self) -> mosaic.Layouts:
        """Layouts of the arrays that a warpgroup holds in registers."""
        return mosaic.layouts(mosaic.piece_dtype(self.dtype))


class Place(NamedTuple):
    """Where a warpgroup works.

    Attributes:
      plan: of the kernel.
      thread: the warpgroup's number in its block.
      part: which units are those of the block of threads.
      block: which rows of the batch.
    """

    plan: Plan
    thread: Any
    part: Any
    block: Any

    @property
    def rows(self) -> Any:
        """Rows of the batch."""
        return pl.ds(self.block * ROWS, ROWS)

    @property
    def own(self) -> Any:
        """The warpgroup's units, counted within the part."""
        return pl.ds(self.thread * UNITS, UNITS)

    @property
    def units(self) -> Any:
        """The warpgroup's units, counted over all parts."""
        return self.units_of(0)

    def units_of(self, g: int) -> Any:
        """The warpgroup's units in gate g of [G H]."""
        return pl.ds(self._first(g) + self.thread * UNITS, UNITS)

    def gate(self, g: int) -> Any:
        """The units of the part in gate g of [G H]."""
        return pl.ds(self._first(g), self.plan.size)

    def _first(self, g: int) -> Any:
        return (g * self.plan.parts + self.part) * self.plan.size

    def load(self, ref: Any) -> Array:
        """Read the warpgroup's tile of `ref`, [ROWS, size] in shared memory."""
        return mosaic.load(ref.at[:, self.own], self.plan.layouts.tile).astype(jnp.float32)

    def load_state(self, ref: Any) -> Array:
        """Read the warpgroup's tile of `ref`, [B, H] in global memory.

        The product with one is for a kernel inside `jax.shard_map`: what is read from an argument
        has the argument's mesh axes, what is computed in a kernel has none, and a loop wants a
        carry of one type.
        """
        return 1.0 * mosaic.load(ref.at[self.rows, self.units], self.plan.layouts.tile)

    def per_unit(self, ref: Any) -> Array:
        """Read a weight of each unit from `ref` [H] and repeat it in every row."""
        layouts = self.plan.layouts
        return mosaic.spread(mosaic.load(ref.at[self.units], layouts.units), layouts.tile)

    def matrix(self, ref: Any) -> list[list[list[Array]]]:
        """Read the warpgroup's columns of `ref` [parts, G, chunks, pieces, size, rows].

        Returns:
          For each gate and chunk, the pieces.
        """
        _, gates, chunks, count, _, _ = ref.shape
        layout = self.plan.layouts.matrix

        def piece(*index):
            return mosaic.load_transposed(ref.at[self.part, *index, self.own], layout)

        return [
            [[piece(g, c, k) for k in range(count)] for c in range(chunks)] for g in range(gates)
        ]

    def expose(self, ref: Any, value: Array) -> None:
        """Write a tile in pieces to `ref` [pieces, ROWS, size], for all warpgroups to read."""
        for k, piece in enumerate(mosaic.pieces(value, self.plan.dtype)):
            mosaic.store(ref.at[k, :, self.own], piece)

    def operand(self, ref: Any) -> list[Array]:
        """Read [pieces, ROWS, units], written in pieces, the same in every warp."""
        count = mosaic.piece_count(self.plan.dtype)
        return [mosaic.load(ref.at[k], self.plan.layouts.rows) for k in range(count)]

    def tile(self, x: Any) -> Array:
        """Return `x` in the layout of a tile; a constant may lie otherwise."""
        return plgpu.layout_cast(x, self.plan.layouts.tile)

    def bits(self) -> tuple[Array, Array]:
        """Return, for every row, the bits of RESET and HELD in the word of a block."""
        shift = 2 * mosaic.row_numbers(self.plan.layouts.tile)
        return self.tile(jnp.int32(RESET) << shift), self.tile(jnp.int32(HELD) << shift)


MEMORY = 232448 - 2048
"""Bytes of shared memory that a block can have, less what barriers and alignment take."""


def obstacle(form: Form) -> str | None:
    """Return what no kernel of this kind can do with `form`, None if there is nothing."""
    if reason := mosaic.available():
        return reason
    if "pow" in form.step.operations:
        # What has a constant exponent is none any more (`kernels.graph`).
        return "Pallas has no pow on a GPU, and one whose exponent is computed can't be made up for"
    return None


def ring_bytes(form: Form, plan: Plan) -> tuple[int, int]:
    """Return how much shared memory the ring needs at the most, forward and reverse."""
    step, tile = form.step, ROWS * plan.size
    read = sum(step.reads_prev) + sum(step.reads_new) + step.states
    stored = step.saved * jnp.dtype(plan.dtype).itemsize
    # Of flags a few words, but every array begins at a whole KiB.
    forward, back = (plan.depth * tile * size for size in (4 * step.drives, stored + 4 * read))
    return forward + 1024, back + 1024


def place_of(plan: Plan) -> Place:
    """Return where the warpgroup that asks works."""
    return Place(plan, *(lax.axis_index(name) for name in ("thread", "part", "block")))


def over_time(dtype: Any, plan: Plan, tiles: int = 1) -> jax.ShapeDtypeStruct:
    """Return the shape [T, B, H] of an output, or [T tiles, B, H] of so many in a step."""
    shape = plan.steps * tiles, plan.rows, plan.parts * plan.size
    return jax.ShapeDtypeStruct(shape, dtype)


def side_by_side(dtype: Any, plan: Plan, tiles: int) -> jax.ShapeDtypeStruct:
    """Return the shape [T, B, tiles H] of an output."""
    shape = plan.steps, plan.rows, tiles * plan.parts * plan.size
    return jax.ShapeDtypeStruct(shape, dtype)


def of_step(dtype: Any, plan: Plan, tiles: int | None = None) -> jax.ShapeDtypeStruct:
    """Return the shape of what is fetched of an array for a step, [ROWS, size] or several."""
    several = () if tiles is None else (tiles,)
    return jax.ShapeDtypeStruct((*several, ROWS, plan.size), dtype)


class Memory(NamedTuple):
    """The memory of a kernel besides its inputs.

    Attributes:
      outputs: shapes in global memory.
      fetched: shapes in shared memory, of each array that a step reads, for one step.
      words: whether a step reads a word of flags.
      scratch: shared memory and barriers, as Pallas takes them.
    """

    outputs: Sequence[jax.ShapeDtypeStruct]
    fetched: Sequence[jax.ShapeDtypeStruct]
    words: bool
    scratch: Sequence[Any]


def launch(
    body: Callable[..., None], plan: Plan, memory: Memory, settings: Settings
) -> Callable[..., Any]:
    """Return the kernel of `body`: a block of threads for each part and each ROWS of the batch.

    The ring holds what is fetched for every step in flight, and of the words of flags a line.
    `body` takes the inputs, outputs, the ring's slots and barriers, scratch.
    """
    slots = [mosaic.shared_tiles((plan.depth, *a.shape), a.dtype) for a in memory.fetched]
    slots += [plgpu.SMEM((plan.depth, 32), jnp.int32)] * memory.words
    blocks = plan.rows // ROWS
    spread = {"grid": (plan.parts, blocks), "grid_names": ("part", "block")}
    if plan.clustered:
        spread = {
            "grid": (blocks,),
            "grid_names": ("block",),
            "cluster": (plan.parts,),
            "cluster_names": ("part",),
        }
    return mosaic.kernel(
        body,
        out_type=tuple(memory.outputs),
        scratch_types=[
            slots,
            plgpu.Barrier(num_arrivals=max(len(slots), 1), num_barriers=plan.depth),
            list(memory.scratch),
        ],
        num_threads=plan.threads,
        thread_name="thread",
        compiler_params=mosaic.compiler_params(settings.approximate),
        interpret=settings.interpret,
        **spread,
    )


def fill(ring: mosaic.Ring, sources: Callable, place: Place) -> None:
    """Ask for the first steps."""
    for step in range(min(ring.depth, place.plan.steps)):
        ring.fetch(step, sources(step), place.thread, place.plan.threads)


def refill(ring: mosaic.Ring, step: Any, sources: Callable, place: Place) -> None:
    """Ask for the step that takes the slot of `step`, which all have read."""
    later = step + ring.depth

    @pl.when(later < place.plan.steps)
    def _():
        # A copy may overtake what was read before it, unless told not to.
        plgpu.commit_smem()
        ring.fetch(later, sources(later), place.thread, place.plan.threads)


def store(ref: Any, value: Array, place: Place) -> None:
    """Write a tile to global memory.

    Each thread stores its own two numbers of a row. By way of shared memory, a copy for each array,
    a step of an LSTM took a fifth more instructions forward and a tenth more in reverse, and at
    D = 128 it spilled (compiled for an H200).
    """
    mosaic.store(ref, place.tile(value).astype(ref.dtype))


def decode(ref: Any, bits: tuple[Array, Array]) -> list[Array]:
    """Return which rows of a tile are reset and which are held, from the word at `ref`."""
    word = ref[0]
    return [(word & bit) != 0 for bit in bits]


def where_read(read: Sequence[bool], tiles: Sequence[Array]) -> list[Array | None]:
    """Return the tiles in the places of the state's leaves that are read."""
    remaining = iter(tiles)
    return [next(remaining) if r else None for r in read]


def crossing(d_feedback: Sequence[int | None]) -> list[int]:
    """Return which emitted tiles are derivatives of feedbacks, each once."""
    return sorted({e for e in d_feedback if e is not None})


def rows_of(batch: int) -> int:
    """Return how many rows whole blocks of a batch have."""
    return -(-batch // ROWS) * ROWS


def in_pieces(chunks: Array, dtype: Any) -> Array:
    """Return [parts, G, chunks, out, in] as `Place.matrix` reads it, with an axis of pieces."""
    return jnp.stack(mosaic.pieces(chunks, dtype), axis=3)


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
