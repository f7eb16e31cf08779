"""Loops that XLA runs side by side on a CPU, one core each.

A step of a recurrence is too small for several cores: they would have to meet many times in it.
Two halves of a batch are two recurrences that meet once, after the loop. XLA's executor on a CPU
runs what is ready side by side as long as no two pieces write the same memory, and three things
stand in the way of two loops:

- The temporaries of a body lie in memory that is shared with whatever is not alive at the same
  place of the program's order, the other loop's too, which reads as a dependence. Here every
  temporary is part of the carry, and alive from call to call, as is what the loops emit.
- Work goes to another thread only where more than eight pieces are ready at once: half of them.
  So a number of idle tickets become ready together with the first step of each loop, one loop at
  either end of the queue.
- What nobody reads is removed, and what is cheap is computed where it is read. `after` makes an
  index wait for arrays by an operation that XLA does not see through.

Between two calls nothing is filled with zeros or copied: what the loops write is carried over. Of
the 1.65 ms that a block took in the forward pass of an LSTM (32 steps, B = 32, H = 128), 0.16 ms
went there, some of it for waking the other thread.

None of it changes a result, nor more than the time where an executor works otherwise. Seen with jax
0.10 and 0.12: half the time of a loop (LSTM, B = 32, H = 128, two cores).
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Jaxpr, Literal

from jax_bptt.core import jaxprs
from jax_bptt.core.types import PyTree

INDEX = jnp.uint32
"""An unsigned index needs no correction of negative ones, which would be a temporary."""

TICKETS = 24
"""Pieces that become ready together; more than eight in either half."""

ALONE = "dot_general", "concatenate"
"""Operations that XLA fuses with no other on a CPU: what they read and make is kept in memory."""

EXPENSIVE = "tanh", "logistic", "exp", "exp2", "expm1", "log", "log1p", "erf", "sin", "cos", "pow"
"""Operations that XLA does not compute twice: what several others read of one is kept in memory."""


class Loop(NamedTuple):
    """The arguments of a `jax.lax.scan`: its step, the first carry, the inputs, the direction."""

    step: Callable[..., tuple[PyTree, PyTree]]
    carry: PyTree
    inputs: PyTree
    reverse: bool = False


def scan(loop: Loop) -> tuple[PyTree, PyTree]:
    """Run one loop, by itself: return its last carry and its outputs, stacked."""
    return lax.scan(loop.step, loop.carry, loop.inputs, reverse=loop.reverse)


class Scratch(NamedTuple):
    """What a loop writes besides its carry.

    Attributes:
      position: of the step.
      more: whether there is a further step.
      outputs: what the steps emit, stacked.
      temporaries: what XLA keeps in memory in a step.
    """

    position: Array
    more: Array
    outputs: list[Array]
    temporaries: list[Array]


class Memory(NamedTuple):
    """What `scans` keeps from call to call: its tickets, and a scratch for each loop."""

    tickets: list[Array]
    scratches: list[Scratch]


def memory(loops: Callable[..., list[Loop]], *args: PyTree) -> Memory:
    """Return what the first call of `scans` takes, for loops such as `loops(*args)` returns."""

    def scratch(loop):
        step = _trace(loop)
        outputs = [jnp.zeros((_length(loop), *a.shape), a.dtype) for a in step.outputs]
        temporaries = [jnp.zeros(a.shape, a.dtype) for a in step.temporaries]
        return Scratch(index(0), jnp.asarray(False), outputs, temporaries)

    shapes = jax.eval_shape(lambda *args: list(map(scratch, loops(*args))), *args)
    scratches = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return Memory([index(k) for k in range(TICKETS)], scratches)


def scans(loops: list[Loop], memory: Memory) -> tuple[list[tuple[PyTree, PyTree]], Memory]:
    """Run two or more loops as `scan` does each of them, side by side.

    Meant for the body of another loop, which carries the memory from call to call.

    Args:
      loops: independent of each other.
      memory: from `memory`, or from the last call. What the last call returned as outputs lies in
        it and is overwritten.

    Returns:
      What `scan` returns of each loop, and the memory of the next call.
    """
    steps = list(map(_trace, loops))
    # Else the gate would wait for what its one element of each is made of, not for the whole.
    inputs = lax.optimization_barrier(
        [step.read(jax.tree.leaves(loop.inputs)) for loop, step in zip(loops, steps, strict=True)]
    )
    ready = [loop.carry for loop in loops], inputs, memory
    tickets = _hand_out(after(_zero(memory.tickets[0]), ready), memory.tickets)
    zeros = [_zero(tickets[k * (TICKETS - 1) // (len(loops) - 1)]) for k in range(len(loops))]
    given = zip(loops, steps, inputs, memory.scratches, zeros, strict=True)
    ends = list(itertools.starmap(_run, given))
    # Read once more after the loops: nothing of one loop takes the memory of the other's inputs.
    first = after(tickets[0], (ends, inputs))
    results = [
        (carry, step.emitted(scratch.outputs))
        for (carry, scratch), step in zip(ends, steps, strict=True)
    ]
    return results, Memory([first, *tickets[1:]], [scratch for _, scratch in ends])


def _hand_out(gate: Array, tickets: list[Array]) -> list[Array]:
    """Return the tickets, all of them ready as soon as the gate is."""
    # What is expensive is computed once: else each ticket would wait for all that the gate does.
    gate = _zero(lax.bitcast_convert_type(jnp.exp(gate.astype(jnp.float32)), INDEX))
    return [gate + ticket for ticket in tickets]


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


class _Step(NamedTuple):
    """The step of a loop, traced.

    Attributes:
      jaxpr: takes the leaves of the carry and of one step's inputs.
      consts: of the jaxpr.
      kept: its variables that XLA keeps in memory.
      structures: of the carry, and of what a step emits.
    """

    jaxpr: Jaxpr
    consts: Sequence[Any]
    kept: list[Any]
    structures: tuple[PyTree, PyTree]

    @property
    def outputs(self) -> list[Any]:
        """Shapes and dtypes of what a step emits."""
        return [v.aval for v in self.jaxpr.outvars[self.structures[0].num_leaves :]]

    @property
    def temporaries(self) -> list[Any]:
        """Shapes and dtypes of what is kept."""
        return [v.aval for v in self.kept]

    def read(self, inputs: list[Array]) -> list[Array | None]:
        """Return the leaves of the inputs, None for those that no equation reads."""
        read = jaxprs.read_variables(self.jaxpr)
        own = self.jaxpr.invars[self.structures[0].num_leaves :]
        return [a if v in read else None for a, v in zip(inputs, own, strict=True)]

    def emitted(self, outputs: list[Array]) -> PyTree:
        """Return the leaves of what steps emit as the step returns them."""
        return jax.tree.unflatten(self.structures[1], outputs)

    def run(self, carry: PyTree, inputs: list[Array | None]) -> tuple[PyTree, list, list]:
        """Return the carry, the leaves of what the step emits, and what is kept."""
        kept = {}

        def compute(eqn, operands):
            results = jaxprs.bind(eqn, operands)
            for k, v in enumerate(eqn.outvars):
                if v in self.kept:
                    results[k] = kept[v] = lax.optimization_barrier(results[k])
            return results

        leaves = [*jax.tree.leaves(carry), *inputs]
        results = jaxprs.evaluate(self.jaxpr, self.consts, leaves, compute)
        carried = self.structures[0].num_leaves
        carry = jax.tree.unflatten(self.structures[0], results[:carried])
        return carry, results[carried:], [kept[v] for v in self.kept]


def _trace(loop: Loop) -> _Step:
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loop.inputs)
    closed, shapes = jax.make_jaxpr(jaxprs.inline(loop.step), return_shape=True)(loop.carry, first)
    carry, output = map(jax.tree.structure, shapes)
    kept = _temporaries(closed.jaxpr, closed.jaxpr.invars[: carry.num_leaves])
    return _Step(closed.jaxpr, closed.consts, kept, (carry, output))


def _length(loop: Loop) -> int:
    return jax.tree.leaves(loop.inputs)[0].shape[0]


def _run(
    loop: Loop, step: _Step, inputs: list[Array | None], scratch: Scratch, zero: Array
) -> tuple[PyTree, Scratch]:
    """Run a loop that begins when the index `zero` is there; return its carry and the scratch."""
    steps = _length(loop)

    def body(state):
        carry, (i, _, outputs, _) = state
        carry, output, temporaries = step.run(carry, _at(inputs, i))
        outputs = _put(outputs, output, i)
        # The position is overwritten in place, once all that reads it is done.
        i = after(i - index(1) if loop.reverse else i + index(1), (outputs, carry))
        return carry, Scratch(i, i < index(steps), outputs, temporaries)

    # Both are made of what the last call left, so that they lie where that did.
    start = _zero(scratch.position) + zero + index(steps - 1 if loop.reverse else 0)
    more = scratch.more | (start < index(steps))
    scratch = scratch._replace(position=start, more=more)
    return lax.while_loop(lambda state: state[1].more, body, (loop.carry, scratch))


def index(i: int) -> Array:
    """Return `i` as an index."""
    return jnp.asarray(i, INDEX)


def after(i: Array, tree: PyTree) -> Array:
    """Return the index `i`, such that XLA computes it when every leaf of `tree` is there."""
    return _after(i, *[a for a in jax.tree.leaves(tree) if a.size])


@custom_vmap
def _after(i: Array, *arrays: Array) -> Array:
    for a in arrays:
        i = i + _zero(_bits(a[(0,) * a.ndim]))
    return i


@_after.def_vmap
def _after_batched(_, in_batched, i, *arrays):
    # The same index for the whole batch: a loop must not get a condition per member.
    assert not in_batched[0]
    firsts = [a[0] if batched else a for a, batched in zip(arrays, in_batched[1:], strict=True)]
    return _after(i, *firsts), False


def _zero(i: Array) -> Array:
    """Return zero, in a way that XLA computes it from `i`."""
    return lax.clamp(index(0), i, index(0))


def _bits(scalar: Array) -> Array:
    """Return something of a scalar as an index, by an operation that XLA does not see through."""
    if _is_key(scalar):
        scalar = jax.random.key_data(scalar).reshape(-1)[0]
    if jnp.issubdtype(scalar.dtype, jnp.complexfloating):
        scalar = scalar.real
    if jnp.issubdtype(scalar.dtype, jnp.floating):
        width = jnp.dtype(scalar.dtype).itemsize * 8
        scalar = lax.bitcast_convert_type(scalar, jnp.dtype(f"uint{width}"))
    return scalar.astype(INDEX)


def _at(tree: PyTree, i: Array) -> PyTree:
    """Return entry `i` of the leading axis of every leaf."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _put(tree: PyTree, entry: PyTree, i: Array) -> PyTree:
    """Return `tree` with `entry` at `i` of the leading axis of every leaf."""
    return jax.tree.map(lambda a, e: lax.dynamic_update_index_in_dim(a, e, i, 0), tree, entry)


