"""Positions in a loop, by operations that XLA does not see through."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jax_bptt.core.types import PyTree

INDEX = jnp.uint32
"""An unsigned index needs no correction of negative ones, which would be a temporary."""


def index(i: int) -> Array:
    """Return `i` as an index."""
    return jnp.asarray(i, INDEX)


def after(i: Array, tree: PyTree) -> Array:
    """Return the index `i`, such that XLA computes it when every leaf of `tree` is there."""
    return _after(i, *[a for a in jax.tree.leaves(tree) if a.size])


@custom_vmap
def _after(i: Array, *arrays: Array) -> Array:
    for a in arrays:
        i = i + zero(_bits(a[(0,) * a.ndim]))
    return i


@_after.def_vmap
def _after_batched(_, in_batched, i, *arrays):
    # The same index for the whole batch: a loop must not get a condition per member.
    assert not in_batched[0]
    firsts = [a[0] if batched else a for a, batched in zip(arrays, in_batched[1:], strict=True)]
    return _after(i, *firsts), False


def zero(i: Array) -> Array:
    """Return zero, in a way that XLA computes it from `i`."""
    return lax.clamp(index(0), i, index(0))


def _bits(scalar: Array) -> Array:
    """Return something of a scalar as an index, by an operation that XLA does not see through."""
    if is_key(scalar):
        scalar = jax.random.key_data(scalar).reshape(-1)[0]
    if jnp.issubdtype(scalar.dtype, jnp.complexfloating):
        scalar = scalar.real
    if jnp.issubdtype(scalar.dtype, jnp.floating):
        width = jnp.dtype(scalar.dtype).itemsize * 8
        scalar = lax.bitcast_convert_type(scalar, jnp.dtype(f"uint{width}"))
    return scalar.astype(INDEX)


def at(tree: PyTree, i: Array) -> PyTree:
    """Return entry `i` of the leading axis of every leaf."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def put(tree: PyTree, entry: PyTree, i: Array) -> PyTree:
    """Return `tree` with `entry` at `i` of the leading axis of every leaf."""
    return jax.tree.map(lambda a, e: lax.dynamic_update_index_in_dim(a, e, i, 0), tree, entry)


def is_key(a: Any) -> bool:
    """Return whether `a` is an array of random keys."""
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
