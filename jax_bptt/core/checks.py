"""Checks at trace time: what is wrong, both shapes, and what to do instead."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.core.types import Cell, PyTree

BATCH_MAJOR = "If xs is batch-major, pass jnp.swapaxes(xs, 0, 1)."


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def positive_size(function: str, **sizes: Any) -> None:
    """Raise unless every named size is a positive integer."""
    for name, size in sizes.items():
        require(
            is_integer(size) and size > 0,
            f"{function}: {name} must be a positive integer, got {size!r}",
        )


def is_integer(value: Any) -> bool:
    """Return whether `value` is an integer of Python or NumPy; a boolean is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def floating_dtype(function: str, dtype: Any, example: str) -> None:
    """Raise unless `dtype` is, or names, a real floating dtype such as `example`."""
    try:
        fits = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:  # what is no dtype at all, such as a misspelt name
        fits = False
    require(
        fits,
        f"{function}: dtype must be a floating dtype such as {example}, got {dtype!r}",
        TypeError,
    )


def batch_shape(cell: Cell, xs: PyTree) -> tuple[int, ...]:
    """Return *batch of checked inputs `xs` [T, *batch, ...]."""
    leaf, spec = jax.tree.leaves(xs)[0], jax.tree.leaves(cell.input_spec)[0]
    return leaf.shape[1 : leaf.ndim - len(spec.shape)]


def same_structure(
    function: str, name: str, got: PyTree, want: PyTree, whose: str, way_out: str
) -> None:
    """Raise unless `got`, called `name`, has the structure of `want`."""
    structures = jax.tree.structure(got), jax.tree.structure(want)
    require(
        structures[0] == structures[1],
        f"{function}: {name} has the structure {structures[0]} (of type {_type(got)}), but {whose} "
        f"has {structures[1]} (of type {_type(want)}). {way_out}",
        TypeError,
    )


def as_arrays(function: str, name: str, tree: PyTree) -> PyTree:
    """Return `tree` with every leaf a JAX array; raise if one is none of numbers."""

    def convert(path, leaf):
        message = (
            f"{function}: {name}{jax.tree_util.keystr(path)} must be an array of numbers, got "
            f"{f'dtype {leaf.dtype}' if hasattr(leaf, 'dtype') else kind_of(leaf)}. Convert it to "
            "a numeric dtype first; pad sequences of unequal length."
        )
        # JAX takes some strings for the name of a dtype: "?" would become True.
        require(not isinstance(leaf, str | bytes), message, TypeError)
        if isinstance(leaf, jax.Array):
            return leaf
        try:
            return jnp.asarray(leaf)
        except TypeError as error:
            raise TypeError(message) from error

    return jax.tree_util.tree_map_with_path(convert, tree)


def leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Return the leaves of `tree` with their paths as text."""
    return [(jax.tree_util.keystr(k), v) for k, v in jax.tree_util.tree_leaves_with_path(tree)]


def word(dtype: Any) -> str:
    """Return the adjective for numbers of this dtype."""
    for kind, word in (
        (jnp.bool_, "boolean"),
        (jnp.integer, "integer"),
        (jnp.floating, "floating-point"),
        (jnp.complexfloating, "complex"),
    ):
        if jnp.issubdtype(dtype, kind):
            return word
    return "PRNG-key"


def describe(leaf: Any) -> str:
    """Return dtype and shape of an array, as JAX prints them."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def _type(value: Any) -> str:
    return "array" if hasattr(value, "dtype") else type(value).__name__


def kind_of(value: Any) -> str:
    """Return what kind of thing a value is, with an article."""
    return (
        f"the function {value.__name__}"
        if callable(value) and hasattr(value, "__name__")
        else f"a {type(value).__name__}"
    )
