"""A diagonal linear cell with all steps of its recurrence in one kernel, forward and reverse."""

from typing import Any

import jax

from jax_bptt.algorithms.diagonal import diagonal_algorithm
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, PyTree


def choose_kernel(cell: Cell, state: PyTree, xs: PyTree, device: str) -> Any:
    """Return the module whose `scan` runs the recurrence of `cell` on `device`, or why none does.

    Args:
      cell: any cell.
      state: s_0, or its shapes.
      xs: [T, *batch, ...], or its shapes.
      device: "gpu", "tpu" or "cpu".
    """
    if not isinstance(cell.step, DiagonalStep):
        return "its step is no jb.DiagonalStep"
    # Pallas takes as long to import as the rest of the library, and few runs need it.
    if device == "gpu":
        from jax_bptt.kernels import gpu_diagonal as module
    elif device == "tpu":
        from jax_bptt.kernels import tpu_diagonal as module
    else:
        return f"the device is a {device}, and the kernels are for GPUs and TPUs"
    if jax.tree.leaves(xs)[0].shape[0] == 0:
        return "there is no step"
    leaves = jax.tree.leaves(state)
    if not all(leaf.size for leaf in leaves):
        return "there is no unit"
    reasons = [reason for leaf in leaves if (reason := module.unsupported(leaf))]
    return reasons[0] if reasons else module


def fused_diagonal(module: Any, interpret: Any = None) -> Algorithm:
    """Return backpropagation through time with the recurrence in the kernel of `module`.

    States are carried in float32, or in complex64 as two planes of it. A leaf of factors that does
    not depend on the inputs, as in `lru`, is read once for all steps, unless resets or held states
    make it change. Each leaf of the state takes a launch of its own.

    Args:
      module: of `jax_bptt.kernels`, as `choose_kernel` returns it.
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
        return module.scan(
            first,
            factors.astype(first.dtype),
            offsets if offsets is None else offsets.astype(first.dtype),
            reverse=reverse,
            interpret=interpret,
        )

    return diagonal_algorithm(recurrence)
