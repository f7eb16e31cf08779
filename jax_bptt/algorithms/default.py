"""The algorithm that runs where the user names none."""

from jax_bptt.algorithms.autodiff import autodiff
from jax_bptt.algorithms.bptt import bptt
from jax_bptt.core.tracing import Traced
from jax_bptt.core.types import Algorithm


def default(traced: Traced) -> Algorithm:
    """Return `bptt()`, or `autodiff()` for a cell with effects.

    The reverse pass of `bptt` computes parts of a step again, so that a `jax.debug.print` in it
    would be run again, and a `checkify.check` could not be made functional.
    """
    return autodiff() if traced.effects else bptt()
