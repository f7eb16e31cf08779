"""Dense recurrence on a GPU: all steps of a sequence in one launch, spread over a cluster.

A cluster of P blocks of threads keeps all H units and ROWS rows of the batch for all T steps (see
`gated`), each block H / P of the units, with all gates of theirs. Forward, a block needs the
whole hidden state:

    feedback[own] = sum_q hidden[of block q] M[of q, own]

Backwards it makes its contribution to the derivatives of all units, of which there are fewer than
of gates, and each block adds up what it is sent:

    part_p[of q] = e[of p] M[of q, of p]^T          d_{t-1}[own] = d_prev[own] + sum_p part_p[own]

Either is sent from registers into the shared memory of the block that needs it (`mail`). A
hidden state has two places there, of which one is read while the other is written: who writes to
one again has received from all, after they had read it, what is in the other. Sums have one place;
that it has been read is said at a barrier of the cluster, before the products of the next step, and
waited for behind them.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from jax_bptt.kernels.form import Form
from jax_bptt.kernels.gpu import gated, mail, mosaic, parts
from jax_bptt.kernels.gpu.mail import Box
from jax_bptt.kernels.gpu.matrix import Matrix, Split
from jax_bptt.kernels.gpu.mosaic import ROWS, UNITS, plgpu
from jax_bptt.kernels.gpu.parts import Place, Plan
from jax_bptt.kernels.kernel import (
    BackwardInputs,
    Cotangents,
    ForwardInputs,
    GatedKernel,
    Settings,
    Trajectory,
)

DEPTH = 2
"""Steps that are fetched ahead: each takes longer than the latency of the memory."""

BLOCKS = 8
"""Blocks of a cluster at the most: more than 8 are not portable."""

PLACES = 2
"""Copies of the hidden states in a block's box, and of the derivatives in its own memory: one is
written while other blocks may still read that of the step before."""

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
    hidden = PLACES * plan.parts * narrow
    own = PLACES * len(parts.crossing(form.step.d_feedback)) * narrow
    fetched, fetched_back = parts.ring_bytes(form, plan)
    gather = _gathering(plan, gates).bytes + hidden + fetched
    reduce = _reducing(plan, gates).bytes + own + plan.parts * wide + fetched_back
    return gather, reduce


def forward(form: Form, inputs: ForwardInputs, settings: Settings, save: bool) -> Trajectory:
    """Run all steps of a gated cell of one dense matrix; as `gated.forward`."""
    plan = _plan(form, *inputs.drives.shape[:2])
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    gates = form.matrix.shape[2]
    matrix = _gathering(plan, gates)
    chunks = jnp.transpose(_squares(form, plan), (4, 3, 0, 1, 5, 6, 2))
    post = mail.post(
        plan,
        (PLACES, count, ROWS, plan.parts * plan.size),
        dtype,
        mail.Arrivals(barriers=PLACES, senders=plan.threads, tiles=count),
        interpret=settings.interpret,
    )

    def open_exchange(place, refs, passing, scratch):
        loaded, met, *boxed = scratch
        box = post.open(place, passing, boxed)
        return _Gather(
            place, matrix.load(place, refs, loaded), box, met, mosaic.multiply(settings.interpret)
        )

    scheme = gated.Scheme(
        plan,
        matrix.inputs(_merged(chunks)),
        post.passing,
        (matrix.scratch(), plgpu.Barrier(num_arrivals=plan.threads), *post.scratch),
        open_exchange,
    )
    return gated.forward(scheme, form, inputs, settings, save)


def backward(form: Form, inputs: BackwardInputs, settings: Settings) -> Cotangents:
    """Run the reverse pass of all steps; as `gated.backward`."""
    plan = _plan(form, *inputs.states[0].shape[:2])
    count, dtype = mosaic.piece_count(plan.dtype), mosaic.piece_dtype(plan.dtype)
    d_feedback = form.step.d_feedback
    crossing = len(parts.crossing(d_feedback))
    gates = form.matrix.shape[2]
    matrix = _reducing(plan, gates)
    squares = jnp.transpose(_squares(form, plan), (4, 3, 0, 5, 1, 2, 6))
    # Of each block, in the order in which it sends.
    chunks = jnp.stack([jnp.roll(of, -part, axis=1) for part, of in enumerate(squares)])
    post = mail.post(
        plan,
        (plan.threads, plan.parts, ROWS, UNITS),
        jnp.float32,
        mail.Arrivals(barriers=plan.threads, senders=1, tiles=1),
        interpret=settings.interpret,
        columns=8,
    )

    def open_exchange(place, refs, passing, scratch):
        loaded, own, exposed, read, *boxed = scratch
        return _Reduce(
            place,
            matrix.load(place, refs, loaded),
            own,
            exposed,
            read,
            post.open(place, passing, boxed),
            d_feedback,
            mosaic.multiply(settings.interpret),
        )

    scheme = gated.Scheme(
        plan,
        matrix.inputs(_merged(chunks)),
        post.passing,
        (
            matrix.scratch(),
            mosaic.shared_tiles((PLACES, crossing, count, ROWS, plan.size), dtype),
            plgpu.Barrier(num_arrivals=plan.threads),
            plgpu.ClusterBarrier(collective_axes=("part",), num_arrivals=plan.threads),
            *post.scratch,
        ),
        open_exchange,
    )
    return gated.backward(scheme, form, inputs, settings)


class _Gather(NamedTuple):
    """The forward products: each block is sent the hidden state of all; see `gated.Gather`.

    Attributes:
      place: where the warpgroup works.
      matrix: its columns, a chunk for UNITS units of the hidden state.
      box: of hidden states, [PLACES, pieces, ROWS, H].
      met: a barrier for all warpgroups of the block.
      multiply: the product of tiles.
    """

    place: Place
    matrix: Matrix
    box: Box
    met: Any
    multiply: Any

    def gather(self, t, hidden, bias, met):
        place, turn = self.place, t % PLACES
        tiles = mosaic.pieces(hidden, place.plan.dtype)
        for block in range(place.plan.parts):
            for k, tile in enumerate(tiles):
                where = turn, k, slice(None), place.units
                self.box.send(self.box.peer(block), where, turn, tile)
        self.box.sent(turn)
        mosaic.sync(self.met)
        # In the shadow of the way that the tiles take.
        met()
        everyone, sums = self.box.received(turn).at[turn], list(bias)
        for c in range(everyone.shape[-1] // UNITS):
            rows = place.operand(everyone.at[:, :, pl.ds(c * UNITS, UNITS)])
            sums = [
                mosaic.add_product(a, rows, self.matrix.columns(g, c), self.multiply)
                for g, a in enumerate(sums)
            ]
        return sums


class _Reduce(NamedTuple):
    """The reverse products: each block adds up what it is sent; see `gated.Reduce`.

    Attributes:
      place: where the warpgroup works.
      matrix: chunks for each block, from this one on in a circle, with the columns of the
        warpgroup's units in it, and of them one for UNITS of the units whose derivatives are
        multiplied.
      own: shared memory, [PLACES, crossing, pieces, ROWS, units of a block].
      exposed: a barrier for all warpgroups of the block.
      read: a barrier for all warpgroups of the cluster.
      box: of sums, [warpgroups, P, ROWS, UNITS].
      d_feedback: for each gate, which emitted tile is the derivative of its feedback.
      multiply: the product of tiles.
    """

    place: Place
    matrix: Matrix
    own: Any
    exposed: Any
    read: Any
    box: Box
    d_feedback: tuple[int | None, ...]
    multiply: Any

    def pull(self, k, emitted, d, met):
        place, count = self.place, self.place.plan.parts
        own, crossing = self.own.at[k % PLACES], parts.crossing(self.d_feedback)
        for row, e in enumerate(crossing):
            place.expose(own.at[row], emitted[e])
        mosaic.sync(self.exposed)
        # The threads have met since they read the sums of the step before.
        plgpu.barrier_arrive(self.read)
        sums = [place.tile(jnp.zeros_like(d))] * count
        chunks = place.plan.threads
        for g, e in enumerate(self.d_feedback):
            if e is None:
                continue
            for c in range(chunks):
                row = own.at[crossing.index(e), :, :, pl.ds(c * UNITS, UNITS)]
                rows = place.operand(row)
                sums = [
                    mosaic.add_product(
                        a, rows, self.matrix.columns(g, q * chunks + c), self.multiply
                    )
                    for q, a in enumerate(sums)
                ]
        plgpu.barrier_wait(self.read)
        for block, a in enumerate(sums):
            self.box.send(self.box.peer(block), (place.thread, place.part), place.thread, a)
        self.box.sent(place.thread)
        # In the shadow of the way that the sums take; stores before it would hold up their fences.
        met()
        received = self.box.received(place.thread).at[place.thread]
        for p in range(count):
            d = d + mosaic.load(received.at[p], place.plan.layouts.tile)
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


KERNEL = GatedKernel("gpu_cluster", unsupported, interpreter, forward, backward)
