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

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Jaxpr, Literal, Primitive

from jax_bptt.core import jaxprs
from jax_bptt.core.types import PyTree

INDEX = jnp.uint32
"""An unsigned index needs no correction of negative ones, which would be a temporary."""

TICKETS = 24
"""Pieces that become ready together; more than eight in either half."""

ALONE = "dot_general", "loop"
"""Operations that XLA fuses with no other on a CPU: what they read and make is kept in memory."""

LAST = "concatenate", "reduce_sum", "optimization_barrier"
"""Operations that XLA fuses with none that follow, or that say so: what they make is kept."""

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
        waiting = scratch._replace(count=scratch.count + _zero(ticket))
        ends.append(step.run(fixed, carry, inputs, waiting))
    results = [
        jax.tree.unflatten(step.structure, [*carry, *scratch.outputs])
        for (step, _), (carry, scratch) in zip(traced, ends, strict=True)
    ]
    alive = ends, [(fixed, inputs) for fixed, _, inputs, _ in given]
    return _at_last(results, after(tickets[0], alive), (alive, tickets))


def _zeros(shapes: PyTree, i: Array) -> PyTree:
    """Return zeros of the given shapes, each in memory of its own, made of the index `i`.

    Equal constants are one to XLA, of which it makes as many copies.
    """
    leaves, structure = jax.tree.flatten(shapes)
    for k, a in enumerate(leaves):
        i = _zero(i + index(1))
        leaves[k] = jnp.zeros(a.shape, a.dtype) if _is_key(a) else jnp.full(a.shape, i, a.dtype)
    return jax.tree.unflatten(structure, leaves)


def _hand_out(gate: Array) -> list[Array]:
    """Return the tickets, all of them ready as soon as the gate is."""
    # What is expensive is computed once: else each ticket would wait for all that the gate does.
    gate = _zero(lax.bitcast_convert_type(jnp.exp(gate.astype(jnp.float32)), INDEX))
    return [gate + index(k) for k in range(TICKETS)]


