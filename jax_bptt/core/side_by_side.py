"""Loops that XLA runs side by side on a CPU, one core each.

A step of a recurrence is too small for several cores: they would have to meet many times in it.
Two halves of a batch are two recurrences that meet once, after the loop. XLA's executor on a CPU
runs what is ready side by side as long as no two pieces write the same memory, and three things
stand in the way of two loops:

- The temporaries of a body lie in memory that is shared with whatever is not alive at the same
  place of the program's order, the other loop's too, which reads as a dependence. Here every
  temporary is part of the carry, and alive until both loops are done.
- Work goes to another thread only where more than eight pieces are ready at once: half of them.
  So a number of idle tickets become ready together with the first step of each loop, one loop at
  either end of the queue.
- What nobody reads is removed, and what is cheap is computed where it is read. `after` makes an
  index wait for arrays by an operation that XLA does not see through.

None of it changes a result, nor more than the time where an executor works otherwise. Seen with jax
0.10 and 0.12: half the time of a loop (LSTM, B = 32, H = 128, two cores).
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Jaxpr

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


def tickets() -> list[Array]:
    """Return what the first call of `scans` takes."""
    return [index(k) for k in range(TICKETS)]


def scans(loops: list[Loop], tickets: list[Array]) -> tuple[list[tuple[PyTree, PyTree]], list]:
    """Run two or more loops as `scan` does each of them, side by side.

    Meant for the body of another loop, which carries the tickets from call to call.

    Args:
      loops: independent of each other.
      tickets: from `tickets`, or from the last call.

    Returns:
      What `scan` returns of each loop, and the tickets of the next call.
    """
    # Else the gate would wait for what its one element of each is made of, not for the whole.
    loops = [loop._replace(inputs=lax.optimization_barrier(loop.inputs)) for loop in loops]
    ready = [(loop.carry, loop.inputs) for loop in loops]
    tickets = _hand_out(after(_zero(tickets[0]), (ready, tickets)), tickets)
    spread = [k * (TICKETS - 1) // (len(loops) - 1) for k in range(len(loops))]
    ends = [_run(loop, _zero(tickets[k])) for loop, k in zip(loops, spread, strict=True)]
    # Read once more after the loops: nothing of one loop takes the memory of the other's inputs.
    first = after(tickets[0], (ends, [loop.inputs for loop in loops]))
    return [(end.carry, end.outputs) for end in ends], [first, *tickets[1:]]


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


class _State(NamedTuple):
    """What a loop carries: its own carry and whatever it writes on the way."""

    carry: PyTree
    position: Array
    more: Array
    outputs: PyTree
    temporaries: list[Array]


def _run(loop: Loop, zero: Array) -> _State:
    """Run a loop that begins when the index `zero` is there."""
    step, steps = _keep(loop.step), jax.tree.leaves(loop.inputs)[0].shape[0]
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loop.inputs)
    (_, output), temporaries = jax.eval_shape(step, loop.carry, first)
    outputs = jax.tree.map(lambda a: jnp.zeros((steps, *a.shape), a.dtype), output)

    def body(state):
        i = state.position
        (carry, output), temporaries = step(state.carry, _at(loop.inputs, i))
        outputs = _put(state.outputs, output, i)
        # The position is overwritten in place, once all that reads it is done.
        i = after(i - index(1) if loop.reverse else i + index(1), (outputs, carry))
        return _State(carry, i, i < index(steps), outputs, temporaries)

    position = zero + index(steps - 1 if loop.reverse else 0)
    zeros = [jnp.zeros(a.shape, a.dtype) for a in temporaries]
    state = _State(loop.carry, position, position < index(steps), outputs, zeros)
    return lax.while_loop(lambda state: state.more, body, state)


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


def _keep(fun: Callable[..., PyTree]) -> Callable[..., tuple[PyTree, list[Array]]]:
    """Return `fun(carry, inputs)` with a second result: what XLA keeps in memory on the way."""

    def run(carry, inputs):
        closed, shape = jax.make_jaxpr(jaxprs.inline(fun), return_shape=True)(carry, inputs)
        wanted = _temporaries(closed.jaxpr, closed.jaxpr.invars[: len(jax.tree.leaves(carry))])
        kept = []

        def compute(eqn, operands):
            results = jaxprs.bind(eqn, operands)
            for k, v in enumerate(eqn.outvars):
                if v in wanted:
                    results[k] = lax.optimization_barrier(results[k])
                    kept.append(results[k])
            return results

        leaves = jax.tree.leaves((carry, inputs))
        results = jaxprs.evaluate(closed.jaxpr, closed.consts, leaves, compute)
        return jax.tree.unflatten(jax.tree.structure(shape), results), kept

    return run


def _temporaries(jaxpr: Jaxpr, carry: list[Any]) -> set[Any]:
    """Return which variables of a step XLA keeps in memory, among those that differ by the step.

    They are what `ALONE` reads and makes; what is `EXPENSIVE` and read more than once; the results
    of barriers, which are there to be kept. And what is made of the carry at little cost and read
    more than once: made twice, it would be another reader of what is overwritten meanwhile.
    """
    equations = jaxprs.live(jaxpr)
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
            kept.update(v for v in eqn.outvars if len(readers[v]) > 1 and not _is_key(v.aval))
            carried |= set(eqn.outvars) - kept
    return kept - set(jaxpr.invars)


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
