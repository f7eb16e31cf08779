"""Checks of what a sequence may have besides its inputs: lengths, resets, a mask, a direction."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_bptt.core.checks import (
    BATCH_MAJOR,
    as_arrays,
    batch_shape,
    describe,
    kind_of,
    leaves,
    require,
    word,
)
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, PyTree


def options(function: str, cell: Cell, xs: PyTree, given: Options) -> Options:
    """Check the sequence options of an unroll; return them as arrays.

    Concrete lengths are also checked to lie within 0..T; traced ones cannot be.
    """
    batch, steps = batch_shape(cell, xs), jax.tree.leaves(xs)[0].shape[0]
    lengths, resets, mask, reset_state = given
    if lengths is not None:
        lengths = _option(function, "lengths", lengths, batch, "*batch", jnp.integer)
        if not isinstance(lengths, Tracer):
            known = np.asarray(lengths)
            low, high = int(known.min(initial=steps)), int(known.max(initial=0))
            require(
                0 <= low and high <= steps,
                f"{function}: lengths go from {low} to {high}, but xs has T={steps} steps. Pad xs "
                "to the longest sequence, with any values: they are not read.",
            )
    if resets is not None:
        resets = _option(function, "resets", resets, (steps, *batch), "T, *batch", jnp.bool_)
    if mask is not None:
        mask = _option(function, "mask", mask, (steps, *batch), "T, *batch", jnp.bool_)
    require(
        reset_state is None or resets is not None,
        f"{function}: reset_state is what resets go back to, but there are none. Give resets, a "
        "boolean array [T, *batch], or leave reset_state out.",
    )
    return Options(lengths, resets, mask, reset_state)


def direction(function: str, reverse: Any) -> bool:
    """Return `reverse`; raise unless it is a boolean."""
    require(
        isinstance(reverse, bool),
        f"{function}: reverse must be True or False, got {reverse!r}",
        TypeError,
    )
    return reverse


def holdable(function: str, cell: Cell, params: PyTree, xs: PyTree) -> None:
    """Raise unless every leaf of the state can be held or reset for each sequence by itself.

    A leaf has the batch axes if it has them at another batch size as well.
    """
    batch = batch_shape(cell, xs)
    other = tuple(size + 1 for size in batch)

    def states(params):
        return cell.initial_state(params, batch), cell.initial_state(params, other)

    state, larger = jax.eval_shape(states, params)
    for (path, leaf), (_, large) in zip(leaves(state), leaves(larger), strict=True):
        require(
            (leaf.shape[: len(batch)], large.shape[: len(batch)]) == (batch, other),
            f"{function}: state{path}.shape={leaf.shape} does not lead with *batch={batch}, so it "
            "cannot be held or reset for each sequence by itself. Give the leaf that batch shape "
            "in cell.initial_state.",
        )


def stateless(function: str, xs: PyTree, given: Options) -> Options:
    """Check the options of a layer without a state, whose inputs have any number of batch axes."""
    shape = jax.tree.leaves(xs)[0].shape
    lengths, resets, mask, _ = given

    def flags(name, value):
        value = as_arrays(function, name, value)
        own = shape[: max(1, getattr(value, "ndim", 1))]
        return _option(function, name, value, own, "T, *batch", jnp.bool_)

    if lengths is not None:
        lengths = as_arrays(function, "lengths", lengths)
        own = shape[1 : 1 + getattr(lengths, "ndim", 0)]
        lengths = _option(function, "lengths", lengths, own, "*batch", jnp.integer)
    resets = None if resets is None else flags("resets", resets)
    mask = None if mask is None else flags("mask", mask)
    return Options(lengths, resets, mask)


def _option(function: str, name: str, value: Any, shape: tuple, axes: str, kind: Any) -> Any:
    value = as_arrays(function, name, value)
    require(
        isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, kind),
        f"{function}: {name} must be one array of {word(kind)}s, got "
        f"{describe(value) if hasattr(value, 'dtype') else kind_of(value)}.",
        TypeError,
    )
    require(
        value.shape == shape,
        f"{function}: {name}.shape={value.shape}, but xs says [{axes}]={shape}. {BATCH_MAJOR}",
    )
    return value
