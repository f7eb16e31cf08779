"""A loop over the steps of time, and its step traced, such that all it writes is carried."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, Primitive

from jax_bptt.core import jaxprs, memory
from jax_bptt.core.indices import INDEX, after, at, index, put
from jax_bptt.core.types import PyTree


class Before(NamedTuple):
    """What the steps of a loop over blocks read of the entry before their block.

    Attributes:
      start: a pytree, what stands before the first entry.
      pick: returns the same of the loop's inputs, stacked, with the leading axis of time.
    """

    start: PyTree
    pick: Callable[[PyTree], PyTree]


class Loop(NamedTuple):
    """A loop over time.

    Attributes:
      step: `(carry, inputs) -> (carry, outputs)`, as that of a `jax.lax.scan`.
      carry: the first one.
      inputs: with a leading axis of T entries.
      reverse: whether it goes from the last entry to the first.
      block: how many entries a step takes and emits, as a leading axis of them; None for one,
        without the axis. The last step takes what is left over.
      before: what steps get beside, as `(before, inputs)`; None for nothing.
    """

    step: Callable[..., tuple[PyTree, PyTree]]
    carry: PyTree
    inputs: PyTree
    reverse: bool = False
    block: int | None = None
    before: Before | None = None

    @property
    def entries(self) -> int:
        """T."""
        return len(jax.tree.leaves(self.inputs)[0])

    @property
    def left_over(self) -> slice:
        """The entries of the last step: what is no whole block, or all of no more than one."""
        total = self.entries
        rest = 0
        if self.block is not None:
            rest = total if total <= self.block else total % self.block
        return slice(0, rest) if self.reverse else slice(total - rest, total)

    @property
    def first(self) -> int:
        """The entry at which the other steps begin."""
        return self.left_over.stop if self.reverse else 0

    @property
    def others(self) -> int:
        """How many other steps there are."""
        rest = self.left_over.stop - self.left_over.start
        return (self.entries - rest) // (self.block or 1)

    def last_step(self, carry: PyTree) -> tuple[PyTree, PyTree]:
        """Take the step of what is left over."""
        start, stop = self.left_over.start, self.left_over.stop
        inputs = jax.tree.map(lambda a: a[start:stop], self.inputs)
        if self.before is None:
            return self.step(carry, inputs)
        before = self.before.start
        if start:
            before = jax.tree.map(lambda a: a[start - 1], self.before.pick(self.inputs))
        return self.step(carry, (before, inputs))


def scan(loop: Loop) -> tuple[PyTree, PyTree]:
    """Run one loop, by itself: return its last carry and its outputs, stacked."""
    block, first = loop.block, loop.first
    if block is None:
        return lax.scan(loop.step, loop.carry, loop.inputs, reverse=loop.reverse)
    if loop.others == 0:
        return loop.last_step(loop.carry)
    shape, stop = (loop.others, block), first + loop.others * block

    def befores(start, a):
        rows = a[first + block - 1 : stop - 1 : block]
        return jnp.concatenate([(a[first - 1] if first else start)[None], rows])

    inputs = jax.tree.map(lambda a: a[first:stop].reshape(*shape, *a.shape[1:]), loop.inputs)
    if loop.before is not None:
        start, pick = loop.before
        inputs = jax.tree.map(befores, start, pick(loop.inputs)), inputs
    carry, outputs = lax.scan(loop.step, loop.carry, inputs, reverse=loop.reverse)
    outputs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)
    if stop - first == loop.entries:
        return carry, outputs
    carry, rest = loop.last_step(carry)
    ends = (rest, outputs) if loop.reverse else (outputs, rest)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ends)


class Scratch(NamedTuple):
    """What a loop writes besides its carry: arrays, or their shapes and dtypes.

    Attributes:
      count: of steps, in all calls so far.
      before: the count when this call began.
      position: of the step.
      here: the same, in the first of two places, where much reads it while the next is written: in
        a loop that is in no other; None elsewhere.
      more: whether there is a further step.
      outputs: what the steps emit, stacked.
      temporaries: what XLA keeps in memory in a step.
      copies: of what a loop in the step overwrites, in the first of two places.
      loops: scratches of the loops in the step.
    """

    count: Any
    before: Any
    position: Any
    here: Any
    more: Any
    outputs: list[Any]
    temporaries: list[Any]
    copies: list[Any]
    loops: list["Scratch"]


class Step(NamedTuple):
    """The step of a loop, traced.

    Attributes:
      jaxpr: takes the leaves of the carry and of one step's inputs, of what it reads `before` them
        and whether nothing is before them, and returns those of the carry and of what a step emits.
      carried: how many leaves the carry has.
      entries, first, others, block, reverse: of the loop.
      before: of which leaves of the inputs a step reads the entry before its block.
      structure: of what the loop returns.
      within: whether it is in the step of another loop.
      ahead: equations that can be computed once, ahead of the loop.
      kept: variables that XLA keeps in memory.
      overwritten: variables that a loop in the step overwrites, while something else reads them.
    """

    jaxpr: Jaxpr
    carried: int
    entries: int
    first: int
    others: int
    block: int | None
    reverse: bool
    before: tuple[int, ...]
    structure: PyTree
    within: bool
    ahead: tuple[Any, ...]
    kept: tuple[Any, ...]
    overwritten: tuple[Any, ...]

    def scratch(self) -> Scratch:
        """Return the shapes of what the loop writes besides its carry."""

        def shapes(variables, *leading):
            return [
                jax.ShapeDtypeStruct((*leading, *v.aval.shape), v.aval.dtype) for v in variables
            ]

        def stacked(v):
            shape = v.aval.shape if self.block is None else v.aval.shape[1:]
            return jax.ShapeDtypeStruct((self.entries, *shape), v.aval.dtype)

        number, truth = (jax.ShapeDtypeStruct((), dtype) for dtype in (INDEX, jnp.bool))
        return Scratch(
            count=number,
            before=number,
            position=number,
            here=None if self.within else jax.ShapeDtypeStruct((2,), INDEX),
            more=truth,
            outputs=[stacked(v) for v in self.jaxpr.outvars[self.carried :]],
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
        """Return the leaves of the inputs, None for those of which nothing is read."""
        read, leaves = jaxprs.read_variables(self.jaxpr), jax.tree.leaves(inputs)
        own = self.jaxpr.invars[self.carried :]
        used = {k for k in range(len(leaves)) if own[k] in read}.union(self.before)
        return [a if k in used else None for k, a in enumerate(leaves)]

    def inputs(self, leaves: Sequence[Array | None], i: Array) -> list[Any]:
        """Return what step `i` takes of the leaves that `read` returned."""
        if self.block is None:
            return [None if a is None else at(a, i) for a in leaves]
        start = self._start(i)
        own = [
            None if a is None else lax.dynamic_slice_in_dim(a, start, self.block) for a in leaves
        ]
        if not self.before:
            return own
        last = jnp.maximum(start, index(1)) - index(1)
        return [*own, *(at(leaves[k], last) for k in self.before), start == index(0)]

    def emit(self, outputs: list[Array], emitted: Sequence[Array], i: Array) -> list[Array]:
        """Return the outputs with what step `i` emits."""
        if self.block is None:
            return put(outputs, emitted, i)
        start = self._start(i)
        return [
            lax.dynamic_update_slice_in_dim(a, e, start, 0)
            for a, e in zip(outputs, emitted, strict=True)
        ]

    def _start(self, i: Array) -> Array:
        """Return the first entry of the block of step `i`."""
        return index(self.first) + i * index(self.block or 1)

    def run(
        self,
        fixed: Sequence[Array],
        carry: Sequence[Array],
        inputs: Sequence[Array | None],
        scratch: Scratch,
    ) -> tuple[list[Array], Scratch]:
        """Run the loop; return its carry and the scratch."""
        length, before = index(self.others), scratch.before

        def position(count):
            done = count - before
            return length - index(1) - done if self.reverse else done

        def body(state):
            carry, scratch = state
            here = None if self.within else put(scratch.here, scratch.position, _first(scratch))
            i = scratch.position if here is None else here[0]
            args = [*carry, *self.inputs(inputs, i)]
            results, written = self.compute(fixed, args, scratch)
            carry, emitted = results[: self.carried], results[self.carried :]
            outputs = self.emit(scratch.outputs, emitted, i)
            # The position is overwritten in place, once all that reads it is done.
            count = after(scratch.count + index(1), (outputs, carry))
            return carry, written._replace(
                count=count,
                position=position(count),
                here=here,
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
        originals = [values[v] for v in self.overwritten]
        copies = put(scratch.copies, originals, _first(scratch))
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
        """Run the loop within the step of another, where `mark` has put it."""
        count = len(self.jaxpr.constvars)
        fixed, carry = operands[:count], operands[count : count + self.carried]
        given = iter(operands[count + self.carried :])
        own = self.jaxpr.invars[self.carried :]
        inputs = [None if v is None else next(given) for v in self.read(own)]
        carry, scratch = self.run(fixed, carry, inputs, scratch)
        return [*carry, *scratch.outputs], scratch


def _first(scratch: Scratch) -> Array:
    """Return the first of two places, as an index of which XLA does not know.

    It would not copy what it knew to be the same.
    """
    return scratch.count >> index(31)


_LOOP = Primitive(memory.LOOP)
"""Stands for a loop in the traced step of another, which it has as its parameter `step`."""

_LOOP.multiple_results = True


@_LOOP.def_abstract_eval
def _loop_shapes(*_, step):
    carry, emitted = step.jaxpr.outvars[: step.carried], step.jaxpr.outvars[step.carried :]
    stacked = [v.aval.update(shape=(step.entries, *v.aval.shape)) for v in emitted]
    return [v.aval for v in carry] + stacked


def _loops(jaxpr: Jaxpr) -> list[Any]:
    return [eqn for eqn in jaxprs.live(jaxpr) if eqn.primitive is _LOOP]


def mark(loop: Loop) -> tuple[PyTree, PyTree]:
    """Take the place of `scan` in a step that is traced."""
    step, consts = trace(loop, within=True)
    inputs = [a for a in step.read(loop.inputs) if a is not None]
    results = _LOOP.bind(*consts, *jax.tree.leaves(loop.carry), *inputs, step=step)
    return jax.tree.unflatten(step.structure, results)


def trace(loop: Loop, within: bool = False) -> tuple[Step, Sequence[Any]]:
    """Return the traced step, of a loop by itself or within another's step, and its constants."""

    def shapes(*leading):
        return lambda a: jax.ShapeDtypeStruct((*leading, *a.shape[1:]), a.dtype)

    own = jax.tree.map(shapes() if loop.block is None else shapes(loop.block), loop.inputs)
    step, args, before = loop.step, (own,), ()
    if loop.before is not None:
        start, pick = loop.before
        numbers = jax.tree.unflatten(jax.tree.structure(own), range(len(jax.tree.leaves(own))))
        before = tuple(jax.tree.leaves(pick(numbers)))
        args = own, jax.tree.map(shapes(), pick(loop.inputs)), jax.ShapeDtypeStruct((), jnp.bool)

        def step(carry, inputs, before, begins):
            before = jax.tree.map(functools.partial(jnp.where, begins), start, before)
            return loop.step(carry, (before, inputs))

    closed, results = jax.make_jaxpr(jaxprs.inline(step), return_shape=True)(loop.carry, *args)
    jaxpr, carried = closed.jaxpr, len(jax.tree.leaves(loop.carry))
    traced = Step(
        jaxpr=jaxpr,
        carried=carried,
        entries=loop.entries,
        first=loop.first,
        others=loop.others,
        block=loop.block,
        reverse=loop.reverse,
        before=before,
        structure=jax.tree.structure(results),
        within=within,
        ahead=() if within else tuple(memory.ahead(jaxpr)),
        kept=tuple(memory.temporaries(jaxpr, carried)),
        overwritten=tuple(memory.overwritten(jaxpr, carried)),
    )
    return traced, closed.consts
