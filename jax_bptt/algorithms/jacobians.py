"""The Jacobians of known steps as matrices, and the recurrences that they make.

A state is read as vectors [*batch, N, D] of real numbers: N groups of D that no step mixes, such as
the heads of a `GatedStep`. The Jacobian of a step is then N blocks of D x D for each sequence: D is
1 for `indrnn`, H for `gru`, 2H for an `lstm`, H / N and 2H / N with N heads.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_bptt.algorithms.bptt import even_length
from jax_bptt.core import trees
from jax_bptt.core.checks import batch_shape, is_integer, require
from jax_bptt.core.types import Cell, GatedStep, Inputs, PyTree

MATRIX_BYTES = 2**25
"""Bytes of a block's Jacobians; the recurrence holds a few arrays of that size."""


class Vectors(NamedTuple):
    """The inexact leaves of a state as vectors, and back.

    Attributes:
      shape: (*batch, N, D).
      dtype: real.
      flat: `tree -> [*batch, N, D]`.
      tree: the inverse of `flat`, with None at leaves that cannot be differentiated.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    flat: Callable[[PyTree], Array]
    tree: Callable[[Array], PyTree]


def vectors(cell: Cell, inputs: Inputs) -> Vectors:
    """Return how the states of a run are read as vectors.

    Sequences are told apart where the functions of the cell take any batch. A function of one's own
    that does not say so may mix them: then the states of the whole batch are one vector.
    """
    state = trees.partition(inputs.state)[0]
    batch = batch_shape(cell, inputs.xs) if cell.any_batch else ()
    groups = cell.step.heads if isinstance(cell.step, GatedStep) else 1
    leaves, structure = jax.tree.flatten(state)
    shapes = [leaf.shape[len(batch) :] for leaf in leaves]
    dtype = np.result_type(np.float32, *[jnp.finfo(leaf.dtype).dtype for leaf in leaves])
    parts = [2 if jnp.iscomplexobj(leaf) else 1 for leaf in leaves]
    sizes = [p * math.prod(s) // groups for p, s in zip(parts, shapes, strict=True)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

    def flat(tree):
        def leaf(a, shape):
            if jnp.iscomplexobj(a):
                return jnp.concatenate([leaf(a.real, shape), leaf(a.imag, shape)], -1)
            if groups > 1:
                a = a.reshape(*batch, *shape[:-1], groups, shape[-1] // groups)
                a = jnp.moveaxis(a, -2, len(batch))
            return a.reshape(*batch, groups, -1).astype(dtype)

        return jnp.concatenate([*map(leaf, jax.tree.leaves(tree), shapes)], axis=-1)

    def tree(vector):
        def leaf(like, shape, part):
            if jnp.iscomplexobj(like):
                real = jax.eval_shape(jnp.real, like)
                return lax.complex(*[leaf(real, shape, a) for a in jnp.split(part, 2, -1)])
            if groups > 1:
                part = part.reshape(*batch, groups, *shape[:-1], shape[-1] // groups)
                part = jnp.moveaxis(part, len(batch), -2)
            return part.reshape(*batch, *shape).astype(like.dtype)

        split = jnp.split(vector, ends[:-1], -1)
        return jax.tree.unflatten(structure, map(leaf, leaves, shapes, split))

    return Vectors((*batch, groups, sum(sizes)), dtype, flat, tree)


def matrix(linear: Callable[[PyTree], PyTree], space: Vectors, like: PyTree) -> Array:
    """Return the matrix [*batch, N, D, D] of a linear map from states to states.

    The same unit vector is given to all groups and all sequences at once, since none is mixed.

    Args:
      linear: the map.
      space: of the states.
      like: a state, in whose sharding the unit vectors are made.
    """
    zeros = jnp.zeros_like(space.flat(like))
    units = jnp.eye(space.shape[-1], dtype=space.dtype)

    def column(unit):
        return space.flat(linear(space.tree(zeros + jnp.broadcast_to(unit, zeros.shape))))

    columns = jax.vmap(column)(units)
    return jnp.moveaxis(columns, 0, -1)


def recurrence(matrices: Array, offsets: Array, first: Array, reverse: bool = False) -> Array:
    """Return v_0..v_K of v_t = A_t v_{t-1} + b_t by an associative scan over t.

    Two steps in a row are one of the same kind: (A, b) and then (A', b') make (A' A, A' b + b').

    Args:
      matrices: A_1..A_K, [K, *batch, N, D, D].
      offsets: b_1..b_K, [K, *batch, N, D].
      first: v_0, or in reverse v_K, [*batch, N, D].
      reverse: whether v_{t-1} = A_t v_t + b_t, from t = K.
    """

    def with_first(value, steps):
        return jnp.concatenate([steps, value[None]] if reverse else [value[None], steps])

    def join(earlier, later):
        (a, b), (a_next, b_next) = earlier, later
        return times(a_next, a), apply(a_next, b) + b_next

    # The first value is the offset of one step more, whose matrix meets nothing.
    unmet = jnp.zeros((*first.shape, first.shape[-1]), matrices.dtype) + first[..., None] * 0
    elements = with_first(unmet, matrices), with_first(first, offsets)
    return lax.associative_scan(join, elements, reverse=reverse)[1]


def times(a: Array, b: Array) -> Array:
    """Return the products of matrices [..., D, D], in full precision on every device."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def apply(a: Array, v: Array) -> Array:
    """Return the products of matrices [..., D, D] and vectors [..., D]."""
    return times(a, v[..., None])[..., 0]


def block_length_of(name: str, cell: Cell, inputs: Inputs, given: int | None) -> int:
    """Return the number of steps whose Jacobians exist at one time, for the algorithm `name`."""
    steps = jax.tree.leaves(inputs.xs)[0].shape[0]
    require(
        is_integer(steps),
        f"{name}: the number of steps must be known, got {steps}; with a symbolic one take "
        "jb.bptt()",
    )
    if given is not None:
        return given
    space = vectors(cell, inputs)
    size = math.prod(space.shape) * space.shape[-1] * space.dtype.itemsize
    most = min(max(MATRIX_BYTES // max(size, 1), 1), max(steps, 1))
    return even_length(steps, most, -(-most // 2), most)
