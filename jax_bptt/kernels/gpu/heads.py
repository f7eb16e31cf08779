"""Block-diagonal recurrence on a GPU: all steps of a sequence in one launch, forward and reverse.

A block of threads keeps one head of D units and ROWS rows of the batch for all T steps (see
`gated`). The threads of a head share the memory in which they exchange its hidden state, or
the derivatives of its feedbacks, so that a step has one barrier.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_bptt.kernels.form import Form
from jax_bptt.kernels.gpu import gated, mosaic, parts
from jax_bptt.kernels.gpu.mosaic import ROWS, UNITS
from jax_bptt.kernels.gpu.parts import Place, Plan
from jax_bptt.kernels.kernel import (
    BackwardInputs,
    Cotangents,
    ForwardInputs,
    GatedKernel,
    Settings,
    Trajectory,
)

DEPTH = 4
"""Steps that are fetched ahead: at half a microsecond each, more than the latency of the memory.
Down to 2 where a step has so many tiles that as many do not fit."""

REST = 32
"""Registers of a thread for all that is neither matrix nor operand, at the least."""

SPARE = 16
"""Registers for all that is not counted where a step's products run beside the stores of the step
before, for each piece of an operand. As compiled for an H200, what has them spills nothing."""


def unsupported(form: Form) -> str | None:
    """Return why the kernels cannot take `form`, None if they can."""
    if reason := parts.obstacle(form):
        return reason
    _, size, gates, _ = form.matrix.shape
    dtype = form.matrix.dtype
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the GPU kernel multiplies bfloat16, float16 or float32, not {dtype}"
    if size % UNITS or not UNITS <= size <= 128:
        return f"the GPU kernel takes heads of 32, 64, 96 or 128 units, not {size}"
    if gates > 4:
        return f"the GPU kernel takes up to 4 gates, not {gates}"
    # What is left over here suffices for the rest, as compiled for an H200: nothing is spilled but,
    # with flags, up to 32 bytes by an LSTM of 128 units, and 72 by one with peepholes.
    if _held(form) > _registers(form) - REST:
        return (
            f"{gates} matrices [{size}, {size}] of {dtype} do not fit into the registers of a GPU"
        )
    if _depth(form) is None:
        return (
            f"the tiles of two steps of {size} units need {max(_bytes(form, 2)) // 1024} KiB of "
            f"shared memory, of {parts.MEMORY // 1024} there are"
        )
    return None


def _registers(form: Form) -> int:
    """Return how many registers a thread can have: 4 D threads share 65536."""
    return min(255, 65536 // (4 * form.matrix.shape[1]))


def _held(form: Form) -> int:
    """Return how many of them a matrix and an operand take.

    A thread holds, two values a register, 1/128 of 32 columns of each gate's matrix and the whole
    of a row of the operand, in pieces.
    """
    _, size, gates, _ = form.matrix.shape
    pieces = mosaic.piece_count(form.matrix.dtype)
    return gates * size * pieces // 8 + size * pieces // 4


def _side_by_side(form: Form) -> bool:
    """Return whether there are registers for the products beside what a step has made."""
    step, gates = form.step, form.matrix.shape[2]
    tiles = gates + step.states + step.saved + step.units
    spare = SPARE * mosaic.piece_count(form.matrix.dtype)
    return _held(form) + 4 * tiles + spare <= _registers(form)


def _depth(form: Form) -> int | None:
    """Return how many steps can be fetched ahead, or None for fewer than two."""
    fitting = (d for d in range(DEPTH, 1, -1) if max(_bytes(form, d)) <= parts.MEMORY)
    return next(fitting, None)


def _bytes(form: Form, depth: int) -> tuple[int, int]:
    """Return how much shared memory the two kernels need at the most, forward and reverse."""
    heads, size = form.matrix.shape[:2]
    plan = Plan(form.matrix.dtype, 1, ROWS, heads, size, depth)
    narrow = 2 * mosaic.piece_count(plan.dtype) * ROWS * size
    forward, back = parts.ring_bytes(form, plan)
    return forward + 2 * narrow, back + 2 * len(parts.crossing(form.step.d_feedback)) * narrow


def interpreter() -> Any:
    """Return the parameters with which JAX's interpreter runs the kernels on a CPU."""
    return mosaic.plgpu.InterpretGPUParams()


