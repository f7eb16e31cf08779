"""Functions read as jaxprs, JAX's notation for what a traced function does: facts, and rewrites."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Compute the results of an equation from its operands."""
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def evaluate(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], compute: Callable = bind
) -> list[Any]:
    """Return the results of `jaxpr`, whose live equations `compute(eqn, operands)` computes."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    run(live(jaxpr), values, compute)
    return read(jaxpr.outvars, values)


def run(equations: Sequence[Any], values: dict[Any, Any], compute: Callable = bind) -> None:
    """Compute equations, and add their results to the values of the variables."""
    for eqn in equations:
        results = compute(eqn, read(eqn.invars, values))
        values.update(zip(eqn.outvars, results, strict=True))


def read(atoms: Sequence[Any], values: dict[Any, Any]) -> list[Any]:
    """Return the values of an equation's operands, or of a jaxpr's results."""
    return [v.val if isinstance(v, Literal) else values[v] for v in atoms]


def live(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations whose results are used, or that do something beside."""
    used, equations = set(variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or used & set(eqn.outvars):
            used.update(variables(eqn.invars))
            equations.append(eqn)
    return equations[::-1]


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Return what of an equation's operands, or a jaxpr's results, is no literal."""
    return [v for v in atoms if not isinstance(v, Literal)]


def inline(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun` with what it calls written out in it; rules for its derivatives are lost."""

    def compute(eqn: Any, operands: Sequence[Any]) -> list[Any]:
        inner = called(eqn)
        return bind(eqn, operands) if inner is None else evaluate(*inner, operands, compute)

    return _rewritten(fun, compute)


def exchange_operands(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun` with its matrix products a b computed as (b^T a^T)^T.

    XLA on a CPU lays out the right operand of a product anew at every call, and reads the left one
    as it lies: the larger of the two is better on the left.
    """

    def compute(eqn: Any, operands: Sequence[Any]) -> list[Any]:
        if _is_matrix_product(eqn):
            return [_exchanged_product(eqn, *operands)]
        return bind(eqn, operands)

    return _rewritten(fun, compute)


def transpose_rows(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fun` with its products a^T b, over the rows of both, made of a transposed copy.

    XLA on a CPU has a faster routine for a product whose left operand lies row by row. One core, a
    weight gradient of 128 x 512 of 512 rows (jax 0.10.2): 90 GFLOP/s, of a transposed copy 180.
    """

    def compute(eqn: Any, operands: Sequence[Any]) -> list[Any]:
        if _is_matrix_product(eqn):
            (axes_a, axes_b), _ = eqn.params["dimension_numbers"]
            if axes_a == axes_b == tuple(range(len(axes_a))):
                a, b = operands
                return [_product_over_rows(eqn, a, b, len(axes_a))]
        return bind(eqn, operands)

    return _rewritten(fun, compute)


def _product_over_rows(eqn: Any, a: Any, b: Any, count: int) -> Any:
    shape = *a.shape[count:], *b.shape[count:]
    a, b = (m.reshape(math.prod(m.shape[:count]), -1) for m in (a, b))

    def product(a, b):
        params = eqn.params | {"dimension_numbers": (((1,), (0,)), ((), ()))}
        # In one dimension there is one layout: else the transpose were a name for what there is.
        transposed = lax.optimization_barrier(a.T.reshape(-1)).reshape(a.T.shape)
        return lax.dot_general(transposed, b, **params)

    return (product(a, b) if a.size <= b.size else product(b, a).T).reshape(shape)


def _is_matrix_product(eqn: Any) -> bool:
    """Say whether an equation is a product without batch axes, and no sharding asked of it."""
    if eqn.primitive.name != "dot_general" or eqn.params["out_sharding"] is not None:
        return False
    return not eqn.params["dimension_numbers"][1][0]


def _exchanged_product(eqn: Any, a: Any, b: Any) -> Any:
    (axes_a, axes_b), batch = eqn.params["dimension_numbers"]
    params = eqn.params | {"dimension_numbers": ((axes_b, axes_a), batch)}
    product = lax.dot_general(b, a, **params)
    free = b.ndim - len(axes_b)
    product = jnp.moveaxis(product, range(free), range(-free, 0))
    # In one dimension there is one layout: else jax 0.12 carries the transposed one through a loop,
    # copies what enters and leaves it, and keeps halves of a batch apart by that (elman, H = 384,
    # B = 64: 73 ms instead of 52).
    return lax.optimization_barrier(product.reshape(-1)).reshape(product.shape)


def _rewritten(fun: Callable[..., PyTree], compute: Callable) -> Callable[..., PyTree]:
    """Return `fun` as `compute` computes its equations."""

    def run(*args: PyTree) -> PyTree:
        closed, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        results = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), compute)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def read_variables(jaxpr: Jaxpr) -> set[Any]:
    """Return what the live equations of `jaxpr` read, and what it returns."""
    atoms = [*jaxpr.outvars, *(v for eqn in live(jaxpr) for v in eqn.invars)]
    return set(variables(atoms))


def used_leaves(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Return, in the structure of `args`, which leaves `fun` reads. Never misses one."""
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    read = read_variables(jaxpr)
    return jax.tree.unflatten(jax.tree.structure(args), [v in read for v in jaxpr.invars])


def multiplications(fun: Callable[..., PyTree], *args: PyTree) -> float:
    """Return how many multiplications of products `fun` does for an element of its result."""
    jaxpr = jax.make_jaxpr(inline(fun))(*args).jaxpr
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    return total / max(sum(v.aval.size for v in jaxpr.outvars), 1)


def operations(fun: Callable[..., PyTree], *args: PyTree) -> set[str]:
    """Return the names of the operations that `fun` does."""
    return {eqn.primitive.name for eqn in jax.make_jaxpr(inline(fun))(*args).jaxpr.eqns}


def same_arrays(fun: Callable[..., tuple[PyTree, PyTree]], *args: PyTree) -> bool:
    """Return whether the two results of `fun` are the same arrays, leaf by leaf."""
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    numbers = [id(v) for v in closed.jaxpr.outvars]
    one, other = jax.tree.unflatten(jax.tree.structure(shapes), numbers)
    return jax.tree.structure(one) == jax.tree.structure(other) and one == other
