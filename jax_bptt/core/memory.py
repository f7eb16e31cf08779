"""What of a loop's step XLA keeps in memory on a CPU, as far as its jaxpr tells."""

import collections
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, Literal

from jax_bptt.core import jaxprs

LOOP = "loop"
"""Name of an operation that is a loop in the step."""

ALONE = "dot_general", "reduce_sum", LOOP
"""Operations that XLA fuses with no other on a CPU: what they read and make is kept in memory."""

LAST = "concatenate", "optimization_barrier"
"""Operations that XLA fuses with none that follow, or that say so: what they make is kept."""

EXPENSIVE = "tanh", "logistic", "exp", "exp2", "expm1", "log", "log1p", "erf", "sin", "cos", "pow"
"""Operations that XLA does not compute twice: what several others read of one is kept in memory."""


def ahead(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations that follow from constants alone, but for those that only repeat."""
    fixed, equations = set(jaxpr.constvars), []
    for eqn in jaxprs.live(jaxpr):
        inputs = jaxprs.variables(eqn.invars)
        size = sum(v.aval.size for v in eqn.outvars)
        if inputs and fixed.issuperset(inputs) and size <= sum(v.aval.size for v in inputs):
            equations.append(eqn)
            fixed.update(eqn.outvars)
    return equations


def temporaries(jaxpr: Jaxpr, carried: int) -> list[Any]:
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
        if makers.get(base) == LOOP:
            return []
        if makers.get(base) == "dot_general":
            return [base]
        renames = "reshape", "optimization_barrier"
        in_own_shape = any(eqn.primitive.name not in renames for eqn in readers[base])
        return [variables[-1], *([base] if in_own_shape else [])]

    kept = {v for base, variables in shapes.items() for v in chosen(base, variables)}
    return [v for v in [*jaxpr.invars[carried:], *makers] if v in kept]


def overwritten(jaxpr: Jaxpr, carried: int) -> list[Any]:
    """Return what of the carry a loop in the step goes on from, while something else reads it."""
    by_loops, by_others = set(), set()
    for eqn in jaxprs.live(jaxpr):
        if eqn.primitive.name == LOOP:
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
