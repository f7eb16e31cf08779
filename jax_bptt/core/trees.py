"""Pytrees in which some leaves can be differentiated and others (integers, keys) cannot."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.core.types import PyTree


def is_none(x: Any) -> bool:
    """Return whether a leaf is missing."""
    return x is None


def is_inexact(leaf: Any) -> bool:
    """Return whether `leaf` is a floating or complex array, that is, has a gradient."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def partition(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Split `tree` into its inexact leaves and the others, with None in the other's places."""
    inexact = jax.tree.map(lambda a: a if is_inexact(a) else None, tree)
    rest = jax.tree.map(lambda a: None if is_inexact(a) else a, tree)
    return inexact, rest


def combine(inexact: PyTree, rest: PyTree) -> PyTree:
    """Undo `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, rest, is_leaf=is_none)


def inexact_vjp(fun: Callable[..., PyTree], *args: PyTree) -> tuple[PyTree, Callable]:
    """Return `fun(*args)` and its pull-back, as `jax.vjp`, over the inexact leaves alone.

    The pull-back takes and returns trees with None at the leaves that have no gradient, where
    `jax.vjp` has arrays of dtype float0, which no scan can stack. It is itself a pytree, of its
    residuals, as that of `jax.vjp`.
    """
    inexact, rest = partition(args)

    def on_inexact(inexact):
        return partition(fun(*combine(inexact, rest)))

    out, pull, out_rest = jax.vjp(on_inexact, inexact, has_aux=True)
    return combine(out, out_rest), jax.tree_util.Partial(_only, pull)


def _only(pull: Callable, d_out: PyTree) -> PyTree:
    return pull(d_out)[0]


def add(a: PyTree, b: PyTree) -> PyTree:
    """Add two trees, in which None stands for no gradient in both or for zero in one of them."""
    return jax.tree.map(
        lambda x, y: y if x is None else x if y is None else x + y, a, b, is_leaf=is_none
    )


def accumulator_dtype(dtype: Any) -> Any:
    """Return the dtype in which gradients of `dtype` are summed: at least single precision."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def zero_gradient(tree: PyTree) -> PyTree:
    """Return zeros for the inexact leaves of `tree`, in their accumulators' dtype."""
    return jax.tree.map(
        lambda a: jnp.zeros_like(a, dtype=accumulator_dtype(a.dtype)) if is_inexact(a) else None,
        tree,
    )


def accumulate(total: PyTree, part: PyTree) -> PyTree:
    """Add a part, in the dtype of its leaf or None for zero, to a total from `zero_gradient`."""
    return jax.tree.map(
        lambda t, p: t if p is None else t + p.astype(t.dtype), total, part, is_leaf=is_none
    )


def cast_gradient(d_tree: PyTree, tree: PyTree) -> PyTree:
    """Give each accumulated gradient the dtype of the leaf it belongs to."""
    return jax.tree.map(
        lambda d, a: None if d is None else d.astype(a.dtype), d_tree, tree, is_leaf=is_none
    )
