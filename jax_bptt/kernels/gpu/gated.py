"""All steps of a sequence in one GPU kernel, forward and reverse, however its units are spread.

A block of threads keeps some units and ROWS rows of the batch for all T steps, a warpgroup for
every UNITS units:

    feedback_t = hidden_{t-1} M         mma.sync; M lies in registers, loaded once
    s_t        = pointwise(...)         within a thread
    hidden_t                            to the other threads

and backwards, with d = dL/ds_t and e the derivatives of the feedbacks,

    d_prev, e = derivative(d)           within a thread
    d_{t-1}   = d_prev + e M^T          of what all threads hold

How a product comes by what other threads hold is all that kernels differ in: their `Scheme`. What
a step reads from global memory was asked for `depth` steps before; what it makes is stored behind
the exchange, beside the products of the next step where there are registers for both. As in
FlashRNN (K. Poppel, M. Beck and S. Hochreiter (2024), "FlashRNN: optimizing traditional RNNs on
modern hardware"), the gradient of the weights is no part of the loop: it is a product of what the
two kernels return.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.kernels.form import HELD, RESET, Form
from jax_bptt.kernels.gpu import mosaic, parts
from jax_bptt.kernels.gpu.functions import by_hardware
from jax_bptt.kernels.gpu.functions import functions as functions_of
from jax_bptt.kernels.gpu.parts import Place, Plan
from jax_bptt.kernels.kernel import (
    BackwardInputs,
    Cotangents,
    ForwardInputs,
    Settings,
    Trajectory,
)


class Gather(Protocol):
    """The products of a forward kernel."""

    def gather(
        self, t: Any, hidden: Array, bias: Sequence[Array], met: Callable[[], None]
    ) -> list[Array]:
        """Return bias + hidden M, a tile of each gate, of the hidden state that enters step t.

        It calls `met` at some time after the threads of the block have met: there, what they read
        is fetched anew, and what they made is stored.
        """
        ...


class Reduce(Protocol):
    """The products of a reverse kernel."""

    def pull(self, k: Any, emitted: Sequence[Array], d: Array, met: Callable[[], None]) -> Array:
        """Return d + e M^T of the k-th step from the end; `met` is as in `Gather`."""
        ...


class Scheme(NamedTuple):
    """How one kernel spreads its units, and what it needs to exchange them.

    Attributes:
      plan: of the kernel.
      inputs: arrays in global memory that the exchange reads.
      passing: shapes in global memory that the interpreter takes for other blocks' shared memory.
      scratch: shared memory and barriers, as Pallas takes them.
      open: (place, inputs, passing, scratch) -> Gather or Reduce, which the kernel calls with
        references.
    """

    plan: Plan
    inputs: Any
    passing: tuple[jax.ShapeDtypeStruct, ...]
    scratch: Sequence[Any]
    open: Callable[[Place, Any, Sequence[Any], Sequence[Any]], Any]


def forward(
    scheme: Scheme, form: Form, inputs: ForwardInputs, settings: Settings, save: bool
) -> Trajectory:
    """Run all steps of a gated cell, as `GatedKernel.forward`.

    The saved tiles of all steps are one array [T S, B, H], which the reverse kernel fetches by one
    copy a step, or none if there are none to save.
    """
    state, drives, flags = inputs
    plan, batch = scheme.plan, drives.shape[1]
    step, gates = form.step, drives.shape[2]
    functions = functions_of(settings.approximate)
    made = [parts.over_time(jnp.float32, plan)] * len(state)
    if save and step.saved:
        made.append(parts.over_time(plan.dtype, plan, step.saved))
    outputs = len(made)

    def body(array_refs, *refs):
        own_refs, bias_ref, unit_refs, state_refs, drives_ref, flags_ref = array_refs
        *out_refs, slots, ready, scratch = refs
        out_refs, passing_refs = out_refs[:outputs], out_refs[outputs:]
        place = parts.place_of(plan)
        ring = mosaic.Ring(tuple(slots), ready, plan.depth)

        def sources(t):
            found = [drives_ref.at[t, place.rows, place.gate(g)] for g in range(gates)]
            return found + ([] if flags_ref is None else [flags_ref.at[t, place.block]])

        exchange: Gather = scheme.open(place, own_refs, passing_refs, scratch)
        bias = [place.per_unit(bias_ref.at[g]) for g in range(gates)]
        weights = [place.per_unit(ref) for ref in unit_refs]
        start = [place.load_state(ref) for ref in state_refs]
        bits = place.bits() if flags_ref is not None else None
        parts.fill(ring, sources, place)

        def gather(t, states, met):
            found = exchange.gather(t, states[form.recurrent], bias, met)
            return [place.tile(f) for f in found]

        def advance(t, carry):
            states, feedback = carry
            tiles = ring.wait(t)
            drive = [place.load(ref) for ref in tiles[:gates]]
            news, saved = step.forward(states, drive, feedback, weights, functions)
            entering = news
            if bits is not None:
                restart, held = parts.decode(tiles[gates], bits)
                news = [jnp.where(held, a, b) for a, b in zip(states, news, strict=True)]
                entering = [jnp.where(restart, a, b) for a, b in zip(start, news, strict=True)]

            def met():
                parts.refill(ring, t, sources, place)
                for ref, tile in zip(out_refs[: len(news)], news, strict=True):
                    parts.store(ref.at[t, place.rows, place.units], tile, place)
                for ref in out_refs[len(news) :]:
                    for k, tile in enumerate(saved):
                        row = t * len(saved) + k
                        parts.store(ref.at[row, place.rows, place.units], tile, place)

            feedback = gather(t + 1, entering, met)
            return [place.tile(s) for s in entering], feedback

        first = start, gather(jnp.int32(0), start, lambda: None)
        lax.fori_loop(jnp.int32(0), jnp.int32(plan.steps), advance, first)

    words = None
    if flags is not None:
        # A step's word says whether it is held and whether the one after it starts again: what
        # enters a step is passed on by the step before.
        following = jnp.pad(flags[1:] & RESET, ((0, 1), (0, 0)))
        words = parts.flag_words((flags & HELD) | following, plan)
    flat = drives.reshape(*drives.shape[:2], -1)
    arrays = (
        scheme.inputs,
        form.bias,
        form.units,
        tuple(parts.padded(s, 0, plan) for s in state),
        parts.padded(flat, 1, plan),
        words,
    )
    memory = parts.Memory(
        [*made, *scheme.passing],
        fetched=[parts.of_step(drives.dtype, plan)] * gates,
        words=words is not None,
        scratch=scheme.scratch,
    )
    hardware = settings._replace(approximate=by_hardware(step, settings.approximate))
    found = parts.launch(body, plan, memory, hardware)(arrays)
    found = [a[:, :batch] for a in found[:outputs]]
    return tuple(found[: len(state)]), tuple(found[len(state) :])


def backward(scheme: Scheme, form: Form, inputs: BackwardInputs, settings: Settings) -> Cotangents:
    """Run the reverse pass of all steps, as `GatedKernel.backward`."""
    state, states, saved, flags, d_last, d_states = inputs
    plan, batch = scheme.plan, states[0].shape[1]
    step = form.step
    olds = tuple(a for a, r in zip(states, step.reads_prev, strict=True) if r)
    news = tuple(a for a, r in zip(states, step.reads_new, strict=True) if r)
    given = tuple(a for a in d_states if a is not None)
    lambdas = len(state) if step.units else 0
    made = [parts.side_by_side(plan.dtype, plan, step.emitted)]
    made += [parts.over_time(jnp.float32, plan)] * lambdas
    row = jax.ShapeDtypeStruct((plan.rows, plan.parts * plan.size), jnp.float32)
    lasting = [row] * (len(state) * (1 if flags is None else 2))
    outputs = len(made) + len(lasting)

    def body(array_refs, *refs):
        own_refs, unit_refs, start_refs, last_refs, steps_refs, flags_ref = array_refs
        saved_refs, old_refs, new_refs, given_refs = steps_refs
        *out_refs, slots, ready, scratch = refs
        out_refs, passing_refs = out_refs[:outputs], out_refs[outputs:]
        emitted_ref, *lambda_refs = out_refs[: len(made)]
        place = parts.place_of(plan)
        ring = mosaic.Ring(tuple(slots), ready, plan.depth)

        def sources(k):
            t = plan.steps - 1 - k
            before = jnp.maximum(t - 1, 0)
            units = place.gate(0)
            found = [r.at[pl.ds(t * step.saved, step.saved), place.rows, units] for r in saved_refs]
            found += [r.at[t, place.rows, units] for r in (*new_refs, *given_refs)]
            found += [r.at[before, place.rows, units] for r in old_refs]
            return found + ([] if flags_ref is None else [flags_ref.at[t, place.block]])

        exchange: Reduce = scheme.open(place, own_refs, passing_refs, scratch)
        weights = [place.per_unit(ref) for ref in unit_refs]
        start = [place.load_state(ref) for ref in start_refs]
        bits = place.bits() if flags_ref is not None else None
        parts.fill(ring, sources, place)

        def retreat(k, carry):
            d, d_start = carry
            t = plan.steps - 1 - k
            refs = ring.wait(k)
            tiles = iter(refs)
            saved_tiles = [next(tiles) for _ in saved_refs]
            kept = [place.load(ref.at[s]) for ref in saved_tiles for s in range(step.saved)]
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
            d = [place.tile(x) for x in d_prev]

            def met():
                parts.refill(ring, k, sources, place)
                for e, tile in enumerate(emitted):
                    parts.store(emitted_ref.at[t, place.rows, place.units_of(e)], tile, place)
                for ref, tile in zip(lambda_refs, through if lambdas else (), strict=True):
                    parts.store(ref.at[t, place.rows, place.units], tile, place)

            d[form.recurrent] = exchange.pull(k, emitted, d[form.recurrent], met)
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
    arrays = (
        scheme.inputs,
        form.units,
        tuple(parts.padded(s, 0, plan) for s in starts),
        tuple(parts.padded(d, 0, plan) for d in d_last),
        jax.tree.map(lambda a: parts.padded(a, 1, plan), fetched),
        words,
    )
    memory = parts.Memory(
        [*made, *lasting, *scheme.passing],
        fetched=[
            *(parts.of_step(a.dtype, plan, step.saved) for a in saved),
            *(parts.of_step(a.dtype, plan) for a in (*news, *given, *olds)),
        ],
        words=words is not None,
        scratch=scheme.scratch,
    )
    found = parts.launch(body, plan, memory, settings)(arrays)
    emitted, *passing = (a[:, :batch] for a in found[: len(made)])
    emitted = emitted.reshape(*emitted.shape[:2], step.emitted, -1)
    last = tuple(a[:batch] for a in found[len(made) : outputs])
    d_start = last[len(state) :] if words is not None else None
    return Cotangents(last[: len(state)], d_start, emitted, tuple(passing) if lambdas else None)
