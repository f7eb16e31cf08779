"""A diagonal linear cell with all steps of its recurrence in one kernel, forward and reverse."""

from typing import Any

import jax

from jax_bptt.algorithms.diagonal import diagonal_algorithm
from jax_bptt.core.types import Algorithm
from jax_bptt.kernels.kernel import Scan


def fused_diagonal(scan: Scan, interpret: Any = None) -> Algorithm:
    """Return backpropagation through time with the recurrence in one kernel.

    States are carried in float32, or in complex64 as two planes of it. A leaf of factors that does
    not depend on the inputs, as in `lru`, is read once for all steps, unless resets or held states
    make it change. Each leaf of the state takes a launch of its own.

    Args:
      scan: the kernel, one that supports all leaves of the state.
      interpret: parameters of the interpreter, or None to run on the device.
    """

    def recurrence(first, a, b, constant, reverse):
        leaves, structure = jax.tree.flatten(first)
        offsets = jax.tree.leaves(b, is_leaf=lambda leaf: leaf is None)
        factors, same = jax.tree.leaves(a), jax.tree.leaves(constant)
        found = [
            run(first, factor, known, offset, reverse)
            for first, factor, known, offset in zip(leaves, factors, same, offsets, strict=True)
        ]
        values, lasts = zip(*found, strict=True)
        return jax.tree.unflatten(structure, values), jax.tree.unflatten(structure, lasts)

    def run(first, factors, constant, offsets, reverse):
        if constant and offsets is not None:
            factors = factors[:1]
        return scan(
            first,
            factors.astype(first.dtype),
            offsets if offsets is None else offsets.astype(first.dtype),
            reverse=reverse,
            interpret=interpret,
        )

    return diagonal_algorithm(recurrence)
