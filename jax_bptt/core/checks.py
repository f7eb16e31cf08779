"""Checks at trace time: what is wrong, both shapes, and what to do instead."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core.types import Cell, PyTree

_SHORT = 80
"""Characters of a value that a message may show."""


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def is_integer(value: Any) -> bool:
    """Return whether `value` is an integer of Python or NumPy; a boolean is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


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
