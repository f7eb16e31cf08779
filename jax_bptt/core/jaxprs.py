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


_ALONG = {
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), ("axis",)),
    "sort": ("dimension",),
    "rev": ("dimensions",),
}
"""Equations that couple entries along an axis and keep its length, and where they say which."""


def called(eqn: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    """Return the function that an equation runs as (jaxpr, its constants), or None."""
    if eqn.primitive.name not in _CALLED:
        return None
    inner = eqn.params[_CALLED[eqn.primitive.name]]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def live(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations whose results are used, or that have an effect."""
    used, equations = set(_variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or used & set(eqn.outvars):
            used.update(_variables(eqn.invars))
            equations.append(eqn)
    return equations[::-1]


def used_leaves(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Return, in the structure of `args`, which leaves `fun` reads. Never misses one."""
    # Of a function that dies here: JAX keeps every trace of a function for as long as that lives.
    jaxpr = jax.make_jaxpr(lambda *args: fun(*args))(*args).jaxpr
    read = set(_variables(jaxpr.outvars))
    read.update(v for eqn in live(jaxpr) for v in _variables(eqn.invars))
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


def couples(jaxpr: Jaxpr, size: int) -> str | None:
    """Return the operation that couples entries of the axis of length `size`, or None.

    Args:
      jaxpr: of a function.
      size: length of the axis, a prime that divides the length of no other.
    """

    def has(atom):
        return any(length % size == 0 for length in getattr(atom.aval, "shape", ()) if length)

    for eqn in live(jaxpr):
        if not any(map(has, eqn.invars)):
            continue
        inner = called(eqn)
        found = None if inner is None else couples(inner[0], size)
        if found is not None:
            return found
        axes = [eqn.params[name] for name in _ALONG.get(eqn.primitive.name, ())]
        if eqn.primitive.name == "dot_general":
            axes = [eqn.params["dimension_numbers"][0][0]]
        shape = eqn.invars[0].aval.shape
        along = any(shape[axis] % size == 0 for axis in jax.tree.leaves(axes))
        if along or not all(map(has, eqn.outvars)):
            return eqn.primitive.name
    return None


def is_affine(fun: Callable[[PyTree], PyTree], at: PyTree) -> bool:
    """Return whether the derivative of `fun` reads nothing of where it is taken."""

    def derivative(at, tangent):
        return jax.jvp(fun, (at,), (tangent,))[1]

    return not any(jax.tree.leaves(used_leaves(derivative, at, at)[0]))


def _variables(atoms: Sequence[Any]) -> Iterator[Any]:
    return (v for v in atoms if not isinstance(v, Literal))
