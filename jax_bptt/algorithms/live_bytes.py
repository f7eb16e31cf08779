"""Bytes of arrays: of a tree, and of what a traced function holds at a time."""

import math
from typing import Any

import jax
from jax.extend.core import Jaxpr

from jax_bptt.core import jaxprs
from jax_bptt.core.types import PyTree


def size(tree: PyTree) -> int:
    """Return the bytes of all leaves."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Return the most bytes that are there at a time, operation by operation, beside the arguments.

    A compiler that fuses operations takes fewer, unless it makes copies.
    """
    equations = jaxprs.live(jaxpr)
    arguments = {*jaxpr.invars, *jaxpr.constvars}
    last = {v: k for k, eqn in enumerate(equations) for v in jaxprs.variables(eqn.invars)}
    last.update(dict.fromkeys(jaxprs.variables(jaxpr.outvars), len(equations)))
    there, peak = 0, 0
    for k, eqn in enumerate(equations):
        results = sum(_bytes(v) for v in eqn.outvars if v in last)
        inner = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
        within = max([peak_bytes(p) for p in inner if isinstance(p, Jaxpr)], default=0)
        # What a function that is called returns is what it made; a loop stacks copies of it.
        most = max(within, results) if jaxprs.called(eqn) else within + results
        peak = max(peak, there + most)
        there += results
        read = {v for v in jaxprs.variables([*eqn.invars, *eqn.outvars]) if last.get(v) == k}
        there -= sum(map(_bytes, read - arguments))
    return peak


def _bytes(variable: Any) -> int:
    aval = variable.aval
    return math.prod(aval.shape) * aval.dtype.itemsize