def _at_last(results: PyTree, last: Array, alive: PyTree) -> PyTree:
    """Return `results` when the index `last`, a zero, is there; the rest is alive up to then.

    They go through a loop without a step, since XLA removes from a carry what nobody reads.
    """

    def body(state):
        last, results = state
        zeros = jax.tree.map(jnp.zeros_like, results)
        return after(last, alive), jax.tree.map(
            functools.partial(jnp.where, last > 1), results, zeros
        )

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
      count: of steps, in all calls so far.
      before: the count when this call began.
      position: of the step.
      more: whether there is a further step.
      outputs: what the steps emit, stacked.
      temporaries: what XLA keeps in memory in a step.
      copies: of what a loop in the step overwrites, in the first of two places.
      loops: scratches of the loops in the step.
    """

    count: Array
    before: Array
    position: Array
    more: Array
    outputs: list[Array]
    temporaries: list[Array]
    copies: list[Array]
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
      ahead: equations that can be computed once, ahead of the loop.
      kept: variables that XLA keeps in memory.
      overwritten: variables that a loop in the step overwrites, while something else reads them.
    """

    jaxpr: Jaxpr
    carried: int
    length: int
    reverse: bool
    structure: PyTree
    ahead: tuple[Any, ...]
    kept: tuple[Any, ...]
    overwritten: tuple[Any, ...]

    def scratch(self) -> Scratch:
        """Return the shapes of what the loop writes besides its carry."""

        def shapes(variables, *leading):
            return [
                jax.ShapeDtypeStruct((*leading, *v.aval.shape), v.aval.dtype) for v in variables
            ]

        number, truth = (jax.ShapeDtypeStruct((), dtype) for dtype in (INDEX, jnp.bool))
        return Scratch(
            count=number,
            before=number,
            position=number,
            more=truth,
            outputs=shapes(self.jaxpr.outvars[self.carried :], self.length),
            temporaries=shapes(self.kept),
            copies=shapes(self.overwritten, 2),
            loops=[eqn.params["step"].scratch() for eqn in _loops(self.jaxpr)],
        )

    def fixed(self, consts: Sequence[Any]) -> list[Array]:
        """Return the jaxpr's constants, and what follows from them alone."""
        values = dict(zip(self.jaxpr.constvars, consts, strict=True))
        jaxprs.run(self.ahead, values)
        return list(values.values())

    def read(self, inputs: PyTree) -> list[Any]:
        """Return the leaves of the inputs, None for those that no equation reads."""
        read = jaxprs.read_variables(self.jaxpr)
        own, leaves = self.jaxpr.invars[self.carried :], jax.tree.leaves(inputs)
        return [a if v in read else None for a, v in zip(leaves, own, strict=True)]

    def run(
        self,
        fixed: Sequence[Array],
        carry: Sequence[Array],
        inputs: Sequence[Array | None],
        scratch: Scratch,
    ) -> tuple[list[Array], Scratch]:
        """Run the loop; return its carry and the scratch."""
        length, before = index(self.length), scratch.before

        def position(count):
            done = count - before
            return length - index(1) - done if self.reverse else done

        def body(state):
            carry, scratch = state
            i = scratch.position
            entries = [None if a is None else _at(a, i) for a in inputs]
            results, written = self.compute(fixed, [*carry, *entries], scratch)
            carry, emitted = results[: self.carried], results[self.carried :]
            outputs = _put(scratch.outputs, emitted, i)
            # The position is overwritten in place, once all that reads it is done.
            count = after(scratch.count + index(1), (outputs, carry))
            return carry, written._replace(
                count=count,
                position=position(count),
                more=count - before != length,
                outputs=outputs,
            )

        # Nothing is made anew: what is, lies in memory that it shares with the other loop.
        more = scratch.more | (scratch.count <= before)
        start = scratch._replace(position=position(scratch.count), more=more)
        state = list(carry), start
        carry, scratch = lax.while_loop(lambda state: state[1].more, body, state)
        return carry, scratch._replace(before=after(before + length, carry))

    def compute(
        self, fixed: Sequence[Array], args: Sequence[Any], scratch: Scratch
    ) -> tuple[list[Array], Scratch]:
        """Compute one step; return its results, and the scratch with what it has written."""
        known = [*self.jaxpr.constvars, *(v for eqn in self.ahead for v in eqn.outvars)]
        values = dict(zip(known, fixed, strict=True))
        values.update(zip(self.jaxpr.invars, args, strict=True))
        # Of the two places it is the first, which XLA cannot know: else it would copy no more.
        first = scratch.count >> index(31)
        originals = [values[v] for v in self.overwritten]
        copies = _put(scratch.copies, originals, first)
        values.update((v, a[0]) for v, a in zip(self.overwritten, copies, strict=True))
        originals = dict(zip(self.overwritten, originals, strict=True))
        unused, written = iter(scratch.loops), []

        def keep(variables):
            for v in variables:
                if v in self.kept:
                    values[v] = lax.optimization_barrier(values[v])

        def compute(eqn, operands):
            if eqn.primitive is not _LOOP:
                return jaxprs.bind(eqn, operands)
            inner = next(unused)
            inner = inner._replace(count=after(inner.count, copies))
            operands = jaxprs.read(eqn.invars, values | originals)
            results, inner = eqn.params["step"].enter(operands, inner)
            written.append(inner)
            return results

        keep(self.jaxpr.invars)
        for eqn in jaxprs.live(self.jaxpr):
            if eqn not in self.ahead:
                jaxprs.run([eqn], values, compute)
                keep(eqn.outvars)
        temporaries = [values[v] for v in self.kept]
        scratch = scratch._replace(temporaries=temporaries, copies=copies, loops=written)
        return jaxprs.read(self.jaxpr.outvars, values), scratch

    def enter(self, operands: Sequence[Array], scratch: Scratch) -> tuple[list[Array], Scratch]:
        """Run the loop within the step of another, where `_mark` has put it."""
        count = len(self.jaxpr.constvars)
        fixed, carry = operands[:count], operands[count : count + self.carried]
        given = iter(operands[count + self.carried :])
        own = self.jaxpr.invars[self.carried :]
        inputs = [None if v is None else next(given) for v in self.read(own)]
        carry, scratch = self.run(fixed, carry, inputs, scratch)
        return [*carry, *scratch.outputs], scratch


_LOOP = Primitive("loop")
"""Stands for a loop in the traced step of another, which it has as its parameter `step`."""

_LOOP.multiple_results = True


