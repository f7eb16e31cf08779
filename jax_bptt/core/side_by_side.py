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
from jax.extend.core import Jaxpr, Literal, Primitive, Var

from jax_bptt.core import jaxprs
from jax_bptt.core.types import PyTree

INDEX = jnp.uint32
"""An unsigned index needs no correction of negative ones, which would be a temporary."""

TICKETS = 24
"""Pieces that become ready together; more than eight in either half."""

ALONE = "dot_general", "concatenate", "loop"
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


def scans(loops: list[Loop]) -> list[tuple[PyTree, PyTree]]:
    """Run two or more loops as `scan` does each of them, side by side.

    Args:
      loops: independent of each other. Their steps take one argument more, the first: `scan`, or
        what stands for it here, to run loops of their own.

    Returns:
      What `scan` returns of each loop.
    """
    traced = [_trace(loop._replace(step=functools.partial(loop.step, _mark))) for loop in loops]
    steps, consts = zip(*traced, strict=True)
    ahead = [step.ahead(c) for step, c in zip(steps, consts, strict=True)]
    scratches = _zeros([step.scratch() for step in steps], after(index(0), loops[0].inputs))
    args = [
        (
            list(values.values()),
            jax.tree.leaves(loop.carry),
            step.read(jax.tree.leaves(loop.inputs)),
            scratch,
        )
        for loop, step, values, scratch in zip(loops, steps, ahead, scratches, strict=True)
    ]
    # Else the gate would wait for what its one element of each is made of, not for the whole.
    args = lax.optimization_barrier(args)
    tickets = _hand_out(after(index(0), args))
    ends = []
    for k, (step, values, given) in enumerate(zip(steps, ahead, args, strict=True)):
        fixed, carry, inputs, scratch = given
        zero = _zero(tickets[k * (TICKETS - 1) // (len(loops) - 1)])
        start = scratch._replace(count=scratch.count + zero, before=scratch.before + zero)
        ends.append(step.run(dict(zip(values, fixed, strict=True)), carry, inputs, start))
    results = [
        jax.tree.unflatten(step.structure, [*carry, *scratch.outputs])
        for (carry, scratch), step in zip(ends, steps, strict=True)
    ]
    alive = ends, [(fixed, inputs) for fixed, _, inputs, _ in args]
    return _at_last(results, after(tickets[0], alive), (alive, tickets))


def _zeros(shapes: PyTree, i: Array) -> PyTree:
    """Return zeros where `shapes` has shapes, each in memory of its own.

    Equal constants are one to XLA, which then copies it; `i` is any index that is no constant.
    """
    leaves, structure = jax.tree.flatten(shapes)
    for k, a in enumerate(leaves):
        if isinstance(a, jax.ShapeDtypeStruct):
            i = _zero(i + index(1))
            number = jnp.zeros(a.shape, a.dtype) if _is_key(a) else jnp.full(a.shape, i.astype(a.dtype))
            leaves[k] = number
    return jax.tree.unflatten(structure, leaves)


def _hand_out(gate: Array) -> list[Array]:
    """Return the tickets, all of them ready as soon as the gate is."""
    # What is expensive is computed once: else each ticket would wait for all that the gate does.
    gate = _zero(lax.bitcast_convert_type(jnp.exp(gate.astype(jnp.float32)), INDEX))
    return [gate + index(k) for k in range(TICKETS)]


def _at_last(results: PyTree, last: Array, alive: PyTree) -> PyTree:
    """Return `results`, when the index `last`, a zero, is there; all else is alive up to then.

    They go through a loop without a step: XLA removes from a carry what is not read afterwards.
    """

    def body(state):
        last, results = state
        last = after(last, alive)
        return last, jax.tree.map(lambda a: jnp.where(last > index(1), a, jnp.zeros_like(a)), results)

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


class Scratch(NamedTuple):
    """What a loop writes besides its carry.

    Attributes:
      count: of steps, of all runs.
      before: the count when this run began.
      position: of the step.
      more: whether there is a further step.
      outputs: what the steps emit, stacked.
      temporaries: what XLA keeps in memory in a step.
      loops: scratches of the loops in a step.
    """

    count: Array
    before: Array
    position: Array
    more: Array
    outputs: list[Array]
    temporaries: list[Array]
    loops: list["Scratch"]


class _Step(NamedTuple):
    """The step of a loop, traced.

    Attributes:
      jaxpr: takes the leaves of the carry and of one step's inputs, and returns those of the carry
        and of what a step emits.
      carried: how many leaves the carry has.
      length: of the loop.
      reverse: whether it goes from the last input to the first.
      structure: of what the loop returns.
    """

    jaxpr: Jaxpr
    carried: int
    length: int
    reverse: bool
    structure: PyTree

    @property
    def emitted(self) -> list[Any]:
        """Variables of the jaxpr that a step emits."""
        return self.jaxpr.outvars[self.carried :]

    def at(self, done: Array) -> Array:
        """Return the position of a step after so many others."""
        return index(self.length - 1) - done if self.reverse else done

    def scratch(self) -> Scratch:
        """Return what the loop writes besides its carry, before it does."""

        def zeros(variables, *length):
            return [jax.ShapeDtypeStruct((*length, *v.aval.shape), v.aval.dtype) for v in variables]

        loops = [eqn.params["step"] for eqn in jaxprs.live(self.jaxpr) if eqn.primitive is _LOOP]
        temporaries = zeros(_temporaries(self.jaxpr, self.carried))
        temporaries += [jax.ShapeDtypeStruct((2, *v.aval.shape), v.aval.dtype) for v in _overwritten(self.jaxpr, self.carried)]
        outputs = zeros(self.emitted, self.length)
        scratches = [step.scratch() for step in loops]
        return Scratch(index(0), index(0), index(0), jnp.asarray(False), outputs, temporaries, scratches)

    def read(self, inputs: Sequence[Array]) -> list[Array | None]:
        """Return the leaves of the inputs, None for those that no equation reads."""
        read = jaxprs.read_variables(self.jaxpr)
        own = self.jaxpr.invars[self.carried :]
        return [a if v in read else None for a, v in zip(inputs, own, strict=True)]

    def ahead(self, consts: Sequence[Any]) -> dict[Any, Array]:
        """Return the values of the jaxpr's constants, and of what follows from them alone."""
        values = dict(zip(self.jaxpr.constvars, consts, strict=True))
        jaxprs.run(_ahead(self.jaxpr), values)
        return values

    def run(
        self,
        constants: dict[Any, Array],
        carry: Sequence[Array],
        inputs: Sequence[Array | None],
        scratch: Scratch,
    ) -> tuple[list[Array], Scratch]:
        """Run the loop; return its carry and the scratch."""
        kept = set(_temporaries(self.jaxpr, self.carried))
        overwritten = _overwritten(self.jaxpr, self.carried)

        def body(state):
            carry, scratch = state
            values, scratches = dict(constants), iter(scratch.loops)
            entries = [None if a is None else _at(a, scratch.position) for a in inputs]
            values.update(zip(self.jaxpr.invars, [*carry, *entries], strict=True))
            copies, written = {}, []
            spare = scratch.temporaries[len(kept) :]
            for v, space in zip(overwritten, spare, strict=True):
                copies[v] = _put(space, values[v], scratch.count >> index(31))

            def keep(variables):
                for v in kept.intersection(variables):
                    values[v] = lax.optimization_barrier(values[v])

            def compute(eqn, operands):
                if eqn.primitive is not _LOOP:
                    own = [copies[v][0] if isinstance(v, Var) and v in copies else a for v,a in zip(eqn.invars, operands)]
                    return jaxprs.bind(eqn, own)
                inner = next(scratches)
                inner = inner._replace(count=after(inner.count, list(copies.values())))
                results, inner = eqn.params["step"].enter(operands, inner)
                written.append(inner)
                return results

            keep(self.jaxpr.invars)
            for eqn in jaxprs.live(self.jaxpr):
                if not values.keys() >= set(eqn.outvars):
                    jaxprs.run([eqn], values, compute)
                    keep(eqn.outvars)
            results = jaxprs.read(self.jaxpr.outvars, values)
            carry, entries = results[: self.carried], results[self.carried :]
            outputs = _put(scratch.outputs, entries, scratch.position)
            # The position is overwritten in place, once all that reads it is done.
            temporaries = [values[v] for v in _temporaries(self.jaxpr, self.carried)]
            temporaries += copies.values()
            count = after(scratch.count + index(1), (outputs, carry))
            position, more = self.at(count - before), count - before != index(self.length)
            return carry, Scratch(count, before, position, more, outputs, temporaries, written)

        before = scratch.before
        position, more = self.at(scratch.count - before), scratch.more | (scratch.count <= before)
        state = list(carry), scratch._replace(position=position, more=more)
        carry, scratch = lax.while_loop(lambda state: state[1].more, body, state)
        return carry, scratch._replace(before=after(before + index(self.length), carry))

    def enter(self, operands: Sequence[Array], scratch: Scratch) -> tuple[list[Array], Scratch]:
        """Run the loop within another's step, as `_mark` has put it there."""
        count = len(self.jaxpr.constvars)
        constants = dict(zip(self.jaxpr.constvars, operands[:count], strict=True))
        carry, given = operands[count : count + self.carried], iter(operands[count + self.carried :])
        own = self.jaxpr.invars[self.carried :]
        inputs = [None if read is None else next(given) for read in self.read(own)]
        carry, scratch = self.run(constants, carry, inputs, scratch)
        return [*carry, *scratch.outputs], scratch


_LOOP = Primitive("loop")
"""Stands for a loop in the traced step of another, which it has as its parameter `step`."""

_LOOP.multiple_results = True


@_LOOP.def_abstract_eval
def _loop_shapes(*args, step):
    stacked = [v.aval.update(shape=(step.length, *v.aval.shape)) for v in step.emitted]
    return [v.aval for v in step.jaxpr.outvars[: step.carried]] + stacked


def _mark(loop: Loop) -> tuple[PyTree, PyTree]:
    """Take the place of `scan` in a step that is traced."""
    step, consts = _trace(loop)
    inputs = [a for a in step.read(jax.tree.leaves(loop.inputs)) if a is not None]
    results = _LOOP.bind(*consts, *jax.tree.leaves(loop.carry), *inputs, step=step)
    return jax.tree.unflatten(step.structure, results)


def _trace(loop: Loop) -> tuple[_Step, Sequence[Any]]:
    """Return the traced step and its constants."""
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loop.inputs)
    closed, shapes = jax.make_jaxpr(jaxprs.inline(loop.step), return_shape=True)(loop.carry, first)
    carried, length = len(jax.tree.leaves(loop.carry)), len(jax.tree.leaves(loop.inputs)[0])
    step = _Step(closed.jaxpr, carried, length, loop.reverse, jax.tree.structure(shapes))
    return step, closed.consts


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


def _ahead(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations that follow from constants alone, but for those that only repeat."""
    fixed, equations = set(jaxpr.constvars), []
    for eqn in jaxprs.live(jaxpr):
        inputs = jaxprs.variables(eqn.invars)
        size = sum(v.aval.size for v in eqn.outvars)
        if inputs and fixed.issuperset(inputs) and size <= sum(v.aval.size for v in inputs):
            equations.append(eqn)
            fixed.update(eqn.outvars)
    return equations


def _temporaries(jaxpr: Jaxpr, carried: int) -> list[Any]:
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

    moving, old, kept = set(jaxpr.invars), set(jaxpr.invars[:carried]), set()
    for eqn in equations:
        name, inputs = eqn.primitive.name, set(jaxprs.variables(eqn.invars))
        if not moving & inputs:
            continue
        moving.update(eqn.outvars)
        if name in ALONE and name != "concatenate":
            kept |= moving & inputs
        if name in (*ALONE, "optimization_barrier"):
            kept.update(eqn.outvars)
        elif name.startswith("reduce_"):
            kept.update(eqn.outvars)
        elif name in EXPENSIVE:
            kept.update(filter(shared, eqn.outvars))
        elif old & inputs:
            kept.update(v for v in eqn.outvars if len(readers[v]) > 1)
            old |= set(eqn.outvars) - kept
    made_in = {v: eqn.primitive.name for eqn in equations for v in eqn.outvars}
    shapes = collections.defaultdict(list)
    for v in [*jaxpr.invars, *made_in]:
        if v in kept:
            shapes[same.get(v, v)].append(v)
    for v in jaxprs.variables(jaxpr.outvars[:carried]):
        shapes.pop(same.get(v, v), None)
    chosen = set()
    for base, others in shapes.items():
        if made_in.get(base) in ("dot_general", "loop"):
            chosen.add(base)
            continue
        # What is cheap is made anew for another shape.
        chosen.add(others[-1])
        if any(eqn.primitive.name not in ("reshape", "optimization_barrier") for eqn in readers[base]):
            chosen.add(base)
    made = [v for eqn in equations if eqn.primitive is not _LOOP for v in eqn.outvars]
    return [v for v in [*jaxpr.invars[carried:], *made] if v in chosen]


def _overwritten(jaxpr: Jaxpr, carried: int) -> list[Any]:
    """Return what of the carry a loop of the step goes on with, while something else reads it."""
    by_loop, by_others = set(), set()
    for eqn in jaxprs.live(jaxpr):
        if eqn.primitive is _LOOP:
            step = eqn.params["step"]
            count = len(step.jaxpr.constvars)
            by_loop.update(jaxprs.variables(eqn.invars[count : count + step.carried]))
        else:
            by_others.update(jaxprs.variables(eqn.invars))
    return [v for v in jaxpr.invars[:carried] if v in by_loop & by_others]


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
        elif name == "reshape" and inputs:
            same.update((eqn.outvars[0], same.get(v, v)) for v in inputs)
        elif name in ("add", "add_any") and zeros & set(inputs):
            same.update((eqn.outvars[0], same.get(v, v)) for v in inputs if v not in zeros)
    return same


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and bool(np.all(atom.val == 0))


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
