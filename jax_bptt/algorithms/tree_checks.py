"""Checks of pytrees: their structure against another, and their leaves as arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import PyTree

BATCH_MAJOR = "If xs is batch-major, pass jnp.swapaxes(xs, 0, 1)."


def same_structure(
    function: str, name: str, got: PyTree, want: PyTree, whose: str, way_out: str
) -> None:
    """Raise unless `got`, called `name`, has the structure of `want`; say where they part."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        raise TypeError(f"{function}: {_difference(name, got, want, whose)}. {way_out}")


def _difference(name: str, got: PyTree, want: PyTree, whose: str) -> str:
    """Return where `got`, called `name`, first departs from the structure of `want`."""
    is_leaf = [jax.tree_util.all_leaves([tree]) for tree in (got, want)]
    if any(is_leaf) or type(got) is not type(want):
        there = "an array" if is_leaf[1] else _outline(want)
        return f"{name} is {_outline(got)}, where {whose} has {there}"
    children, wanted = _children(got), _children(want)
    extra, missing = (
        ", ".join([f"{name}{path}" for path in a if path not in b][:5])
        for a, b in ((children, wanted), (wanted, children))
    )
    if extra or missing:
        both = [f"there is {extra}"] * bool(extra) + [f"there is no {missing}"] * bool(missing)
        return f"{' and '.join(both)}, unlike {whose}"
    for path, child in wanted.items():
        if jax.tree.structure(children[path]) != jax.tree.structure(child):
            return _difference(name + path, children[path], child, whose)
    return f"{name}, {kind_of(got)}, differs from {whose} in what it holds besides arrays"


def _children(node: PyTree) -> dict[str, PyTree]:
    """Return the children of a node of a pytree by their paths as text."""
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda a: a is not node)
    return {jax.tree_util.keystr(path): child for path, child in children}


def _outline(tree: PyTree) -> str:
    """Return what kind of thing a pytree is, with the names of its entries."""
    fields = tree if isinstance(tree, dict) else getattr(tree, "_fields", ())
    if isinstance(tree, tuple | list) and not fields:
        return f"{kind_of(tree)} of {len(tree)}"
    names = [str(field) for field in fields]
    shortened = names[:6] + ["..."] * (len(names) > 6)
    return kind_of(tree) + (f" of {', '.join(shortened)}" if names else "")


def as_arrays(function: str, name: str, tree: PyTree) -> PyTree:
    """Return `tree` with every leaf a JAX array; raise if one is none of numbers."""

    def convert(path, leaf):
        place = f"{function}: {name}{jax.tree_util.keystr(path)}"
        got = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else kind_of(leaf)
        way_out = "Convert it to a numeric dtype first; pad sequences of unequal length."
        if hasattr(leaf, "detach"):
            way_out = "Of a tensor of PyTorch pass tensor.detach().numpy()."
        message = f"{place} must be an array of numbers, got {got}. {way_out}"
        # JAX takes some strings for the name of a dtype: "?" would become True.
        require(not isinstance(leaf, str | bytes), message, TypeError)
        if isinstance(leaf, jax.Array):
            return leaf
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise TypeError(message) from error
        _check_fits(place, leaf, array)
        return array

    return jax.tree_util.tree_map_with_path(convert, tree)


def _check_fits(place: str, given: Any, array: jax.Array) -> None:
    """Raise if integers came out as others: without 64 bits, JAX wraps what is too large."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu" and given.dtype != array.dtype:
        limits = jnp.iinfo(array.dtype)
        low, high = int(given.min(initial=0)), int(given.max(initial=0))
        require(
            limits.min <= low and high <= limits.max,
            f"{place} has numbers from {low} to {high}, which do not fit into {array.dtype}. For "
            f"{given.dtype} set jax_enable_x64.",
        )
