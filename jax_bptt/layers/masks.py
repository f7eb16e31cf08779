"""Random masks: what the layers that use them share."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core.checks import prng_key, require, shown
from jax_bptt.core.trees import is_inexact
from jax_bptt.core.types import PyTree

MISSING: Any = object()
"""Stands for a `key` that was left out, which is an error; None is a key that was given."""


class Masked(NamedTuple):
    """An argument of a cell, a state or an input, with the mask that comes with it."""

    value: PyTree
    mask: PyTree


def check_rate(function: str, rate: Any) -> float:
    """Return `rate` as a float; raise unless it is a probability below one."""
    require(
        isinstance(rate, numbers.Real) and not isinstance(rate, bool) and 0 <= float(rate) < 1,
        f"{function}: rate must be a number in [0, 1), the part that is dropped, got {shown(rate)}",
    )
    return float(rate)


def check_key(function: str, key: Any) -> Array | None:
    """Return `key`, a PRNG key or None; raise if it is neither, or was left out."""
    require(
        key is not MISSING,
        f"{function}: apply needs a key. Pass key=jax.random.key(...) to train, a new one for each "
        "update, or key=None to evaluate.",
        TypeError,
    )
    if key is not None:
        prng_key(function, key)
    return key


def draw(key: Array, probability: float, tree: PyTree, leading: tuple[int, ...] = ()) -> PyTree:
    """Draw a boolean array for every leaf of `tree`, True with the given probability.

    Args:
      key: a PRNG key; it is split into one for each leaf.
      probability: of True.
      tree: pytree of arrays or of `jax.ShapeDtypeStruct`.
      leading: axes ahead of those of each leaf.

    Returns:
      A pytree like `tree`, each leaf bool [*leading, *leaf.shape].
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))
    masks = [
        jax.random.bernoulli(k, probability, (*leading, *leaf.shape))
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, masks)


def drop(tree: PyTree, masks: PyTree, rate: float) -> PyTree:
    """Return `tree` / (1 - rate) where the masks hold and zero elsewhere.

    Scaled this way the expectation is `tree` itself, so that nothing is rescaled in evaluation. A
    leaf whose mask is None stays as it is.
    """

    def leaf(mask, a):
        return a if mask is None else jnp.where(mask, a / (1 - rate), jnp.zeros_like(a))

    return jax.tree.map(leaf, masks, tree, is_leaf=lambda m: m is None)


def inexact(tree: PyTree) -> PyTree:
    """Return `tree` with None in place of leaves that are neither floating nor complex."""
    return jax.tree.map(lambda a: a if is_inexact(a) else None, tree)


def without_batch(tree: PyTree, batch_shape: tuple[int, ...]) -> PyTree:
    """Describe masks like the leaves [*batch, ...] of `tree`, as `Cell.input_spec` does."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[len(batch_shape) :], jnp.bool_), tree
    )
