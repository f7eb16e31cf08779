"""Which kernel runs a cell on a device: a table for each kind of step, and one rule."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jax_bptt.core.checks import batch_shape, require
from jax_bptt.core.types import Cell, DiagonalStep, PyTree
from jax_bptt.kernels.form import Form, normal_form
from jax_bptt.kernels.kernel import DiagonalKernel, GatedKernel, Kernel


class Kernels(NamedTuple):
    """The kernels for one kind of device, of each kind of step the one to be preferred first."""

    gated: tuple[GatedKernel, ...]
    diagonal: tuple[DiagonalKernel, ...]


# Pallas takes as long to import as the rest of the library, and few runs need it: hence within.
def _gpu() -> Kernels:
    from jax_bptt.kernels.gpu import cluster, diagonal, heads

    return Kernels((heads.KERNEL, cluster.KERNEL), (diagonal.KERNEL,))


def _tpu() -> Kernels:
    from jax_bptt.kernels.tpu import diagonal, resident

    return Kernels((resident.KERNEL,), (diagonal.KERNEL,))


KERNELS: dict[str, Callable[[], Kernels]] = {"gpu": _gpu, "tpu": _tpu}
"""For each kind of device its kernels."""


class Choice(NamedTuple):
    """A kernel and the form in which it takes the cell, None for a `DiagonalStep`."""

    kernel: Kernel
    form: Form | None


def check_device(function: str, device: Any) -> None:
    """Raise ValueError unless `device` is the name of a kind of device or None."""
    require(
        device in ("gpu", "cpu", "tpu", None),
        f"{function}: device must be 'gpu', 'cpu', 'tpu' or None, got {device!r}",
    )


def choose(
    cell: Cell, weights: PyTree, state: PyTree, xs: PyTree, device: str | None
) -> Choice | str:
    """Return the first kernel for `device` that takes the cell, or why none does.

    Args:
      cell: the cell.
      weights: its prepared parameters.
      state: s_0 [*batch, H].
      xs: [T, *batch, ...].
      device: "gpu", "cpu" or "tpu"; None for JAX's default one.
    """
    device = device or jax.default_backend()
    if device not in KERNELS:
        return f"the device is a {device}, and kernels are for {' and '.join(KERNELS)}"
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    if 0 in (jax.tree.leaves(xs)[0].shape[0], *batch_shape(cell, xs), *sizes):
        return "there is no step of any sequence"
    if isinstance(cell.step, DiagonalStep):
        return _first(KERNELS[device]().diagonal, jax.tree.leaves(state), None)
    form = normal_form(cell, weights, state, xs)
    if isinstance(form, str):
        return form
    wide = sorted({str(s.dtype) for s in jax.tree.leaves(state)} - {"float32"})
    if wide:
        return f"the state is {wide[0]}, and kernels carry float32"
    return _first(KERNELS[device]().gated, [form], form)


def _first(kernels: Sequence[Kernel], parts: Sequence[Any], form: Form | None) -> Choice | str:
    """Return the first kernel that supports all of `parts`, or the reason of each."""
    reasons = []
    for kernel in kernels:
        found = [reason for part in parts if (reason := kernel.unsupported(part))]
        if not found:
            return Choice(kernel, form)
        reasons.append(f"{kernel.name}: {found[0]}")
    return "\n".join(reasons)
