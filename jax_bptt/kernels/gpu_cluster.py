"""Dense recurrence on a GPU: all steps of a sequence in one launch, spread over a cluster.

A cluster of P blocks of threads keeps all H units and ROWS rows of the batch for all T steps (see
`gpu_steps`), each block H / P of the units, with all gates of theirs. Forward, a block needs the
whole hidden state:

    feedback[own] = sum_q hidden[of block q] M[of q, own]

Backwards it makes its contribution to the derivatives of all units, of which there are fewer than
of gates, and each block adds up what it is sent:

    part_p[of q] = e[of p] M[of q, of p]^T          d_{t-1}[own] = d_prev[own] + sum_p part_p[own]

Either is stored to global memory, which for so little is the second-level cache, by asynchronous
copies from shared memory; then the cluster meets at a barrier, and each block fetches what it needs
in the same way. Of two places in memory, one is read while the other is written: whoever writes to
one again has met with all that read it. Distributed shared memory would be nearer, but JAX's
interpreter has no rule for storing to it, and what cannot be run anywhere is not to be trusted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from jax_bptt.kernels import gpu_parts as parts
from jax_bptt.kernels import gpu_steps, mosaic
from jax_bptt.kernels.form import Form
from jax_bptt.kernels.gpu_parts import Place, Plan
from jax_bptt.kernels.mosaic import ROWS, UNITS, plgpu

DEPTH = 2
"""Steps that are fetched ahead: each takes longer than the latency of the memory."""

REST = 95
"""Registers of a thread for all that is not matrix."""

BLOCKS = 8
"""Blocks of a cluster at the most, which every GPU that has clusters can run."""


def blocks_of(size: int) -> int | None:
    """Return over how many blocks `size` units are spread: the most, of up to 4 warpgroups."""
    tiles, rest = divmod(size, UNITS)
    fit = [p for p in range(1, BLOCKS + 1) if tiles and not tiles % p and tiles // p <= 4]
    return max(fit, default=None) if not rest else None


def unsupported(form: Form) -> str | None:
    """Return why the kernels cannot take `form`, None if they can."""
    if reason := mosaic.available():
        return reason
    return None


def forward(
    form: Form,
    state: tuple[Array, ...],
    drives: Array,
    flags: Array | None,
    *,
    save: bool,
    approximate: bool = False,
    interpret: Any = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Run all steps of a gated cell of one dense matrix; as `gpu_steps.forward`."""
    plan = _plan(form, drives)
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    hidden = plan.parts * plan.size
    squares = jnp.transpose(_squares(form, plan), (4, 3, 0, 1, 5, 6, 2))
    matrix = _Split(plan, _merged(squares), 0)
    scheme = gpu_steps.Scheme(
        plan,
        matrix.inputs(),
        (jax.ShapeDtypeStruct((2 * count, plan.rows, hidden), dtype),),
        (
            matrix.scratch(),
            mosaic.shared_tiles((plan.threads, count, ROWS, UNITS), dtype),
            mosaic.shared_tiles((count, ROWS, hidden), dtype),
            plgpu.Barrier(),
            plgpu.ClusterBarrier(collective_axes=("part",), num_arrivals=plan.threads),
        ),
        lambda place, refs, passing, scratch: _Gather(
            place,
            matrix.load(place, refs, scratch[0]),
            *passing,
            *scratch[1:],
            mosaic.multiply(interpret),
        ),
    )
    return gpu_steps.forward(
        scheme,
        form,
        state,
        drives,
        flags,
        save=save,
        approximate=approximate,
        interpret=interpret,
    )


