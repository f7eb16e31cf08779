"""Matrices of a kernel as far as they fit into registers, and in shared memory beyond that.

The columns of a warpgroup come in chunks of UNITS rows. From registers a chunk costs nothing;
from shared memory it is read again in every step, 2 KiB for each gate and piece.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from jax_bptt.kernels.gpu import mosaic, parts
from jax_bptt.kernels.gpu.mosaic import UNITS, plgpu
from jax_bptt.kernels.gpu.parts import Place, Plan

REST = 95
"""Registers of a thread for all that is neither matrix nor a sum.

As compiled for an H200, LSTM and GRU of 256, 384 and 512 units in bfloat16 and of 256 in float32
spill nothing, but with flags the LSTM, of 512 units and with peepholes or without, up to 24 bytes,
and in float32 up to 40.
"""


class Matrix(NamedTuple):
    """A warpgroup's columns, loaded.

    Attributes:
      place: where the warpgroup works.
      held: for each gate, the first chunks, each in pieces.
      shared: the other ones in shared memory, [chunks x gates x pieces, UNITS, UNITS], or None.
    """

    place: Place
    held: list[list[list[Array]]]
    shared: Any

    def columns(self, gate: int, chunk: int) -> list[Array]:
        """Return the pieces of a chunk of a gate's columns, [UNITS, UNITS] each."""
        gates, held = len(self.held), len(self.held[0])
        if chunk < held:
            return self.held[gate][chunk]
        count = mosaic.piece_count(self.place.plan.dtype)
        first = ((chunk - held) * gates + gate) * count
        layout = self.place.plan.layouts.matrix
        return [mosaic.load_transposed(self.shared.at[first + k], layout) for k in range(count)]


class Split(NamedTuple):
    """How matrices of H units are divided between registers and shared memory.

    Attributes:
      plan: of the kernel.
      gates: G, the number of matrices.
      sums: how many tiles of sums a thread holds at once, beyond one for each gate.
    """

    plan: Plan
    gates: int
    sums: int

    @property
    def chunks(self) -> int:
        """Tiles of units of each gate, H / UNITS."""
        return self.plan.parts * self.plan.threads

    @property
    def held(self) -> int:
        """How many chunks registers hold, of each gate."""
        # A block's threads share 65536 registers, 255 a thread at the most, given out by eights.
        registers = min(255, 65536 // (128 * self.plan.threads) // 8 * 8)
        # A thread has 1/128 of a chunk, two values a register, and of each sum four.
        chunk = self.gates * UNITS * UNITS * mosaic.piece_count(self.plan.dtype) // 256
        return min((registers - REST - 4 * self.sums) // chunk, self.chunks)

    @property
    def tiles(self) -> int:
        """How many tiles [UNITS, UNITS] of a warpgroup lie in shared memory."""
        return (self.chunks - self.held) * self.gates * mosaic.piece_count(self.plan.dtype)

    @property
    def bytes(self) -> int:
        """How much shared memory a block needs for them."""
        return self.plan.threads * self.tiles * UNITS * UNITS * 2

    def inputs(self, chunks: Array) -> tuple[Array, Array | None]:
        """Return what `load` takes: chunks for registers and, if any, for shared memory.

        Args:
          chunks: [parts, G, chunks, units of a part, UNITS], of each part its columns transposed.
        """
        plan, held = self.plan, self.held
        pieces = parts.in_pieces(chunks, plan.dtype)
        if not self.tiles:
            return pieces, None
        shared = pieces[:, :, held:]
        shared = shared.reshape(*shared.shape[:4], plan.threads, UNITS, UNITS)
        shared = jnp.transpose(shared, (0, 4, 2, 1, 3, 5, 6))
        return pieces[:, :, :held], shared.reshape(-1, UNITS, UNITS)

    def scratch(self) -> tuple[Any, ...]:
        """Return the shared memory and the barriers that `load` takes."""
        if not self.tiles:
            return ()
        shape = self.plan.threads, self.tiles, UNITS, UNITS
        return (
            mosaic.shared_tiles(shape, mosaic.piece_dtype(self.plan.dtype)),
            plgpu.Barrier(num_barriers=self.plan.threads),
        )

    def load(self, place: Place, refs: tuple[Any, Any], scratch: Any) -> Matrix:
        """Load the warpgroup's columns, from references to `inputs` and `scratch`."""
        held, shared = refs
        if shared is None:
            return Matrix(place, place.matrix(held), None)
        target, arrived = (ref.at[place.thread] for ref in scratch)
        first = (place.part * self.plan.threads + place.thread) * self.tiles
        plgpu.copy_gmem_to_smem(shared.at[pl.ds(first, self.tiles)], target, arrived)
        held = place.matrix(held)
        plgpu.barrier_wait(arrived)
        return Matrix(place, held, target)
