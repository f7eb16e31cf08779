"""Checks of what a sequence may have besides its inputs: lengths, resets, a mask, a direction."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_bptt.algorithms.tree_checks import BATCH_MAJOR, as_arrays
from jax_bptt.core.checks import batch_shape, kind_of, leaves, require, shown, word
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, PyTree

_KINDS = {"lengths": jnp.integer, "resets": jnp.bool_, "mask": jnp.bool_}
_MEANING = {"resets": "1 begins a new sequence", "mask": "0 is a step that is not taken"}


def options(function: str, cell: Cell, xs: PyTree, given: Options) -> Options:
    """Check the sequence options of an unroll; return them as arrays.

    Concrete lengths are also checked to lie within 0..T; traced ones cannot be.
    """
    batch, steps = batch_shape(cell, xs), jax.tree.leaves(xs)[0].shape[0]
    lengths, resets, mask, reset_state = given
    if lengths is not None:
        lengths = _array(function, "lengths", lengths)
        _has_shape(function, "lengths", lengths, "*batch", batch)
        _within(function, given.lengths, steps)
    if resets is not None:
        resets = _array(function, "resets", resets)
        _has_shape(function, "resets", resets, "T, *batch", (steps, *batch))
    if mask is not None:
        mask = _array(function, "mask", mask)
        _has_shape(function, "mask", mask, "T, *batch", (steps, *batch))
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
        f"{function}: reverse must be True or False, got {shown(reverse)}",
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
    """Check the options of a layer without a state, whose inputs have any number of batch axes.

    Args:
      function: the layer on whose behalf the errors are raised.
      xs: arrays [T, *batch, ...].
      given: the options; `reset_state` is let be.

    Returns:
      The options as arrays, without `reset_state`.
    """
    every = leaves(xs)
    require(len(every) > 0, f"{function}: xs has no arrays, so there is no number of steps.")
    first, steps = every[0][0], every[0][1].shape[:1]
    for path, x in every:
        require(
            x.ndim > 0,
            f"{function}: xs{path}.shape=() has no axes, but time is the first. For a single step, "
            "pass xs[None].",
        )
        require(
            x.shape[:1] == steps,
            f"{function}: the leaves of xs disagree on T: xs{first}.shape leads with {steps}, "
            f"xs{path}.shape={x.shape}.",
        )
    lengths, resets, mask, _ = given

    def flags(name, value):
        if value is None:
            return None
        value = _array(function, name, value)
        for _, x in every:
            _has_shape(function, name, value, "T, *batch", x.shape[: max(1, value.ndim)])
        return value

    if lengths is not None:
        lengths = _array(function, "lengths", lengths)
        for _, x in every:
            _has_shape(function, "lengths", lengths, "*batch", x.shape[1 : 1 + lengths.ndim])
        _within(function, given.lengths, steps[0])
    return Options(lengths, flags("resets", resets), flags("mask", mask))


def named(function: str, options: dict[str, Any]) -> None:
    """Raise if the `apply` of a layer is given an option that there is not."""
    unknown = sorted(options.keys() - {*Options._fields, "key", "algorithm"})
    way_out = "A layer that draws masks does so with key=jax.random.key(...), not with key=None."
    if "reverse" in unknown:
        way_out = "A layer that runs backwards is made so: jb.layer(cell, reverse=True)."
    require(
        not unknown,
        f"{function}: apply takes no {', '.join(unknown)}, only lengths, resets, mask, "
        f"reset_state, key and algorithm. {way_out}",
        TypeError,
    )


def _array(function: str, name: str, value: Any) -> jax.Array:
    """Return the option called `name` as an array, checked to be one and of its kind."""
    start = f"{function}: {name} must be one array of {word(_KINDS[name])}s, got "
    require(
        not isinstance(value, list | tuple),
        f"{start}{kind_of(value)}. Pass jnp.asarray({name}).",
        TypeError,
    )
    value = as_arrays(function, name, value)
    require(isinstance(value, jax.Array), f"{start}{kind_of(value)}.", TypeError)
    way_out = ""
    if jnp.issubdtype(value.dtype, jnp.number):
        way_out = (
            " Where they are whole numbers of steps, pass lengths.astype(int)."
            if name == "lengths"
            else f" If {_MEANING[name]}, pass {name}.astype(bool)."
        )
    elif name == "lengths":
        way_out = " Which steps are taken, booleans [T, *batch], is mask=."
    fits = jnp.issubdtype(value.dtype, _KINDS[name])
    require(fits, f"{start}{kind_of(value)}.{way_out}", TypeError)
    return value


def _has_shape(
    function: str, name: str, value: jax.Array, axes: str, shape: tuple[int, ...]
) -> None:
    require(
        value.shape == shape,
        f"{function}: {name}.shape={value.shape}, but xs says [{axes}]={shape}. {BATCH_MAJOR}",
    )


def _within(function: str, lengths: Any, steps: int) -> None:
    """Raise unless lengths, as they are given and where they are known, lie within 0..T."""
    if isinstance(lengths, Tracer):
        return
    known = np.asarray(lengths)
    low, high = int(known.min(initial=steps)), int(known.max(initial=0))
    require(
        0 <= low and high <= steps,
        f"{function}: lengths go from {low} to {high}, but xs has T={steps} steps. Pad xs to the "
        "longest sequence, with any values: they are not read.",
    )
