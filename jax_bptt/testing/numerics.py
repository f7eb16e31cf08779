"""Arithmetic on pytrees of NumPy arrays, leaf by named leaf, and central differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core.types import PyTree

Leaves = dict[str, np.ndarray]
"""The leaves of a tree that have a gradient, by their paths as `jax.tree_util.keystr` writes them.

What is missing is zero.
"""

STEP = 1e-3
STENCIL = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60))
"""Offsets in steps and weights of the central difference of sixth order."""


def leaves(tree: PyTree) -> Leaves:
    """Return the floating and complex leaves of a tree; None and integers are left out."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}
    return {name: leaf for name, leaf in arrays.items() if is_inexact(leaf)}


def is_inexact(leaf: Any) -> bool:
    """Return whether an array has a gradient: whether it is floating or complex."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def filled(tree: PyTree, values: Leaves) -> PyTree:
    """Return a tree like `tree` with the named values as leaves, and None where there is none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(jax.tree_util.keystr(path)), tree
    )


def displaced(tree: PyTree, direction: Leaves, size: float) -> PyTree:
    """Return `tree + size * direction`."""

    def move(path, leaf):
        along = direction.get(jax.tree_util.keystr(path))
        return leaf if along is None else leaf + size * along

    return jax.tree_util.tree_map_with_path(move, tree)


def noise(rng: np.random.Generator, like: Leaves) -> Leaves:
    """Draw standard normal numbers, complex ones for complex leaves."""

    def draw(leaf):
        numbers = rng.normal(size=leaf.shape)
        if np.iscomplexobj(leaf):
            numbers = numbers + 1j * rng.normal(size=leaf.shape)
        return numbers.astype(leaf.dtype)

    return {name: draw(leaf) for name, leaf in like.items()}


def inner(a: Leaves, b: Leaves) -> float:
    """Return the real part of sum a b: how a gradient `a` of JAX acts on a displacement `b`."""
    return float(sum(np.sum(a[name] * b[name]).real for name in a if name in b))


def norm(a: Leaves) -> float:
    """Return the Euclidean norm of all leaves together."""
    return float(np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in a.values())))


def added(a: Leaves, b: Leaves) -> Leaves:
    """Return a + b."""
    return {name: _or_zero(a, b, name) + _or_zero(b, a, name) for name in a | b}


def _or_zero(a: Leaves, b: Leaves, name: str) -> Any:
    return a[name] if name in a else np.zeros_like(b[name])


def derivative(function: Callable[[float], Leaves]) -> Leaves:
    """Return the derivative of `function` at 0, by central differences.

    The error is STEP^6 / 140 times the seventh derivative, plus rounding of about 1e-13.
    """
    total = {}
    for offset, weight in STENCIL:
        after, before = function(offset * STEP), function(-offset * STEP)
        total = added(total, {name: weight / STEP * (after[name] - before[name]) for name in after})
    return total


def difference(got: Leaves, want: Leaves, *, together: bool = False) -> tuple[float, str]:
    """Return the largest error relative to the largest entry wanted, and the leaf it is in.

    Args:
      got: what is judged.
      want: what is right.
      together: relate all errors to the largest entry of all leaves, for a `want` with an error
        of its own, of which a leaf of zeros shows nothing else. By default each leaf has its own
        scale, and a leaf of zeros that of one.
    """
    scales = {name: float(np.abs(leaf).max(initial=0)) for name, leaf in want.items()}
    common = float(np.max([*scales.values(), 0]))  # NaN if one is
    worst, where = 0.0, ""
    for name in want | got:
        a, b = _or_zero(got, want, name), _or_zero(want, got, name)
        scale = (common if together else scales.get(name, 0)) or 1.0
        error = _largest(a, b) / scale if np.isfinite(scale) else np.inf
        if error >= worst:
            worst, where = error, name
    return worst, where


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return np.inf
    wide = np.promote_types(np.promote_types(a.dtype, b.dtype), np.float64)
    error = float(np.abs(a.astype(wide) - b.astype(wide)).max(initial=0))
    return error if np.isfinite(error) else np.inf
