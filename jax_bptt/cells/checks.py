"""Checks of the arguments of constructors: sizes and dtypes."""

from typing import Any

import jax.numpy as jnp

from jax_bptt.core.checks import is_integer, require, shown

_LARGEST = 2**28 - 1
"""Size of which 64 bits count the bytes of a square matrix for each gate: beyond, XLA aborts."""


def positive_size(function: str, **sizes: Any) -> None:
    """Raise unless every named size is a positive integer, of which XLA can make a matrix."""
    for name, size in sizes.items():
        require(
            is_integer(size) and 0 < size <= _LARGEST,
            f"{function}: {name} must be a positive integer below 2**28, got {shown(size)}",
        )


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