def _temporaries(jaxpr: Jaxpr, carry: list[Any]) -> list[Any]:
    """Return which variables of a step XLA keeps in memory, among those that differ by the step.

    They are what `ALONE` reads and makes; what is `EXPENSIVE` and read more than once; the results
    of barriers, which are there to be kept. And what is made of the carry at little cost and read
    more than once: made twice, it would be another reader of what is overwritten meanwhile. What
    becomes the carry is kept as such.
    """
    equations, same = jaxprs.live(jaxpr), _same_arrays(jaxpr)
    readers = collections.defaultdict(list)
    for eqn in equations:
        for v in jaxprs.variables(eqn.invars):
            readers[v].append(eqn)

    def shared(v):
        """Say whether several operations read `v`, or what follows from it alone at little cost."""
        if len(readers[v]) != 1:
            return len(readers[v]) > 1
        (reader,) = readers[v]
        if reader.primitive.name in (*ALONE, *EXPENSIVE):
            return False
        return any(map(shared, reader.outvars))

    moving, carried, kept = set(jaxpr.invars), set(carry), set()
    for eqn in equations:
        name, inputs = eqn.primitive.name, set(jaxprs.variables(eqn.invars))
        if not moving & inputs:
            continue
        moving.update(eqn.outvars)
        if name in ALONE:
            kept |= moving & inputs
        if name in (*ALONE, "optimization_barrier"):
            kept.update(eqn.outvars)
        elif name in EXPENSIVE:
            kept.update(filter(shared, eqn.outvars))
        elif carried & inputs:
            kept.update(v for v in eqn.outvars if len(readers[v]) > 1)
            carried |= set(eqn.outvars) - kept
    new = jaxprs.variables(jaxpr.outvars[: len(carry)])
    kept = {same.get(v, v) for v in kept} - {same.get(v, v) for v in new}
    return [v for eqn in equations for v in eqn.outvars if v in kept]


def _same_arrays(jaxpr: Jaxpr) -> dict[Any, Any]:
    """Return which variables are the same array as another one: kept as two, they are copied."""
    zeros, same = set(), {}
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, jaxprs.variables(eqn.invars)
        if name == "broadcast_in_dim" and _is_zero(eqn.invars[0]):
            zeros.update(eqn.outvars)
        elif name == "optimization_barrier":
            pairs = zip(eqn.outvars, eqn.invars, strict=True)
            same.update((new, same.get(v, v)) for new, v in pairs if v in inputs)
        elif name in ("add", "add_any") and zeros & set(inputs):
            same.update((eqn.outvars[0], same.get(v, v)) for v in inputs if v not in zeros)
    return same


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and bool(np.all(atom.val == 0))


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
