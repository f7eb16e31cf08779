"""Proof that a function treats each entry of a batch by itself, read off its jaxpr."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.types import Cell

_PRIME = 7919
"""Length of the batch axis for which functions are traced: no other is a multiple of it."""

_ALONG = {
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), ("axis",)),
    "sort": ("dimension",),
    "rev": ("dimensions",),
}
"""Equations that couple entries along an axis and keep its length, and where they say which."""


def couples_batch(cell: Cell) -> str | None:
    """Return the operation by which a function of `cell` couples entries of a batch, or None.

    Each function is traced, not run, for a batch of a prime size that no other axis has. An
    operation that takes this axis and does not hand it on, or works along it, couples.
    """

    def begin():
        params = cell.init(jax.random.key(0))
        return cell.prepare(params), cell.initial_state(params, (_PRIME,))

    weights, state = jax.eval_shape(begin)
    inexact = [w.dtype for w in jax.tree.leaves((state, weights)) if trees.is_inexact(w)]

    def one(spec):
        # Of a floating dtype only the kind is said: any cell takes that of its carry.
        own = jnp.finfo(inexact[0]).dtype if inexact else spec.dtype
        dtype = own if jnp.issubdtype(spec.dtype, jnp.floating) else spec.dtype
        return jax.ShapeDtypeStruct((_PRIME, *spec.shape), dtype)

    x = jax.tree.map(one, cell.input_spec)
    project, drive = jax.make_jaxpr(cell.project, return_shape=True)(weights, x)
    step = jax.make_jaxpr(cell.step)(weights, state, drive)
    readout = jax.make_jaxpr(cell.readout)(weights, state)
    for name, closed in (("project", project), ("step", step), ("readout", readout)):
        found = _couples(closed.jaxpr)
        if found is not None:
            return f"{name} couples its entries by {found}"
    return None


def _couples(jaxpr: Any) -> str | None:
    """Return the operation of `jaxpr` that couples entries of the batch, or None."""

    def has(atom):
        return any(length % _PRIME == 0 for length in getattr(atom.aval, "shape", ()) if length)

    for eqn in jaxprs.live(jaxpr):
        if not any(map(has, eqn.invars)):
            continue
        inner = jaxprs.called(eqn)
        found = None if inner is None else _couples(inner[0])
        if found is not None:
            return found
        axes = [eqn.params[name] for name in _ALONG.get(eqn.primitive.name, ())]
        if eqn.primitive.name == "dot_general":
            axes = [eqn.params["dimension_numbers"][0][0]]
        shape = eqn.invars[0].aval.shape
        along = any(shape[axis] % _PRIME == 0 for axis in jax.tree.leaves(axes))
        if along or not all(map(has, eqn.outvars)):
            return eqn.primitive.name
    return None
