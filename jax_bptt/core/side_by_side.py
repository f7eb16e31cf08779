"""Loops that XLA runs side by side on a CPU, one core each.

A step of a recurrence is too small for several cores: they would have to meet many times in it.
Two halves of a batch are two recurrences that meet once, after the last step. XLA's executor on a
CPU runs what is ready side by side as long as no two pieces write the same memory, and three things
stand in the way of two loops:

- The temporaries of a body lie in memory that is shared with whatever is not alive at the same
  place of the program's order, the other loop's too, which reads as a dependence. Here every
  temporary is part of the carry, and so is what a loop emits, down to the loops in its step.
- Work goes to another thread only where more than eight pieces are ready at once: half of them.
  So a number of idle tickets become ready together with the first step of each loop, one loop at
  either end of the queue.
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

from jax_bptt.core.indices import INDEX, after, index, is_key, zero
from jax_bptt.core.loops import Loop, mark, trace
from jax_bptt.core.types import PyTree

TICKETS = 24
"""Pieces that become ready together; more than eight in either half."""


def scans(loops: list[Loop]) -> list[tuple[PyTree, PyTree]]:
    """Run two or more loops as `scan` does each of them, side by side.

    Args:
      loops: independent of each other. Their steps take one argument more, the first: `scan`, or
        what stands for it here, to run loops of their own.

    Returns:
      What `scan` returns of each loop.
    """
    traced = [trace(loop._replace(step=functools.partial(loop.step, mark))) for loop in loops]
    scratches = _zeros([step.scratch() for step, _ in traced], after(index(0), loops[0].inputs))
    given = [
        (step.fixed(consts), jax.tree.leaves(loop.carry), step.read(loop.inputs), scratch)
        for loop, (step, consts), scratch in zip(loops, traced, scratches, strict=True)
    ]
    # Else the gate would wait for what its one element of each is made of, not for the whole.
    given = lax.optimization_barrier(given)
    tickets = _hand_out(after(index(0), given))
    ends = []
    for k, ((step, _), (fixed, carry, inputs, scratch)) in enumerate(
        zip(traced, given, strict=True)
    ):
        ticket = tickets[k * (TICKETS - 1) // (len(loops) - 1)]
        waiting = scratch._replace(count=scratch.count + zero(ticket))
        ends.append(step.run(fixed, carry, inputs, waiting))
    results = [
        jax.tree.unflatten(step.structure, [*carry, *scratch.outputs])
        for (step, _), (carry, scratch) in zip(traced, ends, strict=True)
    ]
    # Alive up to here: nothing of one loop takes the memory of what the other has had or read.
    alive = tickets, ends, [(fixed, inputs) for fixed, _, inputs, _ in given]
    return _at_last(results, after(index(0), alive))


def _zeros(shapes: PyTree, i: Array) -> PyTree:
    """Return zeros of the given shapes, each in memory of its own, made of the index `i`.

    Equal constants are one to XLA, of which it makes as many copies.
    """
    leaves, structure = jax.tree.flatten(shapes)
    for k, a in enumerate(leaves):
        number = zero(i + index(k))
        leaves[k] = jnp.zeros(a.shape, a.dtype) if is_key(a) else jnp.full(a.shape, number, a.dtype)
    return jax.tree.unflatten(structure, leaves)


def _hand_out(gate: Array) -> list[Array]:
    """Return the tickets, all of them ready as soon as the gate is."""
    # What is expensive is computed once: else each ticket would wait for all that the gate does.
    gate = zero(lax.bitcast_convert_type(jnp.exp(gate.astype(jnp.float32)), INDEX))
    return [gate + index(k) for k in range(TICKETS)]


def _at_last(results: PyTree, last: Array) -> PyTree:
    """Return `results` when the index `last`, a zero, is there.

    They go through a loop without a step: XLA sees no other way to do without the index.
    """

    def body(state):
        last, results = state
        return last, jax.tree.map(lambda a: jnp.where(last > 1, a, jnp.zeros_like(a)), results)

    return lax.while_loop(lambda state: state[0] > index(0), body, (last, results))[1]


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
