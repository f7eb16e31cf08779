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
from jax_bptt.kernels.gpu_matrix import Matrix, Split
from jax_bptt.kernels.gpu_parts import Place, Plan
from jax_bptt.kernels.mosaic import ROWS, UNITS, plgpu

DEPTH = 2
"""Steps that are fetched ahead: each takes longer than the latency of the memory."""

BLOCKS = 8
"""Blocks of a cluster at the most: more than 8 are not portable."""

SIZE = 512
"""Units at the most, beyond which nothing has been compiled."""


def blocks_of(size: int) -> int | None:
    """Return over how many blocks `size` units are spread, or None if they cannot be.

    They are the most that divide the tiles of UNITS units, so that one has up to three.
    """
    tiles, rest = divmod(size, UNITS)
    if rest or not 2 <= tiles <= SIZE // UNITS:
        return None
    blocks = max(p for p in range(1, BLOCKS + 1) if not tiles % p)
    return blocks if tiles // blocks <= 3 else None


def unsupported(form: Form) -> str | None:
    """Return why the kernels cannot take `form`, None if they can."""
    if reason := parts.obstacle(form):
        return reason
    heads, size, gates, _ = form.matrix.shape
    dtype = form.matrix.dtype
    if heads != 1:
        return f"the GPU kernel over a cluster takes one dense matrix, not {heads} heads"
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the GPU kernel multiplies bfloat16, float16 or float32, not {dtype}"
    if gates > 4:
        return f"the GPU kernel takes up to 4 gates, not {gates}"
    if blocks_of(size) is None:
        return (
            f"the GPU kernel over a cluster takes 64 to {SIZE} units, {UNITS} times a number that "
            f"up to {BLOCKS} blocks divide in three at the most, not {size}"
        )
    needed = max(_bytes(form))
    if needed > parts.MEMORY:
        return (
            f"{gates} matrices [{size}, {size}] of {dtype} need {needed // 1024} KiB of shared "
            f"memory in each of {blocks_of(size)} blocks, of {parts.MEMORY // 1024} there are"
        )
    return None


def interpreter() -> Any:
    """Return the parameters with which JAX's interpreter runs the kernels on a CPU."""
    return mosaic.plgpu.InterpretGPUParams()


def _bytes(form: Form) -> tuple[int, int]:
    """Return how much shared memory the two kernels need at the most, forward and reverse."""
    plan, gates = _plan(form, 1, 1), form.matrix.shape[2]
    # A tile [ROWS, units of a block] of operands, and one in float32.
    narrow = 2 * mosaic.piece_count(plan.dtype) * ROWS * plan.size
    wide = 4 * ROWS * plan.size
    fetched, fetched_back = parts.ring_bytes(form, plan)
    gather = _gathering(plan, gates).bytes + (1 + plan.parts) * narrow + fetched
    crossing = len(parts.crossing(form.step.d_feedback))
    reduce = _reducing(plan, gates).bytes + crossing * narrow + plan.parts * wide + fetched_back
    return gather, reduce


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
    plan = _plan(form, *drives.shape[:2])
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    hidden = plan.parts * plan.size
    gates = form.matrix.shape[2]
    matrix = _gathering(plan, gates)
    chunks = jnp.transpose(_squares(form, plan), (4, 3, 0, 1, 5, 6, 2))
    scheme = gpu_steps.Scheme(
        plan,
        matrix.inputs(_merged(chunks)),
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
            multiply=mosaic.multiply(interpret),
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
    plan = _plan(form, *states[0].shape[:2])
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    d_feedback = form.step.d_feedback
    sums = 2 * (plan.rows // ROWS) * plan.parts**2 * plan.threads
    gates = form.matrix.shape[2]
    matrix = _reducing(plan, gates)
    chunks = jnp.transpose(_squares(form, plan), (4, 3, 0, 5, 1, 2, 6))
    scheme = gpu_steps.Scheme(
        plan,
        matrix.inputs(_merged(chunks)),
        (jax.ShapeDtypeStruct((sums, ROWS, UNITS), jnp.float32),),
        (
            matrix.scratch(),
            mosaic.shared_tiles((len(parts.crossing(d_feedback)), count, ROWS, plan.size), dtype),
            mosaic.shared_tiles((plan.threads, plan.parts, ROWS, UNITS), jnp.float32, columns=8),
            plgpu.Barrier(num_arrivals=plan.threads),
            plgpu.Barrier(num_barriers=plan.threads),
            plgpu.ClusterBarrier(collective_axes=("part",), num_arrivals=plan.threads),
        ),
        lambda place, refs, passing, scratch: _Reduce(
            place,
            matrix.load(place, refs, scratch[0]),
            *passing,
            *scratch[1:],
            d_feedback=d_feedback,
            multiply=mosaic.multiply(interpret),
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


class _Gather(NamedTuple):
    """The forward products: each block fetches the hidden state of all; see `gpu_steps.Gather`.

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
    matrix: Matrix
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
    """The reverse products: each block adds up what it is sent; see `gpu_steps.Reduce`.

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
    matrix: Matrix
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
            if e is None:
                continue
            for c in range(chunks):
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


def _plan(form: Form, steps: int, batch: int) -> Plan:
    """Return the plan for `form` and arrays [T, B, ...]."""
    size = form.matrix.shape[1]
    blocks = blocks_of(size)
    assert blocks is not None, size
    rows = parts.rows_of(batch)
    return Plan(form.matrix.dtype, steps, rows, blocks, size // blocks, DEPTH, clustered=True)


def _gathering(plan: Plan, gates: int) -> Split:
    """Return how the forward matrices are divided: all rows of a warpgroup's columns."""
    return Split(plan, gates, sums=0)


def _reducing(plan: Plan, gates: int) -> Split:
    """Return how those of the reverse pass are: a block's rows, a sum for the units of each."""
    return Split(plan, gates, sums=plan.parts)


def _squares(form: Form, plan: Plan) -> Array:
    """Return the matrix [H, G, H] by blocks and warpgroups, [P, W, UNITS, G, P, W, UNITS]."""
    spread = plan.parts, plan.threads, UNITS
    return form.matrix.reshape(*spread, form.matrix.shape[2], *spread)


def _merged(chunks: Array) -> Array:
    """Return [P, G, P, W, W, UNITS, UNITS] as `Split.inputs` takes it."""
    blocks, gates, _, threads, _, _, _ = chunks.shape
    return chunks.reshape(blocks, gates, blocks * threads, threads * UNITS, UNITS)