@_LOOP.def_abstract_eval
def _loop_shapes(*_, step):
    carry, emitted = step.jaxpr.outvars[: step.carried], step.jaxpr.outvars[step.carried :]
    stacked = [v.aval.update(shape=(step.length, *v.aval.shape)) for v in emitted]
    return [v.aval for v in carry] + stacked


def _loops(jaxpr: Jaxpr) -> list[Any]:
    return [eqn for eqn in jaxprs.live(jaxpr) if eqn.primitive is _LOOP]


def _mark(loop: Loop) -> tuple[PyTree, PyTree]:
    """Take the place of `scan` in a step that is traced."""
    step, consts = _trace(loop, within=True)
    inputs = [a for a in step.read(loop.inputs) if a is not None]
    results = _LOOP.bind(*consts, *jax.tree.leaves(loop.carry), *inputs, step=step)
    return jax.tree.unflatten(step.structure, results)


def _trace(loop: Loop, within: bool = False) -> tuple[_Step, Sequence[Any]]:
    """Return the traced step, of a loop by itself or within another's step, and its constants."""
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loop.inputs)
    closed, shapes = jax.make_jaxpr(jaxprs.inline(loop.step), return_shape=True)(loop.carry, first)
    jaxpr, carried = closed.jaxpr, len(jax.tree.leaves(loop.carry))
    step = _Step(
        jaxpr=jaxpr,
        carried=carried,
        length=len(jax.tree.leaves(loop.inputs)[0]),
        reverse=loop.reverse,
        structure=jax.tree.structure(shapes),
        ahead=() if within else tuple(_ahead(jaxpr)),
        kept=tuple(_temporaries(jaxpr, carried)),
        overwritten=tuple(_overwritten(jaxpr, carried)),
    )
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

    They are what `ALONE` reads and makes; what `LAST` makes; what is `EXPENSIVE` and read more than
    once. And what is made of the carry at little cost and read more than once: made twice, it would
    be another reader of what is overwritten meanwhile. What becomes the carry is kept as such, and
    so is what a loop emits.
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
        if reader.primitive.name in (*ALONE, *LAST, *EXPENSIVE):
            return False
        return any(map(shared, reader.outvars))

    moving, old, kept = set(jaxpr.invars), set(jaxpr.invars[:carried]), set()
    makers = {v: eqn.primitive.name for eqn in equations for v in eqn.outvars}
    for eqn in equations:
        name, inputs = eqn.primitive.name, set(jaxprs.variables(eqn.invars))
        if not moving & inputs:
            continue
        moving.update(eqn.outvars)
        if name in ALONE:
            kept |= moving & inputs
        if name in (*ALONE, *LAST):
            kept.update(eqn.outvars)
        elif name in EXPENSIVE:
            kept.update(filter(shared, eqn.outvars))
        elif old & inputs:
            kept.update(v for v in eqn.outvars if len(readers[v]) > 1)
            old |= set(eqn.outvars) - kept
    shapes = collections.defaultdict(list)
    for v in [*jaxpr.invars[carried:], *makers]:
        if v in kept:
            shapes[same.get(v, v)].append(v)
    for v in jaxprs.variables(jaxpr.outvars[:carried]):
        shapes.pop(same.get(v, v), None)

    def chosen(base, variables):
        """Return which of the variables that are one array are kept.

        XLA makes what is cheap anew for another shape.
        """
        if makers.get(base) == "loop":
            return []
        if makers.get(base) == "dot_general":
            return [base]
        renames = "reshape", "optimization_barrier"
        in_own_shape = any(eqn.primitive.name not in renames for eqn in readers[base])
        return [variables[-1], *([base] if in_own_shape else [])]

    kept = {v for base, variables in shapes.items() for v in chosen(base, variables)}
    return [v for v in [*jaxpr.invars[carried:], *makers] if v in kept]


def _overwritten(jaxpr: Jaxpr, carried: int) -> list[Any]:
    """Return what of the carry a loop in the step goes on from, while something else reads it."""
    by_loops, by_others = set(), set()
    for eqn in jaxprs.live(jaxpr):
        if eqn.primitive is _LOOP:
            step = eqn.params["step"]
            count = len(step.jaxpr.constvars)
            by_loops.update(jaxprs.variables(eqn.invars[count : count + step.carried]))
        else:
            by_others.update(jaxprs.variables(eqn.invars))
    return [v for v in jaxpr.invars[:carried] if v in by_loops & by_others]


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