def backward(
    form: Form,
    state: tuple[Array, ...],
    states: tuple[Array, ...],
    saved: tuple[Array, ...],
    flags: Array | None,
    d_last: tuple[Array, ...],
    d_states: tuple[Array | None, ...],
    *,
    approximate: bool = False,
    interpret: Any = None,
) -> tuple[
    tuple[Array, ...], tuple[Array, ...] | None, tuple[Array, ...], tuple[Array, ...] | None
]:
    """Run the reverse pass of all steps; as `gpu_steps.backward`."""
    plan = _plan(form, states[0])
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    d_feedback = form.step.d_feedback
    sums = 2 * (plan.rows // ROWS) * plan.parts**2 * plan.threads
    squares = jnp.transpose(_squares(form, plan), (4, 3, 0, 5, 1, 2, 6))
    matrix = _Split(plan, _merged(squares), plan.parts)
    scheme = gpu_steps.Scheme(
        plan,
        matrix.inputs(),
        (jax.ShapeDtypeStruct((sums, ROWS, UNITS), jnp.float32),),
        (
            matrix.scratch(),
            mosaic.shared_tiles((len(parts.crossing(d_feedback)), count, ROWS, plan.size), dtype),
            mosaic.shared_tiles((plan.threads, plan.parts, ROWS, UNITS), jnp.float32),
            plgpu.Barrier(num_arrivals=plan.threads),
            plgpu.Barrier(num_barriers=plan.threads),
            plgpu.ClusterBarrier(collective_axes=("part",), num_arrivals=plan.threads),
        ),
        lambda place, refs, passing, scratch: _Reduce(
            place,
            matrix.load(place, refs, scratch[0]),
            *passing,
            *scratch[1:],
            d_feedback,
            mosaic.multiply(interpret),
        ),
    )
    return gpu_steps.backward(
        scheme,
        form,
        state,
        states,
        saved,
        flags,
        d_last,
        d_states,
        approximate=approximate,
        interpret=interpret,
    )


class _Split(NamedTuple):
    """The matrices of a direction, of which the first chunks are for registers, others for memory.

    Attributes:
      plan: of the kernel.
      chunks: [P, G, H / UNITS, out, UNITS], for each block its columns, UNITS rows of the operand
        a chunk.
      sums: how many tiles of sums a thread holds besides.
    """

    plan: Plan
    chunks: Array
    sums: int

    @property
    def held(self) -> int:
        """How many chunks are for registers."""
        _, gates, chunks, _, _ = self.chunks.shape
        return min(_held(self.plan, gates, self.sums), chunks)

    def inputs(self) -> tuple[Array, Array]:
        """Return the chunks for registers and those for shared memory, in pieces."""
        plan, held = self.plan, self.held
        pieces = parts.in_pieces(self.chunks, plan.dtype)
        shared = pieces[:, :, held:]
        shared = shared.reshape(*shared.shape[:4], plan.threads, UNITS, UNITS)
        shared = jnp.transpose(shared, (0, 4, 2, 1, 3, 5, 6))
        return pieces[:, :, :held], shared.reshape(-1, UNITS, UNITS)

    def scratch(self) -> Any:
        """Return what is needed of shared memory, and a barrier."""
        plan = self.plan
        tiles = self.tiles
        if not tiles:
            return ()
        dtype = mosaic.piece_dtype(plan.dtype)
        return (
            mosaic.shared_tiles((plan.threads, tiles, UNITS, UNITS), dtype),
            plgpu.Barrier(num_barriers=plan.threads),
        )

    @property
    def tiles(self) -> int:
        """How many tiles of a warpgroup, [UNITS, UNITS], lie in shared memory."""
        gates, chunks = self.chunks.shape[1:3]
        return (chunks - self.held) * gates * mosaic.piece_count(self.plan.dtype)

    def load(self, place: Place, refs: Any, scratch: Any) -> "_Matrix":
        """Load both."""
        held, shared = refs
        if not scratch:
            return _Matrix(place, place.matrix(held), None)
        target, arrived = (ref.at[place.thread] for ref in scratch)
        first = (place.part * self.plan.threads + place.thread) * self.tiles
        plgpu.copy_gmem_to_smem(shared.at[pl.ds(first, self.tiles)], target, arrived)
        held = place.matrix(held)
        plgpu.barrier_wait(arrived)
        return _Matrix(place, held, target)


class _Matrix(NamedTuple):
    """A warpgroup's columns of the matrices, some of them in registers.

    Attributes:
      place: where the warpgroup works.
      held: for each gate, the first chunks, each in pieces.
      shared: the other ones in shared memory, [chunks x gates x pieces, UNITS, UNITS].
    """

    place: Place
    held: list[list[list[Array]]]
    shared: Any

    def columns(self, gate: int, chunk: int) -> list[Array]:
        """Return the pieces of a chunk of a gate's columns."""
        gates, held = len(self.held), len(self.held[0])
        if chunk < held:
            return self.held[gate][chunk]
        count = mosaic.piece_count(self.place.plan.dtype)
        first = ((chunk - held) * gates + gate) * count
        layout = self.place.plan.layouts.matrix
        return [mosaic.load_transposed(self.shared.at[first + k], layout) for k in range(count)]


class _Gather(NamedTuple):
    """The forward products: each block fetches the hidden state of all; see `gpu_steps.Exchange`.

    Attributes:
      place: where the warpgroup works.
      matrix: its columns, a chunk for UNITS units of the hidden state.
      passing: global memory, [2 pieces, B, H].
      own: shared memory, [warpgroups, pieces, ROWS, UNITS].
      hidden: shared memory, [pieces, ROWS, H].
      arrived: a barrier for `hidden`.
      cluster: a barrier for all warpgroups of the cluster.
      multiply: the product of tiles.
    """

    place: Place
    matrix: _Matrix
    passing: Any
    own: Any
    hidden: Any
    arrived: Any
    cluster: Any
    multiply: Any

    def pass_on(self, t, hidden):
        place, own = self.place, self.own.at[self.place.thread]
        tiles = mosaic.pieces(hidden, place.plan.dtype)
        for k, tile in enumerate(tiles):
            mosaic.store(own.at[k], tile)
        plgpu.commit_smem()
        pieces = pl.ds((t % 2) * len(tiles), len(tiles))
        plgpu.copy_smem_to_gmem(own, self.passing.at[pieces, place.rows, place.units])
        plgpu.wait_smem_to_gmem(0)
        mosaic.sync(self.cluster)

        @pl.when((place.thread == 0) & (t < place.plan.steps))
        def _():
            source = self.passing.at[pieces, place.rows]
            plgpu.copy_gmem_to_smem(source, self.hidden, self.arrived)

    def feedback(self, t, bias):
        plgpu.barrier_wait(self.arrived)
        sums = list(bias)
        for c in range(self.hidden.shape[-1] // UNITS):
            rows = self.place.operand(self.hidden.at[:, :, pl.ds(c * UNITS, UNITS)])
            sums = [
                mosaic.add_product(a, rows, self.matrix.columns(g, c), self.multiply)
                for g, a in enumerate(sums)
            ]
        return sums


class _Reduce(NamedTuple):
    """The reverse products: each block adds up what it is sent; see `gpu_steps.Exchange`.

    Attributes:
      place: where the warpgroup works.
      matrix: chunks for each block, with the columns of the warpgroup's units in it, and of them
        one for UNITS of the units whose derivatives are multiplied.
      passing: global memory, [2 x blocks of the batch x P to x warpgroups x P from, ROWS, UNITS].
      own: shared memory, [crossing, pieces, ROWS, units of a block].
      sums: shared memory, [warpgroups, P, ROWS, UNITS], to the others, then from them.
      exposed: a barrier for all warpgroups of the block.
      arrived: a barrier for each warpgroup's `sums`.
      cluster: a barrier for all warpgroups of the cluster.
      d_feedback: for each gate, which emitted tile is the derivative of its feedback.
      multiply: the product of tiles.
    """

    place: Place
    matrix: _Matrix
    passing: Any
    own: Any
    sums: Any
    exposed: Any
    arrived: Any
    cluster: Any
    d_feedback: tuple[int | None, ...]
    multiply: Any

    def pull(self, k, emitted, d, met):
        place, count = self.place, self.place.plan.parts
        crossing = parts.crossing(self.d_feedback)
        for row, e in enumerate(crossing):
            place.expose(self.own.at[row], emitted[e])
        mosaic.sync(self.exposed)
        # What is stored now need not be kept in registers beside the sums.
        met()
        sums = [place.tile(jnp.zeros_like(d))] * count
        chunks = place.plan.threads
        for g, e in enumerate(self.d_feedback):
            for c in range(chunks) if e is not None else ():
                row = self.own.at[crossing.index(e), :, :, pl.ds(c * UNITS, UNITS)]
                rows = place.operand(row)
                sums = [
                    mosaic.add_product(
                        a, rows, self.matrix.columns(g, q * chunks + c), self.multiply
                    )
                    for q, a in enumerate(sums)
                ]
        shared, arrived = self.sums.at[place.thread], self.arrived.at[place.thread]
        for q, a in enumerate(sums):
            mosaic.store(shared.at[q], a)
        plgpu.commit_smem()
        first = ((k % 2) * (place.plan.rows // ROWS) + place.block) * count

        def sent_to(q):
            """The number of the first tile that is for this warpgroup's units of block q."""
            return ((first + q) * place.plan.threads + place.thread) * count

        for q in range(count):
            target = self.passing.at[sent_to(q) + place.part]
            plgpu.copy_smem_to_gmem(shared.at[q], target, commit_group=q == count - 1)
        plgpu.wait_smem_to_gmem(0)
        mosaic.sync(self.cluster)
        plgpu.copy_gmem_to_smem(self.passing.at[pl.ds(sent_to(place.part), count)], shared, arrived)
        plgpu.barrier_wait(arrived)
        for p in range(count):
            d = d + mosaic.load(shared.at[p], place.plan.layouts.tile)
        return d


def _held(plan: Plan, gates: int, sums: int) -> int:
    """Return how many chunks of the columns of `gates` fit into a thread's registers."""
    registers = min(255, 65536 // (128 * plan.threads) // 8 * 8)
    # Two values a register, 1/128 of UNITS rows and columns.
    chunk = gates * UNITS * mosaic.piece_count(plan.dtype) // 8
    return (registers - REST - 4 * sums) // chunk


def _plan(form: Form, like: Array) -> Plan:
    """Return the plan for `form` and arrays like `like` [T, B, ...]."""
    steps, batch = like.shape[:2]
    size = form.matrix.shape[1]
    blocks = blocks_of(size)
    assert blocks is not None, size
    return Plan(form.matrix.dtype, steps, parts.rows_of(batch), blocks, size // blocks, DEPTH, True)


def _squares(form: Form, plan: Plan) -> Array:
    """Return the matrix [H, G, H] by blocks and chunks, [P, W, UNITS, G, P, W, UNITS]."""
    spread = plan.parts, plan.threads, UNITS
    return form.matrix.reshape(*spread, form.matrix.shape[2], *spread)


def _merged(squares: Array) -> Array:
    """Return [P, G, P, W, W, UNITS, UNITS] as [P, G, chunks, out, in]."""
    blocks, gates, _, threads, _, _, _ = squares.shape
    return squares.reshape(blocks, gates, blocks * threads, threads * UNITS, UNITS)
