"""A loop over the steps of time, and its step traced, such that all it writes is carried."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, Primitive

from jax_bptt.core import jaxprs, memory
from jax_bptt.core.indices import INDEX, after, at, index, put
from jax_bptt.core.types import PyTree


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
      jaxpr: takes the leaves of the carry and of one step's inputs, and returns those of the carry
        and of what a step emits.
      carried: how many leaves the carry has.
      length: of the loop.
      reverse: whether it goes from the last input to the first.
      structure: of what the loop returns.
      within: whether it is in the step of another loop.
      ahead: equations that can be computed once, ahead of the loop.
      kept: variables that XLA keeps in memory.
      overwritten: variables that a loop in the step overwrites, while something else reads them.
    """

    jaxpr: Jaxpr
    carried: int
    length: int
    reverse: bool
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

        number, truth = (jax.ShapeDtypeStruct((), dtype) for dtype in (INDEX, jnp.bool))
        return Scratch(
            count=number,
            before=number,
            position=number,
            here=None if self.within else jax.ShapeDtypeStruct((2,), INDEX),
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
            here = None if self.within else put(scratch.here, scratch.position, _first(scratch))
            i = scratch.position if here is None else here[0]
            entries = [None if a is None else at(a, i) for a in inputs]
            results, written = self.compute(fixed, [*carry, *entries], scratch)
            carry, emitted = results[: self.carried], results[self.carried :]
            outputs = put(scratch.outputs, emitted, i)
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
    stacked = [v.aval.update(shape=(step.length, *v.aval.shape)) for v in emitted]
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
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loop.inputs)
    closed, shapes = jax.make_jaxpr(jaxprs.inline(loop.step), return_shape=True)(loop.carry, first)
    jaxpr, carried = closed.jaxpr, len(jax.tree.leaves(loop.carry))
    step = Step(
        jaxpr=jaxpr,
        carried=carried,
        length=len(jax.tree.leaves(loop.inputs)[0]),
        reverse=loop.reverse,
        structure=jax.tree.structure(shapes),
        within=within,
        ahead=() if within else tuple(memory.ahead(jaxpr)),
        kept=tuple(memory.temporaries(jaxpr, carried)),
        overwritten=tuple(memory.overwritten(jaxpr, carried)),
    )
    return step, closed.consts
