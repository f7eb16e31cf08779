"""Which kernel runs a cell on a device: a table for each kind of step, and one rule."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from jax_bptt.core.checks import batch_shape, require
from jax_bptt.core.types import Cell, DiagonalStep, PyTree
from jax_bptt.kernels.form import Form, normal_form

KERNELS: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu_heads", "gpu_cluster"),
    "tpu": ("tpu_resident",),
}
"""For each kind of device the kernels of a `GatedStep`, the one to be preferred first.

A kernel is a module of `jax_bptt.kernels` with four functions; `gpu_heads` documents them:

    unsupported(form) -> str or None            what stands in the way of this form
    interpreter() -> Any                        parameters of the interpreter that runs it on a CPU
    forward(form, state, drives, flags, ...)    all steps
    backward(form, state, states, ...)          the reverse pass of all steps
"""

DIAGONAL_KERNELS: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu_diagonal",),
    "tpu": ("tpu_diagonal",),
}
"""The same for a `DiagonalStep`, whose kernels have three functions:

    unsupported(leaf) -> str or None            what stands in the way of this leaf of the state
    interpreter() -> Any                        parameters of the interpreter that runs it on a CPU
    scan(first, factors, offsets, ...)          the recurrence over all steps, in either direction
"""


class Kernel(NamedTuple):
    """A kernel by the name of its module.

    Pallas takes as long to import as the rest of the library, and few runs need it: hence the name.
    """

    name: str

    @property
    def module(self) -> Any:
        """The module itself."""
        return importlib.import_module(f"jax_bptt.kernels.{self.name}")

    def interpreter(self, interpret: bool) -> Any:
        """Return the parameters of the interpreter, or None to run on the device itself."""
        return self.module.interpreter() if interpret else None


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
        return _first(DIAGONAL_KERNELS[device], jax.tree.leaves(state), None)
    form = normal_form(cell, weights, state, xs)
    if isinstance(form, str):
        return form
    wide = sorted({str(s.dtype) for s in jax.tree.leaves(state)} - {"float32"})
    if wide:
        return f"the state is {wide[0]}, and kernels carry float32"
    return _first(KERNELS[device], [form], form)


def _first(names: Iterable[str], parts: Sequence[Any], form: Form | None) -> Choice | str:
    """Return the first kernel that supports all of `parts`, or the reason of each."""
    reasons = []
    for kernel in map(Kernel, names):
        found = [reason for part in parts if (reason := kernel.module.unsupported(part))]
        if not found:
            return Choice(kernel, form)
        reasons.append(f"{kernel.name}: {found[0]}")
    return "\n".join(reasons)
