"""The library under test, by the constructors that its users call."""

import ast
from collections.abc import Callable

import jax.numpy as jnp

import jax_bptt as jb
from benchmarks.data import Row
from benchmarks.models import Model, of_layer
from jax_bptt.testing.libraries import own
from jax_bptt.testing.libraries.layers import CELLS

ALGORITHMS: dict[str, Callable[..., jb.Algorithm]] = {
    "autodiff": jb.autodiff,
    "bptt": jb.bptt,
    "associative": jb.associative,
    "checkpointed": jb.checkpointed,
    "newton": jb.newton,
    "parallel_adjoint": jb.parallel_adjoint,
}
"""Algorithms by their public names."""


def algorithm(text: str) -> jb.Algorithm:
    """Build an algorithm from its name and settings, e.g. "bptt" or "bptt:block_length=64".

    Raises:
      ValueError: no such algorithm, or settings it does not take.
    """
    name, _, settings = text.partition(":")
    if name not in ALGORITHMS:
        raise ValueError(f"no algorithm {name!r}; there are {', '.join(ALGORITHMS)}")
    keywords = {}
    for setting in filter(None, settings.split(":")):
        key, _, value = setting.partition("=")
        try:
            keywords[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"{text}: {setting!r} is not of the form name=number") from None
    try:
        return ALGORITHMS[name](**keywords)
    except TypeError as error:
        raise ValueError(f"{text}: {error}") from None


def cell_of(row: Row) -> jb.Cell:
    """Return the library's cell for a row."""
    return CELLS[row.cell](input_size=row.I, hidden_size=row.H, dtype=jnp.dtype(row.dtype))


def model(row: Row, algorithm: jb.Algorithm) -> Model:
    """Return the library's layer for a row under an algorithm."""
    cell = cell_of(row)

    def run(params, xs):
        return jb.unroll(cell, params, xs, algorithm=algorithm)[1]

    return of_layer(own.layer_of(cell, row.cell), row)._replace(run=run)
