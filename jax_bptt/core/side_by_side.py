"""Loops that XLA runs side by side on a CPU, one core each.

A step of a recurrence is too small for several cores: they would have to meet many times in it.
Two halves of a batch are two recurrences that meet once, after the last step. XLA's executor on a
CPU runs what is ready side by side as long as no two pieces write the same memory, and three things
stand in the way of two loops:

- The temporaries of a body lie in memory that is shared with whatever is not alive at the same
  place of the program's order, the other loop's too, which reads as a dependence. Here every
  temporary is part of the carry, and so is what a loop emits, down to the loops in its step.
- Work goes to another thread only where more than eight pieces are ready at once: the last half of
  them, and what follows from a piece stays in the thread that ends it. So a loop waits for a few
  tickets of its own, small pieces that become ready together, all loops' at once, when everything
  else is there. A loop that is late costs most in a short program (forward pass of a simple
  network, T = 1024, B = 32, H = 128: 16 ms, or 28).
- What nobody reads is removed, and what is cheap is computed where it is read. `after` makes an
  index wait for arrays by an operation that XLA does not see through.

Each loop goes on by itself, products, steps and all: two loops over blocks of time, with a loop
over steps in each, take 0.78 to 0.84 of the time of one loop over blocks that runs the two over
steps side by side (gradient, T = 1024, B = 32, H = 128, two cores).

None of it changes a result, nor more than the time where an executor works otherwise. Seen with jax
0.10 and 0.12.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.core.indices import after, at, index, is_key, put, zero
from jax_bptt.core.loops import Loop, Scratch, Step, mark, scan, trace
from jax_bptt.core.types import PyTree

TICKETS = 6
"""Of each loop: those of two are more than eight, of which each thread gets one loop's."""


def scans(loops: list[Loop], axis: int) -> tuple[list[PyTree], PyTree, list[PyTree]]:
    """Run two or more loops as `scan` does each of them, side by side.

    Args:
      loops: independent of each other. Their steps take one argument more, the first: `scan`, or
        what stands for it here, to run loops of their own.
      axis: of stacked outputs, along which those of all loops are put together. Steps emit
        (together, apart); the first loop writes into the whole, so that only what the others have
        written is copied.

    Returns:
      The last carry of each loop, the outputs of all together, and those of each apart.
    """
    traced = [trace(loop._replace(step=functools.partial(loop.step, mark))) for loop in loops]
    first, *others = [step.scratch() for step, _ in traced]
    shapes = [_with_room(first, others, _together(traced[0][0]), axis), *others]
    scratches = _zeros(shapes, after(index(0), loops[0].inputs))
    given = [
        (step.fixed(consts), jax.tree.leaves(loop.carry), (step.read(loop.inputs), scratch))
        for loop, (step, consts), scratch in zip(loops, traced, scratches, strict=True)
    ]
    # Else the gate would wait for what its one element of each is made of, not for the whole.
    given = lax.optimization_barrier(given)
    # Not what is fixed or carried: an LSTM's loops would run one after the other (jax 0.10).
    gate, there = _when_there(after(index(0), given), [large for _, _, large in given])
    ends, tickets = [], []
    for (step, _), (fixed, carry, _), (inputs, scratch) in zip(traced, given, there, strict=True):
        numbers = [gate + index(len(tickets) + k) for k in range(TICKETS)]
        # What is expensive XLA computes once, by a piece of its own.
        own = [jnp.exp(i.astype(jnp.float32)) for i in numbers]
        # Written in place: new memory could be what another loop has used.
        here = put(scratch.here, after(index(0), own), index(0))
        ends.append(step.run(fixed, carry, inputs, scratch._replace(here=here)))
        tickets += own
    results = [
        _with_the_rest(loop, jax.tree.unflatten(step.structure, [*carry, *scratch.outputs]))
        for loop, (step, _), (carry, scratch) in zip(loops, traced, ends, strict=True)
    ]
    carries, outputs = zip(*results, strict=True)
    together, apart = zip(*outputs, strict=True)
    results = carries, jax.tree.map(functools.partial(_put_into, axis), *together), apart
    # Alive up to here: nothing of one loop takes the memory of what the other has had or read.
    written = [scratch._replace(outputs=[]) for _, scratch in ends]
    alive = gate, written, results, [(fixed, inputs) for fixed, _, (inputs, _) in given]
    carries, whole, apart = _at_last(results, after(index(0), alive), tickets)
    return list(carries), whole, list(apart)


