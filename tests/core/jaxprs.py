"""Look inside a traced function."""

from collections.abc import Iterator
from typing import Any

import jax


def subjaxprs(eqn: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation carries: a scan's body, a call's function.

    Of a linear solve only the solution is run; the rest is there to be differentiated.
    """
    if eqn.primitive.name == "custom_linear_solve":
        yield eqn.params["jaxprs"].solve.jaxpr
        return
    for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
        inner = getattr(leaf, "jaxpr", leaf)
        if hasattr(inner, "eqns"):
            yield inner


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield every equation, those of nested jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in subjaxprs(eqn):
            yield from equations(inner)


def scans(jaxpr: Any) -> list[Any]:
    return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]


def live(jaxpr: Any) -> list[Any]:
    """Return the equations on which the result depends: what is left once XLA has cleaned up."""
    needed, kept = {id(v) for v in jaxpr.outvars}, []
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in eqn.outvars):
            needed |= {id(v) for v in eqn.invars}
            kept.append(eqn)
    return kept
