"""Parameters and states as arguments of functions that `jax.export` writes to a file."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from jax_bptt.core.types import DiagonalStep, GatedStep
from jax_bptt.core.values import Value


def register_all(public: Mapping[str, Any]) -> None:
    """Register the NamedTuples of arrays among the public names for `jax.export`.

    A file holds the name of each, `jax_bptt.LSTMState`, and those of its fields, so that it can be
    read as long as both are there.

    Args:
      public: what the package offers, by name. What holds functions in place of arrays is left
        out, as is all that is no NamedTuple.
    """
    for name, value in public.items():
        if isinstance(value, type) and issubclass(value, tuple):
            if not issubclass(value, Value | GatedStep | DiagonalStep):
                _register(value, f"jax_bptt.{name}")


@functools.cache
def _register(kind: type, name: str) -> None:
    # Once, also when the package is reloaded: JAX refuses a second time.
    jax.export.register_namedtuple_serialization(kind, serialized_name=name)
