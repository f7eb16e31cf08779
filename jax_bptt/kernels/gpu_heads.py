"""Block-diagonal recurrence on a GPU: all steps of a sequence in one launch, forward and reverse.

A block of threads keeps one head of D units and ROWS rows of the batch for all T steps, a warpgroup
for every UNITS units:

    feedback_t = hidden_{t-1} M         mma.sync; M [D, G, D] lies in registers, loaded once
    s_t        = pointwise(...)         within a thread
    hidden_t                            to the other threads, through shared memory

and backwards, with d = dL/ds_t and e the derivatives of the feedbacks,

    d_prev, e = derivative(d)           within a thread
    e                                   to the other threads, through shared memory
    d_{t-1}   = d_prev + e M^T

Only what goes through shared memory needs the threads to meet, so that a step has one barrier.
What a step reads from global memory was asked for DEPTH steps before; what it stores is stored
behind the barrier, where nothing waits for it. As in FlashRNN (K. Poppel, M. Beck and S. Hochreiter
(2024), "FlashRNN: optimizing traditional RNNs on modern hardware"), the gradient of the weights is
no part of the loop: it is a product of what the two kernels return.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.kernels import gpu_heads_parts as parts
from jax_bptt.kernels import mosaic
from jax_bptt.kernels.form import HELD, RESET, Form
from jax_bptt.kernels.mosaic import ROWS, UNITS

REST = 32
"""Registers of a thread for all that is neither matrix nor operand, at the least."""


def unsupported(form: Form) -> str | None:
    """Return why the kernels cannot take `form`, None if they can."""
    if reason := mosaic.available():
        return reason
    _, size, gates, _ = form.matrix.shape
    dtype = form.matrix.dtype
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the GPU kernel multiplies bfloat16, float16 or float32, not {dtype}"
    if size % UNITS or not UNITS <= size <= 128:
        return f"the GPU kernel takes heads of 32, 64, 96 or 128 units, not {size}"
    if gates > 4:
        return f"the GPU kernel takes up to 4 gates, not {gates}"
    # 4 D threads share 65536 registers. One holds, two values a register, 1/128 of 32 columns of
    # each gate's matrix and the whole of a row of the operand, in pieces; what is left over here
    # suffices for the rest, as compiled for an H200: nothing is spilled but, with flags, up to 44
    # bytes by an LSTM of 128 units.
    pieces = mosaic.piece_count(dtype)
    held = gates * size * pieces // 8 + size * pieces // 4
    if held > min(255, 65536 // (4 * size)) - REST:
        return (
            f"{gates} matrices [{size}, {size}] of {dtype} do not fit into the registers of a GPU"
        )
    return None


def interpreter() -> Any:
    """Return the parameters with which JAX's interpreter runs the kernels on a CPU."""
    return mosaic.plgpu.InterpretGPUParams()


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
    """Run all steps of a gated cell.

    Args:
      form: the normal form of the cell, N heads of D units, H = N D.
      state: the leaves of s_0, float32 [B, H] each.
      drives: floating, [T, B, G, H].
      flags: int32 [T, B] of RESET and HELD, or None for neither.
      save: whether to return what `backward` needs.
      approximate: whether transcendental functions may be the hardware's, of about 11 bits.
      interpret: parameters of the interpreter, or None to run on a GPU.

    Returns:
      (states, saved): the leaves of s_1..s_T, float32 [T, B, H] each; the saved tiles in the dtype
      of the operands, none without `save`.
    """
    plan, batch = parts.plan_of(form, drives), drives.shape[1]
    step, gates, multiply = form.step, drives.shape[2], mosaic.multiply(interpret)
    count = mosaic.piece_count(plan.dtype)

    def body(inputs, *refs):
        matrix_ref, bias_ref, unit_refs, state_refs, drives_ref, flags_ref = inputs
        *out_refs, slots, hidden_ref, ready, barrier = refs
        place = parts.place_of(plan)
        ring = mosaic.Ring(tuple(slots), ready, parts.DEPTH)

        def sources(t):
            found = [drives_ref.at[t, place.rows, place.gate(g)] for g in range(gates)]
            return found + ([] if flags_ref is None else [flags_ref.at[t, place.block]])

        matrix = place.matrix(matrix_ref)
        bias = [place.per_unit(bias_ref.at[g]) for g in range(gates)]
        weights = [place.per_unit(ref) for ref in unit_refs]
        start = [place.load_state(ref) for ref in state_refs]
        bits = place.bits() if flags_ref is not None else None
        parts.fill(ring, sources, plan, place)
        place.expose(hidden_ref.at[0], start[form.recurrent])
        mosaic.sync(barrier)

        def advance(t, states):
            tiles = ring.wait(t)
            hidden = place.operand(hidden_ref.at[t % 2])
            feedback = [
                mosaic.add_product(b, hidden, w, multiply)
                for b, w in zip(bias, matrix, strict=True)
            ]
            drive = [place.load(ref) for ref in tiles[:gates]]
            news, saved = step.forward(states, drive, feedback, weights)
            entering = news
            if bits is not None:
                restart, held = parts.decode(tiles[gates], bits)
                news = [jnp.where(held, a, b) for a, b in zip(states, news, strict=True)]
                entering = [jnp.where(restart, a, b) for a, b in zip(start, news, strict=True)]
            place.expose(hidden_ref.at[(t + 1) % 2], entering[form.recurrent])
            mosaic.sync(barrier)
            parts.refill(ring, t, sources, plan, place)
            parts.store_tiles(out_refs, t, [*news, *saved][: len(out_refs)], place)
            return [place.tile(s) for s in entering]

        lax.fori_loop(jnp.int32(0), jnp.int32(plan.steps), advance, start)

    words = None
    if flags is not None:
        # A step's word says whether it is held and whether the one after it starts again: what
        # enters a step is exposed by the step before.
        following = jnp.pad(flags[1:] & RESET, ((0, 1), (0, 0)))
        words = parts.flag_words((flags & HELD) | following, plan)
    flat = drives.reshape(*drives.shape[:2], -1)
    inputs = (
        parts.matrix_pieces(jnp.transpose(form.matrix, (0, 2, 3, 1)), plan.dtype),
        form.bias,
        form.units,
        tuple(parts.padded(s, 0, plan) for s in state),
        parts.padded(flat, 1, plan),
        words,
    )
    dtypes = [jnp.float32] * len(state) + [plan.dtype] * (step.saved if save else 0)
    found = parts.launch(
        body,
        plan,
        dtypes,
        fetched=[drives.dtype] * gates,
        words=words is not None,
        exposed=(2, count, ROWS, plan.size),
        approximate=approximate,
        interpret=interpret,
    )(inputs)
    found = [a[:, :batch] for a in found]
    return tuple(found[: len(state)]), tuple(found[len(state) :])


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
    """Run the reverse pass of all steps.

    Args:
      form: as given to `forward`, and so are `state`, `flags`, `approximate` and `interpret`.
      state: the leaves of s_0.
      states: the leaves of s_1..s_T.
      saved: what `forward` saved.
      flags: int32 [T, B] or None.
      d_last: what reaches s_T from beyond, float32 [B, H] each.
      d_states: what reaches s_1..s_T from the outputs, float32 [T, B, H] each or None.
      approximate: whether transcendental functions may be the hardware's.
      interpret: parameters of the interpreter, or None.

    Returns:
      (d_first, d_start, emitted, lambdas): what reaches s_0; what reaches the start by resets, or
      None without flags; the emitted tiles [T, B, H] in the dtype of the operands, zero where the
      state was held; dL/ds_t float32 [T, B, H], or None unless the step reads weights of units.
    """
    plan, batch = parts.plan_of(form, states[0]), states[0].shape[1]
    step, multiply = form.step, mosaic.multiply(interpret)
    count = mosaic.piece_count(plan.dtype)
    crossing = sorted({e for e in step.d_feedback if e is not None})
    olds = tuple(a for a, r in zip(states, step.reads_prev, strict=True) if r)
    news = tuple(a for a, r in zip(states, step.reads_new, strict=True) if r)
    given = tuple(a for a in d_states if a is not None)

    def body(inputs, *refs):
        matrix_ref, unit_refs, start_refs, last_refs, steps_refs, flags_ref = inputs
        saved_refs, old_refs, new_refs, given_refs = steps_refs
        *out_refs, slots, crossing_ref, ready, barrier = refs
        place = parts.place_of(plan)
        ring = mosaic.Ring(tuple(slots), ready, parts.DEPTH)

        def sources(k):
            t = plan.steps - 1 - k
            before = jnp.maximum(t - 1, 0)
            units = place.gate(0)
            found = [r.at[t, place.rows, units] for r in (*saved_refs, *new_refs, *given_refs)]
            found += [r.at[before, place.rows, units] for r in old_refs]
            return found + ([] if flags_ref is None else [flags_ref.at[t, place.block]])

        matrix = place.matrix(matrix_ref)
        weights = [place.per_unit(ref) for ref in unit_refs]
        start = [place.load_state(ref) for ref in start_refs]
        bits = place.bits() if flags_ref is not None else None
        parts.fill(ring, sources, plan, place)

        def retreat(k, carry):
            d, d_start = carry
            t = plan.steps - 1 - k
            refs = ring.wait(k)
            tiles = iter(refs)
            kept = [place.load(next(tiles)) for _ in saved_refs]
            after = parts.where_read(step.reads_new, [place.load(next(tiles)) for _ in new_refs])
            d = [
                x if g is None else x + place.load(next(tiles))
                for x, g in zip(d, d_states, strict=True)
            ]
            before = [jnp.where(t > 0, place.load(next(tiles)), s) for s in start]
            through, past, restart = d, None, None
            if bits is not None:
                restart, held = parts.decode(next(tiles), bits)
                before = [jnp.where(restart, s, b) for s, b in zip(start, before, strict=True)]
                through = [jnp.where(held, 0.0, x) for x in d]
                past = [jnp.where(held, x, 0.0) for x in d]
            before = parts.where_read(step.reads_prev, before)
            d_prev, emitted = step.backward(before, after, kept, weights, through)
            if past is not None:
                d_prev = [a + b for a, b in zip(d_prev, past, strict=True)]
            for row, e in enumerate(crossing):
                place.expose(crossing_ref.at[k % 2, row], emitted[e])
            mosaic.sync(barrier)
            parts.refill(ring, k, sources, plan, place)
            acc = place.tile(d_prev[form.recurrent])
            for e, columns in zip(step.d_feedback, matrix, strict=True):
                if e is not None:
                    rows = place.operand(crossing_ref.at[k % 2, crossing.index(e)])
                    acc = mosaic.add_product(acc, rows, columns, multiply)
            d = [acc if j == form.recurrent else place.tile(x) for j, x in enumerate(d_prev)]
            results = [*emitted, *(through if step.units else ())]
            parts.store_tiles(out_refs[: len(results)], t, results, place)
            if restart is not None:
                d_start = [s + jnp.where(restart, x, 0.0) for s, x in zip(d_start, d, strict=True)]
                d = [jnp.where(restart, 0.0, x) for x in d]
            return [place.tile(x) for x in d], [place.tile(x) for x in d_start]

        d = [place.load_state(ref) for ref in last_refs]
        d_start = [place.tile(jnp.zeros_like(x)) for x in d] if bits is not None else []
        d, d_start = lax.fori_loop(jnp.int32(0), jnp.int32(plan.steps), retreat, (d, d_start))
        last = out_refs[len(out_refs) - len(d) - len(d_start) :]
        for ref, value in zip(last, [*d, *d_start], strict=True):
            mosaic.store(ref.at[place.rows, place.units], value)

    words = None if flags is None else parts.flag_words(flags, plan)
    fetched = saved, olds, news, given
    starts = tuple(s for s, r in zip(state, step.reads_prev, strict=True) if r)
    inputs = (
        parts.matrix_pieces(jnp.transpose(form.matrix, (0, 2, 1, 3)), plan.dtype),
        form.units,
        tuple(parts.padded(s, 0, plan) for s in starts),
        tuple(parts.padded(d, 0, plan) for d in d_last),
        jax.tree.map(lambda a: parts.padded(a, 1, plan), fetched),
        words,
    )
    lambdas = len(state) if step.units else 0
    found = parts.launch(
        body,
        plan,
        [plan.dtype] * step.emitted + [jnp.float32] * lambdas,
        fetched=[a.dtype for a in (*saved, *news, *given, *olds)],
        words=words is not None,
        exposed=(2, len(crossing), count, ROWS, plan.size),
        lasting=len(state) * (1 if words is None else 2),
        approximate=approximate,
        interpret=interpret,
    )(inputs)
    emitted = tuple(a[:, :batch] for a in found[: step.emitted])
    passing = tuple(a[:, :batch] for a in found[step.emitted : step.emitted + lambdas])
    lasting = tuple(a[:batch] for a in found[step.emitted + lambdas :])
    d_start = lasting[len(state) :] if words is not None else None
    return lasting[: len(state)], d_start, emitted, passing if lambdas else None
