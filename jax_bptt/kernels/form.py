"""The normal form that every kernel takes: one matrix, and arithmetic on tiles."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core import jaxprs
from jax_bptt.core.checks import batch_shape
from jax_bptt.core.types import Cell, GatedStep, PyTree
from jax_bptt.kernels.tiles import TiledStep, reads_weights, tiled_step

RESET, HELD = 1, 2
"""Bits of a flag: the start of the sequence enters the step; the state stays as it is."""


class Form(NamedTuple):
    """A gated cell with its weights, as kernels take it; N heads of D units, H = N D.

        feedback[b, g, n, j] = sum_i s[b, n, i] matrix[n, i, g, j] + bias[g, n, j]
        s_t                  = step.forward(s_{t-1}, drive_t, feedback)

    Attributes:
      step: the arithmetic within a unit.
      matrix: [N, D, G, D], in the dtype in which `mix` multiplies; N = 1 where it is dense.
      bias: [G, H] float32, what `mix` adds to the product.
      recurrent: index of the state's leaf that enters the product.
      units: weights that the step reads unit by unit, float32 [H] each.
    """

    step: TiledStep
    matrix: Array
    bias: Array
    recurrent: int
    units: tuple[Array, ...]


def normal_form(cell: Cell, weights: PyTree, state: PyTree, xs: PyTree) -> Form | str:
    """Return the form of `cell`, or what stands in the way of one.

    The matrix is found by what `mix` does: being affine, it is known by its derivative, row by
    row, and its value at zero. With heads, one row goes through all of them at once.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      state: s_0 [*batch, H].
      xs: [T, *batch, ...].
    """
    step = cell.step
    if not isinstance(step, GatedStep):
        return "its step is no jb.GatedStep, whose product is known from its arithmetic"
    state, drive = _of_one(cell, weights, state, xs)
    tiled = tiled_step(step, weights, state, drive)
    if isinstance(tiled, str):
        return tiled
    leaves, structure = jax.tree.flatten(state)
    (size,) = leaves[0].shape
    if size % step.heads:
        return f"its {size} units do not divide into {step.heads} heads"
    read = jax.tree.leaves(jaxprs.used_leaves(step.mix, weights, state)[1])
    if sum(read) != 1:
        return f"its product reads {sum(read)} leaves of the state, where kernels take one"
    operands = set(_product_dtypes(jax.make_jaxpr(step.mix)(weights, state).jaxpr))
    if not operands and step.heads == size:
        operands = {jnp.dtype(jnp.float32)}  # a number for each unit, and no matrix
    if len(operands) != 1:
        found = ", ".join(sorted(map(str, operands))) or "nothing"
        return f"its mix multiplies matrices of {found}, where kernels take one dtype"
    recurrent, (dtype,) = read.index(True), operands
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]

    def feedback(hidden):
        filled = [hidden if k == recurrent else zero for k, zero in enumerate(zeros)]
        gates = step.mix(weights, jax.tree.unflatten(structure, filled))
        return stack_gates(gates, 0).astype(jnp.float32)

    if not _is_affine(feedback, zeros[recurrent]):
        return "its mix is not affine in the state, where kernels take a product with a matrix"
    units = size // step.heads
    rows = jnp.tile(jnp.eye(units, dtype=jnp.float32), (1, step.heads))
    zero = zeros[recurrent]
    # The rows are ones and zeros, and what they meet must come out as it is.
    with jax.default_matmul_precision("highest"):
        bias = feedback(zero)
        matrix = jax.vmap(lambda row: jax.jvp(feedback, (zero,), (row,))[1])(rows)
    matrix = matrix.reshape(units, tiled.feedbacks, step.heads, units).transpose(2, 0, 1, 3)
    chosen = zip(
        jax.tree.leaves(weights),
        jax.tree.leaves(reads_weights(step, weights, state, drive)),
        strict=True,
    )
    unit_rows = [stack_gates(w, 0).astype(jnp.float32) for w, reads in chosen if reads]
    return Form(
        tiled, matrix.astype(dtype), bias, recurrent, tuple(u for r in unit_rows for u in r)
    )


def _is_affine(fun: Any, at: Array) -> bool:
    """Return whether the derivative of `fun` reads nothing of where it is taken."""

    def derivative(at, tangent):
        return jax.jvp(fun, (at,), (tangent,))[1]

    return not any(jax.tree.leaves(jaxprs.used_leaves(derivative, at, at)[0]))


def _of_one(cell: Cell, weights: PyTree, state: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
    """Return the shapes of the state and the drive of one sequence at one step."""
    batch = len(batch_shape(cell, xs))
    x, state = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[skip:], a.dtype), tree)  # noqa: B023
        for tree, skip in ((xs, 1 + batch), (state, batch))
    )
    return state, jax.eval_shape(cell.project, weights, x)


def _product_dtypes(jaxpr: Any) -> Iterator[Any]:
    """Yield the dtypes that the matrix products of a jaxpr take, those of its calls included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield from (v.aval.dtype for v in eqn.invars)
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _product_dtypes(inner)


def stack_gates(tree: PyTree, leading: int) -> Array:
    """Return leaves [*lead, ..., H] as one array [*lead, G, H], of `leading` leading axes."""
    gates = [a.reshape(*a.shape[:leading], -1, a.shape[-1]) for a in jax.tree.leaves(tree)]
    return jnp.concatenate(gates, axis=leading)


def split_gates(array: Array, like: PyTree, leading: int) -> PyTree:
    """Undo `stack_gates`: return [*lead, G, H] in the structure and the dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    counts = [math.prod(a.shape[leading:-1]) for a in leaves]
    ends = itertools.accumulate(counts)
    parts = [
        array[..., end - count : end, :].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, count, end in zip(leaves, counts, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
