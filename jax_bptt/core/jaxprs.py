"""Facts about functions, read off their jaxprs, JAX's notation for what a traced function does."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from jax_bptt.core.types import PyTree

_CALLED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Equations that run a function of their own, and where they have it."""


def called(eqn: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    """Return the function that an equation runs as (jaxpr, its constants), or None."""
    if eqn.primitive.name not in _CALLED:
        return None
    inner = eqn.params[_CALLED[eqn.primitive.name]]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def live(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations whose results are used, or that have an effect."""
    used, equations = set(variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or used & set(eqn.outvars):
            used.update(variables(eqn.invars))
            equations.append(eqn)
    return equations[::-1]


def used_leaves(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Return, in the structure of `args`, which leaves `fun` reads. Never misses one."""
    # Of a function that dies here: JAX keeps every trace of a function for as long as that lives.
    jaxpr = jax.make_jaxpr(lambda *args: fun(*args))(*args).jaxpr
    read = set(variables(jaxpr.outvars))
    read.update(v for eqn in live(jaxpr) for v in variables(eqn.invars))
    return jax.tree.unflatten(jax.tree.structure(args), [v in read for v in jaxpr.invars])


def contains(jaxpr: Jaxpr, name: str) -> bool:
    """Return whether an operation of that name is in `jaxpr` or in what it runs, at any depth."""
    for eqn in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
        if eqn.primitive.name == name or any(
            contains(p, name) for p in inner if isinstance(p, Jaxpr)
        ):
            return True
    return False


def variables(atoms: Sequence[Any]) -> Iterator[Any]:
    """Return the operands that are no literals."""
    return (v for v in atoms if not isinstance(v, Literal))