def forward(form: Form, inputs: ForwardInputs, settings: Settings, save: bool) -> Trajectory:
    """Run all steps of a gated cell of N heads, H = N D; as `gated.forward`."""
    plan = _plan(form, inputs.drives)
    chunks = jnp.transpose(form.matrix, (0, 2, 3, 1))[:, :, None]
    exposed = 2, 1, mosaic.piece_count(plan.dtype), ROWS, plan.size
    scheme = _scheme(form, plan, chunks, exposed, settings.interpret)
    return gated.forward(scheme, form, inputs, settings, save)


def backward(form: Form, inputs: BackwardInputs, settings: Settings) -> Cotangents:
    """Run the reverse pass of all steps; as `gated.backward`."""
    plan = _plan(form, inputs.states[0])
    chunks = jnp.transpose(form.matrix, (0, 2, 1, 3))[:, :, None]
    exposed = (
        2,
        len(parts.crossing(form.step.d_feedback)),
        mosaic.piece_count(plan.dtype),
        ROWS,
        plan.size,
    )
    scheme = _scheme(form, plan, chunks, exposed, settings.interpret)
    return gated.backward(scheme, form, inputs, settings)


class _Exchange(NamedTuple):
    """Products of what the threads of one block hold; see `gated.Gather` and `Reduce`.

    Attributes:
      place: where the warpgroup works.
      matrix: its columns, for each gate one chunk of pieces.
      exposed: shared memory, [2, crossing, pieces, ROWS, D].
      barrier: for all warpgroups of the block.
      d_feedback: for each gate, which emitted tile is the derivative of its feedback.
      side_by_side: whether the forward products run beside the stores of the step before.
      multiply: the product of tiles.
    """

    place: Place
    matrix: list[list[list[Array]]]
    exposed: Any
    barrier: Any
    d_feedback: tuple[int | None, ...]
    side_by_side: bool
    multiply: Any

    def gather(self, t, hidden, bias, met):
        exposed = self.exposed.at[t % 2, 0]
        self.place.expose(exposed, hidden)
        mosaic.sync(self.barrier)
        if not self.side_by_side:
            met()
        rows = self.place.operand(exposed)
        found = [
            mosaic.add_product(b, rows, columns, self.multiply)
            for b, (columns,) in zip(bias, self.matrix, strict=True)
        ]
        if self.side_by_side:
            # The tensor cores multiply meanwhile.
            met()
        return found

    def pull(self, k, emitted, d, met):
        crossing = parts.crossing(self.d_feedback)
        for row, e in enumerate(crossing):
            self.place.expose(self.exposed.at[k % 2, row], emitted[e])
        mosaic.sync(self.barrier)
        for e, (columns,) in zip(self.d_feedback, self.matrix, strict=True):
            if e is not None:
                rows = self.place.operand(self.exposed.at[k % 2, crossing.index(e)])
                d = mosaic.add_product(d, rows, columns, self.multiply)
        met()
        return d


def _plan(form: Form, like: Array) -> Plan:
    """Return the plan for `form` and arrays like `like` [T, B, ...]."""
    steps, batch = like.shape[:2]
    heads, size = form.matrix.shape[:2]
    depth = _depth(form) or DEPTH
    return Plan(form.matrix.dtype, steps, parts.rows_of(batch), heads, size, depth)


def _scheme(
    form: Form, plan: Plan, chunks: Array, exposed: tuple[int, ...], interpret: Any
) -> gated.Scheme:
    """Return the scheme of a direction, from its matrices [N, G, 1, out, in]."""

    def open_exchange(place, matrix_ref, _, scratch):
        exposed_ref, barrier = scratch
        return _Exchange(
            place,
            place.matrix(matrix_ref),
            exposed_ref,
            barrier,
            form.step.d_feedback,
            _side_by_side(form),
            mosaic.multiply(interpret),
        )

    return gated.Scheme(
        plan,
        parts.in_pieces(chunks, plan.dtype),
        (),
        (
            mosaic.shared_tiles(exposed, mosaic.piece_dtype(plan.dtype)),
            mosaic.plgpu.Barrier(num_arrivals=plan.threads),
        ),
        open_exchange,
    )


KERNEL = GatedKernel("gpu_heads", unsupported, interpreter, forward, backward)
