"""Checks at trace time: what is wrong, both shapes, and what to do instead."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core.types import Cell, PyTree

BATCH_MAJOR = "If xs is batch-major, pass jnp.swapaxes(xs, 0, 1)."

_LARGEST = 2**28 - 1
"""Size of which 64 bits count the bytes of a square matrix for each gate: beyond, XLA aborts."""
_SHORT = 80
"""Characters of a value that a message may show."""


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def positive_size(function: str, **sizes: Any) -> None:
    """Raise unless every named size is a positive integer, of which XLA can make a matrix."""
    for name, size in sizes.items():
        require(
            is_integer(size) and 0 < size <= _LARGEST,
            f"{function}: {name} must be a positive integer below 2**28, got {shown(size)}",
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
        f"{function}: dtype must be a floating dtype such as {example}, got {shown(dtype)}",
        TypeError,
    )


def prng_key(function: str, key: Any) -> None:
    """Raise unless `key` is one typed PRNG key."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    way_out = "Pass jax.random.key(0), or another seed."
    if is_array and key.dtype == jnp.uint32 and key.shape == (2,):
        way_out = "Pass jax.random.key(0) where this is jax.random.PRNGKey(0)."
    require(
        is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
        f"{function}: key must be a PRNG key of jax.random.key, got {kind_of(key)}. {way_out}",
        TypeError,
    )
    require(
        key.shape == (),
        f"{function}: key must be a single key, got {kind_of(key)}. Pass one of them, or jax.vmap "
        "over all.",
    )


def batch_shape(cell: Cell, xs: PyTree) -> tuple[int, ...]:
    """Return *batch of checked inputs `xs` [T, *batch, ...]."""
    leaf, spec = jax.tree.leaves(xs)[0], jax.tree.leaves(cell.input_spec)[0]
    return leaf.shape[1 : leaf.ndim - len(spec.shape)]


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


def shown(value: Any) -> str:
    """Return `value` as Python writes it, if that is short and shows no array; else its kind."""
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    if is_array and not isinstance(value, np.generic | type):
        return kind_of(value)
    text = repr(value)
    short = len(text) <= _SHORT and "\n" not in text and "rray(" not in text
    return text if short else kind_of(value)


def kind_of(value: Any) -> str:
    """Return what kind of thing a value is, with an article."""
    if value is None:
        return "None"
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array {describe(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