def _together(step: Step) -> list[int]:
    """Return which of the outputs of a step that emits (together, apart) are put together."""
    numbers = [*[-1] * step.carried, *range(len(step.jaxpr.outvars) - step.carried)]
    _, (together, _) = jax.tree.unflatten(step.structure, numbers)
    return jax.tree.leaves(together)


def _with_room(first: Scratch, others: list[Scratch], together: list[int], axis: int) -> Scratch:
    """Return the first loop's scratch, with room for the outputs of all that are put together."""
    outputs = list(first.outputs)
    for k in together:
        shape = list(outputs[k].shape)
        shape[axis] += sum(scratch.outputs[k].shape[axis] for scratch in others)
        outputs[k] = jax.ShapeDtypeStruct(tuple(shape), outputs[k].dtype)
    return first._replace(outputs=outputs)


def _with_the_rest(loop: Loop, results: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    """Take the step of what is left over; return the carry, and the outputs with what it emits."""
    if loop.left_over.start == loop.left_over.stop:
        return results
    carry, outputs = results
    carry, emitted = loop._replace(step=functools.partial(loop.step, scan)).last_step(carry)

    def into(a, e):
        return lax.dynamic_update_slice_in_dim(a, e, loop.left_over.start, 0)

    return carry, jax.tree.map(into, outputs, emitted)


def _put_into(axis: int, whole: Array, *others: Array) -> Array:
    """Put what the other loops have written into the room of the first one's output."""
    start = whole.shape[axis] - sum(a.shape[axis] for a in others)
    for a in others:
        whole = lax.dynamic_update_slice_in_dim(whole, a, start, axis)
        start += a.shape[axis]
    return whole


def _zeros(shapes: PyTree, i: Array) -> PyTree:
    """Return zeros of the given shapes, arrays each in memory of its own, made of the index `i`.

    Equal constants are one to XLA, of which it makes as many copies. Of a number, it may.
    """
    leaves, structure = jax.tree.flatten(shapes)
    for k, a in enumerate(leaves):
        value = 0 if is_key(a) or a.ndim == 0 else zero(i + index(k))
        leaves[k] = jnp.zeros(a.shape, a.dtype) if is_key(a) else jnp.full(a.shape, value, a.dtype)
    return jax.tree.unflatten(structure, leaves)


def _when_there(i: Array, tree: PyTree) -> tuple[Array, PyTree]:
    """Return the index `i`, a zero, when all of `tree` is there, and `tree`.

    They go through a loop without a step.
    """

    def body(state):
        i, tree = state
        return _read(i, tree), tree

    return lax.while_loop(lambda state: state[0] > index(0), body, (i, tree))


def _read(i: Array, tree: PyTree) -> Array:
    """Return the next `i` of a loop, which waits for `tree`.

    It reads by `i`, which the loop changes: the rest XLA would read ahead of the loop, where it
    would make the one element of an array that is cheap to make.
    """
    return after(i, [at(a, i) if a.ndim else _if_any(i, a) for a in jax.tree.leaves(tree)])


def _if_any(i: Array, a: Array) -> Array:
    return jnp.where(i > index(1), a, jnp.zeros_like(a))


def _at_last(results: PyTree, last: Array, tickets: list[Array]) -> PyTree:
    """Return `results` when the index `last`, a zero, is there.

    They go through a loop without a step: XLA sees no other way to do without the index. The
    tickets do so too, else XLA would make them where they are read.
    """

    def body(state):
        last, tickets, results = state
        results = jax.tree.map(functools.partial(_if_any, last), results)
        return _read(last, tickets), tickets, results

    state = last, tickets, results
    return lax.while_loop(lambda state: state[0] > index(0), body, state)[2]


def differentiable(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun(True, *args)` as a function of `args` that JAX can differentiate.

    The first argument of `fun` says whether loops may run side by side, as while loops, through
    which JAX has no reverse mode. Where it is differentiated, they run as scans.
    """
    together = jax.custom_jvp(functools.partial(fun, True))

    @together.defjvp
    def jvp(primals, tangents):
        return jax.jvp(functools.partial(fun, False), primals, tangents)

    return together
