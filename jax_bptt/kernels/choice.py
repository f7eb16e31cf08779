"""Which kernel runs a cell on a device: one table and one rule."""

import importlib
from typing import Any, NamedTuple

import jax
from jax.tree_util import register_static

from jax_bptt.core.checks import batch_shape, require
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.kernels.form import Form, normal_form

KERNELS: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu_heads",),
    "tpu": ("tpu_resident",),
}
"""For each kind of device the kernels written for it, the one to be preferred first.

A kernel is a module of `jax_bptt.kernels` with four functions; `gpu_heads` documents them:

    unsupported(form) -> str or None            what stands in the way of this form
    interpreter() -> Any                        parameters of the interpreter that runs it on a CPU
    forward(form, state, drives, flags, ...)    all steps
    backward(form, state, states, ...)          the reverse pass of all steps
"""


@register_static
class Kernel(NamedTuple):
    """A kernel by the name of its module; as a pytree it has no leaves.

    Pallas takes as long to import as the rest of the library, and few runs need it: hence the name.
    """

    name: str

    @property
    def module(self) -> Any:
        """The module itself."""
        return importlib.import_module(f"jax_bptt.kernels.{self.name}")

    @property
    def forward(self) -> Any:
        """All steps of a sequence."""
        return self.module.forward

    @property
    def backward(self) -> Any:
        """The reverse pass of all steps."""
        return self.module.backward

    def interpreter(self, interpret: bool) -> Any:
        """Return the parameters of the interpreter, or None to run on the device itself."""
        return self.module.interpreter() if interpret else None


class Choice(NamedTuple):
    """A kernel and the form in which it takes the cell."""

    kernel: Kernel
    form: Form


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
    if 0 in (jax.tree.leaves(xs)[0].shape[0], *batch_shape(cell, xs)):
        return "there is no step of any sequence"
    form = normal_form(cell, weights, state, xs)
    if isinstance(form, str):
        return form
    wide = sorted({str(s.dtype) for s in jax.tree.leaves(state)} - {"float32"})
    if wide:
        return f"the state is {wide[0]}, and kernels carry float32"
    reasons = []
    for kernel in map(Kernel, KERNELS[device]):
        reason = kernel.module.unsupported(form)
        if reason is None:
            return Choice(kernel, form)
        reasons.append(f"{kernel.name}: {reason}")
    return "\n".join(reasons)
